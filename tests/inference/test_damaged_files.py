"""Damaged image files: one line each, no crash, no traceback, nothing half-written."""

import io
import random
import zlib

import helpers
import numpy as np
import pytest
import skimage.data
import tifffile
from PIL import Image

import lambdanet
from lambdanet.data import imagefile

WEIGHTS = helpers.ROOT / "weights/paper/speckle-lambdanet-u4-m7-0.safetensors"
SMALL = skimage.data.chelsea()[100:124, 150:170]
DEEP = SMALL.astype(np.uint16) * 257
WITH_ALPHA = np.dstack([SMALL, SMALL[..., 0]])
CAMERA = Image.Exif()
CAMERA[0x010F], CAMERA[0x0112] = "Maker", 6
CODE = """
import sys
from pathlib import Path
from lambdanet.data import imagefile
imagefile.LARGEST = 4_000_000  # a head may be damaged to claim more than the machine's memory
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        photograph = imagefile.read(path)
        imagefile.encode_png(photograph)
        print("read")
    except ValueError as error:
        print(error)
"""


def by_pillow(kind, pixels=SMALL, **options):
    return helpers.encoded(pixels, kind, **options)


def tiff(pixels, **options):
    content = io.BytesIO()
    tifffile.imwrite(content, pixels, **{"photometric": "rgb"} | options)
    return content.getvalue()


MOVING = {"save_all": True, "append_images": [Image.fromarray(255 - SMALL)]}
WHOLE = {
    "png": [by_pillow("PNG", exif=CAMERA), by_pillow("PNG", WITH_ALPHA), by_pillow("PNG", **MOVING)],
    "16.png": [imagefile.encode_png(imagefile.Photograph(DEEP, alpha, grey))
               for alpha in (None, DEEP[..., 0]) for grey in (False, True)],
    "jpg": [by_pillow("JPEG", exif=CAMERA), by_pillow("JPEG", progressive=True)],
    "webp": [by_pillow("WEBP", exif=CAMERA), by_pillow("WEBP", WITH_ALPHA, lossless=True),
             by_pillow("WEBP", **MOVING)],
    "tif": [
        by_pillow("TIFF", compression="tiff_lzw"), by_pillow("TIFF", compression="jpeg"),
        by_pillow("TIFF", WITH_ALPHA), tiff(DEEP), tiff(DEEP, compression="zlib", predictor=2),
        tiff(DEEP / 65535), tiff(DEEP, bigtiff=True), tiff(np.moveaxis(DEEP, -1, 0), planarconfig="separate"),
    ],
    "gif": [by_pillow("GIF"), by_pillow("GIF", **MOVING)], "bmp": [by_pillow("BMP")],
}  # fmt: skip


def damaged(content, rng):
    """Cut, with bits flipped, bytes replaced, left out, or put in from elsewhere in the file."""
    content, at, length = bytearray(content), rng.randrange(len(content)), rng.randrange(40)
    kind = rng.randrange(6)
    if kind == 0:
        del content[at:]
    elif kind == 1:
        content[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        for _ in range(length):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind == 3:
        content[at : at + length] = rng.randbytes(rng.randrange(40))
    elif kind == 4:  # in the head, to an extreme
        content[min(at, rng.randrange(200))] = rng.choice([0, 1, 127, 128, 255])
    else:
        content[at:at] = content[length : 2 * length]
    right_sums = content.startswith(b"\x89PNG") and rng.random() < 0.5
    return with_right_sums(bytes(content)) if right_sums else bytes(content)


def with_right_sums(content):
    """A PNG file whose damage no check sum shows."""
    parts, at = [content[:8]], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunk = content[at + 4 : at + 8 + length]
        parts += [content[at : at + 4], chunk, zlib.crc32(chunk).to_bytes(4, "big")]
        at += 12 + length
    return b"".join(parts)


def write_damaged(folder, kind, count, seed):
    folder.mkdir(exist_ok=True)
    rng = random.Random(seed)
    for i in range(count):
        content = damaged(rng.choice(WHOLE[kind]), rng)
        (folder / f"{kind.replace('.', '-')}-{i:04}.{kind.rpartition('.')[2]}").write_bytes(content)


def test_folder_of_damaged_files(tmp_path):
    """The others are denoised, file by file, and what is no image is left out."""
    for kind in WHOLE:
        write_damaged(tmp_path / "in", kind, 10, seed=f"{kind} 3")
    names = [*(path.name for path in (tmp_path / "in").iterdir()), "0.BMP", "zz.jpeg"]
    for name in ("0.BMP", "zz.jpeg", "notes.txt", "._a.png"):
        (tmp_path / "in" / name).write_bytes(WHOLE["png"][0])
    (tmp_path / "in/sub").mkdir()
    words = ("lambdanet", "denoise", "in", "-o", "out", "--weights", WEIGHTS)
    done = helpers.python("-m", *words, cwd=tmp_path)
    (left, last), said = done.stderr.splitlines(), done.stdout.splitlines()
    bad = [line for line in said if line.startswith("error: in/")]
    written = [line.partition(f": written, by {WEIGHTS}")[0] for line in said if line not in bad]
    assert (done.returncode, left) == (1, "in: not taken: notes.txt, sub/")
    assert (len(said), last) == (len(names), f"error: {len(bad)} of {len(names)} files could not be denoised")
    assert 20 < len(written) < len(names) - 20
    assert sorted(f"out/{path.name}" for path in (tmp_path / "out").iterdir()) == written
    stems = [line.partition("/")[2].partition(".")[0] for line in said]
    assert stems == sorted(stems)
    assert {"out/0.png", "out/zz.png"} < set(written)
    for name in written:
        assert imagefile.read(tmp_path / name).frames == 1
    denoiser, upright = lambdanet.load(WEIGHTS), np.rot90(SMALL, -1)
    np.testing.assert_array_equal(helpers.pixels_of(tmp_path / "out/0.png"), denoiser(upright))


@pytest.mark.slow
@pytest.mark.parametrize("kind", WHOLE)
def test_a_thousand_damaged_files_of_a_kind(tmp_path, kind):
    write_damaged(tmp_path / "in", kind, 1000, seed=kind)
    done = helpers.python("-c", CODE, tmp_path / "in")
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    assert len(said) == 1000
    refused = [line for line in said if line != "read"]
    assert all(": cannot be read as an image (" in line for line in refused)
    assert 200 < len(refused) < 1000
