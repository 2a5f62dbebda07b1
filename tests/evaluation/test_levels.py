"""Noise levels, training images and examples, of networks whose answer is known."""

import helpers
import numpy as np
import pytest
import torch
from torch import nn

from lambdanet.data.images import to_bytes, to_tensor
from lambdanet.evaluation import levels

CPU = torch.device("cpu")
GREY = helpers.By(lambda noisy: torch.full_like(noisy, 0.5))


def test_levels_are_those_of_clipped_gaussian_noise_on_as_many_images_as_the_pixels_allow(monkeypatch):
    clean = np.full((200, 16, 16, 3), 128, np.uint8)
    rows = levels.levels(nn.Identity(), clean, device=CPU)
    assert [row["sigma"] for row in rows] == [5, 15, 25, 35, 45, 55]
    for row in rows:
        assert row["psnr"] == row["noisy_psnr"]
        # grey is far from both ends: little is clipped
        assert row["psnr"] == pytest.approx(-20 * np.log10(row["sigma"] / 255), abs=0.2)
        assert row["images"] == 200
    grey = levels.levels(GREY, clean, device=CPU)
    assert [row["psnr"] for row in grey] == pytest.approx([-20 * np.log10(128 / 255 - 0.5)] * 6, abs=0.01)
    monkeypatch.setattr(levels, "PIXELS", 3 * 16 * 16)
    assert {row["images"] for row in levels.levels(GREY, clean, device=CPU)} == {3}


def test_training_images_are_the_first_ones(monkeypatch):
    monkeypatch.setattr(levels, "TRAINING", 5)
    clean = helpers.patches(8)
    noisy = helpers.noisy(clean)
    noisy[5:] = 0  # not looked at
    found = levels.on_training_images(nn.Identity(), clean, noisy, device=CPU)
    assert found["train_images"] == 5
    assert found["train_psnr"] == found["train_noisy_psnr"]
    assert 19 < found["train_psnr"] < 22


def test_examples_are_the_first_test_images(tmp_path):
    clean = helpers.patches(4)
    noisy = helpers.noisy(clean)
    levels.write_examples(GREY, clean, noisy, tmp_path, device=CPU)
    names = {f"{number}-{kind}.png" for number in (0, 1) for kind in ("clean", "noisy", "denoised")}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert (helpers.pixels_of(tmp_path / "1-clean.png") == clean[1]).all()
    assert (helpers.pixels_of(tmp_path / "1-noisy.png") == to_bytes(to_tensor(noisy[1:2]))[0]).all()
    assert set(np.unique(helpers.pixels_of(tmp_path / "0-denoised.png"))) <= {127, 128}
