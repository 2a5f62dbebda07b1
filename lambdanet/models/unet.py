"""UNet: residual blocks at several resolutions, which predict the noise; a small network for photographs.

After DRUNet of "Plug-and-Play Image Restoration with Deep Denoiser Prior" (Zhang et al. 2021,
https://arxiv.org/abs/2008.13751): blocks of two 3x3 convolutions, each added to its input; convolutions of
2x2 that halve the resolution, transposed ones that double it; features of the way down added to those of
the same resolution on the way up; no normalisation, so that the strength of the noise is not lost.

What differs from DRUNet, and why:
- the image enters as blocks of 2x2 pixels, as in FFDNet (Zhang et al. 2018,
  https://arxiv.org/abs/1710.04026), which spares three quarters of the multiplications;
- fewer levels, channels and blocks, so that one core trains it in hours: 774,316 parameters;
- no map of the noise's level beside the image: it is blind;
- biases, as in most networks; DRUNet has none.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

DEEPEST = 3  # levels: 8 pixels a side, the least that a registered program takes, halve no more often


class Residual(nn.Module):
    """Two 3x3 convolutions with ReLU between them, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class UNet(nn.Module):
    """Denoise (b, 3, h, w) in [0, 1], h and w multiples of `stride`; the output is not confined to [0, 1]."""

    def __init__(self, *, width: int = 32, levels: int = 3, blocks: int = 2) -> None:
        """Create the network; it has `stride` 2**levels.

        Args:
            width: channels at half the image's resolution; each further level has so many more.
            levels: number of resolutions, from 1 to 3.
            blocks: residual blocks of a level, on the way down and again on the way up.

        Raises:
            ValueError: a value is out of range.
        """
        super().__init__()
        for name, value in {"width": width, "blocks": blocks}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, must be at least 1")
        if not 1 <= levels <= DEEPEST:
            raise ValueError(f"levels is {levels}, must be from 1 to {DEEPEST}")
        self.stride = 2**levels
        # What the convolutions see to each side, at a half, a quarter and an eighth of the resolution, and
        # what rounding to these adds; up to a multiple of `stride`.
        seen = 4 + sum(2 * blocks * 2**level for level in (*range(1, levels), *range(1, levels + 1)))
        self.halo = (seen + 2 * self.stride - 2) // self.stride * self.stride
        widths = [width * (level + 1) for level in range(levels)]

        def body(channels: int) -> nn.Sequential:
            return nn.Sequential(*(Residual(channels) for _ in range(blocks)))

        self.first = nn.Conv2d(4 * 3, width, 3, padding=1)
        self.down = nn.ModuleList(body(channels) for channels in widths[:-1])
        self.halving = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.deepest = body(widths[-1])
        self.doubling = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(body(channels) for channels in widths[:-1])
        self.last = nn.Conv2d(width, 4 * 3, 3, padding=1)

    def forward(self, noisy: Tensor) -> Tensor:
        x, shortcuts = self.first(F.pixel_unshuffle(noisy, 2)), []  # (b, width, h / 2, w / 2)
        for body, halving in zip(self.down, self.halving, strict=True):
            shortcuts.append(body(x))
            x = halving(shortcuts[-1])
        x = self.deepest(x)
        for doubling, body in zip(reversed(self.doubling), reversed(self.up), strict=True):
            x = body(doubling(x) + shortcuts.pop())
        return noisy - F.pixel_shuffle(self.last(x), 2)
