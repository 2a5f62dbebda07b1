"""Read and write photographs: 8 or 16 bits, grey or colour, with or without alpha.

Pillow decodes all but a few kinds of TIFF, which tifffile reads: both survive damaged files.
"""

import contextlib
import io
import logging
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from lambdanet import files

FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
LARGEST = 500_000_000  # pixels; a damaged head may claim any number
WHITE = 65535
# What a PNG file says of its colours and its resolution; `write_png` puts it into the output as it is.
KEPT_CHUNKS = (b"cHRM", b"cICP", b"cLLI", b"gAMA", b"mDCV", b"pHYs", b"sRGB")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_ORIENTATION = 0x0112
# What a viewer does with the rows and the columns for an orientation; first it swaps them, from 5 on.
_STEPS = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
# What a TIFF file says of the picture; its other tags say where its pixels are.
_OF_THE_PICTURE = {0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298, 0x8769, 0x8825}


@dataclass(frozen=True)
class Photograph:
    """An image as a file holds it.

    Attributes:
        rgb: (h, w, 3), uint8 or uint16, or of an array float in [0, 1]; of a grey one three times the same.
        alpha: the same type, (h, w), or None.
        grey: whether the file holds no colours.
        icc: the profile that says what its colours look like, or None.
        exif: EXIF without the orientation, or None.
        chunks: name and content of the `KEPT_CHUNKS` that a PNG file has.
        frames: images in the file; this is the first.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    frames: int = 1


class UnsupportedError(ValueError):
    """A file that is not damaged, but of a kind that cannot be read."""


def read(path: Path) -> Photograph:
    """Read an image file, turned upright where it says how.

    Raises:
        ValueError: it cannot be read as an image; the line names the file and says why.
    """
    return decode(_content(path), str(path))


def decode(content: bytes, name: str) -> Photograph:
    """Decode an image file's bytes; see `read`."""
    with _refusing(name), _silent_libtiff() if content.startswith(_TIFF) else contextlib.nullcontext():
        return _decode(content)


def check(path: Path) -> None:
    """Look at the head of an image file only: it is there, and of a kind that `read` reads.

    Raises:
        ValueError: as of `read`.
    """
    content = _content(path)
    with _refusing(str(path)):
        _open(content)


def write_png(path: Path, photograph: Photograph) -> None:
    """Write a PNG file with the depth, the alpha, the greyness and the metadata of the photograph."""
    files.write_bytes(path, encode_png(photograph))


def encode_png(photograph: Photograph) -> bytes:
    """The bytes of a PNG file; see `write_png`."""
    pixels = to_values(photograph)
    if pixels.dtype == np.uint16:
        png = _deep_png(pixels)
    else:
        buffer = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
        png = buffer.getvalue()
    metadata = [_chunk(name, content) for name, content in photograph.chunks]
    if photograph.icc:
        metadata.append(_chunk(b"iCCP", b"icc\0\0" + zlib.compress(photograph.icc)))
    if photograph.exif:
        metadata.append(_chunk(b"eXIf", photograph.exif.removeprefix(b"Exif\0\0")))
    header = len(_SIGNATURE) + 25
    return b"".join([png[:header], *metadata, memoryview(png)[header:]])


def from_values(values: np.ndarray, orientation: object = 1) -> Photograph:
    """A photograph, upright, of (h, w, channels): grey, grey and alpha, RGB, RGB and alpha."""
    if orientation in range(1, 9):
        rows, columns = _STEPS[int(orientation)]
        values = (values.swapaxes(0, 1) if orientation >= 5 else values)[::rows, ::columns]
    channels = values.shape[-1]
    alpha = np.ascontiguousarray(values[..., -1]) if channels in (2, 4) else None
    rgb = values[..., :3] if channels >= 3 else np.repeat(values[..., :1], 3, axis=-1)
    return Photograph(np.ascontiguousarray(rgb), alpha, channels < 3)


