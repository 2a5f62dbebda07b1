"""The paper's five noises (section 3.2) as three functions of an image and named parameters; two more.

Images are float tensors in [0, 1]. Which of them are clipped was measured on the authors' results:
Gaussian noise is not, speckle is; salt and pepper needs no clipping.
"""

import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor

Noise = Callable[[Tensor, torch.Generator], Tensor]


def gaussian(images: Tensor, generator: torch.Generator, *, sigma: float) -> Tensor:
    """Y = x + sigma * n, n standard normal; not clipped."""
    return images + sigma * _standard_normal(images, generator)


def clipped_gaussian(images: Tensor, generator: torch.Generator, *, sigma: float) -> Tensor:
    """Y = clip(x + sigma * n): Gaussian noise as an 8-bit image can hold it."""
    return gaussian(images, generator, sigma=sigma).clamp(0, 1)


def blind_gaussian(images: Tensor, generator: torch.Generator, *, low: float, high: float) -> Tensor:
    """Clipped, with a sigma of each image's own, uniform from `low` to `high` (Zhang et al. 2017, III-D)."""
    return _blind(images, generator, low, high).clamp(0, 1)


def blind_gaussian_half_clipped(
    images: Tensor, generator: torch.Generator, *, low: float, high: float
) -> Tensor:
    """The same, but half of the images, chosen at random, are not clipped, as in published tables."""
    noisy = _blind(images, generator, low, high)
    clipped = _uniform(images, generator) < 0.5
    return torch.where(clipped, noisy.clamp(0, 1), noisy)


def speckle(images: Tensor, generator: torch.Generator, *, variance: float) -> Tensor:
    """Y = clip(x + x * n), n normal of the given variance (scikit-image's "speckle")."""
    noise = _standard_normal(images, generator)
    return (images + images * (variance**0.5 * noise)).clamp(0, 1)


def salt_and_pepper(images: Tensor, generator: torch.Generator, *, amount: float) -> Tensor:
    """Replace a share `amount` of all colour values, half by 1 and half by 0 (scikit-image's "s&p")."""
    if amount > 1:
        raise ValueError(f"amount is {amount}, must be at most 1")
    uniform = torch.rand(images.shape, generator=generator, device=images.device, dtype=torch.float32)
    salted = torch.where(uniform >= 1 - amount / 2, 1.0, images)
    return torch.where(uniform < amount / 2, 0.0, salted)


NOISES: dict[str, Callable[..., Tensor]] = {
    "blind-gaussian": blind_gaussian,
    "blind-gaussian-half-clipped": blind_gaussian_half_clipped,
    "clipped-gaussian": clipped_gaussian,
    "gaussian": gaussian,
    "salt-and-pepper": salt_and_pepper,
    "speckle": speckle,
}
LEAVING = ("blind-gaussian-half-clipped", "gaussian")  # those whose images may leave [0, 1]


def create_noise(name: str, **parameters: float) -> Noise:
    """Bind a noise's parameters: a function of (images in [0, 1], generator).

    Raises:
        ValueError: unknown name; unknown, missing or non-positive parameter.
    """
    if name not in NOISES:
        raise ValueError(f"unknown noise {name!r}; choose one of {', '.join(sorted(NOISES))}")
    function = NOISES[name]
    takes = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if sorted(parameters) != sorted(takes):
        given = ", ".join(parameters) or "none"
        raise ValueError(f"noise {name!r} takes {', '.join(takes)}; given: {given}")
    for key, value in parameters.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"{key} of noise {name!r} is {value!r}, must be a number above 0")
    noise = functools.partial(function, **parameters)
    noise(torch.zeros(1), torch.Generator())  # the function's own checks speak now, not in mid-training
    return noise


def _blind(images: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    if low >= high:
        raise ValueError(f"low is {low}, must be below high ({high})")
    sigma = low + (high - low) * _uniform(images, generator)
    return images + sigma * _standard_normal(images, generator)


def _uniform(images: Tensor, generator: torch.Generator) -> Tensor:
    """A number from [0, 1) for each image, in the images' shape but for sides of 1."""
    share = torch.rand(len(images), generator=generator, device=images.device, dtype=images.dtype)
    return share.view(-1, *[1] * (images.ndim - 1))


def _standard_normal(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
