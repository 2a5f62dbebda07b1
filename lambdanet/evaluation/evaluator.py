"""Score a denoiser on a stored test set."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from lambdanet.data.arrays import digest
from lambdanet.data.images import to_tensor
from lambdanet.evaluation import metrics
from lambdanet.inference.denoise import denoise
from lambdanet.models import count_parameters

CHUNK = 1000 * 32 * 32  # pixels scored at a time; bounds the memory of SSIM's float64 windows


def evaluate(model: nn.Module, clean: np.ndarray, noisy: np.ndarray, *, device: torch.device) -> dict:
    """Score a denoiser, and its noisy input beside it, as the paper does.

    Outputs and noisy inputs are clipped to [0, 1] for scoring only.

    Args:
        model: the denoiser.
        clean: uint8, (n, h, w, 3).
        noisy: float16, the same shape.
        device: where the denoiser runs.

    Returns:
        psnr (dB, of the MSE pooled over all images), ssim (mean over images) and psnr_per_image
        (dB, the mean of each image's; an image that equals the clean one has none and is left out), the
        same three of the input as noisy_..., parameters,
        images, and the digests of the clean and the noisy images.

    Raises:
        ValueError: the arrays differ in shape, or they or the output hold what is not finite.
    """
    model = model.to(device)
    pairs = [(_per_image(x, y), _per_image(x, denoise(model, y))) for x, y in _chunks(clean, noisy, device)]
    before, after = (_summary(parts) for parts in zip(*pairs, strict=True))
    return {
        **after,
        **{f"noisy_{key}": value for key, value in before.items()},
        "parameters": count_parameters(model),
        "images": len(clean),
        "clean_sha256": digest(clean),
        "noisy_sha256": digest(noisy),
    }


def pooled_psnr(
    model: nn.Module, clean: np.ndarray, noisy: np.ndarray, *, device: torch.device
) -> dict[str, float]:
    """Only psnr and noisy_psnr of `evaluate`, without SSIM, which takes longer than a small network."""
    model, mse = model.to(device), {"noisy_psnr": [], "psnr": []}
    for x, y in _chunks(clean, noisy, device):
        for key, image in (("noisy_psnr", y), ("psnr", denoise(model, y))):
            mse[key].append(metrics.mean_squared_error(x, image.clamp(0, 1)).cpu())
    return {key: metrics.psnr(torch.cat(parts).mean().item(), data_range=1) for key, parts in mse.items()}


def _chunks(clean: np.ndarray, noisy: np.ndarray, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The images as tensors on the device, in pieces."""
    if clean.shape != noisy.shape:
        raise ValueError(f"clean and noisy images differ in shape: {clean.shape} and {noisy.shape}")
    chunk = max(1, CHUNK // (clean.shape[1] * clean.shape[2]))
    for start in range(0, len(clean), chunk):
        some = slice(start, start + chunk)
        x, y = to_tensor(clean[some], device), to_tensor(noisy[some], device)
        finite = (x.isfinite() & y.isfinite()).flatten(1).all(1).cpu()
        if not finite.all():
            number = start + finite.tolist().index(False)
            raise ValueError(f"test image {number} has values that are not finite; make the images again")
        yield x, y


def _per_image(clean: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """MSE and SSIM of each image, clipped, on the CPU."""
    image = image.clamp(0, 1)
    return metrics.mean_squared_error(clean, image).cpu(), metrics.ssim(clean, image, data_range=1).cpu()


def _summary(parts: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    mse, ssim = (torch.cat(values) for values in zip(*parts, strict=True))
    per_image = [metrics.psnr(value, data_range=1) for value in mse.tolist() if value != 0]
    if not per_image:
        raise ValueError("every test image equals its clean one: their PSNR is infinite")
    return {
        "psnr": metrics.psnr(mse.mean().item(), data_range=1),
        "ssim": ssim.mean().item(),
        "psnr_per_image": float(np.mean(per_image)),
    }
