"""Images as stored (n, h, w, 3) and as networks take them (n, 3, h, w)."""

import numpy as np
import torch
from torch import Tensor


def to_tensor(images: np.ndarray | Tensor, device: torch.device | str | None = None) -> Tensor:
    """(n, h, w, 3), uint8 or float in [0, 1], to contiguous float32 (n, 3, h, w) in [0, 1]."""
    tensor = torch.as_tensor(np.array(images) if isinstance(images, np.ndarray) else images, device=device)
    scale = 255.0 if tensor.dtype == torch.uint8 else 1.0
    return tensor.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / scale


def to_bytes(images: Tensor) -> np.ndarray:
    """(n, 3, h, w), clipped to [0, 1], to uint8 (n, h, w, 3)."""
    return (255 * images.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).cpu().numpy()
