"""Evaluate an ablation by noise level, and show examples of its images."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from lambdanet import files
from lambdanet.config import Run
from lambdanet.data.arrays import SPLITS, load_images
from lambdanet.data.corruption import corrupt
from lambdanet.data.images import to_bytes, to_tensor
from lambdanet.data.noise import create_noise
from lambdanet.evaluation import evaluator
from lambdanet.inference.denoise import denoise

LEVELS = (5, 15, 25, 35, 45, 55)  # sigma of clipped Gaussian noise, of 255
PIXELS = 2_000_000  # of test images that each level is tried on
TRAINING = 2000  # training images scored
EXAMPLES = 2  # test images shown
SEED = 7


def of_run(run: Run, model: nn.Module, folder: Path, device: torch.device) -> dict:
    """Write levels.csv and examples of a run to a folder, if its profile asks for it.

    Returns:
        The scores on training images.
    """
    if not run.levels:
        return {}
    train, test = ((load_images(run.clean, split), load_images(run.noisy, split)) for split in SPLITS)
    files.write_csv(folder / "levels.csv", levels(model, test[0], device=device))
    write_examples(model, *test, folder, device=device)
    return on_training_images(model, *train, device=device)


def levels(model: nn.Module, clean: np.ndarray, *, device: torch.device) -> list[dict]:
    """PSNR against the noise level: sigma (of 255), noisy_psnr and psnr (dB), images.

    Args:
        model: the denoiser.
        clean: uint8 test images, (n, h, w, 3); as many of them as make up `PIXELS`.
        device: where the denoiser runs.
    """
    some = clean[: max(1, PIXELS // (clean.shape[1] * clean.shape[2]))]
    rows = []
    for sigma in LEVELS:
        noise = create_noise("clipped-gaussian", sigma=sigma / 255)
        scores = evaluator.pooled_psnr(model, some, corrupt(some, noise, SEED), device=device)
        rows.append({"sigma": sigma} | scores | {"images": len(some)})
    return rows


def on_training_images(
    model: nn.Module, clean: np.ndarray, noisy: np.ndarray, *, device: torch.device
) -> dict:
    """PSNR on the first `TRAINING` stored training images: train_psnr, train_noisy_psnr, train_images."""
    some = clean[:TRAINING]
    scores = evaluator.pooled_psnr(model, some, noisy[:TRAINING], device=device)
    found = {f"train_{key}": scores[key] for key in ("psnr", "noisy_psnr")}
    return found | {"train_images": len(some)}


def write_examples(
    model: nn.Module, clean: np.ndarray, noisy: np.ndarray, folder: Path, *, device: torch.device
) -> None:
    """Denoise the first test images; write each to a folder as NUMBER-clean, -noisy and -denoised.png."""
    from skimage.io import imsave  # not for those who only score

    for number in range(min(EXAMPLES, len(clean))):
        y = to_tensor(noisy[number : number + 1], device)
        denoised = denoise(model.to(device), y).cpu()
        pictures = {"clean": clean[number], "noisy": to_bytes(y.cpu())[0], "denoised": to_bytes(denoised)[0]}
        for kind, picture in pictures.items():
            imsave(folder / f"{number}-{kind}.png", picture, check_contrast=False)
