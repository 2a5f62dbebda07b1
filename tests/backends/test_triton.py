"""DnCNN's kernels for a GPU, by Triton's interpreter on the CPU, beside torch in float64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]

# The interpreter has to be chosen before Triton is loaded, so this runs in a process of its own. It cuts
# float32 to bfloat16 where a GPU rounds, and multiplies no bfloat16: the numbers are exact in that.
NORMALISATION = """
*shape, kind, mean = given
torch.manual_seed(0)
dtype = getattr(torch, kind)
y = (mean + 2 * torch.randn(shape)).to(dtype, memory_format=torch.channels_last)
ours = torch.nn.BatchNorm2d(shape[1])
torch.nn.init.uniform_(ours.weight, -1, 2)
torch.nn.init.uniform_(ours.bias, -1, 1)
exact = torch.nn.BatchNorm2d(shape[1]).double()
exact.load_state_dict(ours.state_dict())
mine, theirs = y.clone().requires_grad_(), y.double().requires_grad_()
a, expected = normalization.normalize_and_rectify(mine, ours), F.relu(exact(theirs))
gradient = torch.randn(shape).to(dtype)
a.backward(gradient)
expected.backward(gradient.double())
found = ({
    "a": error(a, expected), "dy": error(mine.grad, theirs.grad),
    "dgamma": error(ours.weight.grad, exact.weight.grad), "dbeta": error(ours.bias.grad, exact.bias.grad),
    "mean": error(ours.running_mean, exact.running_mean), "var": error(ours.running_var, exact.running_var),
})
"""

ENTRANCE = """
b, h, w, c = given
torch.manual_seed(0)
noisy = (128 * torch.randn(b, 3, h, w)).round().clamp(-255, 255) / 128
layer = torch.nn.Conv2d(3, c, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
with torch.no_grad():
    layer.weight.copy_((64 * layer.weight).round() / 64)
exact = layer.weight.detach().double().requires_grad_()
a = first_convolution.convolve_and_rectify(noisy, layer.weight)
expected = F.relu(F.conv2d(noisy.double(), exact, padding=1))
gradient = torch.randn(a.shape).bfloat16()
a.backward(gradient)
expected.backward(gradient.double())
found = ({
    "a": error(a, expected), "dw": error(layer.weight.grad, exact.grad),
    "last": a.is_contiguous(memory_format=torch.channels_last),
})
"""

NETWORK = """
first_convolution.fits = normalization.fits = lambda *_: given
torch.manual_seed(0)
network = DnCNN(depth=4, width=16).to(memory_format=torch.channels_last).train()
plain = copy.deepcopy(network)
noisy, clean = torch.rand(2, 3, 10, 10), torch.rand(2, 3, 10, 10)
losses = []
for layers, run in ((network.dncnn, dncnn.run_layers), (plain.dncnn, lambda layers, images: layers(images))):
    optimizer = torch.optim.Adam(layers.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = run(layers, noisy)
        loss = torch.nn.functional.mse_loss(output.float(), clean)
        loss.backward()
        optimizer.step()
    losses.append(loss.item())
pairs = zip(network.buffers(), plain.buffers(), strict=True)
norms = [[one.float().norm().item() for one in pair] for pair in pairs]
found = ({"losses": losses, "buffers": norms})
"""


PREAMBLE = """
import copy, json, sys, torch
import triton.language as tl
from torch.nn import functional as F
from lambdanet.backends.cuda import dncnn, first_convolution, normalization
from lambdanet.models.dncnn import DnCNN

def error(value, right):
    return ((value.double() - right).norm() / right.norm()).item()

first_convolution.FACTORS = tl.float32
results = []
for script, given in json.load(sys.stdin):
    scope = globals() | {"given": given}
    exec(script, scope)
    results.append(scope["found"])
print(json.dumps(results))
"""
# One block and several, the last one whole, cut, and with a tile of nothing; a mean far from 0.
NORMALISED = [
    [3, 16, 7, 9, "float32", 1.5], [2, 8, 32, 32, "float32", 1000], [5, 64, 12, 12, "bfloat16", 1.5],
]  # fmt: skip
ENTERED = [[5, 12, 12, 64], [1, 1, 1, 16]]


@pytest.fixture(scope="module")
def interpreted():
    """What each script finds for each of its cases, all in one process."""
    cases = [(NORMALISATION, one) for one in NORMALISED] + [(ENTRANCE, one) for one in ENTERED]
    cases += [(NETWORK, True), (NETWORK, False)]
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE], input=json.dumps(cases),
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return lambda script, given: found[cases.index((script, given))]


@pytest.mark.parametrize("given", NORMALISED, ids=str)
def test_normalisation_is_torchs(interpreted, given):
    errors = interpreted(NORMALISATION, given)
    *_, kind, mean = given
    limit = 1e-3 if mean > 100 else 1e-6  # of which y itself has only so many digits left
    rounded = {"a", "dy"} if kind == "bfloat16" else set()
    assert all(error < (5e-3 if name in rounded else limit) for name, error in errors.items()), errors


@pytest.mark.parametrize("given", ENTERED, ids=str)
def test_first_convolution_is_torchs(interpreted, given):
    errors = interpreted(ENTRANCE, given)
    assert errors["a"] < 5e-3
    assert errors["dw"] < 1e-6
    assert errors["last"]


@pytest.mark.parametrize("kernels", [True, False])
def test_network_learns_as_its_layers_do(interpreted, kernels):
    found = interpreted(NETWORK, kernels)
    ours, theirs = found["losses"]
    assert ours == pytest.approx(theirs, rel=0.02)
    for mine, right in found["buffers"]:
        assert mine == pytest.approx(right, rel=0.05)
