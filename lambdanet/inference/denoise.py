"""Images in, images out: run a denoiser over arrays of any size."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambdanet import backends
from lambdanet.data.noise import LEAVING
from lambdanet.models import MODELS, LambdaNet

# Pixels of one batch at inference: large enough to keep the cores busy, small enough for
# LambdaNet's (k, v, h, w) lambdas, 256 bytes a pixel, to stay in tens of megabytes.
BATCH_PIXELS = 128 * 32 * 32
# Side of a photograph's tiles, a multiple of every `stride`: some hundred megabytes at work at a time.
# Larger for networks with a large halo, smaller where memory is short.
TILE = 320
CONVOLUTIONAL = tuple(network for network in MODELS.values() if network is not LambdaNet)

SMALLEST = 8  # pixels a side of what `AnySize` takes: what the largest stride reflects must be there

Area = tuple[slice, slice]


class AnySize(nn.Module):
    """A trained network that can be exported: padding to its stride and the clip to [0, 1] are part of it.

    Images too are clipped if the noise that it learned from stays in that range.
    """

    def __init__(self, network: nn.Module, description: dict) -> None:
        super().__init__()
        self.network = network.cpu().requires_grad_(False)
        # A tensor, not a constant: networks that differ in it alone have one traced program.
        limits = [-torch.inf, torch.inf] if leaves_range(description) else [0.0, 1.0]
        self.register_buffer("limits", torch.tensor(limits))
        self.stride = getattr(network, "stride", 1)
        self.eval()

    def forward(self, noisy: Tensor) -> Tensor:
        h, w = noisy.shape[-2:]
        noisy = noisy.clamp(self.limits[0], self.limits[1])
        if self.stride > 1:
            noisy = F.pad(noisy, (0, -w % self.stride, 0, -h % self.stride), mode="reflect")
        return self.network(noisy)[..., :h, :w].clamp(0, 1)


def leaves_range(description: dict) -> bool:
    """Whether a network, of this description in its weights file, learned from images that leave [0, 1]."""
    noise = description.get("noise")
    return noise is None or noise["name"] in LEAVING


@torch.no_grad()
def denoise(model: nn.Module, noisy: Tensor) -> Tensor:
    """Denoise (n, 3, h, w), batch by batch, on the device of `noisy`; output not clipped.

    Sizes that the model cannot take are reflected at the lower and right edge and cut again.
    The mode of each of the model's parts is left as it was; the call itself runs in evaluation mode.

    Raises:
        ValueError: the images are not (n, 3, h, w).
    """
    if noisy.ndim != 4 or noisy.shape[1] != 3:
        raise ValueError(f"images have the shape {tuple(noisy.shape)}, must be (n, 3, height, width)")
    h, w = noisy.shape[-2:]
    modes = [(part, part.training) for part in model.modules()]  # parts may be frozen
    model.eval()
    try:
        batch = max(1, BATCH_PIXELS // (h * w))
        return torch.cat([_run(model, part) for part in noisy.split(batch)])
    finally:
        for part, training in modes:
            part.training = training


@torch.no_grad()
def denoise_photograph(
    model: nn.Module, image: np.ndarray, device: torch.device, *, tile: int | None = None
) -> np.ndarray:
    """Denoise one photograph of any size, tile by tile, to what the whole of it would give.

    Each tile is read with the margin that its pixels see (`model.halo`); what LambdaNet's pixels need
    of all others (`model.context`) is summed up first. A model without a `halo` takes the whole.

    Args:
        model: the denoiser, on `device`, in evaluation mode.
        image: uint8, uint16, or float in [0, 1], (h, w, 3).
        device: where it runs.
        tile: side of a tile in pixels, a multiple of the model's stride; default: of `tile_side`.

    Returns:
        The same type and shape.
    """
    h, w, _ = image.shape
    white = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1
    halo = getattr(model, "halo", None)
    tile = (tile or tile_side(model)) if halo is not None else max(h, w)

    def read(area: Area) -> Tensor:
        values = torch.from_numpy(image[area].astype(np.float32)).to(device) / white
        return values.permute(2, 0, 1)[None].contiguous()

    areas = list(_tiles(h, w, tile))
    context = []
    if len(areas) > 1 and hasattr(model, "context"):
        context = [model.context(map(read, areas))]
    output = np.empty_like(image)
    for rows, columns in areas:
        top, bottom, left, right = *_widened(rows, halo, h), *_widened(columns, halo, w)
        denoised = _run(model, read((slice(top, bottom), slice(left, right))), *context)
        inner = denoised[0, :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        values = white * inner.clamp(0, 1).permute(1, 2, 0).cpu().numpy()
        output[rows, columns] = values if white == 1 else values.round()
    return output


def tile_side(model: nn.Module) -> int:
    """Side of a tile in pixels: for a network that sees far, so large that margins do not double the work."""
    return max(TILE, 8 * (getattr(model, "halo", None) or 0))


def _run(model: nn.Module, noisy: Tensor, *context: Tensor) -> Tensor:
    h, w = noisy.shape[-2:]
    stride = getattr(model, "stride", 1)
    padding = (0, -w % stride, 0, -h % stride)
    if any(padding):
        noisy = F.pad(noisy, padding, mode="reflect" if min(h, w) >= stride else "replicate")
    return model(_laid_out(model, noisy), *context)[..., :h, :w].contiguous()


def _laid_out(model: nn.Module, images: Tensor) -> Tensor:
    """Images as inference of a model is fastest: channels last for the convolutional networks on a CPU."""
    convolutional = isinstance(model, CONVOLUTIONAL) and images.device.type == "cpu"
    if not convolutional or backends.of_convolutions("cpu") == backends.REFERENCE:
        return images
    return images.contiguous(memory_format=torch.channels_last)


def _tiles(h: int, w: int, side: int) -> Iterator[Area]:
    for y in range(0, h, side):
        for x in range(0, w, side):
            yield slice(y, min(y + side, h)), slice(x, min(x + side, w))


def _widened(part: slice, halo: int | None, size: int) -> tuple[int, int]:
    return max(0, part.start - (halo or 0)), min(size, part.stop + (halo or 0))
