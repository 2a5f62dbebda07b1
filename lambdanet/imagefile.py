"""Read and write photographs: 8 or 16 bits, grey or colour, with or without alpha."""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lambdanet import files

FORMATS = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "WEBP": (".webp",), "BMP": (".bmp",)}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
LARGEST = 500_000_000  # pixels; the image itself has to fit into memory, several times
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Photograph:
    """An image as a file holds it.

    Attributes:
        rgb: uint8 or uint16, (h, w, 3); of a grey one three times the same.
        alpha: the same type, (h, w), or None.
        grey: whether the file holds no colours.
        icc: the profile that says what its colours look like, or None.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    icc: bytes | None = None


def read(path: Path) -> Photograph:
    """Read a PNG, JPEG, WebP or BMP file, turned upright where it says how.

    Raises:
        ValueError: it cannot be read as such.
    """
    try:
        Image.MAX_IMAGE_PIXELS = LARGEST // 2  # Pillow refuses twice this
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning)  # torchvision's 0.29
            # Pillow reads PNG files of 16 bits and several channels as if they had 8.
            return _read_deep(path) if _is_deep(path) else _read(path)
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as an image ({' '.join(str(error).split())})") from None


def write_png(path: Path, photograph: Photograph) -> None:
    """Write a PNG file with the depth, the alpha and the greyness that the photograph has."""
    rgb = photograph.rgb
    if photograph.grey:
        rgb = ((rgb.sum(-1, dtype=np.uint32) + 1) // 3).astype(rgb.dtype)[..., None]  # the mean, rounded
    pixels = rgb if photograph.alpha is None else np.concatenate([rgb, photograph.alpha[..., None]], -1)
    if pixels.dtype == np.uint16:
        files.write_bytes(path, _deep_png(pixels, photograph.icc))
        return
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    image.save(buffer, "PNG", icc_profile=photograph.icc)
    files.write_bytes(path, buffer.getvalue())


def _read(path: Path) -> Photograph:
    with Image.open(path, formats=list(FORMATS)) as opened:
        image = ImageOps.exif_transpose(opened)
        # A profile of four inks says nothing about what they were converted to.
        icc = None if image.mode == "CMYK" else opened.info.get("icc_profile")
        if image.mode.startswith("I"):  # 16 bits of grey
            return Photograph(_thrice(np.asarray(image).astype(np.uint16)), grey=True, icc=icc)
        grey = image.mode in ("1", "L", "LA")
        if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
            pixels = np.asarray(image.convert("RGBA"))
            return Photograph(np.ascontiguousarray(pixels[..., :3]), pixels[..., 3].copy(), grey, icc)
        return Photograph(np.array(image.convert("RGB")), grey=grey, icc=icc)


def _is_deep(path: Path) -> bool:
    """Whether it is a PNG file of 16 bits with more than one channel."""
    with open(path, "rb") as file:
        head = file.read(26)
    return head.startswith(_SIGNATURE) and len(head) == 26 and head[24] == 16 and head[25] in (2, 4, 6)


def _read_deep(path: Path) -> Photograph:
    with Image.open(path, formats=["PNG"]) as opened:  # which refuses what is too large
        icc = opened.info.get("icc_profile")
    from torchvision.io import ImageReadMode, decode_image  # takes a second to load

    pixels = decode_image(str(path), ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    pixels = pixels.permute(1, 2, 0).numpy()
    alpha = pixels[..., -1].copy() if pixels.shape[-1] in (2, 4) else None
    grey = pixels.shape[-1] == 2
    return Photograph(_thrice(pixels[..., 0]) if grey else pixels[..., :3].copy(), alpha, grey, icc)


def _thrice(plane: np.ndarray) -> np.ndarray:
    return np.repeat(plane[..., None], 3, axis=-1)


def _deep_png(pixels: np.ndarray, icc: bytes | None) -> bytes:
    """PNG (ISO/IEC 15948) of uint16, (h, w, channels); Pillow and torchvision write 8 bits only."""
    h, w, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = np.zeros((h, 1 + 2 * w * channels), np.uint8)  # each row begins with its filter, 0: none
    rows[:, 1:] = pixels.astype(">u2").reshape(h, -1).view(np.uint8)

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + check

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 16, kind, 0, 0, 0))]
    if icc:
        parts.append(chunk(b"iCCP", b"icc\0\0" + zlib.compress(icc)))
    parts += [chunk(b"IDAT", zlib.compress(rows.tobytes())), chunk(b"IEND", b"")]
    return _SIGNATURE + b"".join(parts)
