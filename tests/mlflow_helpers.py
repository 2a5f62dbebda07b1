"""What the tests of MLflow's side share: databases in no time, and trainings that nobody has run."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import helpers
import pytest
import torch

from lambdanet import files
from lambdanet.config import RunKey
from lambdanet.inference.catalogue import Denoiser
from lambdanet.models import count_parameters, create_model, save_weights
from lambdanet.tracking import export, mlflow_runs, registry

NOISES = {"gaussian-01": helpers.GAUSSIAN, "speckle": {"name": "speckle", "variance": 0.1}}
NETWORKS = {
    "autoencoder": helpers.AUTOENCODER,
    "cnn": {"name": "cnn", "width": 4},
    "dncnn": helpers.DNCNN | {"width": 2},
    "lambda-resnet": {"name": "lambda-resnet", "blocks": "cl", "width": 4, "k": 2, "heads": 2, "m": 3},
    "lambdanet": helpers.LAMBDANET,
    "skip-autoencoder": {"name": "skip-autoencoder", "width": 2},
    "unet": {"name": "unet", "width": 2, "blocks": 1},
}
CLEAN, NOISY = "c" * 64, "d" * 64
EPOCH_METRICS = (*mlflow_runs.LEARNING, "epoch_seconds", "images_per_second")
RUN_KEY = RunKey("tiny", "gaussian-01", "dncnn", 0)
RECORD = {
    "device": "a machine", "computed_by": "winograd", "commit": "0123456789ab", "seconds": 9.5,
    "peak_memory_bytes": 1000, "stage": "train@tiny-gaussian-01-dncnn-0",
    "started": "2026-01-02T03:04:00.125Z", "finished": "2026-01-02T03:05:00.500Z",
    "data": {
        "train": {"images": 32, "clean_sha256": "a" * 64, "noisy_sha256": "b" * 64},
        "test": {"images": 8, "clean_sha256": CLEAN, "noisy_sha256": NOISY},
    },
}  # fmt: skip
_traced = tempfile.TemporaryDirectory(prefix="lambdanet-tests-", ignore_cleanup_errors=True)
builder = export.Builder(Path(_traced.name))  # traces each architecture once in all tests of this process


@functools.cache
def _fresh_database() -> bytes:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "mlflow.db")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        mlflow_runs.connect()
        return path.read_bytes()


def write_database(path):
    """A database as MLflow makes it, which takes MLflow itself seconds; returns its URI."""
    path.write_bytes(_fresh_database())
    return f"sqlite:///{path}"


def use_database(folder, monkeypatch):
    """Make `folder` the current one, with an empty database in it; returns a client."""
    monkeypatch.chdir(folder)
    # MLflow puts its URI into the environment itself; this takes it out again after the test.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", write_database(folder / "mlflow.db"))
    return mlflow_runs.connect()


def trace_once(monkeypatch):
    """Have all that is registered traced by `builder`."""
    monkeypatch.setattr(export, "Builder", lambda _folder: builder)


def register(client, one, train_images=32, builder=builder, **changes):
    """Log a training and make it a version, as `publish` does for the best seed."""
    denoiser = dataclasses.replace(Denoiser.of(one.key, one.scores, train_images), **changes)
    model_id = mlflow_runs.model_of(mlflow_runs.log_training(client, one))
    return registry.register(client, denoiser, one, model_id, builder)


def histories(client, run_id):
    """Every value that a run holds: metric to (step, value, milliseconds), by step."""
    return {
        key: sorted((one.step, one.value, one.timestamp) for one in client.get_metric_history(run_id, key))
        for key in client.get_run(run_id).data.metrics
    }


def runs(client, profile="tiny"):
    """The runs of a profile, the newest first."""
    experiment = client.get_experiment_by_name(f"lambdanet/{profile}")
    return client.search_runs([experiment.experiment_id]) if experiment else []


def state(client, profile="tiny"):
    """Everything that a profile's trainings leave but ids, which MLflow draws, and when results were logged:
    runs by name, and the registry's versions with their aliases."""
    found = {}
    for run in runs(client, profile):
        info, data = run.info, run.data
        found[info.run_name] = {
            "status": info.status, "started": info.start_time, "ended": info.end_time, "params": data.params,
            "tags": {key: value for key, value in data.tags.items() if key != "mlflow.user"},
            "metrics": {
                key: values if key in EPOCH_METRICS else [value[:2] for value in values]
                for key, values in histories(client, info.run_id).items()
            },
            "inputs": sorted((one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs),
        }  # fmt: skip
    versions = [(dataclasses.replace(one, created=""), names) for one, names in registry.denoisers(client)]
    return found, versions


def rows(epochs, images=None):
    """A history; with `images`, as the log has it."""
    found = [
        {"epoch": n, "learning_rate": 0.01 / n, "loss": 0.5 / n, "monitored_psnr": 20.0 + n}
        for n in range(1, epochs + 1)
    ]
    times = [{"seconds": n / 2, "finished": f"2026-01-02T03:04:{n:02}.250Z"} for n in range(1, epochs + 1)]
    return [row | time for row, time in zip(found, times, strict=True)] if images else found


def description(run_key, config):
    how = helpers.TRAIN | {"epochs": 3}
    names = {"profile": run_key.profile, "noise": run_key.noise, "model": run_key.model, "seed": run_key.seed}
    return {"cell": names, "model": config, "noise": NOISES[run_key.noise], "training": how}


def trained(folder, model="dncnn", noise="gaussian-01", profile="tiny", config=None, seed=0, **scores):
    """A network with weights of its own for every `seed`, and made-up scores, as `publish` takes it."""
    run_key = RunKey(profile, noise, model, seed)
    config = config or NETWORKS[model]
    torch.manual_seed(seed)
    network = helpers.with_history(create_model(**config), seed)
    weights = folder / f"{profile}-{run_key.name}.safetensors"
    save_weights(weights, network, description(run_key, config))
    digest = files.sha256(weights)
    scores = {
        "psnr": 24.0, "ssim": 0.75, "psnr_per_image": 24.1,
        "noisy_psnr": 20.0, "noisy_ssim": 0.6, "noisy_psnr_per_image": 20.1,
        "parameters": count_parameters(network), "images": 8,
        "clean_sha256": CLEAN, "noisy_sha256": NOISY, "weights_sha256": digest,
    } | scores  # fmt: skip
    return mlflow_runs.Training(
        key=run_key, description=description(run_key, config), history=rows(3), scores=scores,
        weights_sha256=digest, weights=weights, train_images=32, dataset="patches",
    )  # fmt: skip
