"""Trained denoisers as functions of images: what `lambdanet.load` returns."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lambdanet import devices
from lambdanet.data import imagefile
from lambdanet.data.imagefile import Photograph
from lambdanet.inference import bundled
from lambdanet.inference.denoise import denoise, denoise_photograph, leaves_range, tile_side
from lambdanet.models import load_weights

Image = TypeVar("Image", np.ndarray, Tensor)

SMALLEST_TILE = 64  # the margins around smaller ones would soon exceed them
LARGEST_VALUE = 10  # of floats: noise may leave [0, 1], but not that far


def load(name: str | Path, *, device: str = "auto") -> "TrainedDenoiser":
    """Load a denoiser; see `lambdanet.load`."""
    path = bundled.find(name)
    where = devices.choose_device(device)
    model, description = load_weights(path)
    return TrainedDenoiser(model.to(where), description, where)


@dataclass(frozen=True)
class TrainedDenoiser:
    """A trained network that denoises images of any size.

    Attributes:
        model: the network, in evaluation mode.
        description: of the network, its noise and its training, as the weights file has it.
        device: where it runs.
    """

    model: nn.Module
    description: dict
    device: torch.device

    def __call__(self, image: Image, *, strength: float = 1.0) -> Image:
        """Denoise an image.

        Args:
            image: an array, (h, w), or (h, w, c) with c = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha;
                uint8, uint16, or float with black 0 and white 1. Or a tensor with the channels first,
                (c, h, w) or (n, c, h, w), c = 1 or 3, uint8 or float: denoised whole, not in tiles.
            strength: of what the network removes, how much goes: 0 gives the image back, 1 is all.

        Returns:
            The same type, shape and range, a tensor on the same device; floats are clipped to [0, 1] unless
            `strength` is 0, and before they are denoised too if the network's noise stays in that range.
            Alpha is kept; what it hides does not show at edges.

        Raises:
            ValueError: the image is of another kind, or `strength` is not from 0 to 1.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength is {strength}, must be from 0 to 1")
        if isinstance(image, Tensor):
            image = image.detach()
            denoised = self._tensor(image)
        elif isinstance(image, np.ndarray):
            denoised = self._array(image)
        else:
            raise ValueError(
                f"the image is a {type(image).__name__}, must be a numpy array or a torch tensor"
            )
        if strength == 1:
            return denoised
        return _mixed(image, denoised, strength)

    def denoise_photograph(self, photograph: Photograph, *, strength: float = 1.0) -> Photograph:
        """Denoise what an image file holds, in tiles as large as memory permits.

        Args:
            photograph: what `imagefile.read` gives.
            strength: of what the network removes, how much goes, from 0 to 1.

        Raises:
            MemoryError: it does not permit the smallest.
        """
        rgb, tile = photograph.rgb, tile_side(self.model)
        if photograph.alpha is not None:
            rgb = imagefile.fill_hidden(rgb, photograph.alpha)
        while True:
            try:
                denoised = denoise_photograph(self.model, rgb, self.device, tile=tile)
                break
            except (MemoryError, RuntimeError) as error:
                # torch's allocator names memory; oneDNN, which it calls, says what it was about to make.
                short = isinstance(error, MemoryError) or "memory" in str(error) or "primitive" in str(error)
                if not short:
                    raise
                stride = getattr(self.model, "stride", 1)
                tile = tile // 2 // stride * stride
                if tile < SMALLEST_TILE or getattr(self.model, "halo", None) is None:
                    raise MemoryError from None
        return replace(photograph, rgb=denoised if strength == 1 else _mixed(rgb, denoised, strength))

    def _array(self, image: np.ndarray) -> np.ndarray:
        dtype = image.dtype
        if image.dtype not in (np.uint8, np.uint16) and image.dtype.kind != "f":
            raise ValueError(f"the image holds {image.dtype}, must be uint8, uint16 or float")
        if image.ndim not in (2, 3) or not image.size or image.shape[2:] > (4,):
            raise ValueError(f"the image has the shape {image.shape}, must be (h, w) or (h, w, 1 to 4)")
        if image.dtype.kind == "f":
            _check_range(float(np.abs(image).max()))
            image = image if leaves_range(self.description) else image.clip(0, 1)
        photograph = imagefile.from_values(np.atleast_3d(image))
        values = imagefile.to_values(self.denoise_photograph(photograph)).reshape(image.shape)
        return values.astype(dtype, copy=False)  # big-endian too, as FITS files have it

    def _tensor(self, image: Tensor) -> Tensor:
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise ValueError(f"the tensor holds {image.dtype}, must be torch.uint8 or float")
        if image.ndim not in (3, 4) or not image.numel() or image.shape[-3] not in (1, 3):
            raise ValueError(
                f"the tensor has the shape {tuple(image.shape)}, must be (1 or 3, h, w) or (n, 1 or 3, h, w)"
            )
        white = 255 if image.dtype == torch.uint8 else 1
        noisy = image.to(self.device, torch.float32) / white
        _check_range(float(noisy.abs().max()))
        noisy = noisy if leaves_range(self.description) else noisy.clamp(0, 1)
        noisy = noisy.view(-1, *noisy.shape[-3:])
        output = denoise(self.model, noisy.expand(-1, 3, -1, -1)).clamp(0, 1) * white
        if image.shape[-3] == 1:
            output = output.mean(1, keepdim=True)
        output = output.round() if white == 255 else output
        return output.view(image.shape).to(image)


def _check_range(largest: float) -> None:
    if not largest <= LARGEST_VALUE:  # NaN is not
        raise ValueError(f"the image's values reach {largest:g}; floats must be from 0 (black) to 1 (white)")


def _mixed(image: Image, denoised: Image, strength: float) -> Image:
    """`strength` of the way from the image to the denoised one, in its type."""
    if strength == 0:
        return image.copy() if isinstance(image, np.ndarray) else image.clone()
    if isinstance(image, Tensor):
        # On the CPU, as Apple's mps has no float64.
        mixed = torch.lerp(image.cpu().double(), denoised.cpu().double(), strength)
        mixed = mixed if image.is_floating_point() else mixed.round()
        return mixed.clamp(0, 1 if image.is_floating_point() else 255).to(image)
    mixed = image + strength * (denoised.astype(np.float64) - image)
    return (np.clip(mixed, 0, 1) if image.dtype.kind == "f" else np.rint(mixed)).astype(image.dtype)
