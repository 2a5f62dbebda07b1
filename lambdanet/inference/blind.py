"""Find out which noise an image has, by trying the denoisers.

A denoiser that fits takes away what looks like its noise: put its noise onto its own output, denoise
that, and it takes away the same again. Compared are the distributions of what was taken away, in dark,
middle and bright pixels apart, as noise may depend on brightness. Nothing here knows any noise.
"""

import numpy as np
import torch
from torch import Tensor, nn

from lambdanet.data import imagefile
from lambdanet.data.imagefile import Photograph
from lambdanet.data.images import to_tensor
from lambdanet.data.noise import Noise, create_noise
from lambdanet.inference.denoise import denoise
from lambdanet.inference.trained import TrainedDenoiser

SEED = 0
QUANTILES = 33
LARGEST_SIDE = 256  # pixels; the middle of a larger photograph is enough


def best(photograph: Photograph, loaded: dict[str, TrainedDenoiser]) -> str:
    """The name of the denoiser whose noise the photograph has."""
    area = middle(*photograph.rgb.shape[:2])
    rgb = photograph.rgb[area]
    if photograph.alpha is not None:
        rgb = imagefile.fill_hidden(rgb, photograph.alpha[area])
    noisy = to_tensor(rgb[None] / np.iinfo(rgb.dtype).max)
    misfits = {
        label: misfit(noisy.to(one.device), one.model, create_noise(**one.description["noise"])).item()
        for label, one in loaded.items()
    }
    return min(misfits, key=misfits.get)


@torch.no_grad()
def misfit(noisy: Tensor, model: nn.Module, noise: Noise) -> Tensor:
    """How badly a denoiser fits images: the mean distance of the quantiles; 0 is a perfect fit.

    Args:
        noisy: (n, 3, h, w), 8-bit photographs scaled to [0, 1]; of large ones `middle` is enough.
        model: a denoiser.
        noise: what it was trained against.

    Returns:
        (n,), in the unit of the images.
    """
    output = denoise(model, noisy).clamp(0, 1)
    # As a file would hold it: clipped, in 8 bits.
    again = (255 * noise(output, torch.Generator(noisy.device).manual_seed(SEED)).clamp(0, 1)).round() / 255
    output_again = denoise(model, again).clamp(0, 1)
    return (_taken_away(noisy, output) - _taken_away(again, output_again)).abs().mean(1)


def middle(h: int, w: int) -> tuple[slice, slice]:
    """Rows and columns in the middle of a photograph: as much of it as is worth looking at."""
    top, left = max(0, h - LARGEST_SIDE) // 2, max(0, w - LARGEST_SIDE) // 2
    return slice(top, top + LARGEST_SIDE), slice(left, left + LARGEST_SIDE)


def _taken_away(noisy: Tensor, output: Tensor) -> Tensor:
    """Quantiles of noisy - output, (n, 3 * QUANTILES): of the darkest third of the values, and so on."""
    order = output.flatten(1).argsort(1)
    removed = (noisy - output).flatten(1).gather(1, order)
    at = torch.linspace(0.01, 0.99, QUANTILES, device=noisy.device)
    return torch.cat([torch.quantile(third, at, dim=1).T for third in removed.chunk(3, 1)], 1)
