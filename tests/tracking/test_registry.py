import contextlib
import dataclasses
import re
import shutil
from datetime import datetime
from pathlib import Path

import helpers
import mlflow
import mlflow_helpers
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException

from lambdanet.inference.catalogue import RULE
from lambdanet.inference.denoise import denoise
from lambdanet.models import MODELS, load_weights
from lambdanet.tracking import export, mlflow_runs, registry

pytestmark = mlflow_helpers.WARNINGS

NAME = "denoiser-gaussian-01"


@pytest.fixture
def client(tmp_path, monkeypatch):
    return mlflow_helpers.use_database(tmp_path, monkeypatch)


def register(client, one, train_images=32):
    run_id = mlflow_runs.log_training(client, one.training)
    return registry.register(client, one.training, run_id, one.weights, train_images, mlflow_helpers.BUILDER)


def holders(client, name=NAME):
    return {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}


def versions(client):
    return [denoiser.version for denoiser, _ in registry.denoisers(client)]


def test_two_processes_that_register_the_same_weights_make_one_version(client, tmp_path, monkeypatch):
    one, real, others = mlflow_helpers.trained(tmp_path), registry._log_model, []

    def log_and_be_late(*words):
        real(*words)
        if not others:
            others.append(None)  # the other process's is not late
            others.append(register(client, one))

    monkeypatch.setattr(registry, "_log_model", log_and_be_late)
    assert register(client, one) is None
    assert [others[1].version, versions(client)] == [1, [1]]
    experiment = client.get_experiment_by_name("lambdanet/tiny").experiment_id
    logged = client.search_logged_models([experiment])
    assert [f"models:/{model.model_id}" for model in logged] == [others[1].source]


def test_a_lost_connection_is_no_registered_model(client, tmp_path, monkeypatch):
    def fail(*words, **more):
        raise MlflowException("API request failed: Connection refused")

    monkeypatch.setattr(client, "create_registered_model", fail)
    with pytest.raises(MlflowException, match="Connection refused"):
        register(client, mlflow_helpers.trained(tmp_path))


def test_every_network_becomes_a_version_with_what_is_known_of_it(client, tmp_path):
    ones = [mlflow_helpers.trained(tmp_path, name) for name in MODELS]
    made = [register(client, one) for one in ones]
    expected = [(NAME, number + 1) for number in range(len(MODELS))]
    assert [(version.name, int(version.version)) for version in made] == expected
    model = client.get_registered_model(NAME)
    assert RULE in model.description
    assert export.CONTRACT in model.description
    runs = {run.data.tags["run"]: run for run in mlflow_helpers.runs(client)}
    for one, version in zip(ones, made, strict=True):
        training, scores = one.training, one.training.scores
        found = client.get_model_version(NAME, version.version)
        assert found.tags == {
            "noise": "gaussian-01", "model": training.key.model, "profile": "tiny", "seed": "0",
            "psnr": "24.0", "ssim": "0.75", "parameters": str(scores["parameters"]), "train_images": "32",
            "clean_sha256": "c" * 64, "noisy_sha256": "d" * 64, "weights_sha256": training.weights_sha256,
        }  # fmt: skip
        assert found.description == (
            f"{training.key.model} for gaussian-01, trained at the scale `tiny` on 32 images: "
            "PSNR 24.00 dB, SSIM 0.750 on 8 test images (noisy: 20.00 dB), "
            f"{scores['parameters']:,} parameters.\n\n{export.CONTRACT}"
        )
        run = runs[training.key.name]
        assert found.run_id == run.info.run_id
        (output,) = run.outputs.model_outputs
        assert found.source == f"models:/{output.model_id}"
        assert client.get_logged_model(output.model_id).status == "READY"

    listed = registry.denoisers(client)
    assert [denoiser.model for denoiser, _ in listed] == list(MODELS)
    assert [denoiser.parameters for denoiser, _ in listed] == [
        one.training.scores["parameters"] for one in ones
    ]
    for (denoiser, _), one in zip(listed, ones, strict=True):
        (tmp_path / "fetched").mkdir(exist_ok=True)
        path = registry.fetch(client, denoiser, tmp_path / "fetched" / denoiser.model)
        assert path.read_bytes() == one.weights.read_bytes()
        assert abs(datetime.fromisoformat(denoiser.created).timestamp() - one.weights.stat().st_mtime) < 120


def test_a_commit_is_recorded_where_the_log_has_it(client, tmp_path):
    one = mlflow_helpers.trained(tmp_path)
    record = {"commit": "0123456789ab", "seconds": 1.0, "peak_memory_bytes": 1}
    one = dataclasses.replace(one, training=dataclasses.replace(one.training, record=record))
    version = register(client, one)
    assert client.get_model_version(NAME, version.version).tags["commit"] == "0123456789ab"


def test_the_same_weights_are_registered_once(client, tmp_path):
    one = mlflow_helpers.trained(tmp_path)
    assert register(client, one).version == 1
    assert register(client, one) is None
    assert register(client, mlflow_helpers.trained(tmp_path, seed=1)).version == 2
    assert register(client, one) is None
    assert versions(client) == [1, 2]
    assert len(client.search_logged_models(["1"])) == 2


