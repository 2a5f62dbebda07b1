"""Square patches at random places of larger images."""

import hashlib
import os

import numpy as np


def cut(image: np.ndarray, count: int, size: int, *, seed: int, name: str) -> np.ndarray:
    """Cut patches at places that follow from (seed, name) alone, fewer being the first of more.

    Args:
        image: (h, w, 3), each side at least `size`.
        count: of the patches; they may overlap.
        size: of their edge.
        seed: of the places.
        name: of the image, so that each has its own places whatever else is cut.

    Returns:
        (count, size, size, 3), of the image's type.
    """
    own = int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big")
    ends = np.array(image.shape[:2]) - size + 1
    corners = np.random.default_rng([seed, own]).integers(ends, size=(count, 2))
    return np.stack([image[y : y + size, x : x + size] for y, x in corners])


def in_random_order(names: list[str], seed: int) -> list[str]:
    """The names shuffled; the same names and seed give the same order."""
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
