"""How long a network takes for an image.

Not a dependency in DVC: how long it took stands in the log alone.
"""

import time
from statistics import median

from torch import Tensor, nn

from lambdanet.inference.denoise import denoise

BATCH = 32
REPEATS = 5


def inference_seconds(model: nn.Module, noisy: Tensor) -> float:
    """Seconds an image: the median of 5 runs over the first 32 images, after one to warm up.

    Args:
        model: the denoiser, on the device of `noisy`.
        noisy: (n, 3, h, w).
    """
    batch = noisy[:BATCH]
    denoise(model, batch)
    return median(_seconds(model, batch) for _ in range(REPEATS)) / len(batch)


def _seconds(model: nn.Module, batch: Tensor) -> float:
    start = time.perf_counter()
    denoise(model, batch)[0, 0, 0, 0].item()  # .item() waits for the device
    return time.perf_counter() - start
