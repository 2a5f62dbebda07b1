"""Clean images as arrays: where they come from and how they are stored.

A data set is two uint8 arrays, `train` and `test`, each (n, h, w, 3) in its own size, in a fixed order.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lambdanet import files
from lambdanet.config import Download
from lambdanet.data import bsds500, cifar10, folder, photos
from lambdanet.data.arrays import SPLITS, digest

Images = dict[str, np.ndarray]
# Of (what is wanted, source on disk or None, folder for downloads): the images, and what the card
# says of them, its `origin` first.
Load = Callable[[Download, str | None, Path], tuple[Images, dict]]

# The environment variable that names a data set's archive or folder on disk.
SOURCES = {
    "cifar10": "LAMBDANET_CIFAR10",
    "cifar10-split": "LAMBDANET_CIFAR10",
    "bsds500": "LAMBDANET_BSDS500",
}


def subset_of(
    load: Callable[[str | None, Path], tuple[Images, str]],
    wanted: Download,
    source: str | None,
    downloads: Path,
) -> tuple[Images, dict]:
    """Load a data set that comes as two arrays of images of one size, and choose from each."""
    images, origin = load(source, downloads)
    counts = {"train": wanted.train, "test": wanted.test}
    chosen = {
        split: choose(images[split], counts[split], wanted.seed, f"{wanted.dataset}'s {split} split")
        for split in SPLITS
    }
    return chosen, {"origin": origin}


def split_of_cifar10(source: str | None, downloads: Path) -> tuple[Images, str]:
    """CIFAR-10's training images alone, four fifths of them to learn from and one to test on."""
    images, origin = cifar10.load(source, downloads)
    order = np.random.default_rng(0).permutation(len(images["train"]))
    cut = len(order) * 4 // 5
    parts = {"train": np.sort(order[:cut]), "test": np.sort(order[cut:])}
    return {name: images["train"][places] for name, places in parts.items()}, origin


# Any other name is that of a folder.
DATASETS: dict[str, Load] = {
    "bsds500": bsds500.load,
    "cifar10": functools.partial(subset_of, cifar10.load),
    "cifar10-split": functools.partial(subset_of, split_of_cifar10),
    "photos": functools.partial(subset_of, photos.load),
}


def prepare(wanted: Download, out: Path, *, source: str | None, downloads: Path) -> dict:
    """Write a data set as `train.npy`, `test.npy` and a card, `card.json`.

    Args:
        wanted: which data set, how many of its images, and the seed of the choice.
        out: folder, replaced as a whole.
        source: an archive or folder on disk to read instead of downloading, see `SOURCES`.
        downloads: where downloaded archives stay.

    Returns:
        The card: name, origin, counts and the content's digests, and what else there is to say.

    Raises:
        ValueError: unknown name, too few images, or a source that is not what it should be.
    """
    images, notes = DATASETS.get(wanted.dataset, folder.load)(wanted, source, downloads)
    card = {
        "dataset": wanted.dataset,
        "origin": notes.pop("origin"),
        "images": {split: len(images[split]) for split in SPLITS},
        "sha256": {split: digest(images[split]) for split in SPLITS},
    } | notes
    with files.new_folder(out) as new:
        for split in SPLITS:
            files.write_array(new / f"{split}.npy", images[split])
        files.write_json(new / "card.json", card)
    return card


def choose(images: np.ndarray, count: int, seed: int, label: str) -> np.ndarray:
    """Draw `count` images without replacement, in the order in which they stand."""
    if count > len(images):
        raise ValueError(f"{label} has {len(images)} images, {count} are asked for")
    picked = np.random.default_rng(seed).choice(len(images), count, replace=False)
    return images[np.sort(picked)]