def to_values(photograph: Photograph) -> np.ndarray:
    """The values that `from_values` takes; grey is the mean of the colours."""
    values = photograph.rgb
    if photograph.grey and values.dtype.kind == "f":
        values = values.mean(-1, keepdims=True)
    elif photograph.grey:
        values = ((values.sum(-1, dtype=np.uint32) + 1) // 3).astype(values.dtype)[..., None]  # rounded
    return values if photograph.alpha is None else np.concatenate([values, photograph.alpha[..., None]], -1)


def fill_hidden(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Give the pixels that alpha hides the mean colour of the nearest blocks of visible ones.

    What hides there, mostly black, would otherwise show at the edges after denoising.

    Args:
        rgb: uint8, uint16 or float, (h, w, 3).
        alpha: (h, w); 0 hides.

    Returns:
        The same type and shape.
    """
    visible = alpha > 0
    if visible.all() or not visible.any():
        return rgb
    h, w = -(-visible.shape[0] // 2), -(-visible.shape[1] // 2)
    sums, counts = np.zeros((h, w, 3), np.float32), np.zeros((h, w), np.int8)
    phases = [(slice(y, None, 2), slice(x, None, 2)) for y in (0, 1) for x in (0, 1)]
    for phase in phases:
        seen = visible[phase]
        counts[: seen.shape[0], : seen.shape[1]] += seen
        sums[: seen.shape[0], : seen.shape[1]] += rgb[phase] * seen[..., None]
    means = sums / np.maximum(counts, 1)[..., None]
    means = (means if rgb.dtype.kind == "f" else np.rint(means)).astype(rgb.dtype)
    coarse, filled = fill_hidden(means, counts), rgb.copy()
    for phase in phases:
        hidden = ~visible[phase]
        filled[phase][hidden] = coarse[: hidden.shape[0], : hidden.shape[1]][hidden]
    return filled


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()  # and not mapped: a file that shrinks meanwhile would kill the process
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as an image ({error.strerror})") from None


@contextlib.contextmanager
def _refusing(name: str) -> Iterator[None]:
    """What the block raises becomes one line that names the file."""
    try:
        Image.MAX_IMAGE_PIXELS = LARGEST // 2  # Pillow refuses twice this
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
            return
    except (UnsupportedError, Image.DecompressionBombError) as error:
        reason = str(error)
    except MemoryError:
        reason = "not enough memory for it"
    except Exception as error:  # decoders raise whatever they stumble over in a damaged file
        reason = f"damaged, or of a kind that is not supported: {str(error) or type(error).__name__}"
    raise ValueError(f"{name}: cannot be read as an image ({' '.join(reason.split())})")


@contextlib.contextmanager
def _silent_libtiff() -> Iterator[None]:
    """Drop what libtiff writes to the process's standard error; Pillow raises what matters of it."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _kept_profile(icc: bytes | None) -> bytes | None:
    """A profile, but for one of other colours, as of four inks or Lab, which were converted."""
    return icc if icc and icc[16:20] in (b"RGB ", b"GRAY") else None


def _decode(content: bytes) -> Photograph:
    image = _open(content)
    if image is None:
        return _read_tiff(content)
    if content.startswith(_SIGNATURE):
        _open(content).verify()  # each chunk's sum, of which decoding checks those of the first ones only
    frames = getattr(image, "n_frames", 1)
    values = _values(image, content)
    exif, orientation = _exif(image)
    photograph = from_values(values, orientation)
    icc = _kept_profile(image.info.get("icc_profile"))
    return replace(photograph, icc=icc, exif=exif, chunks=_kept_chunks(content), frames=frames)


def _open(content: bytes) -> Image.Image | None:
    """The image, not decoded yet; None is for tifffile."""
    is_tiff = content.startswith(_TIFF)
    try:
        image = Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name != "HEIF"])
    except UnidentifiedImageError:
        if is_tiff:
            return None
        if content[4:8] == b"ftyp" and content[8:12] in _HEIC:
            return _open_heic(content)
        raise UnsupportedError(
            f"it is neither of {', '.join(FORMATS)}, or its beginning is damaged"
        ) from None
    if is_tiff and image.tile:
        corners = (max(tile.extents[i] for tile in image.tile) for i in (2, 3))
        if any(corner < image.tag_v2[tag] for corner, tag in zip(corners, (256, 257), strict=True)):
            raise UnsupportedError("damaged: a part of its pixels is missing")
    return None if is_tiff and _misread(image) else image


def _misread(image: Image.Image) -> bool:
    """Whether it is a TIFF file with more than 8 bits of a layout that Pillow takes for another."""
    bits, white_is_0, planes = (image.tag_v2.get(tag) for tag in (258, 262, 284))
    swapped = image.mode == "F" and image.tag_v2.prefix == b"MM"
    layout = white_is_0 == 0 or planes == 2 or "RGBa" in "".join(_raw_modes(image))
    return (layout or swapped) and bits is not None and max(bits) > 8


def _open_heic(content: bytes) -> Image.Image:
    try:
        import pillow_heif
    except ImportError:
        raise UnsupportedError("HEIC needs one package more: pip install pillow-heif") from None
    pillow_heif.register_heif_opener()
    return Image.open(io.BytesIO(content), formats=["HEIF"])


def _values(image: Image.Image, content: bytes) -> np.ndarray:
    """uint8 or uint16, (h, w, 1, 2, 3 or 4): grey, grey and alpha, colours, colours and alpha."""
    key = image.info.get("transparency")
    if _is_deep(image):
        values = _read_deep(image, content)
    elif image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)[..., None]
    elif image.mode == "F":
        values = _of_floats(np.asarray(image)[..., None])
    else:
        return _read_8_bits(image)
    if key is None:
        return values
    alpha = np.where((values == np.array(key, np.uint16)).all(-1), 0, WHITE).astype(np.uint16)
    return np.concatenate([values, alpha[..., None]], -1)


def _read_8_bits(image: Image.Image) -> np.ndarray:
    if image.mode == "I":
        raise UnsupportedError("it has 32 bits a pixel")
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if image.mode in ("1", "L", "LA", "La"):
        values = np.asarray(image.convert("LA" if alpha else "L"))
        return values if alpha else values[..., None]
    return np.asarray(image.convert("RGBA" if alpha else "RGB"))


