import dataclasses
import re
import shutil
import threading
from pathlib import Path
from unittest.mock import Mock

import helpers
import mlflow_helpers
import pytest
from mlflow.exceptions import MlflowException
from mlflow_helpers import register, trained

from lambdanet.cards import LICENCE, LIMITS
from lambdanet.inference.catalogue import RULE
from lambdanet.tracking import export, mlflow_runs, registry

NOISE, NAME = "gaussian-01", "denoiser-gaussian-01"


def versions(client):
    return [denoiser.version for denoiser, _ in registry.denoisers(client)]


def test_a_version_has_what_is_known_of_its_network(client, tmp_path):
    one = dataclasses.replace(trained(tmp_path), record={"commit": "0123456789ab"})
    version = register(client, one, mean_psnr=23.5)
    model = client.get_registered_model(NAME)
    assert RULE in model.description
    assert export.CONTRACT in model.description
    found = client.get_model_version(NAME, version.version)
    assert found.tags == {
        "noise": "gaussian-01", "model": "dncnn", "profile": "tiny", "seed": "0", "psnr": "24.0",
        "ssim": "0.75", "mean_psnr": "23.5", "parameters": "148", "train_images": "32",
        "clean_sha256": "c" * 64, "noisy_sha256": "d" * 64,
        "weights_sha256": one.weights_sha256, "commit": "0123456789ab",
    }  # fmt: skip
    assert found.description == (
        "dncnn for gaussian-01, 148 parameters; profile `tiny`, seed 0.\n\n"
        "- **Data**: 32 images of patches, with the noise gaussian (sigma 0.1)\n"
        "- **Training**: 3 epochs, batches of 8, learning rate 0.01, loss mse; commit 0123456789ab\n"
        "- **Scores**: PSNR 24.00 dB, SSIM 0.750 on 8 test images (noisy: 20.00 dB)\n"
        f"- **Limits**: {LIMITS}\n- **Licence**: {LICENCE}\n\n{export.CONTRACT}"
    )
    (run,) = mlflow_helpers.runs(client)
    (output,) = run.outputs.model_outputs
    assert (found.run_id, found.source) == (run.info.run_id, f"models:/{output.model_id}")
    ((denoiser, _),) = registry.denoisers(client)
    path = registry.fetch(client, denoiser, tmp_path / "fetched")
    assert path.read_bytes() == one.weights.read_bytes()


def test_the_same_weights_are_registered_once(client, tmp_path):
    one = trained(tmp_path)
    assert register(client, one).version == 1
    assert register(client, one) is None
    assert register(client, trained(tmp_path, seed=1)).version == 2
    assert register(client, one) is None
    assert (versions(client), len(client.search_logged_models(["1"]))) == ([1, 2], 2)


def test_two_that_register_the_same_weights_at_once_leave_one_version(client, tmp_path, monkeypatch):
    """Both look before either has made its version, as processes with a remote server may."""
    one, together = trained(tmp_path), threading.Barrier(2, timeout=helpers.PATIENCE)
    mlflow_runs.log_training(client, one)
    builder = mlflow_helpers.builder
    built, alone = builder.build, threading.Lock()  # a builder is for one thread

    def build(*words, **ids):
        with alone:
            built(*words, **ids)
        together.wait()

    monkeypatch.setattr(builder, "build", build)
    real, failures = client.log_model_artifacts, [FileExistsError(), None, FileExistsError()]

    def store(*words):
        if failures and (failure := failures.pop()):
            raise failure
        real(*words)

    monkeypatch.setattr(client, "log_model_artifacts", store)  # as MLflow does when both make a folder
    (kept,) = [version for version in helpers.at_once(2, lambda: register(client, one)) if version]
    assert [kept.version, versions(client)] == [1, [1]]


def test_a_lost_connection_is_no_registered_model(client, tmp_path, monkeypatch):
    lost = MlflowException("API request failed: Connection refused")
    monkeypatch.setattr(client, "create_registered_model", Mock(side_effect=lost))
    with pytest.raises(MlflowException, match="Connection refused"):
        register(client, trained(tmp_path))


