import os
import struct
import sys
import zlib
from unittest import mock

import helpers
import numpy as np
import pytest
import skimage.data
import tifffile
from helpers import encoded
from PIL import Image, ImageCms

from lambdanet.data import imagefile

RNG = np.random.default_rng(0)
LOSSLESS = {"a.webp": {"lossless": True}}
COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels to PNG's colour type
KINDS = {"a.png": COLOURS, "a.PNG": [3], "a.tif": COLOURS, "a.bmp": [3], "a.webp": [3, 4]}
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
HEIC = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(200)


def noise(*shape, dtype=np.uint8):
    """Values that use the whole range, so that swapped bytes or lost bits show."""
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png16(pixels, extra=b"", size=None, passes=((0, 0, 1, 1),)):
    """A PNG file of 16 bits as other programs write it: rows as differences (filter 1), in two IDATs.

    Interlaced by `passes` of ADAM7: seven images, each of more of the pixels.
    """
    step, rows = 2 * pixels.shape[-1], []
    for part in (pixels[y::dy, x::dx] for y, x, dy, dx in passes):
        for row in part.astype(">u2").reshape(len(part), -1).view(np.uint8) if part.size else ():
            rows.append(b"\1" + (row - np.concatenate([np.zeros(step, np.uint8), row[:-step]])).tobytes())
    packed, kind = zlib.compress(b"".join(rows)), COLOURS[pixels.shape[-1]]
    header = struct.pack(">IIBBBBB", *(size or pixels.shape[1::-1]), 16, kind, 0, 0, len(passes) > 1)
    middle = chunk(b"IDAT", packed[:20]) + chunk(b"IDAT", packed[20:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + middle + chunk(b"IEND", b"")


def chunks_of(path):
    """Name and content of each chunk of a PNG file."""
    content, at, found = path.read_bytes(), 8, []
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def saved(path, image, **options):
    image.save(path, **options)
    return imagefile.read(path)


def equal(photograph, pixels):
    """Whether a photograph holds these, (h, w, 1 to 4): grey or colours, and of 2 or 4 the last is alpha."""
    grey, with_alpha = pixels.shape[-1] < 3, pixels.shape[-1] in (2, 4)
    rgb = np.repeat(pixels[..., :1], 3, axis=-1) if grey else pixels[..., :3]
    np.testing.assert_array_equal(photograph.rgb, rgb, strict=True)
    assert photograph.grey is grey
    assert (photograph.alpha is not None) == with_alpha
    if with_alpha:
        np.testing.assert_array_equal(photograph.alpha, pixels[..., -1], strict=True)


@pytest.mark.parametrize(("name", "channels"), [(name, each) for name in KINDS for each in KINDS[name]])
def test_lossless_files_of_8_bits(tmp_path, name, channels):
    pixels = noise(5, 7, channels)
    pixels[..., -1] |= 1  # WebP does not keep colours that are not seen
    equal(saved(tmp_path / name, Image.fromarray(pixels.squeeze()), **LOSSLESS.get(name, {})), pixels)


def test_one_bit_is_grey(tmp_path):
    bits = noise(9, 11) > 127
    equal(saved(tmp_path / "a.png", Image.fromarray(bits)), 255 * bits[..., None].astype(np.uint8))


def test_palette_with_transparent_colours(tmp_path):
    palette, alphas, indices = noise(4, 3), noise(4), noise(6, 5) % 4
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    equal(saved(tmp_path / "a.png", image), palette[indices])
    one = np.where(np.arange(4) == 2, 0, 255).astype(np.uint8)
    for given, alpha in ((alphas.tobytes(), alphas), (2, one)):
        read = saved(tmp_path / "b.png", image, transparency=given)
        equal(read, np.dstack([palette[indices], alpha[indices]]))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_of_a_photograph(tmp_path, mode):
    image = Image.fromarray(skimage.data.chelsea()[:64, :80]).convert(mode)
    read = saved(tmp_path / "a.jpg", image, quality=95, subsampling=0)
    assert np.abs(read.rgb.astype(int) - np.asarray(image.convert("RGB"))).mean() < 3
    assert (read.alpha, read.grey) == (None, mode == "L")


# EXIF's orientation: what a viewer must do with the stored pixels to show them upright.
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_turned_upright(tmp_path, orientation):
    pixels = noise(5, 7, 3)
    read = saved(tmp_path / "a.png", Image.fromarray(pixels), exif=camera(orientation))
    equal(read, UPRIGHT[orientation](pixels))


@pytest.mark.parametrize("size", [(1, 1), (40, 33)], ids=str)
@pytest.mark.parametrize("channels", COLOURS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_written_is_read_bit_by_bit(tmp_path, dtype, channels, size):
    pixels, path = noise(*size, channels, dtype=dtype), tmp_path / "a.png"
    imagefile.write_png(path, imagefile.from_values(pixels))
    equal(imagefile.read(path), pixels)
    with Image.open(path) as image:  # which checks each chunk's sum
        image.verify()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_is_the_mean_of_what_a_network_made_of_it(tmp_path, dtype):
    white = np.iinfo(dtype).max
    rgb = np.array([[[0, 1, 2], [white, white, white - 3], [white, white, white]]], dtype)
    imagefile.write_png(tmp_path / "a.png", imagefile.Photograph(rgb, grey=True))
    equal(imagefile.read(tmp_path / "a.png"), np.array([[[1], [white - 1], [white]]], dtype))


DEEP = png16(noise(40, 40, 3, dtype=np.uint16))
LARGE = (25_000, 20_001)
BROKEN = {
    "empty": b"",
    "text": b"no picture\n",
    "half": encoded(noise(40, 40, 3), "PNG")[:2000],
    "header only": encoded(noise(4, 4, 3), "PNG")[:33],
    "half of 16 bits": DEEP[:3000],
    "header of 16 bits only": DEEP[:33],
    "cut in the header of 16 bits": DEEP[:25],
    "16 bits of garbage": DEEP[:100] + bytes(5000),
    "too large": encoded(noise(4, 4, 3), "PNG").replace(struct.pack(">II", 4, 4), struct.pack(">II", *LARGE)),
    "too large of 16 bits": png16(noise(4, 4, 3, dtype=np.uint16), size=LARGE),
    "too large of 16 bits of grey": png16(noise(4, 4, 1, dtype=np.uint16), size=LARGE),
    "no pixels": png16(noise(4, 4, 3, dtype=np.uint16), size=(0, 4)),
    "TIFF without a picture": b"II*\0\x08\0\0\0" + bytes(100),
    "BigTIFF, cut": b"II+\0\x08\0\0\0",
}


def refusal(path):
    said = helpers.refusal(imagefile.read, path)
    assert said.startswith(f"{path}: cannot be read as an image (")
    return said


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_file_is_one_line_that_names_it(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    refusal(tmp_path / name)


def test_missing_file_and_folder_are_named(tmp_path):
    assert "No such file" in refusal(tmp_path / "a.png")
    assert "directory" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("depth", [8, 16])
def test_the_colour_profile_is_kept(tmp_path, suffix, depth):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source, out = tmp_path / f"source.{suffix}", tmp_path / "out.png"
    Image.fromarray(noise(9, 7, 3)).save(source, icc_profile=profile)
    photograph = imagefile.read(source)
    if depth == 16:
        photograph = imagefile.Photograph(photograph.rgb.astype(np.uint16) * 257, icc=photograph.icc)
    imagefile.write_png(out, photograph)
    with Image.open(out) as written:
        assert written.info["icc_profile"] == profile
    assert imagefile.read(out).icc == profile
    np.testing.assert_array_equal(imagefile.read(out).rgb, photograph.rgb)


@pytest.mark.parametrize("space", ["CMYK", "LAB"])
def test_a_colour_profile_of_other_colours_is_not_kept(tmp_path, space):
    header = b"\0" * 16 + space.encode()
    Image.new(space, (9, 7)).save(tmp_path / "a.tif", icc_profile=header.ljust(128))
    assert imagefile.read(tmp_path / "a.tif").icc is None


@pytest.mark.parametrize("channels", COLOURS)
def test_each_flipped_bit_in_the_pixels_of_16_bits_is_refused(tmp_path, channels):
    content = png16(noise(20, 20, channels, dtype=np.uint16))
    start = content.index(b"IDAT") + 4
    for at in np.linspace(start, len(content) - 13, 60, dtype=int):
        flipped = bytes([content[at] ^ 1 << at % 8])
        (tmp_path / "a.png").write_bytes(content[:at] + flipped + content[at + 1 :])
        assert "(damaged, or of a kind that is not supported: " in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("form", ["plain", "turned", "interlaced"])
@pytest.mark.parametrize("channels", COLOURS)
def test_16_bits_as_other_programs_write_them(tmp_path, channels, form):
    pixels = noise(13, 11, channels, dtype=np.uint16)
    turned = chunk(b"eXIf", camera(6).tobytes().removeprefix(b"Exif\0\0"))
    options = {"plain": {}, "turned": {"extra": turned}, "interlaced": {"passes": ADAM7}}
    (tmp_path / "a.png").write_bytes(png16(pixels, **options[form]))
    equal(imagefile.read(tmp_path / "a.png"), UPRIGHT[6](pixels) if form == "turned" else pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_16_bits_is_alpha(tmp_path, channels):
    pixels = noise(6, 5, channels, dtype=np.uint16)
    pixels[1, 1] = pixels[4, 2]
    pixels[0, 0] = pixels[4, 2] ^ 1  # differs in the last bit
    key = chunk(b"tRNS", pixels[4, 2].astype(">u2").tobytes())
    (tmp_path / "a.png").write_bytes(png16(pixels, key))
    alpha = np.full((6, 5), 65535, np.uint16)
    alpha[1, 1] = alpha[4, 2] = 0
    equal(imagefile.read(tmp_path / "a.png"), np.dstack([pixels, alpha]))


SAID = {
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
    b"gAMA": struct.pack(">I", 100_000),
    b"cICP": bytes([9, 16, 0, 1]),
    b"sRGB": bytes([1]),
    b"cLLI": struct.pack(">II", 10_000_000, 4_000_000),
    b"pHYs": struct.pack(">IIB", 11811, 11811, 1),
}


@pytest.mark.parametrize("depth", [8, 16])
def test_what_a_png_file_says_of_its_colours_is_kept(tmp_path, depth):
    extra = b"".join(chunk(name, content) for name, content in SAID.items())
    plain = encoded(noise(5, 7, 3), "PNG") if depth == 8 else png16(noise(5, 7, 3, dtype=np.uint16))
    (tmp_path / "a.png").write_bytes(plain[:33] + extra + chunk(b"tEXt", b"Comment\0none") + plain[33:])
    imagefile.write_png(tmp_path / "b.png", imagefile.read(tmp_path / "a.png"))
    assert [name for name, _ in chunks_of(tmp_path / "b.png")] == [b"IHDR", *SAID, b"IDAT", b"IEND"]
    assert SAID.items() <= dict(chunks_of(tmp_path / "b.png")).items()
    with Image.open(tmp_path / "b.png") as image:
        image.verify()


def camera(orientation):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", orientation
    exif[0x8769] = {0x829A: 0.5}
    return exif


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_is_kept_without_the_orientation(tmp_path, suffix):
    pixels = noise(16, 8, 3)
    read = saved(tmp_path / f"a.{suffix}", Image.fromarray(pixels), exif=camera(6).tobytes())
    assert read.rgb.shape == (8, 16, 3)
    for rgb in (read.rgb, read.rgb.astype(np.uint16)):
        imagefile.write_png(tmp_path / "b.png", imagefile.Photograph(rgb, exif=read.exif))
        with Image.open(tmp_path / "b.png") as image:
            exif = image.getexif()
        assert dict(exif.items()) | {0x8769: 0} == {0x010F: "Maker", 0x8769: 0}
        assert exif.get_ifd(0x8769) == {0x829A: 0.5}


@pytest.mark.parametrize("kind", range(14))
def test_exif_that_cannot_be_read_is_left_away_and_the_image_upright(tmp_path, kind):
    """The type of the maker's name becomes each that there is, and one that there is not."""
    pixels = skimage.data.chelsea()[:64, :80]
    content = encoded(pixels, "JPEG", exif=camera(6), quality=95, subsampling=0)
    at = content.index(b"\x01\x0f\0\x02") + 3
    (tmp_path / "a.jpg").write_bytes(content[:at] + bytes([kind]) + content[at + 1 :])
    read = imagefile.read(tmp_path / "a.jpg")
    assert np.abs(read.rgb.astype(int) - np.rot90(pixels, -1)).mean() < 3
    imagefile.write_png(tmp_path / "b.png", read)
    with Image.open(tmp_path / "b.png") as image:
        assert 0x0112 not in image.getexif()


@pytest.mark.parametrize("kind", ["png", "gif", "webp", "tif", "tif of fractions"])
def test_of_several_pictures_the_first_is_read_and_all_are_counted(tmp_path, kind):
    levels = [np.full((8, 8, 3), level, np.uint8) for level in (40, 120, 200)]
    path = tmp_path / f"a.{kind.partition(' ')[0]}"
    if kind == "tif of fractions":  # which Pillow does not read
        with tifffile.TiffWriter(path) as writer:
            for level in levels:
                writer.write(level.astype(np.float32) / 255, photometric="rgb")
        levels[0] = levels[0].astype(np.uint16) * 257
    else:
        first, *more = map(Image.fromarray, levels)
        first.save(path, save_all=True, append_images=more, **LOSSLESS.get(path.name, {}))
    read = imagefile.read(path)
    assert read.frames == 3
    np.testing.assert_array_equal(read.rgb, levels[0])


COLOUR16, GREY16, GREY8 = noise(6, 5, 3, dtype=np.uint16), noise(6, 5, 1, dtype=np.uint16), noise(6, 5, 1)
EXTRA16 = np.dstack([COLOUR16, GREY16])
FRACTIONS = (COLOUR16 / np.float32(65535)).astype(np.float32)
PLANES = {"photometric": "rgb", "planarconfig": "separate"}
PLANES8 = np.repeat(GREY8[None, ..., 0], 3, axis=0)
TIFFS = {
    "colours": (COLOUR16, {"photometric": "rgb"}, COLOUR16),
    "with something else": (EXTRA16, {"photometric": "rgb", "extrasamples": [0]}, COLOUR16),
    "planes": (np.moveaxis(COLOUR16, -1, 0), PLANES, COLOUR16),
    "planes of 8 bits": (PLANES8, PLANES, np.moveaxis(PLANES8, 0, -1)),
    "alpha": (EXTRA16, {"photometric": "rgb", "extrasamples": [2]}, EXTRA16),
    "grey": (GREY16[..., 0], {"photometric": "minisblack"}, GREY16),
    "white is 0 of 8 bits": (GREY8[..., 0], {"photometric": "miniswhite"}, 255 - GREY8),
    "fractions": (FRACTIONS, {"photometric": "rgb"}, COLOUR16),
    "double": (FRACTIONS.astype(float), {"photometric": "rgb"}, COLOUR16),
    "grey fractions": (FRACTIONS[..., 0], {"photometric": "minisblack"}, COLOUR16[..., :1]),
    "BigTIFF": (COLOUR16, {"photometric": "rgb", "bigtiff": True}, COLOUR16),
}  # fmt: skip


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("pixels", "options", "expected"), TIFFS.values(), ids=TIFFS)
def test_kinds_of_tiff(tmp_path, pixels, options, expected, order, compression):
    tifffile.imwrite(tmp_path / "a.tif", pixels, byteorder=order, compression=compression, **options)
    equal(imagefile.read(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("kind", ["by Pillow", "by Pillow, 16 bits", "by tifffile"])
def test_tiff_is_turned_upright(tmp_path, orientation, kind):
    pixels = {"by Pillow": noise(5, 7, 3), "by Pillow, 16 bits": COLOUR16, "by tifffile": FRACTIONS}[kind]
    expected = COLOUR16 if kind == "by tifffile" else pixels
    tag = (0x0112, 3, 1, orientation, True)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extratags=[tag])
    equal(imagefile.read(tmp_path / "a.tif"), UPRIGHT[orientation](expected))


REFUSED = {
    **{str(dtype): (np.ones((4, 4), dtype), {}) for dtype in ("uint32", "int32", "int16", "complex64")},
    "white is 0": (GREY16[..., 0], {"photometric": "miniswhite"}),
    "premultiplied": (EXTRA16, {"photometric": "rgb", "extrasamples": [1]}),
    **{f"reach {x}": (np.float32([[0.5, x]]), {"photometric": "minisblack"}) for x in (-0.01, 1.01, np.nan)},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_of_tiff_are_refused(tmp_path, kind):
    pixels, options = REFUSED[kind]
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    assert ("have to be from 0 to 1" in refusal(tmp_path / "a.tif")) == ("reach" in kind)


def test_damaged_tiff_says_nothing_but_its_line(tmp_path, capfd):
    tifffile.imwrite(tmp_path / "a.tif", noise(40, 40, 3), photometric="rgb", compression="zlib")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[-500:-400] = bytes(100)
    (tmp_path / "a.tif").write_bytes(content)
    refusal(tmp_path / "a.tif")
    assert capfd.readouterr().err == ""
    os.write(2, b"heard again\n")
    assert capfd.readouterr().err == "heard again\n"


def test_heic_without_its_package_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(HEIC)
    assert refusal(tmp_path / "a.heic").endswith("(HEIC needs one package more: pip install pillow-heif)")


def test_heic_with_its_package(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = skimage.data.chelsea()[:64, :80]
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "a.heic", quality=95)
    assert np.abs(imagefile.read(tmp_path / "a.heic").rgb.astype(int) - pixels).mean() < 3
    (tmp_path / "b.heic").write_bytes(HEIC)
    refusal(tmp_path / "b.heic")


def test_what_has_no_memory_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "open", mock.Mock(side_effect=MemoryError))
    (tmp_path / "a.png").write_bytes(encoded(noise(4, 4, 3), "PNG"))
    assert "not enough memory" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_hidden_pixels_take_the_colour_beside_them(dtype):
    """Two halves of one colour each, and nothing visible from there on."""
    rgb, alpha = np.zeros((33, 47, 3), dtype), np.zeros((33, 47), dtype)
    rgb[:, :10], rgb[:, 10:20] = (200, 60, 10), (20, 100, 90)
    alpha[3:20, 2:20] = 7
    filled = imagefile.fill_hidden(rgb, alpha)
    assert (filled.dtype, filled.shape) == (dtype, rgb.shape)
    np.testing.assert_array_equal(filled[alpha > 0], rgb[alpha > 0])
    np.testing.assert_array_equal(filled[3:20, :2], np.full((17, 2, 3), (200, 60, 10)))
    np.testing.assert_array_equal(filled[3:20, 20:24], np.full((17, 4, 3), (20, 100, 90)))
    assert 20 <= filled[..., 0].min() <= filled[..., 0].max() <= 200
