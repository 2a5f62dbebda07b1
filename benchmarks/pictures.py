"""What the benchmarks compute on: photographs that scikit-image brings along, and the committed weights."""

from pathlib import Path

import click
import numpy as np
import skimage.data
import torch
from torch import Tensor, nn

from lambdanet.data.arrays import load_images
from lambdanet.data.images import to_tensor
from lambdanet.models import load_weights

SIGMA = 0.1
WEIGHTS = Path(__file__).resolve().parent.parent / "weights/paper"


def patches(count: int, side: int = 32, seed: int = 0) -> np.ndarray:
    """Patches of photographs: uint8, (count, side, side, 3)."""
    photos = [photo[::2, ::2] for photo in (skimage.data.astronaut(), skimage.data.coffee())]
    rng = np.random.default_rng(seed)
    cut = []
    for number in range(count):
        photo = photos[number % len(photos)]
        y, x = rng.integers(0, np.array(photo.shape[:2]) - side)
        cut.append(photo[y : y + side, x : x + side])
    return np.stack(cut)


def pairs(count: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Clean and noisy images, (count, 3, 32, 32)."""
    clean = to_tensor(patches(count), device)
    generator = torch.Generator().manual_seed(0)
    return clean, clean + SIGMA * torch.randn(clean.shape, generator=generator).to(device)


def photograph(side: int) -> np.ndarray:
    """One noisy photograph, mirrored until it is large enough: uint16, (side, side, 3)."""
    photo = skimage.data.astronaut() / 255
    double = np.concatenate([photo, photo[::-1]])
    double = np.concatenate([double, double[:, ::-1]], 1)
    copies = -(-side // len(double))
    clean = np.tile(double, (copies, copies, 1))[:side, :side]
    noisy = clean + SIGMA * np.random.default_rng(0).standard_normal(clean.shape)
    return np.round(65535 * noisy.clip(0, 1)).astype(np.uint16)


def trained(name: str) -> nn.Module:
    """A network of the profile paper, trained on the noise of these pictures, in evaluation mode."""
    file = "ablations/gaussian-01-dncnn-cosine-0" if name == "dncnn" else f"gaussian-01-{name}-0"
    return load_weights(WEIGHTS / f"{file}.safetensors")[0]


def stored(folder: Path, split: str) -> np.ndarray:
    """Images that a DVC stage made, one line and the end of the command where they are not there."""
    try:
        return load_images(folder, split)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
