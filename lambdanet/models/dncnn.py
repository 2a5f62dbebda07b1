"""DnCNN (Zhang et al. 2017, https://arxiv.org/abs/1608.03981), as the paper compares with it.

17 convolutions of 3x3 without bias, 558,336 parameters (Figure 7, left). `outer_bias` gives the first and
the last one the biases that they have in Zhang et al.'s, which matters for small ones.
Deviation from Zhang et al.: the authors' released weights predict the clean image,
x = f(y); the DnCNN paper predicts the noise, x = y - f(y). `residual` chooses.
"""

from torch import Tensor, nn

from lambdanet.backends import accelerated


class DnCNN(nn.Module):
    """Denoise (b, 3, h, w) in [0, 1], any h and w; the output is not confined to [0, 1]."""

    def __init__(
        self, *, depth: int = 17, width: int = 64, residual: bool = False, outer_bias: bool = False
    ) -> None:
        """Create the network.

        Args:
            depth: number of convolutions, at least 3.
            width: channels between them.
            residual: predict the noise and subtract it, instead of the clean image.
            outer_bias: give the first and the last convolution a bias.

        Raises:
            ValueError: `depth` or `width` is too small.
        """
        super().__init__()
        if depth < 3:
            raise ValueError(f"depth is {depth}, must be at least 3")
        if width < 1:
            raise ValueError(f"width is {width}, must be at least 1")
        self.residual = residual
        self.halo = depth  # what an output pixel sees to each side
        conv = {"kernel_size": 3, "padding": 1}
        layers = [nn.Conv2d(3, width, bias=outer_bias, **conv), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, bias=False, **conv), nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(nn.Conv2d(width, 3, bias=outer_bias, **conv))
        self.dncnn = nn.Sequential(*layers)

    @accelerated
    def forward(self, noisy: Tensor) -> Tensor:
        output = self.dncnn(noisy)
        return noisy - output if self.residual else output
