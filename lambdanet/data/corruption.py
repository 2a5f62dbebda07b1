"""Noisy copies of stored data sets."""

from pathlib import Path

import numpy as np
import torch

from lambdanet import files
from lambdanet.data.arrays import SPLITS, load_images
from lambdanet.data.noise import Noise, create_noise

CHUNK = 1000  # images at a time; it fixes the order in which the noise is drawn


def prepare_noisy(clean: Path, noise_config: dict, seed: int, folder: Path) -> None:
    """Write a noisy copy of a stored data set, `train.npy` and `test.npy` in float16.

    Args:
        clean: folder of `datasets.prepare`.
        noise_config: keyword arguments of `create_noise`.
        seed: of the noise; each split draws its own from it.
        folder: replaced as a whole.
    """
    noise = create_noise(**noise_config)
    noisy = {
        split: corrupt(load_images(clean, split), noise, 2 * seed + number)
        for number, split in enumerate(SPLITS)
    }
    with files.new_folder(folder) as new:
        for split, images in noisy.items():
            files.write_array(new / f"{split}.npy", images)


def corrupt(images: np.ndarray, noise: Noise, seed: int) -> np.ndarray:
    """Add noise to a stored data set, the same for the same seed.

    Args:
        images: uint8, (n, h, w, 3).
        noise: from `create_noise`.
        seed: of the one generator that serves all images in their order.

    Returns:
        float16, (n, h, w, 3), as the noise leaves it, not clipped; the rounding is below 0.001.
    """
    generator = torch.Generator().manual_seed(seed)
    noisy = np.empty(images.shape, np.float16)
    for start in range(0, len(images), CHUNK):
        clean = torch.from_numpy(np.array(images[start : start + CHUNK])).float() / 255
        noisy[start : start + CHUNK] = noise(clean, generator).half().numpy()
    return noisy
