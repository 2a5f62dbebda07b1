"""`lambdanet models onnx`: skipped where the packages of the extra `onnx` are not installed."""

import json

import helpers
import numpy as np
import pytest
import torch

from lambdanet import backends
from lambdanet.inference.denoise import denoise
from lambdanet.models import MODELS, create_model, load_weights, save_weights

SIZES = ((1, 33, 31), (5, 8, 70), (1, 160, 96))  # none that `export` itself looks at
MORE = {
    "lambdanet, u = 4": {"name": "lambdanet", "u": 4, "m": 7, "inner_skip": True, "skip": False},
    "lambdanet, layer norm": {"name": "lambdanet", "m": 5, "norm": "layer", "activation": "elu"},
    "dncnn, residual": {"name": "dncnn", "depth": 3, "width": 4, "residual": True, "outer_bias": True},
}
SPECKLE = {"name": "speckle", "variance": 0.1}  # is clipped, so the program clips its images
NETWORKS = {name: {"name": name} for name in sorted(MODELS)} | MORE


def written(folder, hyperparameters):
    """The weights file of a network whose batch norms have seen something."""
    torch.manual_seed(0)
    model = helpers.with_history(create_model(**hyperparameters))
    save_weights(folder / "w.safetensors", model, {"model": hyperparameters, "noise": SPECKLE})
    return folder / "w.safetensors"


@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_gives_what_the_network_gives(tmp_path, name):
    onnx, onnxruntime = (pytest.importorskip(package) for package in ("onnx", "onnxruntime"))
    pytest.importorskip("onnxscript")
    weights, path = written(tmp_path, NETWORKS[name]), tmp_path / "new/model.onnx"
    done = helpers.lambdanet("models", "onnx", weights, "-o", path)
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"{path}: written, opset 20, of {weights}; differs from the network by at")
    assert [one.name for one in path.parent.iterdir()] == ["model.onnx"]

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 20)]
    details = {one.key: one.value for one in model.metadata_props}
    assert details["opset"] == "20"
    assert json.loads(details["description"]) == {"model": NETWORKS[name], "noise": SPECKLE}
    assert b".py" not in path.read_bytes()  # no stack traces

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for one, label in ((session.get_inputs()[0], "noisy"), (session.get_outputs()[0], "clean")):
        assert (one.name, one.type, one.shape) == (label, "tensor(float)", ["n", 3, "height", "width"])
    network, _ = load_weights(weights)
    for n, h, w in SIZES:
        noisy = np.random.default_rng(0).normal(0.5, 0.4, (n, 3, h, w)).astype(np.float32)
        (output,) = session.run(None, {"noisy": noisy})
        with backends.forced(backends.REFERENCE):
            expected = denoise(network, torch.from_numpy(noisy.clip(0, 1))).clamp(0, 1).numpy()
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)
        assert output.std() > 1e-3


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    weights = written(tmp_path, {"name": "lambdanet", "m": 3, "decoder": "connected", "side": 8})
    before = helpers.contents(tmp_path)
    said = helpers.one_line(helpers.lambdanet("models", "onnx", weights, "-o", tmp_path / "m.onnx"))
    assert said.startswith(f"error: {weights}: this network takes images of 8 x 8 only, not of any size")
    assert helpers.contents(tmp_path) == before
