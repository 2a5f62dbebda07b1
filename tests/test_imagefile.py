import io
import struct
import zlib

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageCms
from torchvision.io import ImageReadMode
from torchvision.io import decode_image as deprecated_decode_image

from lambdanet import imagefile
from lambdanet.imagefile import Photograph

RNG = np.random.default_rng(0)
COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels to PNG's colour type


def noise(*shape, dtype=np.uint8):
    """Values that use the whole range, so that swapped bytes or lost bits show."""
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png16(pixels, kind, extra=b"", size=None):
    """A PNG file of 16 bits as other programs write it: rows as differences (filter 1), in two IDATs."""
    h, w = pixels.shape[:2]
    data = pixels.astype(">u2").reshape(h, -1).view(np.uint8)
    step = data.shape[1] // w
    rows = [b"\1" + (row - np.concatenate([np.zeros(step, np.uint8), row[:-step]])).tobytes() for row in data]
    packed = zlib.compress(b"".join(rows))
    header = struct.pack(">IIBBBBB", *(size or (w, h)), 16, kind, 0, 0, 0)
    middle = chunk(b"IDAT", packed[:20]) + chunk(b"IDAT", packed[20:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + middle + chunk(b"IEND", b"")


def decode_image(path):
    """The pixels as torchvision reads them."""
    with pytest.warns(DeprecationWarning, match="TorchCodec"):
        return deprecated_decode_image(str(path), ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()


def saved(path, image, **options):
    image.save(path, **options)
    return imagefile.read(path)


def thrice(plane):
    return np.stack([plane] * 3, -1)


def equal(photograph, rgb, alpha=None, grey=False):
    assert (photograph.rgb.dtype, photograph.rgb.shape) == (rgb.dtype, rgb.shape)
    np.testing.assert_array_equal(photograph.rgb, rgb)
    assert photograph.grey is grey
    assert (photograph.alpha is None) == (alpha is None)
    if alpha is not None:
        assert photograph.alpha.dtype == rgb.dtype
        np.testing.assert_array_equal(photograph.alpha, alpha)


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp"])
def test_colours_of_8_bits(tmp_path, name):
    pixels = noise(5, 7, 3)
    equal(saved(tmp_path / name, Image.fromarray(pixels)), pixels)


def test_lossless_webp_with_alpha(tmp_path):
    pixels = noise(5, 7, 4)
    pixels[..., 3] |= 1  # WebP does not keep colours that are not seen
    equal(saved(tmp_path / "a.webp", Image.fromarray(pixels), lossless=True), pixels[..., :3], pixels[..., 3])


def test_grey_with_and_without_alpha(tmp_path):
    pixels = noise(5, 7, 2)
    equal(saved(tmp_path / "a.png", Image.fromarray(pixels[..., 0])), thrice(pixels[..., 0]), grey=True)
    read = saved(tmp_path / "b.png", Image.fromarray(pixels))
    equal(read, thrice(pixels[..., 0]), pixels[..., 1], grey=True)


def test_colours_with_alpha(tmp_path):
    pixels = noise(5, 7, 4)
    equal(saved(tmp_path / "a.png", Image.fromarray(pixels)), pixels[..., :3], pixels[..., 3])


def test_one_bit_is_grey(tmp_path):
    bits = noise(9, 11) > 127
    equal(saved(tmp_path / "a.png", Image.fromarray(bits)), thrice(255 * bits.astype(np.uint8)), grey=True)


def test_palette_with_one_transparent_colour(tmp_path):
    palette, indices = noise(4, 3), noise(6, 5) % 4
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    equal(saved(tmp_path / "a.png", image), palette[indices])
    read = saved(tmp_path / "b.png", image, transparency=2)
    equal(read, palette[indices], np.where(indices == 2, 0, 255).astype(np.uint8))


def test_palette_with_half_transparent_colours(tmp_path):
    palette, alphas, indices = noise(4, 3), noise(4), noise(6, 5) % 4
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    equal(saved(tmp_path / "a.png", image, transparency=alphas.tobytes()), palette[indices], alphas[indices])


def test_one_transparent_colour_without_a_palette(tmp_path):
    pixels = noise(5, 7, 3)
    read = saved(tmp_path / "a.png", Image.fromarray(pixels), transparency=tuple(map(int, pixels[2, 3])))
    alpha = np.full((5, 7), 255, np.uint8)
    alpha[2, 3] = 0
    equal(read, pixels, alpha)


def test_jpeg_of_a_photograph(tmp_path):
    pixels = skimage.data.chelsea()[:64, :80]
    read = saved(tmp_path / "a.jpg", Image.fromarray(pixels), quality=95, subsampling=0)
    assert np.abs(read.rgb.astype(int) - pixels).mean() < 2
    assert (read.alpha, read.grey) == (None, False)
    assert np.abs(read.rgb.astype(int) - decode_image(tmp_path / "a.jpg")).max() <= 2


def test_grey_jpeg(tmp_path):
    read = saved(tmp_path / "a.jpeg", Image.fromarray(skimage.data.camera()[:64, :80]), quality=95)
    assert np.abs(read.rgb - skimage.data.camera()[:64, :80, None].astype(int)).mean() < 2
    assert read.grey


def test_cmyk_jpeg(tmp_path):
    pixels = skimage.data.chelsea()[:64, :80]
    read = saved(tmp_path / "a.jpg", Image.fromarray(pixels).convert("CMYK"), quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.mode == "CMYK"
    assert np.abs(read.rgb.astype(int) - pixels).mean() < 3


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
    pixels, exif = noise(5, 7, 3), Image.Exif()
    exif[0x0112] = orientation
    read = saved(tmp_path / "a.png", Image.fromarray(pixels), exif=exif)
    equal(read, UPRIGHT[orientation](pixels))


def test_photographs_of_a_camera_held_upright_are_turned(tmp_path):
    pixels, exif = skimage.data.chelsea()[:64, :80], Image.Exif()
    exif[0x0112] = 6
    read = saved(tmp_path / "a.jpg", Image.fromarray(pixels), exif=exif, quality=95)
    assert read.rgb.shape == (80, 64, 3)
    assert np.abs(read.rgb.astype(int) - np.rot90(pixels, -1)).mean() < 3


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("channels", COLOURS)
def test_deep_images_are_turned_upright(tmp_path, channels, orientation):
    pixels, exif = noise(5, 7, channels, dtype=np.uint16), Image.Exif()
    exif[0x0112] = orientation
    content = png16(pixels, COLOURS[channels], chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    (tmp_path / "a.png").write_bytes(content)
    turned = UPRIGHT[orientation](pixels)
    np.testing.assert_array_equal(imagefile.read(tmp_path / "a.png").rgb[..., 0], turned[..., 0])


@pytest.mark.parametrize("channels", COLOURS)
def test_16_bits_as_other_programs_write_them(tmp_path, channels):
    pixels = noise(6, 5, channels, dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png16(pixels, COLOURS[channels]))
    grey = channels < 3
    rgb = thrice(pixels[..., 0]) if grey else pixels[..., :3]
    equal(imagefile.read(tmp_path / "a.png"), rgb, pixels[..., -1] if channels in (2, 4) else None, grey)


def test_16_bits_of_grey_as_pillow_writes_them(tmp_path):
    pixels = noise(6, 5, dtype=np.uint16)
    equal(saved(tmp_path / "a.png", Image.fromarray(pixels)), thrice(pixels), grey=True)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (40, 33)], ids=str)
@pytest.mark.parametrize("channels", COLOURS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_written_is_read_bit_by_bit(tmp_path, dtype, channels, size):
    pixels, path = noise(*size, channels, dtype=dtype), tmp_path / "a.png"
    grey = channels < 3
    rgb = thrice(pixels[..., 0]) if grey else pixels[..., :3]
    alpha = pixels[..., -1] if channels in (2, 4) else None
    imagefile.write_png(path, Photograph(rgb, alpha, grey))
    equal(imagefile.read(path), rgb, alpha, grey)
    np.testing.assert_array_equal(decode_image(path), pixels)
    with Image.open(path) as image:  # which checks each chunk's sum
        image.verify()


def test_16_bits_of_grey_are_what_pillow_reads(tmp_path):
    pixels = noise(6, 5, dtype=np.uint16)
    imagefile.write_png(tmp_path / "a.png", Photograph(thrice(pixels), grey=True))
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_is_the_mean_of_what_a_network_made_of_it(tmp_path, dtype):
    white = np.iinfo(dtype).max
    rgb = np.array([[[0, 1, 2], [white, white, white - 3], [white, white, white]]], dtype)
    imagefile.write_png(tmp_path / "a.png", Photograph(rgb, grey=True))
    equal(imagefile.read(tmp_path / "a.png"), thrice(np.array([[1, white - 1, white]], dtype)), grey=True)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


DEEP = png16(noise(40, 40, 3, dtype=np.uint16), 2)
LARGE = {"size": (25_000, 20_001)}
BROKEN = {
    "empty": b"",
    "text": b"no picture\n",
    "half": png(noise(40, 40, 3))[:2000],
    "header only": png(noise(4, 4, 3))[:33],
    "half of 16 bits": DEEP[:3000],
    "header of 16 bits only": DEEP[:33],
    "cut in the header of 16 bits": DEEP[:25],
    "16 bits of garbage": DEEP[:100] + bytes(5000),
    "too large": png(noise(4, 4, 3)).replace(struct.pack(">II", 4, 4), struct.pack(">II", *LARGE["size"]), 1),
    "too large of 16 bits": png16(noise(4, 4, 3, dtype=np.uint16), 2, **LARGE),
    "too large of 16 bits of grey": png16(noise(4, 4, 1, dtype=np.uint16), 0, **LARGE),
    "no pixels": png16(noise(4, 4, 3, dtype=np.uint16), 2, size=(0, 4)),
    "TIFF": b"II*\0\x08\0\0\0" + bytes(100),
}


def refusal(path):
    with pytest.raises(ValueError, match="cannot be read as an image") as caught:
        imagefile.read(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: cannot be read as an image (")
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_file_is_one_line_that_names_it(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    refusal(tmp_path / name)


def test_half_a_jpeg_is_refused(tmp_path):
    Image.fromarray(noise(40, 40, 3)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:1500])
    refusal(tmp_path / "a.jpg")


def test_missing_file_and_folder_are_named(tmp_path):
    assert "No such file" in refusal(tmp_path / "a.png")
    assert "directory" in refusal(tmp_path)


def test_largest_image_is_not_refused_for_its_size(tmp_path):
    """Pillow warns of half as many pixels; here a warning would be an error."""
    header = struct.pack(">II", 25_000, 20_000)
    (tmp_path / "a.png").write_bytes(png(noise(4, 4, 3))[:33].replace(struct.pack(">II", 4, 4), header))
    assert "pixels" not in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("depth", [8, 16])
def test_the_colour_profile_is_kept(tmp_path, suffix, depth):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source, out = tmp_path / f"source.{suffix}", tmp_path / "out.png"
    Image.fromarray(noise(9, 7, 3)).save(source, icc_profile=profile)
    photograph = imagefile.read(source)
    if depth == 16:
        photograph = Photograph(photograph.rgb.astype(np.uint16) * 257, icc=photograph.icc)
    imagefile.write_png(out, photograph)
    with Image.open(out) as written:
        assert written.info["icc_profile"] == profile
    assert imagefile.read(out).icc == profile
    np.testing.assert_array_equal(imagefile.read(out).rgb, photograph.rgb)
