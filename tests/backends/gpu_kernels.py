"""DnCNN's kernels for a GPU beside torch in float64: how far apart each result is, by norm.

As a script, which Triton's interpreter runs on the CPU where TRITON_INTERPRET says so: reads names of these
functions and their arguments from stdin and prints what they give. The interpreter cuts float32 to bfloat16
where a GPU rounds, and multiplies no bfloat16: with `exact`, the numbers are exact in that.
"""

import copy
import json
import sys

import torch
import triton.language as tl
from torch import nn
from torch.nn import functional as F

from lambdanet.backends.cuda import dncnn, first_convolution, normalization
from lambdanet.models.dncnn import DnCNN


def error(value, right):
    return ((value.double() - right).norm() / right.norm()).item()


def normalisation(shape, dtype, mean, device="cpu"):
    torch.manual_seed(0)
    y = mean + 2 * torch.randn(shape, device=device)
    y = y.to(getattr(torch, dtype), memory_format=torch.channels_last)
    ours = nn.BatchNorm2d(shape[1], device=device)
    nn.init.uniform_(ours.weight, -1, 2)
    nn.init.uniform_(ours.bias, -1, 1)
    exact = nn.BatchNorm2d(shape[1], device=device).double()
    exact.load_state_dict(ours.state_dict())
    fits = normalization.fits(y, ours)
    mine, theirs = y.clone().requires_grad_(), y.double().requires_grad_()
    a, expected = normalization.normalize_and_rectify(mine, ours), F.relu(exact(theirs))
    gradient = torch.randn_like(y)
    a.backward(gradient)
    expected.backward(gradient.double())
    return fits, {
        "a": error(a, expected),
        "dy": error(mine.grad, theirs.grad),
        "dgamma": error(ours.weight.grad, exact.weight.grad),
        "dbeta": error(ours.bias.grad, exact.bias.grad),
        "mean": error(ours.running_mean, exact.running_mean),
        "var": error(ours.running_var, exact.running_var),
    }


def convolution(shape, exact, device="cpu"):
    torch.manual_seed(0)
    b, h, w, c = shape
    noisy = torch.rand(b, 3, h, w, device=device)
    layer = nn.Conv2d(3, c, 3, padding=1, bias=False, device=device).to(memory_format=torch.channels_last)
    if exact:
        noisy = (128 * noisy).round() / 128
        layer.weight.data = (64 * layer.weight.data).round() / 64
    fits = first_convolution.fits(noisy, layer)
    a = first_convolution.convolve_and_rectify(noisy, layer.weight)
    gradient = torch.randn_like(a)
    a.backward(gradient)
    rounded = layer.weight.detach().bfloat16().double().requires_grad_()
    expected = F.relu(F.conv2d(noisy.bfloat16().double(), rounded, padding=1))
    expected.backward(torch.where(a > 0, gradient, 0).double())
    assert a.is_contiguous(memory_format=torch.channels_last)
    return fits, {"a": error(a, expected), "dw": error(layer.weight.grad, rounded.grad)}


def network(kernels):
    """A DnCNN's last loss, and the norms of its buffers, each by the kernels' code and by its layers."""
    first_convolution.fits = normalization.fits = lambda *_: kernels
    torch.manual_seed(0)
    ours = DnCNN(depth=4, width=16).to(memory_format=torch.channels_last).train()
    plain = copy.deepcopy(ours)
    noisy, clean = torch.rand(2, 3, 10, 10), torch.rand(2, 3, 10, 10)
    losses = []
    for layers, run in ((ours.dncnn, dncnn.run_layers), (plain.dncnn, lambda layers, images: layers(images))):
        optimizer = torch.optim.Adam(layers.parameters(), 0.01)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                output = run(layers, noisy)
            loss = F.mse_loss(output.float(), clean)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    pairs = zip(ours.buffers(), plain.buffers(), strict=True)
    return losses, [[one.float().norm().item() for one in pair] for pair in pairs]


if __name__ == "__main__":
    first_convolution.FACTORS = tl.float32
    print(json.dumps([globals()[name](*given) for name, given in json.load(sys.stdin)]))
