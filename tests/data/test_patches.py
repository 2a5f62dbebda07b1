import numpy as np
import pytest

from lambdanet.data.patches import cut, in_random_order


@pytest.fixture
def places():
    """An image whose pixels say where they stand, up to 256 x 256."""
    image = np.zeros((90, 120, 3), np.uint8)
    image[..., 0], image[..., 1] = np.indices(image.shape[:2])
    return image


def corners(patches):
    return [tuple(patch[0, 0, :2].tolist()) for patch in patches]


def test_patches_are_parts_of_the_image(places):
    patches = cut(places, 30, 16, seed=0, name="a")
    assert (patches.shape, patches.dtype) == ((30, 16, 16, 3), np.uint8)
    for patch, (y, x) in zip(patches, corners(patches), strict=True):
        np.testing.assert_array_equal(patch, places[y : y + 16, x : x + 16])


def test_every_place_is_as_likely(places):
    found = np.array(corners(cut(places, 4000, 16, seed=0, name="a")))
    assert (found.min(0).tolist(), found.max(0).tolist()) == ([0, 0], [90 - 16, 120 - 16])
    assert np.abs(found.mean(0) - [37, 52]).max() < 1.5


def test_fewer_are_the_first_of_more(places):
    many = cut(places, 50, 24, seed=3, name="a")
    for count in (1, 7, 49):
        np.testing.assert_array_equal(cut(places, count, 24, seed=3, name="a"), many[:count])


def test_places_follow_from_seed_and_name(places):
    first = corners(cut(places, 20, 16, seed=0, name="a"))
    assert first == corners(cut(255 - (255 - places), 20, 16, seed=0, name="a"))
    others = [(0, "b"), (1, "a"), (0, "a/a"), (0, ""), (0, "ä"), (0, "\udce4")]
    assert all(first != corners(cut(places, 20, 16, seed=seed, name=name)) for seed, name in others)


def test_order_is_shuffled_by_the_seed():
    names = [f"{i:02}" for i in range(40)]
    order = in_random_order(names, 0)
    assert sorted(order) == names
    assert order == in_random_order(names, 0)
    assert len({tuple(in_random_order(names, seed)) for seed in range(5)} | {tuple(names)}) == 6
