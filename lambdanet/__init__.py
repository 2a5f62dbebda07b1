"""Image Denoising Using LambdaNetworks, reproduced: noises, models, training and metrics.

    import lambdanet
    clean = lambdanet.load("gaussian-01")(image)

Not a dependency in DVC: it holds the version, and what people call.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lambdanet.inference.trained import TrainedDenoiser

__version__ = "0.1.0"


def load(name: str | Path, *, device: str = "auto") -> "TrainedDenoiser":
    """Load a trained denoiser: a function of one image, or of a batch of tensors.

    Args:
        name: "photographs" (Gaussian noise of any strength), a noise ("gaussian-01"), a noise and a model
            ("gaussian-01-lambdanet"), or a weights file.
        device: "auto", "cpu" or "cuda".

    Returns:
        Takes an array, uint8, uint16 or float in [0, 1], (h, w) or (h, w, 1 to 4), or a tensor with the
        channels first; gives the same kind. See `TrainedDenoiser`.

    Raises:
        ValueError: there is no such denoiser, the file cannot be read, or the device is not here.
    """
    from lambdanet.inference import trained  # torch takes seconds

    return trained.load(name, device=device)
