import functools

import numpy as np
import pytest
import skimage.data

from lambdanet.data import photos
from lambdanet.data.arrays import digest


@pytest.fixture(scope="module")
def images():
    return photos.load()[0]


def places(patch, image):
    """Where `patch` stands in `image`: a list of (row, column)."""
    side = len(patch)
    corner = (image[: 1 - side, : 1 - side] == patch[0, 0]).all(-1)
    return [(y, x) for y, x in np.argwhere(corner) if (image[y : y + side, x : x + side] == patch).all()]


@functools.cache
def copies(names):
    """The photographs in all sizes that patches are cut from, with one more row and column."""
    shrunk = (photos._shrink(photos._read(name), side) for name in names for side in photos.SHORT_SIDES)
    return [np.pad(copy, ((0, 1), (0, 1), (0, 0))) for copy in shrunk]


def found(patch, names):
    return any(places(each, copy) for copy in copies(names) for each in (patch, patch[:, ::-1]))


def test_counts_and_shapes(images):
    assert {split: array.shape for split, array in images.items()} == {
        "train": (6000, 32, 32, 3),
        "test": (600, 32, 32, 3),
    }
    assert all(array.dtype == np.uint8 for array in images.values())


def test_same_patches_every_time(images):
    again, origin = photos.load("ignored", None)
    assert origin == "photographs of the scikit-image package"
    assert {split: digest(array) for split, array in again.items()} == {
        split: digest(array) for split, array in images.items()
    }


def test_train_and_test_come_from_different_photographs(images):
    assert not set(photos.TRAIN) & set(photos.TEST)
    for split, own, other in (("train", photos.TRAIN, photos.TEST), ("test", photos.TEST, photos.TRAIN)):
        vivid = [patch for patch in images[split][:40] if patch.std() > 30][:4]
        assert len(vivid) == 4
        assert all(found(patch, own) for patch in vivid)
        assert not any(found(patch, other) for patch in vivid)


def test_patches_differ_from_each_other(images):
    assert len({patch.tobytes() for patch in images["train"]}) > 5900
    assert images["train"].std((1, 2, 3)).mean() > 20


def test_photograph_at_its_own_size_is_untouched():
    np.testing.assert_array_equal(photos.photograph("astronaut", 512), skimage.data.astronaut())


def test_photograph_is_the_centred_square():
    image = photos.photograph("chelsea", 300)
    np.testing.assert_array_equal(image, skimage.data.chelsea()[:, 75:375])
    for name in (*photos.TRAIN, *photos.TEST):
        assert photos.photograph(name, 64).shape == (64, 64, 3)


def test_shrinking_averages():
    image = skimage.data.astronaut()
    small = photos.photograph("astronaut", 32)
    blocks = image.reshape(32, 16, 32, 16, 3).mean((1, 3))
    assert np.abs(small - blocks).mean() < 8
    assert np.abs(small.mean() - image.mean()) < 1
