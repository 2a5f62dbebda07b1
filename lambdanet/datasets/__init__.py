"""Clean images as arrays: where they come from, how they are stored and read back.

A data set is two uint8 arrays, `train` and `test`, (n, 32, 32, 3), in a fixed order.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lambdanet import files
from lambdanet.datasets import cifar10, photos

SPLITS = ("train", "test")
Images = dict[str, np.ndarray]

# name -> function of (source on disk or None, folder for downloads) to (images, where they came from)
DATASETS: dict[str, Callable[[str | None, Path], tuple[Images, str]]] = {
    "cifar10": cifar10.load,
    "photos": photos.load,
}


def prepare(
    name: str, counts: dict[str, int], seed: int, folder: Path, *, source: str | None, downloads: Path
) -> dict:
    """Write a data set as `train.npy`, `test.npy` and a card, `card.json`.

    Args:
        name: one of `DATASETS`.
        counts: images wanted of each split; fewer than there are: a random subset, in order.
        seed: of the choice of that subset.
        folder: replaced as a whole.
        source: an archive or folder on disk to read instead of downloading.
        downloads: where downloaded archives stay.

    Returns:
        The card: name, origin, counts and the content's digests.

    Raises:
        ValueError: unknown name, too few images, or a source that is not what it should be.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; choose one of {', '.join(sorted(DATASETS))}")
    images, origin = DATASETS[name](source, downloads)
    chosen = {
        split: choose(images[split], counts[split], seed, f"{name}'s {split} split") for split in SPLITS
    }
    card = {
        "dataset": name,
        "origin": origin,
        "images": {split: len(chosen[split]) for split in SPLITS},
        "sha256": {split: digest(chosen[split]) for split in SPLITS},
    }
    with files.new_folder(folder) as new:
        for split in SPLITS:
            files.write_array(new / f"{split}.npy", chosen[split])
        files.write_json(new / "card.json", card)
    return card


def choose(images: np.ndarray, count: int, seed: int, label: str) -> np.ndarray:
    """Draw `count` images without replacement, in the order in which they stand."""
    if count > len(images):
        raise ValueError(f"{label} has {len(images)} images, {count} are asked for")
    picked = np.random.default_rng(seed).choice(len(images), count, replace=False)
    return images[np.sort(picked)]


def digest(images: np.ndarray) -> str:
    """SHA-256 of the pixels, in order."""
    return hashlib.sha256(np.ascontiguousarray(images)).hexdigest()


def load_images(folder: Path, split: str) -> np.ndarray:
    """Map one split of a stored data set, clean or noisy, into memory.

    Raises:
        ValueError: the file is missing or is no array of RGB images.
    """
    path = Path(folder) / f"{split}.npy"
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
