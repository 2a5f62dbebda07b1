"""The small convolutional network for binary cross-entropy: five convolutions, two halvings, two doublings.

After the project description "Image-Denoising Using Deep Learning Algorithms" (Keras). Its counts of layers
are those of the denoiser in Chollet's "Building Autoencoders in Keras"
(https://blog.keras.io/building-autoencoders-in-keras.html): order, kernels and widths are taken from there.
Deviations from the description: none known.
"""

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Denoise (b, 3, h, w) in [0, 1] to values in [0, 1]; h and w must be multiples of `stride`.

    29,507 parameters. The description has five convolutions, LeakyReLU, two max-poolings, two up-samplings,
    and binary cross-entropy as its better loss, which the sigmoid at the end is for.

    Choices, where it is silent:
        Order: convolution and max-pooling twice, then convolution and up-sampling twice, then the fifth
            convolution, to the colours; LeakyReLU after each but the last.
        Kernels: 3x3, padded with zeros to keep the size, with bias.
        Widths: 32 channels throughout.
        Slope of the LeakyReLU: 0.2.
        Pooling: the maximum of 2x2. Up-sampling: each pixel repeated 2x2, as Keras does.
        No normalisation and no shortcuts: none are mentioned; torch's own initialisation.
    """

    stride = 4
    halo = 16  # more than an output pixel sees to each side, a multiple of `stride`

    def __init__(self, *, width: int = 32, slope: float = 0.2) -> None:
        """Create the network.

        Args:
            width: channels between the convolutions.
            slope: of the LeakyReLU below 0, in (0, 1).

        Raises:
            ValueError: `width` or `slope` is out of range.
        """
        super().__init__()
        if width < 1:
            raise ValueError(f"width is {width}, must be at least 1")
        if not 0 < slope < 1:
            raise ValueError(f"slope is {slope}, must be above 0 and below 1")
        same = {"kernel_size": 3, "padding": 1}
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, **same),
            nn.LeakyReLU(slope),
            nn.MaxPool2d(2),
            nn.Conv2d(width, width, **same),
            nn.LeakyReLU(slope),
            nn.MaxPool2d(2),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(width, width, **same),
            nn.LeakyReLU(slope),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, **same),
            nn.LeakyReLU(slope),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, 3, **same),
            nn.Sigmoid(),
        )

    def forward(self, noisy: Tensor) -> Tensor:
        return self.decoder(self.encoder(noisy))
