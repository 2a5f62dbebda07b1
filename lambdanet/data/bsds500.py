"""BSDS500 (Arbelaez et al. 2011): 500 photographs of 481 x 321 pixels, lying or standing.

Its `train` and `test` images, 400, are for training, in square patches; its `val` images, 100, are for
testing, whole, the standing ones turned. Of an archive only .../images/{train,test,val}/*.jpg are
looked at, in place; these files have one digest, whatever archive they come from. What they decode to
may differ in single values between versions of libjpeg.
"""

import hashlib
import io
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from lambdanet.config import Download
from lambdanet.data import archives
from lambdanet.data.patches import cut, in_random_order

MIRRORS = (
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz",
    "https://github.com/BIDS/BSDS500/archive/refs/heads/master.tar.gz",
)
SPLITS = {"train": ("train", "test"), "test": ("val",)}  # ours, of theirs
COUNTS = {"train": 200, "test": 200, "val": 100}
# Of what `sha256sum test/*.jpg train/*.jpg val/*.jpg` prints in the folder `images`.
DIGEST = "eaae4240cb921a9a77b3a87ade9a6a517588996ac105d7fb25c57c21256f856c"


def load(wanted: Download, source: str | None, downloads: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Read BSDS500 from `source`, or download it, verify it, and cut the training images into patches.

    Which images, and in which order, is a shuffle by the seed: fewer images give the first of the
    same arrays, and fewer patches the first of each image's. Test images of 481 rows are turned by
    90 degrees counter-clockwise, so that all are one array.

    Args:
        wanted: how many images and patches, the patches' edge, and the seed.
        source: a tar of any compression, or a folder that holds what such a tar holds; None downloads.
        downloads: folder that keeps the downloaded archive.

    Returns:
        {"train": uint8, (images x patches, size, size, 3), an image's patches in a row; "test": uint8,
        (images, 321, 481, 3)}; and what the card says of them.

    Raises:
        ValueError: nothing could be downloaded, the source is not exactly BSDS500, or more images are
            asked for than there are.
    """
    counts = {"train": wanted.train, "test": wanted.test}
    for split, theirs in SPLITS.items():
        if counts[split] > (there := sum(COUNTS[each] for each in theirs)):
            raise ValueError(f"bsds500's {split} split has {there} images, {counts[split]} are asked for")
    files = archives.load(
        "BSDS500", source, downloads, variable="LAMBDANET_BSDS500", mirrors=MIRRORS, read=read_files
    )
    chosen = {
        split: in_random_order([name for name in sorted(files) if name.split("/")[0] in theirs], wanted.seed)
        for split, theirs in SPLITS.items()
    }
    chosen = {split: names[: counts[split]] for split, names in chosen.items()}
    size = wanted.size
    train = np.empty((wanted.train_images, size, size, 3), np.uint8)
    for i, name in enumerate(chosen["train"]):
        train[i * wanted.patches : (i + 1) * wanted.patches] = cut(
            decode(files[name]), wanted.patches, size, seed=wanted.seed, name=name
        )
    test = np.stack([_lying(decode(files[name])) for name in chosen["test"]])
    notes = {
        "origin": "BSDS500",
        "made": f"train: {wanted.patches} patches of {size} x {size} of each of {wanted.train} images; "
        "test: whole images, portrait ones turned by 90 degrees counter-clockwise",
        "photographs": chosen,
    }
    return {"train": train, "test": test}, notes


def read_files(path: Path) -> dict[str, bytes]:
    """Read the 500 JPEG files of a distribution, by names like train/100075.jpg, and verify them.

    Raises:
        ValueError: it holds other images or none, or is damaged.
    """
    found = archives.contents(path, lambda name: _describe(name) is not None)
    files = {_describe(name): content for name, content in found}
    if not files:
        raise ValueError("holds no images/train, images/test and images/val with JPEG files")
    counts = Counter(name.split("/")[0] for name in files)
    for split, count in COUNTS.items():
        if counts[split] != count:
            raise ValueError(f"{counts[split]} images in {split}, BSDS500 has {count}")
    if digest(files) != DIGEST:
        raise ValueError("the images are not BSDS500's (content digest differs)")
    return files


def digest(files: dict[str, bytes]) -> str:
    """SHA-256 of the lines `SHA-256 of the file, two spaces, name`, in the order of the names."""
    lines = (f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def decode(content: bytes) -> np.ndarray:
    """A JPEG file's pixels: uint8, (h, w, 3)."""
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        return np.asarray(image.convert("RGB"))


def _describe(name: str) -> str | None:
    """What an image's member is called here, train/100075.jpg; None for anything else."""
    path = PurePosixPath(name)
    if path.suffix != ".jpg" or path.name.startswith(".") or path.parts[-3:-2] != ("images",):
        return None
    return f"{path.parts[-2]}/{path.name}" if path.parts[-2] in COUNTS else None


def _lying(image: np.ndarray) -> np.ndarray:
    """The image, turned by 90 degrees counter-clockwise if it stands."""
    return np.rot90(image) if image.shape[0] > image.shape[1] else image
