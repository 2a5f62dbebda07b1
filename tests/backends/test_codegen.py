"""Kernels' instructions on vectors, against numpy."""

import inspect

import numpy as np
import pytest
from llvmlite import ir

from lambdanet.backends.cpu import codegen


def aligned(values):
    """Floats where vectors may lie."""
    memory = np.zeros(np.size(values) + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    found = memory[first : first + np.size(values)]
    found[:] = np.ravel(values)
    return found


def run(write, lanes, x, size):
    """What a kernel writes to y, of `size` floats that were -1 before."""
    x, y = aligned(x), aligned(np.full(size, -1))
    request = f"{lanes} {inspect.getsource(write)}"
    kernels = codegen.compile_kernels({"test": (["x", "y"], write)}, lanes, request)
    kernels["test"](x.ctypes.data, y.ctypes.data)
    return y


@pytest.mark.parametrize("lanes", [8, 16])
def test_whole_lines_are_streamed_and_waited_for(lanes):
    def write(k):
        with k.loop(64) as i:
            k.stream(k.load("x", (i, k.lanes)), k.at("y", (i, k.lanes)))

    x = np.arange(64 * lanes, dtype=np.float32)
    assert np.array_equal(run(write, lanes, x, 64 * lanes), x)
    module = ir.Module()
    kernel = codegen.Kernel(module, "test", ["x", "y"], lanes)
    write(kernel)
    kernel.finish()
    text = str(module)
    assert ("!nontemporal" in text) == ("fence seq_cst" in text) == (lanes == 16)
