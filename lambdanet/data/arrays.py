"""Stored images, clean or noisy: read as they are, without torch.

Not a dependency in DVC: an array is what its stage wrote, or is refused.
"""

import hashlib
from pathlib import Path

import numpy as np

SPLITS = ("train", "test")


def digest(images: np.ndarray) -> str:
    """SHA-256 of the pixels, in order."""
    return hashlib.sha256(np.ascontiguousarray(images)).hexdigest()


def load_images(folder: Path, split: str) -> np.ndarray:
    """Map one split of a stored data set, clean or noisy, into memory.

    Raises:
        ValueError: the file is missing or is no array of RGB images.
    """
    path = folder / f"{split}.npy"
    try:
        images = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; make it with `dvc repro`") from None
    except ValueError as error:
        raise ValueError(
            f"{path} is not a readable array ({error}); make it again with `dvc repro`"
        ) from None
    if images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise ValueError(f"{path} has the shape {images.shape}, must be (n, height, width, 3)")
    if images.dtype not in (np.uint8, np.float16):
        raise ValueError(f"{path} holds {images.dtype}, must be uint8 or float16")
    return images
