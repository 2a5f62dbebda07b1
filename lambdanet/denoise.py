"""Images in, images out: run a denoiser over arrays of any size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Pixels of one batch at inference: large enough to keep the cores busy, small enough for
# LambdaNet's (k, v, h, w) lambdas, 256 bytes a pixel, to stay in tens of megabytes.
BATCH_PIXELS = 128 * 32 * 32


@torch.no_grad()
def denoise(model: nn.Module, noisy: Tensor) -> Tensor:
    """Denoise (n, 3, h, w), batch by batch, on the device of `noisy`; output not clipped.

    Sizes that the model cannot take are reflected at the lower and right edge and cut again.
    The model's mode is left as it was; the call itself runs in evaluation mode.

    Raises:
        ValueError: the images are not (n, 3, h, w).
    """
    if noisy.ndim != 4 or noisy.shape[1] != 3:
        raise ValueError(f"images have the shape {tuple(noisy.shape)}, must be (n, 3, height, width)")
    h, w = noisy.shape[-2:]
    stride = getattr(model, "stride", 1)
    padding = (0, -w % stride, 0, -h % stride)
    if any(padding):
        noisy = F.pad(noisy, padding, mode="reflect" if min(h, w) > stride else "replicate")
    was_training = model.training
    model.eval()
    try:
        batch = max(1, BATCH_PIXELS // (h * w))
        output = torch.cat([model(part) for part in noisy.split(batch)])
    finally:
        model.train(was_training)
    return output[..., :h, :w]
