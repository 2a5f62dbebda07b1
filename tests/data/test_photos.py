import json

import numpy as np
import skimage.data

from lambdanet.config import Download
from lambdanet.data import datasets, photos
from lambdanet.data.arrays import digest, load_images


def test_card_describes_the_patches_that_are_written(tmp_path):
    """DVC knows a data set by its files' bytes, and the card is one of them."""
    wanted = Download(dataset="photos", train=6000, test=600)
    datasets.prepare(wanted, tmp_path, source=None, downloads=tmp_path)
    train, test = (load_images(tmp_path, split) for split in ("train", "test"))
    assert (train.shape, test.shape) == ((6000, 32, 32, 3), (600, 32, 32, 3))
    card = {"dataset": "photos", "origin": "photographs of the scikit-image package"}
    card |= {"images": {"train": 6000, "test": 600}}
    card |= {"sha256": {"train": digest(train), "test": digest(test)}}
    assert (tmp_path / "card.json").read_text() == json.dumps(card, indent=2) + "\n"


def test_train_and_test_come_from_different_photographs(monkeypatch):
    names = (*photos.TRAIN, *photos.TEST)
    assert len(set(names)) == 6
    monkeypatch.setattr(photos, "_read", lambda name: np.full((70, 60, 3), 10 * names.index(name), np.uint8))
    flat, _ = photos.load()
    assert {split: np.unique(array).tolist() for split, array in flat.items()} == {
        "train": [0, 10, 20, 30],
        "test": [40, 50],
    }


def test_photograph_is_the_centred_square():
    np.testing.assert_array_equal(photos.photograph("astronaut", 512), skimage.data.astronaut())
    np.testing.assert_array_equal(photos.photograph("chelsea", 300), skimage.data.chelsea()[:, 75:375])
    assert photos.photograph("stereo_motorcycle", 64).shape == (64, 64, 3)
