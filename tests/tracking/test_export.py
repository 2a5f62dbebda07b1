import contextlib

import mlflow
import mlflow_helpers
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException

from lambdanet.inference.denoise import denoise
from lambdanet.models import MODELS, create_model, load_weights
from lambdanet.tracking import export

NAMES = sorted(MODELS)
SIZES = ((1, 32, 32), (7, 33, 31), (1, 8, 8), (2, 8, 9), (1, 512, 512))


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """Every network and the program that `mlflow.pyfunc` makes of its version: by the network's name."""
    folder = tmp_path_factory.mktemp("portable")
    with pytest.MonkeyPatch.context() as monkeypatch:
        client = mlflow_helpers.use_database(folder, monkeypatch)
        found = {}
        for name in NAMES:
            one = mlflow_helpers.trained(folder, name)
            version = mlflow_helpers.register(client, one)
            program = mlflow.pyfunc.load_model(f"models:/{version.name}/{version.version}")
            found[name] = load_weights(one.weights)[0], program
        yield found


def images(n, h, w, seed=0):
    """With noise that leaves [0, 1]."""
    return np.random.default_rng(seed).normal(0.5, 0.4, (n, 3, h, w)).astype(np.float32)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_program_gives_what_the_network_gives(registered, name, size):
    network, program = registered[name]
    noisy = images(*size)
    output = program.predict(noisy)
    expected = denoise(network, torch.from_numpy(noisy)).clamp(0, 1).numpy()
    assert (output.dtype, output.shape) == (np.float32, noisy.shape)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)
    assert output.std() > 0.01


FINE = images(2, 32, 32).clip(0, 1)
NAN = FINE.copy()
NAN[1, 2, 3, 4] = np.nan
REFUSED = {
    "too low": FINE[:, :, :7],
    "too narrow": FINE[..., :7],
    "0 to 255": 255 * FINE,
    "nan": NAN,
    "infinite": np.where(np.isnan(NAN), np.float32(np.inf), NAN),
}


def test_another_type_or_shape_is_an_error(registered):
    channels_last = np.ascontiguousarray(FINE.transpose(0, 2, 3, 1))
    for images in (FINE.astype(float), (255 * FINE).astype(np.uint8), channels_last, FINE[0], FINE[:, :1]):
        with pytest.raises(MlflowException, match="schema"):
            registered["dncnn"][1].predict(images)


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("name", NAMES)
def test_too_small_images_and_wrong_values_are_errors(registered, name, what):
    with pytest.raises((AssertionError, RuntimeError)):
        registered[name][1].predict(REFUSED[what])


def test_a_program_that_was_traced_for_some_sizes_only_is_not_registered(tmp_path, monkeypatch):
    client = mlflow_helpers.use_database(tmp_path, monkeypatch)
    monkeypatch.setattr(export, "dynamic_sizes", lambda network: contextlib.nullcontext())
    one = mlflow_helpers.trained(tmp_path, "autoencoder")
    with pytest.raises(ValueError, match="the traced network refuses images of 8 x 8") as caught:
        mlflow_helpers.register(client, one, builder=export.Builder(tmp_path))
    assert "\n" not in str(caught.value)
    assert client.search_model_versions("name='denoiser-gaussian-01'") == []


def test_a_program_of_other_weights_is_refused(tmp_path):
    both = [mlflow_helpers.trained(tmp_path, "lambdanet", seed=seed) for seed in (0, 1)]
    network, other = (load_weights(one.weights)[0] for one in both)
    export.verify(export.Portable(network, {}), network)
    with pytest.raises(ValueError, match="gives something else than the network at 8 x 8"):
        export.verify(export.Portable(other, {}), network)


@pytest.mark.parametrize("noise", ["gaussian", "speckle"])
def test_a_program_clips_images_if_its_network_learned_from_clipped_ones(noise):
    network, noisy = create_model("cnn", width=2).eval(), torch.from_numpy(images(2, 16, 16))
    seen = noisy if noise == "gaussian" else noisy.clamp(0, 1)
    expected = denoise(network, seen).clamp(0, 1)
    torch.testing.assert_close(export.Portable(network, {"noise": {"name": noise}})(noisy), expected)


def test_networks_that_differ_in_weights_and_clipping_only_are_traced_once(tmp_path, monkeypatch):
    traced, trace = [], export._trace
    monkeypatch.setattr(export, "_trace", lambda *words: traced.append(trace(*words)))
    noisy, builder = torch.from_numpy(images(1, 33, 31)), export.Builder(tmp_path / "traced")
    for seed, noise in enumerate(("speckle", "gaussian-01", "speckle")):
        one = mlflow_helpers.trained(tmp_path, "dncnn", noise, seed=seed)
        builder.build(one.weights, tmp_path / f"{seed}", run_id="r", model_id=f"m{seed}")
        program = torch.export.load(tmp_path / f"{seed}" / export.PROGRAM).module()
        network, description = load_weights(one.weights)
        seen = noisy.clamp(0, 1) if noise == "speckle" else noisy
        assert description["noise"]["name"] == noise.partition("-")[0]
        expected = denoise(network, seen).clamp(0, 1)
        torch.testing.assert_close(program(noisy), expected, rtol=0, atol=1e-5)
        assert mlflow.models.Model.load(str(tmp_path / f"{seed}")).model_id == f"m{seed}"
    assert len(traced) == 1
