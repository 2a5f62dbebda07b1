"""The paper's five noises (section 3.2) as three functions of an image and named parameters; three more.

Images are float tensors in [0, 1]. Which of them are clipped was measured on the authors' results:
Gaussian noise is not, speckle is; salt and pepper needs no clipping.
"""

import functools
import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Noise = Callable[[Tensor, torch.Generator], Tensor]
LUMA = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601)


def gaussian(images: Tensor, generator: torch.Generator, *, sigma: float) -> Tensor:
    """Y = x + sigma * n, n standard normal; not clipped."""
    return images + sigma * _standard_normal(images, generator)


def clipped_gaussian(images: Tensor, generator: torch.Generator, *, sigma: float) -> Tensor:
    """Y = clip(x + sigma * n): Gaussian noise as an 8-bit image can hold it."""
    return gaussian(images, generator, sigma=sigma).clamp(0, 1)


def blind_gaussian(images: Tensor, generator: torch.Generator, *, low: float, high: float) -> Tensor:
    """The same with a sigma of each image's own, uniform from `low` to `high` (Zhang et al. 2017, III-D)."""
    sigma = _uniform(images, generator, low, high)
    return (images + sigma * _standard_normal(images, generator)).clamp(0, 1)


def blind_gaussian_in_files(
    images: Tensor, generator: torch.Generator, *, low: float, high: float, grey: float, halved: float
) -> Tensor:
    """`blind_gaussian` of greyscale images too, and as JPEG changes it.

    Of a random share `grey` of the images all channels have the same noise, as a greyscale image has. Of a
    random share `halved` the noisy colours are then stored at half the resolution, as JPEG stores them
    (4:2:0), but without its quantisation. Images are (n, 3, h, w), as a training makes them; `corrupt` cannot
    store this noise.
    """
    for name, share in {"grey": grey, "halved": halved}.items():
        if share > 1:
            raise ValueError(f"{name} is {share}, must be at most 1")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images are {tuple(images.shape)}, must be (n, 3, h, w): train with fresh noise")
    sigma, normal = _uniform(images, generator, low, high), _standard_normal(images, generator)
    normal = torch.where(_chosen(images, generator, grey), normal[:, :1], normal)
    noisy = (images + sigma * normal).clamp(0, 1)
    return torch.where(_chosen(images, generator, halved), _with_halved_colours(noisy), noisy)


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
    "blind-gaussian-in-files": blind_gaussian_in_files,
    "clipped-gaussian": clipped_gaussian,
    "gaussian": gaussian,
    "salt-and-pepper": salt_and_pepper,
    "speckle": speckle,
}
LEAVING = ("gaussian",)  # those whose images may leave [0, 1]


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
    noise(torch.zeros(1, 3, 1, 1), torch.Generator())  # the function's own checks speak now, not later
    return noise


def _with_halved_colours(images: Tensor) -> Tensor:
    """Means of 2 x 2 pixels' differences from the luma, enlarged as libjpeg does, and added to it."""
    red, green, blue = images.split(1, dim=1)
    luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    halved = F.avg_pool2d(images - luma, 2, ceil_mode=True)
    enlarged = F.interpolate(halved, scale_factor=2, mode="bilinear")
    return (luma + enlarged[..., : images.shape[-2], : images.shape[-1]]).clamp(0, 1)


def _uniform(images: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    """One value for each image, (n, 1, ...), to be broadcast over it."""
    if low >= high:
        raise ValueError(f"low is {low}, must be below high ({high})")
    share = torch.rand(len(images), generator=generator, device=images.device, dtype=images.dtype)
    return (low + (high - low) * share).view(-1, *[1] * (images.ndim - 1))


def _chosen(images: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """A mask, (n, 1, ...): each image is chosen with this probability."""
    return _uniform(images, generator, 0, 1) < share


def _standard_normal(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
