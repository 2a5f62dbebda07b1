"""What a CPU's kernels of a convolutional network leave to its layers."""

import contextlib

import pytest
import torch


def wanting(noisy):
    return noisy.clone().requires_grad_()


# What is changed of a batch, and what stands around the network.
OTHER_BATCHES = {
    "a gradient of the images": (wanting, contextlib.nullcontext),
    "float64": (torch.Tensor.double, torch.no_grad),
    "no images": (lambda noisy: noisy[:0], torch.no_grad),
    "autocast": (torch.Tensor.clone, lambda: torch.autocast("cpu", torch.bfloat16)),
}

programs = pytest.mark.parametrize(
    "traced", [torch.jit.trace, lambda *given: torch.export.export(*given).module()]
)
