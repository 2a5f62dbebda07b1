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
def test_a_matrix_of_vectors_is_transposed(lanes):
    def write(k):
        rows = k.transposed([k.load("x", i * k.lanes) for i in range(k.lanes)])
        for i, row in enumerate(rows):
            k.store(row, "y", i * k.lanes)

    matrix = np.arange(lanes**2, dtype=np.float32).reshape(lanes, lanes)
    assert np.array_equal(run(write, lanes, matrix, lanes**2).reshape(lanes, lanes), matrix.T)


@pytest.mark.parametrize("lanes", [8, 16])
def test_bounds_leave_what_is_no_number(lanes):
    def write(k):
        x = k.load("x", 0)
        k.store(k.at_least(x, k.constant(-0.5)), "y", 0)
        k.store(k.at_most(x, k.constant(0.5)), "y", k.lanes)
        k.store(k.at_least(x, k.constant(0.0)), "y", 2 * k.lanes)

    x = np.resize([np.nan, -2, -0.5, -0.0, 0.25, 0.5, 3, np.inf], lanes).astype(np.float32)
    found = run(write, lanes, x, 3 * lanes).reshape(3, lanes)
    expected = [np.maximum(x, -0.5), np.minimum(x, 0.5), np.maximum(x, 0)]
    assert np.array_equal(found, expected, equal_nan=True)


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
