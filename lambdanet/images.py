"""Images as stored (n, h, w, 3) and as networks take them (n, 3, h, w)."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "test")


def to_tensor(images: np.ndarray | Tensor, device: torch.device | str | None = None) -> Tensor:
    """(n, h, w, 3), uint8 or float in [0, 1], to contiguous float32 (n, 3, h, w) in [0, 1]."""
    tensor = torch.as_tensor(np.array(images) if isinstance(images, np.ndarray) else images, device=device)
    scale = 255.0 if tensor.dtype == torch.uint8 else 1.0
    return tensor.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / scale


def to_bytes(images: Tensor) -> np.ndarray:
    """(n, 3, h, w), clipped to [0, 1], to uint8 (n, h, w, 3)."""
    return (255 * images.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def digest(images: np.ndarray) -> str:
    """SHA-256 of the pixels, in order."""
    return hashlib.sha256(np.ascontiguousarray(images)).hexdigest()


def load_images(folder: Path, split: str) -> np.ndarray:
    """Map one split of a stored data set, clean or noisy, into memory.

    Raises:
        ValueError: the file is missing or is no array of RGB images.
    """
    path = Path(folder) / f"{split}.npy"
    try:
        images = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; make it with `dvc repro`") from None
    except ValueError as error:
        raise ValueError(
            f"{path} is not a readable array ({error}); make it again with `dvc repro`"
        ) from None
    if images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise ValueError(f"{path} has the shape {images.shape}, must be (n, height, width, 3)")
    if images.dtype not in (np.uint8, np.float16):
        raise ValueError(f"{path} holds {images.dtype}, must be uint8 or float16")
    return images
