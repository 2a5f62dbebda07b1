"""The auto-encoder with added shortcuts: RED-Net's idea (Mao et al. 2016) with pooling in between.

After the project description "Image-Denoising-using-Autoencoders with skip connections"; the shortcuts are
those of "Image Restoration Using Very Deep Convolutional Encoder-Decoder Networks with Symmetric Skip
Connections" (https://arxiv.org/abs/1603.09056): feature maps are added, not concatenated, then rectified.
Deviations from RED-Net, all from the description: fewer layers, pooling, batch normalisation.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

DEEPEST = 3  # levels: 8 pixels a side, the least that a registered program takes, halve no more often


class SkipAutoEncoder(nn.Module):
    """Denoise (b, 3, h, w) in [0, 1], h and w multiples of `stride`; the output is not confined to [0, 1].

    334,403 parameters. The description has 3x3 convolutions, each followed by pooling, batch normalisation
    and ReLU, transposed convolutions symmetric to them, and shortcuts between those that mirror each other.

    Choices, where it is silent:
        Widths: 32, 64 and 128 channels at three levels; a transposed convolution gives as many as the
            convolution that it mirrors.
        Pooling: the maximum of 2x2; a transposed convolution of 3x3 with stride 2 undoes it.
        Batch normalisation after each of these transposed convolutions too.
        Shortcuts: a convolution's output before it is pooled, so that the finest has the image's size; added
            to the normalised output of the transposed convolution, with ReLU after the sum, as in RED-Net.
        Output: a transposed convolution of 3x3, with bias, from the finest features to the colours, without
            activation: MSE needs none, and evaluation clips.
        No shortcut from the noisy image to the output: the network gives the clean image, not the noise,
            and noise is what pooling loses.
        No bias where normalisation takes it away again; torch's own initialisation.
    """

    def __init__(self, *, width: int = 32, levels: int = 3) -> None:
        """Create the network; it has `stride` 2**levels.

        Args:
            width: channels after the first convolution; they double at each level.
            levels: number of convolutions, and of poolings, from 1 to 3.

        Raises:
            ValueError: `width` or `levels` is out of range.
        """
        super().__init__()
        if width < 1:
            raise ValueError(f"width is {width}, must be at least 1")
        if not 1 <= levels <= DEEPEST:
            raise ValueError(f"levels is {levels}, must be from 1 to {DEEPEST}")
        self.stride = 2**levels
        self.halo = 4 * self.stride  # more than an output pixel sees to each side, a multiple of `stride`
        down = [3, *(width * 2**level for level in range(levels))]
        up = [down[-1], *down[:0:-1]]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in pairwise(down)
        )
        self.poolings = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(channels), nn.ReLU()) for channels in down[1:]
        )
        double = {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "bias": False}
        self.deconvolutions = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(before, after, **double), nn.BatchNorm2d(after))
            for before, after in pairwise(up)
        )
        self.output = nn.ConvTranspose2d(width, 3, 3, padding=1)

    def forward(self, noisy: Tensor) -> Tensor:
        x, shortcuts = noisy, []
        for convolution, pooling in zip(self.convolutions, self.poolings, strict=True):
            x = convolution(x)  # (b, width * 2**level, h / 2**level, w / 2**level)
            shortcuts.append(x)
            x = pooling(x)
        for deconvolution in self.deconvolutions:
            x = F.relu(deconvolution(x) + shortcuts.pop())
        return self.output(x)
