"""Sample images: photographs that no model was trained on, denoised."""

from pathlib import Path

import torch
from torch import nn

from lambdanet import files
from lambdanet.config import Run
from lambdanet.data import photos
from lambdanet.data.images import to_bytes, to_tensor
from lambdanet.data.noise import Noise, create_noise
from lambdanet.inference.denoise import denoise

SIZE = 512
SEED = 1


def of_run(run: Run, model: nn.Module, folder: Path, device: torch.device) -> dict:
    """Write a run's sample images to a folder; there is nothing more to score."""
    write_samples(model, create_noise(**run.noise), folder, device=device)
    return {}


def write_samples(model: nn.Module, noise: Noise, folder: Path, *, device: torch.device) -> None:
    """Denoise photographs of 512 x 512 and write each as NAME-clean, -noisy and -denoised.png."""
    from skimage.io import imsave  # not for those who only score

    with files.new_folder(folder) as new:
        for number, name in enumerate(photos.TEST):
            clean = to_tensor(photos.photograph(name, SIZE)[None])
            noisy = noise(clean, torch.Generator().manual_seed(SEED + number))
            denoised = denoise(model.to(device), noisy.to(device)).cpu()
            for kind, image in {"clean": clean, "noisy": noisy, "denoised": denoised}.items():
                imsave(new / f"{name}-{kind}.png", to_bytes(image)[0], check_contrast=False)
