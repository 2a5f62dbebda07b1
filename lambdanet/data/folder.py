"""A folder of the user's photographs, cut into patches."""

import contextlib
from pathlib import Path

import numpy as np

from lambdanet import files
from lambdanet.config import DOWNLOADS, Download
from lambdanet.data.patches import cut, in_random_order


def load(
    wanted: Download, source: str | None = None, downloads: Path | None = None
) -> tuple[dict[str, np.ndarray], dict]:
    """Cut patches from the photographs of the folder `wanted.dataset`; the other arguments are unused.

    The names are shuffled by the seed; the first `wanted.test` files are for testing, the next
    `wanted.train` for training, so that more of these leave the test images what they are. All that
    `imagefile` reads counts, in folders below too; what begins with a dot does not. Alpha is left
    away, grey is three equal colours, 16 bits are rounded to 8.

    Returns:
        {"train", "test"}: uint8, (files x patches, size, size, 3), a file's patches in a row; and what
        the card says of them: the files in the arrays' order, and each one's SHA-256.

    Raises:
        ValueError: there is no such folder, it holds too few images, or one of them is broken or
            smaller than a patch.
    """
    del source, downloads
    folder = locate(wanted.dataset)
    names = in_random_order(list_images(folder), wanted.seed)
    if len(names) < wanted.train + wanted.test:
        raise ValueError(
            f"{folder} holds {len(names)} images, train: {wanted.train} and test: {wanted.test} ask for "
            f"{wanted.train + wanted.test}"
        )
    chosen = {"train": names[wanted.test :][: wanted.train], "test": names[: wanted.test]}
    images = {split: _cut_all(folder, chosen[split], wanted) for split in chosen}
    notes = {
        "origin": "photographs of a folder",
        "made": f"{wanted.patches} patches of {wanted.size} x {wanted.size} of each photograph",
        "photographs": chosen,
        "files": {name: files.sha256(folder / name) for name in sorted(names[: wanted.train + wanted.test])},
    }
    return images, notes


def locate(dataset: str) -> Path:
    """The folder that `dataset` names, from the current one or absolute.

    Raises:
        ValueError: there is none.
    """
    folder = Path(dataset)
    with contextlib.suppress(RuntimeError):  # ~user whom this machine does not know
        folder = folder.expanduser()
    if not folder.is_dir():
        names = ", ".join(DOWNLOADS)
        raise ValueError(f"dataset is {dataset!r}, neither one of {names} nor a folder that exists")
    return folder


def list_images(folder: Path) -> list[str]:
    """The sorted names of a folder's images, those in folders below with their path.

    Raises:
        ValueError: there is none.
    """
    from lambdanet.data import imagefile

    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in imagefile.SUFFIXES and path.is_file()
    )
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    if not names:
        raise ValueError(f"{folder} holds no images ({', '.join(imagefile.SUFFIXES)})")
    return names


def _cut_all(folder: Path, names: list[str], wanted: Download) -> np.ndarray:
    from lambdanet.data import imagefile

    size, count = wanted.size, wanted.patches
    patches = np.empty((len(names) * count, size, size, 3), np.uint8)
    for i, name in enumerate(names):
        image = imagefile.read(folder / name).rgb
        h, w, _ = image.shape
        if min(h, w) < size:
            raise ValueError(f"{folder / name} has {w} x {h} pixels, less than a patch of {size} x {size}")
        cuts = cut(image, count, size, seed=wanted.seed, name=name)
        patches[i * count : (i + 1) * count] = _in_8_bits(cuts)
    return patches


def _in_8_bits(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
