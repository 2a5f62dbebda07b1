import numpy as np
import pytest
import skimage.data

from lambdanet.config import Download
from lambdanet.data import datasets, photos
from lambdanet.data.arrays import digest

CARD = """{
  "dataset": "photos",
  "origin": "photographs of the scikit-image package",
  "images": {
    "train": 6000,
    "test": 600
  },
  "sha256": {
    "train": "%s",
    "test": "%s"
  }
}
"""


@pytest.fixture(scope="module")
def images():
    return photos.load()[0]


def test_counts_and_shapes(images):
    assert {split: array.shape for split, array in images.items()} == {
        "train": (6000, 32, 32, 3),
        "test": (600, 32, 32, 3),
    }
    assert all(array.dtype == np.uint8 for array in images.values())


def test_same_patches_and_card_every_time(images, tmp_path):
    """DVC knows a data set by its files' bytes, and the card is one of them."""
    wanted = Download(dataset="photos", train=6000, test=600)
    datasets.prepare(wanted, tmp_path / "clean", source=None, downloads=tmp_path)
    assert (tmp_path / "clean/card.json").read_text() == CARD % (
        digest(images["train"]),
        digest(images["test"]),
    )


def test_train_and_test_come_from_different_photographs(monkeypatch):
    names = (*photos.TRAIN, *photos.TEST)
    assert len(set(names)) == 6
    monkeypatch.setattr(photos, "_read", lambda name: np.full((70, 60, 3), 10 * names.index(name), np.uint8))
    flat, _ = photos.load()
    assert {split: np.unique(array).tolist() for split, array in flat.items()} == {
        "train": [0, 10, 20, 30],
        "test": [40, 50],
    }


def test_patches_differ_from_each_other(images):
    assert len({patch.tobytes() for patch in images["train"]}) > 5900
    assert images["train"].std((1, 2, 3)).mean() > 20


def test_photograph_is_the_centred_square():
    np.testing.assert_array_equal(photos.photograph("astronaut", 512), skimage.data.astronaut())
    np.testing.assert_array_equal(photos.photograph("chelsea", 300), skimage.data.chelsea()[:, 75:375])
    assert photos.photograph("stereo_motorcycle", 64).shape == (64, 64, 3)


def test_shrinking_averages():
    image = skimage.data.astronaut()
    small = photos.photograph("astronaut", 32)
    blocks = image.reshape(32, 16, 32, 16, 3).mean((1, 3))
    assert np.abs(small - blocks).mean() < 8
    assert np.abs(small.mean() - image.mean()) < 1
