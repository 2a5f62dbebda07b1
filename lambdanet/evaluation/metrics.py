"""PSNR and SSIM, one value per image; pooling over a test set is a separate, named step.

Checked against scikit-image: `peak_signal_noise_ratio`, and `structural_similarity` with
`gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1`.
"""

import math

import numpy as np
import torch
from torch import Tensor

SIGMA, RADIUS = 1.5, 5  # Wang et al. 2004: an 11 x 11 Gaussian window
K1, K2 = 0.01, 0.03
BLOCK = 32 * 32 * 32  # pixels compared at once on a CPU: what is computed of them stays in its cache


def mean_squared_error(clean: Tensor, image: Tensor) -> Tensor:
    """Mean over channels and pixels of (clean - image)^2: (n, 3, h, w) twice to (n,), float64.

    Raises:
        ValueError: the images differ in shape.
    """
    _check_shapes(clean, image)
    return (clean.double() - image.double()).square().flatten(1).mean(1)


def psnr(mse: float, *, data_range: float) -> float:
    """10 log10(data_range^2 / MSE) in dB; infinity for a perfect image.

    Of an image's own MSE: the PSNR of that image. Of the mean MSE over a test set of equal
    images: the pooled PSNR, which is the paper's definition.

    Raises:
        ValueError: the MSE is NaN, as of an image that holds NaN.
    """
    if math.isnan(mse):
        raise ValueError("an image that is scored holds NaN; if a network made it, its weights are damaged")
    return math.inf if mse == 0 else 10 * math.log10(data_range**2 / mse)


def ssim(clean: Tensor, image: Tensor, *, data_range: float) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13), mean over channels and positions.

    Args:
        clean: (n, 3, h, w), at least 11 x 11.
        image: the same shape.
        data_range: the largest possible value minus the smallest.

    Returns:
        (n,), float64, at most 1.

    Raises:
        ValueError: the images differ in shape, or are smaller than the window.
    """
    _check_shapes(clean, image)
    h, w = clean.shape[-2:]
    if min(h, w) < 2 * RADIUS + 1:
        raise ValueError(f"SSIM needs images of at least 11 x 11, these are {h} x {w}")
    windows = _window(h, clean.device), _window(w, clean.device).T
    count = max(1, BLOCK // (h * w)) if clean.device.type == "cpu" else max(1, len(clean))
    pairs = zip(clean.split(count), image.split(count), strict=True)
    return torch.cat([_ssim(x.double(), y.double(), *windows, data_range) for x, y in pairs])


def _check_shapes(clean: Tensor, image: Tensor) -> None:
    if clean.shape != image.shape or clean.ndim != 4:
        shapes = f"{tuple(clean.shape)} and {tuple(image.shape)}"
        raise ValueError(f"images have the shapes {shapes}, must be the same (n, channels, height, width)")


def _ssim(x: Tensor, y: Tensor, down: Tensor, across: Tensor, data_range: float) -> Tensor:
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = (
        down @ product @ across for product in (x, y, x * x, y * y, x * y)
    )
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    variance_x, variance_y = mean_xx - mean_x**2, mean_yy - mean_y**2
    covariance = mean_xy - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return similarity.flatten(1).mean(1)


def _window(size: int, device: torch.device) -> Tensor:
    """The Gaussian window as a band matrix, (size - 10, size): only whole windows count."""
    weights = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    weights /= weights.sum()
    band = np.zeros((size - 2 * RADIUS, size))
    for row in range(len(band)):
        band[row, row : row + 2 * RADIUS + 1] = weights
    return torch.from_numpy(band).to(device)