def test_weights_that_are_scored_anew_keep_their_version_and_show_the_new_scores(client, tmp_path):
    register(client, trained(tmp_path, psnr=30.0))
    register(client, trained(tmp_path, "autoencoder", psnr=25.0, clean_sha256="e" * 64))
    assert registry.assign_aliases(client, NOISE)["champion"].model == "autoencoder"
    again = trained(tmp_path, psnr=26.0, clean_sha256="e" * 64)
    assert register(client, again, train_images=60_000) is None
    (found, _), _ = registry.denoisers(client)
    # Without a log, today's params.yaml does not rewrite how many images it was trained on.
    assert (found.version, found.psnr, found.clean_sha256, found.train_images) == (1, 26.0, "e" * 64, 32)
    description = client.get_model_version(NAME, "1").description
    assert "PSNR 26.00 dB" in description
    assert "32 images" in description
    assert registry.assign_aliases(client, NOISE)["champion"].model == "dncnn"
    (run,) = [one for one in mlflow_helpers.runs(client) if one.data.tags["model"] == "dncnn"]
    assert run.data.metrics["psnr"] == 26.0


def test_an_alias_that_nothing_qualifies_for_any_more_goes_and_users_versions_stay(client, tmp_path):
    register(client, trained(tmp_path, "dncnn"))
    users = client.create_model_version(NAME, str(tmp_path / "somewhere"), tags={"psnr": "99", "by": "me"})
    client.set_registered_model_alias(NAME, "staging", users.version)
    client.create_registered_model("another")
    registry.assign_aliases(client, NOISE)
    register(client, trained(tmp_path, "autoencoder", profile="large"), train_images=64)
    assert registry.assign_aliases(client, NOISE)["dncnn"] is None
    found = {alias: int(version) for alias, version in client.get_registered_model(NAME).aliases.items()}
    assert found == {"champion": 3, "compact": 3, "autoencoder": 3, "staging": 2}
    assert versions(client) == [1, 3]


@pytest.mark.parametrize("name", ["champion", "compact"])
def test_a_model_must_not_be_named_like_an_alias(client, tmp_path, name):
    one = trained(tmp_path, name, config=mlflow_helpers.NETWORKS["dncnn"])
    with pytest.raises(ValueError, match=f"a model cannot be named {name}: it is an alias of the registry"):
        register(client, one)
    assert client.search_registered_models() == []


def test_tampered_or_lost_weights_are_not_given_out(client, tmp_path):
    one = trained(tmp_path)
    register(client, one)
    ((denoiser, _),) = registry.denoisers(client)
    (stored,) = (tmp_path / "mlartifacts").rglob("weights.safetensors")
    *content, last = one.weights.read_bytes()
    stored.write_bytes(bytes([*content, last ^ 1]))
    again = "delete this version in MLflow, then `lambdanet models sync` makes it again"
    said = helpers.refusal(registry.fetch, client, denoiser, tmp_path / "fetched")
    assert said == f"the weights of {NAME} version 1 are not those registered; {again}"
    stored.unlink()
    said = helpers.refusal(registry.fetch, client, denoiser, tmp_path / "fetched")
    assert re.fullmatch(rf"the files of {NAME} version 1 are missing \(.*\); {again}", said)
    client.delete_model_version(NAME, "1")
    assert register(client, one).version == 2
    ((denoiser, _),) = registry.denoisers(client)
    assert registry.fetch(client, denoiser, tmp_path / "again").read_bytes() == one.weights.read_bytes()


@pytest.mark.parametrize("move", [Path.rename, shutil.copytree])
def test_a_folder_that_was_moved_or_copied_is_named_and_the_old_place_left_alone(tmp_path, monkeypatch, move):
    old, new = helpers.folder(tmp_path / "old"), tmp_path / "new"
    mlflow_runs.log_training(mlflow_helpers.use_database(old, monkeypatch), trained(tmp_path))
    move(old, new)
    there = helpers.contents(old)
    monkeypatch.chdir(new)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{new / 'mlflow.db'}")
    said = helpers.refusal(mlflow_runs.log_training, mlflow_runs.connect(), trained(tmp_path, seed=1))
    assert said == (
        f"this folder was moved or copied from {old}, where its mlflow.db still points: "
        "delete mlflow.db and mlartifacts here, then `lambdanet models sync` makes them again"
    )
    assert helpers.contents(old) == there
