"""The denoising auto-encoder that the paper compares with (Figure 7, right; 47,355 parameters).

Three strided convolutions down, three transposed ones up, all with bias.
Deviations from the paper: none known; the layers are those of the authors' released weights.
"""

from torch import Tensor, nn


class AutoEncoder(nn.Module):
    """Denoise (b, 3, h, w) in [0, 1]; h and w must be multiples of `stride`."""

    stride = 8
    halo = 32  # more than an output pixel sees to each side, a multiple of `stride`

    def __init__(self, *, width: int = 12) -> None:
        """Create the network.

        Args:
            width: channels after the first convolution; they double twice.

        Raises:
            ValueError: `width` is not positive.
        """
        super().__init__()
        if width < 1:
            raise ValueError(f"width is {width}, must be at least 1")
        down = {"kernel_size": 4, "stride": 2, "padding": 1}
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, **down),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, **down),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, **down),
            nn.ReLU(),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(4 * width, 2 * width, **down),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, **down),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 3, **down),
            nn.Sigmoid(),
        )

    def forward(self, noisy: Tensor) -> Tensor:
        return self.decoder(self.encoder(noisy))