def _raw_modes(image: Image.Image) -> list[str]:
    """How the pixels lie in the file: Pillow's word for each of its parts."""
    arguments = [tile[3] for tile in getattr(image, "tile", [])]
    return [str(one[0] if isinstance(one, tuple) and one else one) for one in arguments]


def _is_deep(image: Image.Image) -> bool:
    """Whether it has several channels of 16 bits, of which Pillow keeps 8."""
    modes = _raw_modes(image)
    return bool(modes) and ";16" in modes[0] and image.mode in ("RGB", "RGBA", "RGBX")


def _read_deep(image: Image.Image, content: bytes) -> np.ndarray:
    """All 16 bits. Pillow keeps a number's first byte; asked for the other order, it keeps the second."""
    mode = _raw_modes(image)[0]
    if mode == "LA;16B":  # four bytes a pixel, like a byte each of four channels
        return np.asarray(_taken_as(image, "RGBA")).view(">u2").astype(np.uint16)
    if mode.partition(";")[0] not in ("RGB", "RGBA", "RGBX"):
        raise UnsupportedError(f"16 bits in the layout {mode}")
    native = "L" if sys.byteorder == "little" else "B"
    swapped = {"L": "B", "B": "L"}[mode[-1].replace("N", native)]
    values = np.asarray(image).astype(np.uint16) << 8
    values |= np.asarray(_taken_as(_open(content), mode[:-1] + swapped))
    return values[..., :3] if image.mode == "RGBX" else values


def _taken_as(image: Image.Image, raw_mode: str) -> Image.Image:
    """The image, to be decoded as if its pixels lay in the file in another way of the same size."""
    image.tile = [
        tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
        for tile in image.tile
    ]
    return image


def _of_floats(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise UnsupportedError(f"its fractions reach from {low:g} to {high:g}, and have to be from 0 to 1")
    return np.rint(values * np.float32(WHITE)).astype(np.uint16)


def _exif(image: Image.Image) -> tuple[bytes | None, int]:
    """EXIF without the orientation, and that; what cannot be read is left away."""
    orientation = 1
    # Pillow's reader of EXIF raises whatever it stumbles over.
    with contextlib.suppress(Exception):
        exif = image.getexif()
        orientation = exif.get(_ORIENTATION, 1)
        if _ORIENTATION not in exif and "exif" in image.info:
            orientation = _orientation(image.info["exif"])
        for tag in list(exif):
            if tag == _ORIENTATION or (image.format == "TIFF" and tag not in _OF_THE_PICTURE):
                del exif[tag]
        return exif.tobytes() if len(exif) else None, orientation
    return None, orientation


def _orientation(exif: bytes) -> int:
    """What the first directory says, even if an entry in front of it is damaged, where Pillow stops."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = "<" if tiff.startswith(b"II") else ">"
    (at,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, at)
    for i in range(count):
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, at + 2 + 12 * i)
        if tag == _ORIENTATION:
            return value
    return 1


def _read_tiff(content: bytes) -> Photograph:
    """Read what Pillow does not: fractions in several channels, separate planes of 16 bits."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters, it raises
    grey, colours = 1, 2  # of `photometric`
    premultiplied, straight = 1, 2  # of `extrasamples`
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        if not 0 < page.size <= 4 * LARGEST:
            raise UnsupportedError(f"it claims {page.size} values")
        extra = page.extrasamples[:1]
        kind = page.photometric in (grey, colours) and page.axes in ("YX", "YXS", "SYX")
        if not kind or premultiplied in extra:
            raise UnsupportedError(
                f"a TIFF file of the kind {page.photometric!s}, axes {page.axes}, other channels {extra}"
            )
        values = np.atleast_3d(page.asarray())
        values = values.transpose(1, 2, 0) if page.axes == "SYX" else values
        values = values[..., : (3 if page.photometric == colours else 1) + (straight in extra)]
        values = _of_floats(values) if values.dtype.kind == "f" else values
        if values.dtype not in (np.uint8, np.uint16):
            raise UnsupportedError(f"its pixels are {values.dtype}")
        photograph = from_values(values, page.tags.valueof(_ORIENTATION, default=1))
        return replace(photograph, icc=_kept_profile(page.iccprofile), frames=len(file.pages))


def _kept_chunks(content: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Those in front of the pixels of a PNG file whose sums are right; of another file, none."""
    kept, at = [], len(_SIGNATURE)
    while content.startswith(_SIGNATURE) and at < len(content):
        length, name = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if name == b"IDAT":
            break
        if name in KEPT_CHUNKS:
            kept.append((name, content[at + 8 : at + 8 + length]))
        at += 12 + length
    return tuple(kept)


def _deep_png(pixels: np.ndarray) -> bytes:
    """PNG (ISO/IEC 15948) of uint16, (h, w, channels); of several channels, Pillow writes 8 bits only."""
    h, w, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = np.zeros((h, 1 + 2 * w * channels), np.uint8)  # each row begins with its filter, 0: none
    rows[:, 1:] = pixels.astype(">u2").reshape(h, -1).view(np.uint8)
    header = struct.pack(">IIBBBBB", w, h, 16, kind, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b"")]
    return _SIGNATURE + b"".join(chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + name + content + check
