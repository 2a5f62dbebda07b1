"""DnCNN's kernels for a GPU, by Triton's interpreter on the CPU, beside torch in float64."""

import json
import os
from pathlib import Path

import helpers
import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("gpu_kernels.py")
# One block and several, the last one whole, cut, and with a tile of nothing; a mean far from 0.
NORMALISED = [
    [[3, 16, 7, 9], "float32", 1.5], [[2, 8, 32, 32], "float32", 1000], [[5, 64, 12, 12], "bfloat16", 1.5],
]  # fmt: skip
CONVOLVED = [[[5, 12, 12, 64], True], [[1, 1, 1, 16], True]]


@pytest.fixture(scope="module")
def interpreted():
    """What each function gives for each of its cases, all in one process: Triton asks once for its mode."""
    cases = [["normalisation", one] for one in NORMALISED] + [["convolution", one] for one in CONVOLVED]
    cases += [["network", [True]], ["network", [False]]]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(helpers.ROOT)}
    done = helpers.python(SCRIPT, input=json.dumps(cases), env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return lambda *case: found[cases.index([*case])]


@pytest.mark.parametrize("given", NORMALISED, ids=str)
def test_normalisation_is_torchs(interpreted, given):
    _, errors = interpreted("normalisation", given)
    _, dtype, mean = given
    limit = 1e-3 if mean > 100 else 1e-6  # of which y itself has only so many digits left
    rounded = {"a", "dy"} if dtype == "bfloat16" else set()
    assert all(error < (5e-3 if name in rounded else limit) for name, error in errors.items()), errors


@pytest.mark.parametrize("given", CONVOLVED, ids=str)
def test_first_convolution_is_torchs(interpreted, given):
    _, errors = interpreted("convolution", given)
    assert errors["a"] < 5e-3
    assert errors["dw"] < 1e-6


@pytest.mark.parametrize("kernels", [True, False])
def test_network_learns_as_its_layers_do(interpreted, kernels):
    (ours, theirs), buffers = interpreted("network", [kernels])
    assert ours == pytest.approx(theirs, rel=0.02)
    for mine, right in buffers:
        assert mine == pytest.approx(right, rel=0.05)
