"""A training step by one backend or another: what it gives, and how far apart two are."""

import copy

import torch
import torch.nn.functional as F

from lambdanet import backends

KEYS = ("output", "gradient", "statistics", "evaluation")


def selected(model, *call):
    """The name of the backend that takes a call."""
    found = backends.select(model, *call)
    return found.name if found else backends.REFERENCE


def learn(backend, model, noisy, clean, dtype=torch.float32):
    """What a training step gives and leaves, and the output of an evaluation after it."""
    model = copy.deepcopy(model).to(dtype).train()
    with backends.forced(backend):
        output = model(noisy.to(dtype))
        F.mse_loss(output, clean.to(dtype)).backward()
        with torch.no_grad():
            evaluated = model.eval()(noisy.to(dtype))
    return {
        "output": [output.detach()],
        # A shift before a normalisation has no influence: its gradient is 0, or what rounding leaves.
        "gradient": [p.grad for name, p in model.named_parameters() if name != "shortcut.0.bias"],
        "statistics": [b for b in model.buffers() if b.is_floating_point()],
        "evaluation": [evaluated],
        "batches": [b.item() for b in model.buffers() if not b.is_floating_point()],
    }


def content(found):
    """All bytes of what `learn` gives."""
    return [tensor.numpy().tobytes() for key in KEYS for tensor in found[key]]


def error(ours, exact):
    """By norm, over all gradients together, and over all statistics."""
    found = {}
    for key in KEYS:
        if exact[key]:
            mine, right = (torch.cat([one.flatten() for one in each[key]]).double() for each in (ours, exact))
            found[key] = ((mine - right).norm() / right.norm()).item()
    return found
