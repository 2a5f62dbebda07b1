"""Patches of the colour photographs inside the scikit-image package, shrunk to look like CIFAR's."""

from pathlib import Path

import numpy as np

# Training and test patches come from different photographs.
TRAIN = ("coffee", "rocket", "stereo_motorcycle", "hubble_deep_field")
TEST = ("astronaut", "chelsea")
# Short sides that a photograph is shrunk to before it is cut: from the whole scene to details.
SHORT_SIDES = (48, 64, 96, 144, 200)
SIZE = 32
PATCHES = {"train": 6000, "test": 600}


def load(source: str | None = None, downloads: Path | None = None) -> tuple[dict[str, np.ndarray], str]:
    """Cut 6,000 training and 600 test patches, always the same; both arguments are unused.

    Returns:
        {"train", "test"}: uint8, (n, 32, 32, 3); and where they come from.
    """
    del source, downloads
    rng = np.random.default_rng(0)
    images = {"train": _cut(TRAIN, PATCHES["train"], rng), "test": _cut(TEST, PATCHES["test"], rng)}
    return images, "photographs of the scikit-image package"


def photograph(name: str, size: int) -> np.ndarray:
    """One of the photographs, its largest centred square resized: uint8, (size, size, 3)."""
    image = _read(name)
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return _shrink(image[top : top + side, left : left + side], size)


def _read(name: str) -> np.ndarray:
    import skimage.data  # here: it takes seconds, and few stages need the photographs

    image = getattr(skimage.data, name)()
    return (image[0] if isinstance(image, tuple) else image)[..., :3]


def _shrink(image: np.ndarray, short_side: int) -> np.ndarray:
    from skimage.transform import resize

    scale = short_side / min(image.shape[:2])
    shape = [round(length * scale) for length in image.shape[:2]]
    smaller = resize(image, (*shape, 3), order=1, anti_aliasing=scale < 1)  # float64 in [0, 1]
    return np.rint(255 * smaller).astype(np.uint8)


def _cut(names: tuple[str, ...], count: int, rng: np.random.Generator) -> np.ndarray:
    scaled = [_shrink(_read(name), side) for name in names for side in SHORT_SIDES]
    # Larger copies hold more different patches: draw in proportion to their pixels.
    pixels = np.array([image.shape[0] * image.shape[1] for image in scaled], float)
    patches = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for i, which in enumerate(rng.choice(len(scaled), count, p=pixels / pixels.sum())):
        image = scaled[which]
        y, x = (rng.integers(length - SIZE + 1) for length in image.shape[:2])
        patch = image[y : y + SIZE, x : x + SIZE]
        patches[i] = patch[:, ::-1] if rng.random() < 0.5 else patch
    return patches
