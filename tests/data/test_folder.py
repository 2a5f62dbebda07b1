import hashlib
import json

import helpers
import numpy as np
import pytest
from PIL import Image

from lambdanet.config import DOWNLOADS, Download
from lambdanet.data import datasets, folder, imagefile
from lambdanet.data.patches import cut

NAMES = ["a.jpg", "b.JPG", "c.png", "d.webp", "e.bmp", "trip/f.jpeg", "trip/day 2/g.png"]


def photograph(number, h=40, w=56):
    return helpers.patches(1, size=56, seed=number)[0][:h, :w]


@pytest.fixture
def photographs(tmp_path):
    """A folder of 7 photographs of 56 x 40 pixels, and of what is none."""
    path = tmp_path / "my photographs"
    for number, name in enumerate(NAMES):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(number)).save(path / name)
    (path / "album.png").mkdir()
    others = ("notes.txt", "trip/raw.dng", ".hidden.png", ".thumbnails/a.png")
    return helpers.folder(path, dict.fromkeys(others, b"no image"))


def wanted(path, train=4, test=2, **more):
    return Download(dataset=str(path), train=train, test=test, **{"size": 16, "patches": 5} | more)


def load(path, **more):
    return folder.load(wanted(path, **more))


def test_patches_are_of_the_files_that_the_card_names(photographs):
    images, notes = load(photographs)
    for split, count in (("train", 4), ("test", 2)):
        names = notes["photographs"][split]
        assert len(set(names)) == count
        assert (images[split].shape, images[split].dtype) == ((5 * count, 16, 16, 3), np.uint8)
        for i, name in enumerate(names):
            pixels = imagefile.read(photographs / name).rgb
            expected = cut(pixels, 5, 16, seed=0, name=name)
            np.testing.assert_array_equal(images[split][5 * i : 5 * i + 5], expected)


def test_more_training_files_leave_the_test_images_alone(photographs):
    few, many = load(photographs, train=2)[0], load(photographs, train=5)[0]
    np.testing.assert_array_equal(few["test"], many["test"])
    np.testing.assert_array_equal(few["train"], many["train"][:10])


def test_card_holds_every_files_digest_and_changes_with_a_photograph(photographs, tmp_path):
    def prepared():
        card = datasets.prepare(wanted(photographs), tmp_path / "clean", source=None, downloads=tmp_path)
        return card, helpers.contents(tmp_path / "clean")

    card, first = prepared()
    assert json.loads(first["card.json"]) == card
    assert list(card) == ["dataset", "origin", "images", "sha256", "made", "photographs", "files"]
    assert (card["dataset"], card["images"]) == (str(photographs), {"train": 20, "test": 10})
    used = card["photographs"]["train"] + card["photographs"]["test"]
    assert list(card["files"]) == sorted(used)
    for name, digest in card["files"].items():
        assert digest == hashlib.sha256((photographs / name).read_bytes()).hexdigest()
    assert prepared() == (card, first)
    name = card["photographs"]["test"][0]
    Image.fromarray(photograph(99)).save(photographs / name)
    other, second = prepared()
    assert second["train.npy"] == first["train.npy"]
    assert second["test.npy"] != first["test.npy"]
    assert {key for key in card["files"] if card["files"][key] != other["files"][key]} == {name}


def test_16_bits_are_rounded_to_8(tmp_path):
    values = np.random.default_rng(0).integers(0, 1 << 16, (16, 16, 3), dtype=np.uint16)
    values[0, 0], values[0, 1] = (0, 128, 129), (65535, 65406, 65407)
    for name in ("deep.png", "too.png"):
        imagefile.write_png(tmp_path / name, imagefile.Photograph(values))
    patch = load(tmp_path, train=1, test=1, patches=1)[0]["train"][0]
    np.testing.assert_array_equal(patch, np.rint(values / 257).astype(np.uint8))
    assert patch[0, :2].tolist() == [[0, 0, 1], [255, 254, 255]]


@pytest.mark.parametrize("name", ["nowhere", "~nobody/photos", "a\0b", "notes.txt"])
def test_name_of_nothing_is_refused(name, refused, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("a file, no folder")
    monkeypatch.chdir(tmp_path)
    message = refused(wanted(name))
    assert message == f"dataset is {name!r}, neither one of {', '.join(DOWNLOADS)} nor a folder that exists"


def test_what_a_folder_lacks_is_named(photographs, refused, tmp_path):
    small = photographs / "trip/f.jpeg"
    Image.fromarray(photograph(1, 40, 23)).save(small)
    empty = tmp_path / "empty"
    (empty / ".git").mkdir(parents=True)
    (empty / "a.txt").write_text("")
    for config, says in (
        (wanted(empty), f"{empty} holds no images ({', '.join(imagefile.SUFFIXES)})"),
        (wanted(photographs, train=6), f"{photographs} holds 7 images, train: 6 and test: 2 ask for 8"),
        (wanted(photographs, train=5, size=24), f"{small} has 23 x 40 pixels, less than a patch of 24 x 24"),
    ):
        assert refused(config) == says
    small.write_bytes(small.read_bytes()[:400])
    assert refused(wanted(photographs, train=5)).startswith(f"{small}: cannot be read as an image (")


def test_path_is_relative_to_the_current_folder_or_the_home(photographs, monkeypatch):
    expected = load(photographs)[1]["photographs"]
    monkeypatch.chdir(photographs.parent)
    monkeypatch.setenv("HOME", str(photographs.parent))
    assert load("my photographs")[1]["photographs"] == expected
    assert load("~/my photographs")[1]["photographs"] == expected