def test_weights_that_are_scored_anew_keep_their_version_and_show_the_new_scores(client, tmp_path):
    rival = mlflow_helpers.trained(tmp_path, "autoencoder", psnr=25.0, clean_sha256="e" * 64)
    register(client, mlflow_helpers.trained(tmp_path, psnr=30.0))
    register(client, rival)
    assert registry.assign_aliases(client, "gaussian-01")["champion"].model == "autoencoder"
    again = mlflow_helpers.trained(tmp_path, psnr=26.0, clean_sha256="e" * 64)
    assert register(client, again) is None
    (found, _), _ = registry.denoisers(client)
    assert (found.version, found.psnr, found.clean_sha256) == (1, 26.0, "e" * 64)
    assert "PSNR 26.00 dB" in client.get_model_version("denoiser-gaussian-01", "1").description
    assert registry.assign_aliases(client, "gaussian-01")["champion"].model == "dncnn"
    (run,) = [one for one in mlflow_helpers.runs(client) if one.data.tags["model"] == "dncnn"]
    assert run.data.metrics["psnr"] == 26.0


def test_aliases_follow_the_scores(client, tmp_path):
    def add(seed, images=32, **scores):
        register(client, mlflow_helpers.trained(tmp_path, seed=seed, **scores), images)
        return set(registry.assign_aliases(client, "gaussian-01"))

    every = {"champion", "compact", "dncnn"}
    assert add(0, psnr=24.0) == every
    assert add(1, psnr=23.9) == set()  # worse
    assert holders(client) == dict.fromkeys(every, 1)
    assert add(2, psnr=24.1, parameters=10_000) == {"champion", "dncnn"}  # better, and not compact
    assert holders(client) == {"champion": 3, "dncnn": 3, "compact": 1}
    assert add(3, psnr=24.1, parameters=9_999) == every  # a tie: fewer parameters
    assert add(4, psnr=24.1, parameters=9_999) == set()  # a whole tie: the older one
    assert holders(client) == dict.fromkeys(every, 4)
    assert add(5, images=31, psnr=30.0) == set()  # of fewer training images
    assert add(6, images=33, psnr=20.0) == every  # of more of them
    assert holders(client) == dict.fromkeys(every, 7)
    assert add(7, images=33, psnr=19.0, noisy_sha256="9" * 64) == every  # other test images: the newest's
    assert holders(client) == dict.fromkeys(every, 8)
    assert registry.assign_aliases(client, "gaussian-01") == {}
    assert [(one.version, names) for one, names in registry.denoisers(client) if names] == [
        (8, ("champion", "compact", "dncnn"))
    ]


def test_going_back_to_earlier_test_images_brings_their_champion_back(client, tmp_path):
    first = mlflow_helpers.trained(tmp_path, psnr=26.0)
    other = mlflow_helpers.trained(tmp_path, seed=1, psnr=20.0, noisy_sha256="e" * 64)
    for one, champion in ((first, 1), (other, 2), (first, 1), (first, 1), (other, 2)):
        register(client, one)
        registry.assign_aliases(client, "gaussian-01")
        assert holders(client)["champion"] == champion


def test_an_alias_that_nothing_qualifies_for_any_more_goes(client, tmp_path):
    register(client, mlflow_helpers.trained(tmp_path, "dncnn"))
    registry.assign_aliases(client, "gaussian-01")
    client.set_registered_model_alias(NAME, "mine", "1")
    register(client, mlflow_helpers.trained(tmp_path, "autoencoder", profile="large"), train_images=64)
    moved = registry.assign_aliases(client, "gaussian-01")
    assert moved["dncnn"] is None
    assert holders(client) == {"champion": 2, "compact": 2, "autoencoder": 2, "mine": 1}


def test_how_many_images_a_version_was_trained_on_stays(client, tmp_path):
    one = mlflow_helpers.trained(tmp_path)
    register(client, one, train_images=32)
    register(client, one, train_images=60_000)
    assert registry.denoisers(client)[0][0].train_images == 32
    assert "on 32 images" in client.get_model_version(NAME, "1").description


def test_each_noise_has_its_own_model(client, tmp_path):
    for noise in ("speckle", "gaussian-01"):
        assert register(client, mlflow_helpers.trained(tmp_path, noise=noise)).version == 1
        assert set(registry.assign_aliases(client, noise)) == {"champion", "compact", "dncnn"}
    assert [one.noise for one, _ in registry.denoisers(client)] == ["gaussian-01", "speckle"]
    assert "the noise speckle" in client.get_registered_model("denoiser-speckle").description


@pytest.mark.parametrize("name", ["champion", "compact"])
def test_a_model_must_not_be_named_like_an_alias(client, tmp_path, name):
    one = mlflow_helpers.trained(tmp_path, name, config=mlflow_helpers.NETWORKS["dncnn"])
    with pytest.raises(ValueError, match=f"a model cannot be named {name}: it is an alias of the registry"):
        register(client, one)
    assert client.search_registered_models() == []


