import csv

import helpers
import numpy as np
import pytest

from lambdanet import datasets
from lambdanet.config import Cell, Training
from lambdanet.denoise import denoise
from lambdanet.experiment import train_cell
from lambdanet.images import to_tensor
from lambdanet.models import load_weights


@pytest.mark.parametrize(
    "model", [helpers.AUTOENCODER, helpers.DNCNN, helpers.LAMBDANET], ids=lambda m: m["name"]
)
def test_middle_of_large_test_images_is_monitored(model, tmp_path):
    """Whole photographs are of sizes that the auto-encoder does not take."""
    clean = {"train": helpers.patches(16), "test": helpers.patches(4, size=101, seed=1)[:, :75]}
    for split, images in clean.items():
        for name, values in {"clean": images, "noisy": helpers.noisy(images)}.items():
            (tmp_path / name).mkdir(exist_ok=True)
            np.save(tmp_path / name / f"{split}.npy", values)
    settings = Training(**helpers.TRAIN | {"epochs": 1, "learning_rate": 1e-3})
    out = tmp_path / "out"
    train_cell(
        Cell("tiny", "gaussian-01", model["name"], 0), model, helpers.GAUSSIAN, settings,
        tmp_path / "clean", tmp_path / "noisy", out,
        checkpoints=tmp_path / "checkpoints", log=tmp_path / "log.json", device="cpu",
    )  # fmt: skip
    (row,) = csv.DictReader((out / "history.csv").read_text().splitlines())
    rows, columns = slice(5, 69), slice(18, 82)
    x, y = (
        to_tensor(datasets.load_images(tmp_path / name, "test")[:, rows, columns])
        for name in ("clean", "noisy")
    )
    network, _ = load_weights(out / "weights.safetensors")
    mse = (denoise(network, y).clamp(0, 1) - x).square().mean().item()
    assert float(row["monitored_psnr"]) == pytest.approx(-10 * np.log10(mse), abs=1e-3)
