"""Kernels' instructions on vectors."""

import pytest
from llvmlite import ir

from lambdanet.backends.cpu import codegen


@pytest.mark.parametrize("lanes", [8, 16])
def test_lines_that_are_streamed_are_waited_for(lanes):
    """Of 64 bytes; a thread that reads them must find them written. What kernels compute, others test."""
    module = ir.Module()
    kernel = codegen.Kernel(module, "test", ["x", "y"], lanes)
    with kernel.loop(64) as i:
        kernel.stream(kernel.load("x", (i, kernel.lanes)), kernel.at("y", (i, kernel.lanes)))
    kernel.finish()
    text = str(module)
    assert ("!nontemporal" in text) == ("fence seq_cst" in text) == (lanes == 16)
