import io

import helpers
import numpy as np
import pytest
from PIL import Image

from lambdanet import files
from lambdanet.config import Download
from lambdanet.data import bsds500
from lambdanet.data.patches import cut

COUNTS = {"train": 3, "test": 2, "val": 4}


def photograph(number):
    """Of 481 x 321 pixels, every third standing; each differs."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((481, 321), Image.Resampling.BICUBIC))
    return np.rot90(pixels, -1) if number % 3 == 2 else pixels


@pytest.fixture(scope="session")
def jpegs():
    """A BSDS500 of 9 images: name to JPEG file."""
    names = [f"{split}/{1000 + i}.jpg" for split, count in COUNTS.items() for i in range(count)]
    return {name: helpers.encoded(photograph(i), "JPEG", quality=95) for i, name in enumerate(names)}


@pytest.fixture(autouse=True)
def tiny(jpegs, monkeypatch, request):
    """Make the library take the tiny BSDS500 for the real one."""
    if "shared_data" not in request.fixturenames:
        monkeypatch.setattr(bsds500, "COUNTS", COUNTS)
        monkeypatch.setattr(bsds500, "DIGEST", bsds500.digest(jpegs))


def bare(jpegs):
    return {f"BSDS500/images/{name}": content for name, content in jpegs.items()}


def berkeley(jpegs):
    made = {f"BSR/BSDS500/data/images/{name}": content for name, content in jpegs.items()}
    return made | {
        "BSR/BSDS500/data/images/train/Thumbs.db": b"x" * (2 << 20),
        "BSR/BSDS500/data/images/train/._1000.jpg": b"of a Mac",
        "BSR/BSDS500/data/groundTruth/train/1000.mat": b"MATLAB",
        "BSR/BSDS500/data/segs/train/1000.jpg": b"not an image of it",
        "BSR/bench/data/images/1000.jpg": b"neither",
        "1.jpg": b"nor this",
    }


def wanted(train=5, test=4, **more):
    return Download(dataset="bsds500", train=train, test=test, **{"patches": 6} | more)


def load(source, **more):
    return bsds500.load(wanted(**more), str(source), source.parent / "downloads")


@pytest.fixture
def source(jpegs, tmp_path):
    return helpers.tar(tmp_path / "source.tar", bare(jpegs), "w")


def test_berkeleys_archive_gives_the_same_arrays(jpegs, source, tmp_path):
    expected, notes = load(source)
    images, same = load(helpers.tar(tmp_path / "other", berkeley(jpegs)))
    assert notes == same
    for split in expected:
        np.testing.assert_array_equal(images[split], expected[split])


def test_folder_may_be_the_innermost_one(jpegs, tmp_path):
    inner = helpers.folder(tmp_path / "unpacked", bare(jpegs)) / "BSDS500/images"
    assert bsds500.read_files(inner) == jpegs


@pytest.mark.parametrize("size", [40, 48])
def test_training_patches_are_of_train_and_test_images(jpegs, source, size):
    images, notes = load(source, size=size)
    names = notes["photographs"]["train"]
    assert sorted(names) == sorted(name for name in jpegs if not name.startswith("val/"))
    assert (images["train"].shape, images["train"].dtype) == ((30, size, size, 3), np.uint8)
    for i, name in enumerate(names):
        expected = cut(bsds500.decode(jpegs[name]), 6, size, seed=0, name=name)
        np.testing.assert_array_equal(images["train"][6 * i : 6 * i + 6], expected)
    assert len({patch.tobytes() for patch in images["train"]}) == 30


def test_test_images_are_whole_and_lie(jpegs, source):
    images, notes = load(source)
    names = notes["photographs"]["test"]
    assert sorted(names) == [f"val/{1000 + i}.jpg" for i in range(4)]
    assert (images["test"].shape, images["test"].dtype) == ((4, 321, 481, 3), np.uint8)
    turned = 0
    for image, name in zip(images["test"], names, strict=True):
        pixels = helpers.pixels_of(io.BytesIO(jpegs[name]))
        if pixels.shape == (481, 321, 3):  # the left column is now the lowest row
            np.testing.assert_array_equal(image[-1], pixels[:, 0])
            np.testing.assert_array_equal(image[0, 0], pixels[0, -1])
            turned += 1
        else:
            np.testing.assert_array_equal(image, pixels)
    assert turned == 2


def test_fewer_images_are_the_first_of_more(source):
    every, notes = load(source)
    some, some_notes = load(source, train=2, test=3)
    np.testing.assert_array_equal(some["train"], every["train"][:12])
    np.testing.assert_array_equal(some["test"], every["test"][:3])
    assert some_notes["photographs"]["train"] == notes["photographs"]["train"][:2]


def test_digest_is_that_of_sha256sum(tmp_path):
    """As `printf a | sha256sum` has it, `sha256sum a/b` has it with two spaces and the name."""
    a = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (tmp_path / "sums").write_text(f"{empty}  a/9.jpg\n{a}  b/10.jpg\n")
    assert bsds500.digest({"b/10.jpg": b"a", "a/9.jpg": b""}) == files.sha256(tmp_path / "sums")


CHANGED = "the images are not BSDS500's (content digest differs)"
DAMAGED = {  # a part of a name, what becomes of that file or of its name, and the message
    "one byte": ("train/1000.jpg", lambda name, b: {name: b[:-9] + b"\0" + b[-8:]}, CHANGED),
    "another name": ("val/1003", lambda name, b: {name.replace("1003", "1009"): b}, CHANGED),
    "one missing": ("test/1001.jpg", lambda _name, _b: {}, "1 images in test, BSDS500 has 2"),
    "no val": ("/val/", lambda _name, _b: {}, "0 images in val, BSDS500 has 4"),
    "nothing of it": ("", lambda _name, b: {"a/readme.txt": b}, "holds no images/train, images/test"),
}


@pytest.mark.parametrize(("part", "change", "text"), DAMAGED.values(), ids=DAMAGED)
def test_other_content_is_refused(part, change, text, jpegs, tmp_path, refused):
    made = {}
    for name, content in bare(jpegs).items():
        made |= change(name, content) if part in name else {name: content}
    source = helpers.tar(tmp_path / "source", made)
    message = refused(wanted(), source)
    assert message.startswith(f"{source}: ")
    assert text in message


def test_more_images_than_there_are_are_refused(source, refused):
    for split, there in (("train", 5), ("test", 4)):
        message = f"bsds500's {split} split has {there} images, {there + 1} are asked for"
        assert refused(wanted(**{split: there + 1}), source) == message


def test_real_bsds500(shared_data):
    """Its digest is verified on reading; here, what is made of it."""
    source = str(shared_data / "bsds500-images.tar")
    images, notes = bsds500.load(wanted(train=3, test=100, patches=4), source, shared_data)
    assert (images["train"].shape, images["test"].shape) == ((12, 40, 40, 3), (100, 321, 481, 3))
    assert len(set(notes["photographs"]["test"])) == 100
