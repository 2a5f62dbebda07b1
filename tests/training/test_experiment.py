import csv
import dataclasses

import helpers
import numpy as np
import pytest

from lambdanet import config
from lambdanet.config import Training
from lambdanet.data.arrays import load_images
from lambdanet.data.images import to_tensor
from lambdanet.inference.denoise import denoise
from lambdanet.models import load_weights
from lambdanet.training.experiment import train_run


@pytest.mark.parametrize(
    "model", [helpers.AUTOENCODER, helpers.DNCNN, helpers.LAMBDANET], ids=lambda m: m["name"]
)
def test_middle_of_large_test_images_is_monitored(model, tmp_path, monkeypatch):
    """Whole photographs are of sizes that the auto-encoder does not take."""
    clean = {"train": helpers.patches(16), "test": helpers.patches(4, size=101, seed=1)[:, :75]}
    for split, images in clean.items():
        for name, values in {"clean": images, "noisy": helpers.noisy(images)}.items():
            (tmp_path / name).mkdir(exist_ok=True)
            np.save(tmp_path / name / f"{split}.npy", values)
    helpers.write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    run = config.load("profile.yaml").run("gaussian-01", model["name"], 0)
    out = tmp_path / "out"
    settings = Training(**helpers.TRAIN | {"epochs": 1, "learning_rate": 1e-3})
    places = {"clean": tmp_path / "clean", "noisy": tmp_path / "noisy", "folder": out}
    train_run(dataclasses.replace(run, settings=settings, **places), device="cpu")
    (row,) = csv.DictReader((out / "history.csv").read_text().splitlines())
    rows, columns = slice(5, 69), slice(18, 82)
    x, y = (to_tensor(load_images(tmp_path / name, "test")[:, rows, columns]) for name in ("clean", "noisy"))
    network, _ = load_weights(out / "weights.safetensors")
    mse = (denoise(network, y).clamp(0, 1) - x).square().mean().item()
    assert float(row["monitored_psnr"]) == pytest.approx(-10 * np.log10(mse), abs=1e-3)
