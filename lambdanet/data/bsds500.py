"""BSDS500 (Arbelaez et al. 2011): 500 photographs of 481 x 321 pixels, lying or standing.

Its `train` and `test` images, 400, are for training, in patches of 40 x 40; its `val` images, 100, are
for testing, whole, the standing ones turned. Of an archive only .../images/{train,test,val}/*.jpg are
looked at, in place; these files have one digest, whatever archive they come from. What they decode to
may differ in single values between versions of libjpeg.
"""

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from lambdanet.config import Download
from lambdanet.data import archives
from lambdanet.data.archives import Mirror
from lambdanet.data.patches import cut, in_random_order

MIRRORS = (  # without checksums: GitHub packs its archives anew, and the content is verified
    Mirror(
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz",
        "BSR_bsds500.tgz",
    ),
    Mirror("https://github.com/BIDS/BSDS500/archive/refs/heads/master.tar.gz", "BIDS-BSDS500.tar.gz"),
)
TIMEOUT_SECONDS = 30
TRIES = 3

SPLITS = {"train": ("train", "test"), "test": ("val",)}  # ours, of theirs
COUNTS = {"train": 200, "test": 200, "val": 100}
# Of what `sha256sum test/*.jpg train/*.jpg val/*.jpg` prints in the folder `images`.
DIGEST = "eaae4240cb921a9a77b3a87ade9a6a517588996ac105d7fb25c57c21256f856c"
HEIGHT, WIDTH = 321, 481
PATCH = 40
LARGEST_IMAGE = 1 << 20  # the largest has 126 kB
LARGEST_MEMBER = 64 << 20


def load(wanted: Download, source: str | None, downloads: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Read BSDS500 from `source`, or download it, verify it, and cut the training images into patches.

    Which images, and in which order, is a shuffle by the seed: fewer images give the first of the
    same arrays, and fewer patches the first of each image's. Test images of 481 rows are turned by
    90 degrees counter-clockwise, so that all are one array.

    Args:
        wanted: how many images and patches, and the seed.
        source: a tar of any compression, or a folder that holds what such a tar holds; None downloads.
        downloads: folder that keeps the downloaded archive.

    Returns:
        {"train": uint8, (images x patches, 40, 40, 3), an image's patches in a row; "test": uint8,
        (images, 321, 481, 3)}; and what the card says of them.

    Raises:
        ValueError: nothing could be downloaded, the source is not exactly BSDS500, or more images are
            asked for than there are.
    """
    counts = {"train": wanted.train, "test": wanted.test}
    for split, theirs in SPLITS.items():
        if counts[split] > (there := sum(COUNTS[each] for each in theirs)):
            raise ValueError(f"bsds500's {split} split has {there} images, {counts[split]} are asked for")
    path = Path(source).expanduser() if source else None
    if path and not path.exists():
        raise ValueError(f"LAMBDANET_BSDS500 names {path}, which does not exist")
    files = read_files(path) if path else download(downloads)
    chosen = {
        split: in_random_order([name for name in sorted(files) if name.split("/")[0] in theirs], wanted.seed)
        for split, theirs in SPLITS.items()
    }
    chosen = {split: names[: counts[split]] for split, names in chosen.items()}
    train = np.empty((wanted.train_images, PATCH, PATCH, 3), np.uint8)
    for i, name in enumerate(chosen["train"]):
        train[i * wanted.patches : (i + 1) * wanted.patches] = cut(
            decode(files[name]), wanted.patches, PATCH, seed=wanted.seed, name=name
        )
    test = np.stack([_lying(decode(files[name])) for name in chosen["test"]])
    notes = {
        "origin": "BSDS500",
        "made": f"train: {wanted.patches} patches of {PATCH} x {PATCH} of each of {wanted.train} images; "
        "test: whole images, portrait ones turned by 90 degrees counter-clockwise",
        "photographs": chosen,
    }
    return {"train": train, "test": test}, notes


def download(folder: Path, mirrors: Iterable[Mirror] = MIRRORS) -> dict[str, bytes]:
    """Fetch the archive from the first mirror that delivers the right images, and read them.

    Raises:
        ValueError: no mirror delivered them; names each one's reason.
    """
    try:
        return archives.first_mirror(mirrors, folder, read_files, seconds=TIMEOUT_SECONDS, tries=TRIES)
    except ValueError as error:
        raise ValueError(
            "BSDS500 could not be downloaded; set LAMBDANET_BSDS500 to an archive or folder on disk, "
            f"or choose profile: sample. Tried {error}"
        ) from None


def read_files(path: Path) -> dict[str, bytes]:
    """Read the 500 JPEG files of a distribution, by names like train/100075.jpg, and verify them.

    Raises:
        ValueError: it holds other images or none, is damaged, or has unsafe member names.
    """
    files: dict[str, bytes] = {}
    above = f"{path.resolve().name}/" if path.is_dir() else ""  # the folder may be `images` itself
    try:
        for name, size, file in archives.members(path, skip_links=True):
            key = _describe(above + name)
            if size > (LARGEST_IMAGE if key else LARGEST_MEMBER) and (key or path.is_file()):
                # Of an archive even one to be skipped: tarfile would read on to its claimed end.
                raise ValueError(f"member {name} claims {size:,} bytes, more than any of BSDS500")
            if key is None:
                continue
            content = file.read()
            if files.setdefault(key, content) != content:
                raise ValueError(f"holds two different images {key}")
            if len(files) > sum(COUNTS.values()):
                raise ValueError(f"more than {sum(COUNTS.values())} images, so not BSDS500")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path}: damaged or cut short ({error}); get it again") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    _verify(files, path)
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


def _verify(files: dict[str, bytes], path: Path) -> None:
    if not files:
        raise ValueError(f"{path}: holds no images/train, images/test and images/val with JPEG files")
    found = Counter(name.split("/")[0] for name in files)
    for split, count in COUNTS.items():
        if found[split] != count:
            raise ValueError(f"{path}: {found[split]} images in {split}, BSDS500 has {count}")
    if digest(files) != DIGEST:
        raise ValueError(f"{path}: the images are not BSDS500's (content digest differs)")


def _lying(image: np.ndarray) -> np.ndarray:
    """The image, turned by 90 degrees counter-clockwise if it stands."""
    return np.rot90(image) if image.shape[0] > image.shape[1] else image