def test_a_persons_own_versions_are_left_alone(client, tmp_path):
    register(client, mlflow_helpers.trained(tmp_path))
    own = client.create_model_version(NAME, str(tmp_path / "somewhere"), tags={"psnr": "99", "by": "hand"})
    client.set_registered_model_alias(NAME, "staging", own.version)
    client.create_registered_model("another")
    assert register(client, mlflow_helpers.trained(tmp_path, seed=1, psnr=25.0)).version == 3
    moved = registry.assign_aliases(client, "gaussian-01")
    assert {alias: one.version for alias, one in moved.items()} == dict.fromkeys(
        ["champion", "compact", "dncnn"], 3
    )
    assert holders(client)["staging"] == 2
    assert versions(client) == [1, 3]


def stored(tmp_path):
    """The one weights file among the artifacts."""
    (path,) = (tmp_path / "mlartifacts").rglob("weights.safetensors")
    return path


def test_tampered_weights_are_not_given_out_and_are_mended(client, tmp_path):
    one = mlflow_helpers.trained(tmp_path)
    register(client, one)
    ((denoiser, _),) = registry.denoisers(client)
    content = bytearray(one.weights.read_bytes())
    content[-1] ^= 1
    stored(tmp_path).write_bytes(content)
    with pytest.raises(ValueError, match="are not those that were registered") as caught:
        registry.fetch(client, denoiser, tmp_path / "fetched")
    assert str(caught.value) == f"the weights of {NAME} version 1 are not those that were registered"
    assert register(client, one) is None
    path = registry.fetch(client, denoiser, tmp_path / "again")
    assert path.read_bytes() == one.weights.read_bytes()
    assert versions(client) == [1]


@pytest.mark.parametrize("move", [Path.rename, shutil.copytree])
def test_a_folder_that_was_moved_or_copied_is_named_and_the_old_place_left_alone(tmp_path, monkeypatch, move):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    client = mlflow_helpers.use_database(old, monkeypatch)
    register(client, mlflow_helpers.trained(tmp_path))
    move(old, new)
    there = helpers.contents(old)
    monkeypatch.chdir(new)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{new / 'mlflow.db'}")
    client = mlflow_runs.connect()
    line = (
        f"this folder was moved or copied from {old}, where its mlflow.db still points: "
        "delete mlflow.db and mlartifacts here, then `lambdanet models sync` makes them again"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        register(client, mlflow_helpers.trained(tmp_path, seed=1))
    ((denoiser, _),) = registry.denoisers(client)
    if move is Path.rename:
        with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
            registry.fetch(client, denoiser, tmp_path / "fetched")
    else:  # the original's are the same
        assert registry.fetch(client, denoiser, tmp_path / "fetched").is_file()
    assert helpers.contents(old) == there


def test_deleted_artifacts_come_back_into_the_same_version(client, tmp_path):
    one = mlflow_helpers.trained(tmp_path)
    register(client, one)
    ((denoiser, _),) = registry.denoisers(client)
    shutil.rmtree(tmp_path / "mlartifacts")
    with pytest.raises(ValueError, match=f"the files of {NAME} version 1 are not in MLflow's") as caught:
        registry.fetch(client, denoiser, tmp_path / "fetched")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("`lambdanet models sync` brings them back")

    assert register(client, one) is None
    assert versions(client) == [1]
    assert registry.fetch(client, denoiser, tmp_path / "again").read_bytes() == one.weights.read_bytes()
    noisy = np.random.default_rng(0).random((2, 3, 9, 12), np.float32)
    expected = denoise(load_weights(one.weights)[0], torch.from_numpy(noisy)).clamp(0, 1).numpy()
    output = mlflow.pyfunc.load_model(f"models:/{NAME}/1").predict(noisy)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)


def test_reading_makes_no_database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match=r"there is no registry yet \(mlflow.db\)") as caught:
        registry.open_registry()
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_registry_holds_no_denoisers(client):
    assert registry.denoisers(registry.open_registry()) == []


def test_of_networks_that_differ_in_weights_one_is_traced_for_all(tmp_path, monkeypatch):
    ones = [mlflow_helpers.trained(tmp_path / str(seed), "skip-autoencoder", seed=seed) for seed in range(3)]
    ones[1].weights.write_bytes(b"damaged")
    traced, real = [], registry.build
    monkeypatch.setattr(registry, "build", lambda *words: traced.append(words) or real(*words))
    builder, folders = registry.Builder(tmp_path / "built"), {}
    for one in ones:
        with contextlib.suppress(ValueError):
            folders[one.weights] = builder.build(one.weights)
    assert [*folders] == [ones[0].weights, ones[2].weights]
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        builder.build(ones[1].weights)
    assert len(traced) == 1
    cards = []
    for one in (ones[0], ones[2]):
        folder = folders[one.weights]
        assert (folder / registry.WEIGHTS).read_bytes() == one.weights.read_bytes()
        export.verify(mlflow.pytorch.load_model(str(folder)), load_weights(one.weights)[0])
        cards.append(mlflow.models.Model.load(str(folder)))
    assert cards[0].model_uuid != cards[1].model_uuid
    assert cards[0].flavors == cards[1].flavors
