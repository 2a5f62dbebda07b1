"""DnCNN's training step on a GPU: cuDNN's convolutions in bfloat16, normalisation and ReLU by own kernels.

Up to rounding this is what the layers compute one by one under autocast; where a kernel does not fit, they
do it.
"""

from torch import Tensor, nn

from lambdanet.backends.cuda import normalization


def run(model: nn.Module, noisy: Tensor) -> Tensor:
    """A DnCNN in training mode and under autocast: (b, 3, h, w) to the same."""
    output = run_layers(model.dncnn, noisy)
    return noisy - output if model.residual else output


def run_layers(layers: nn.Sequential, noisy: Tensor) -> Tensor:
    """The network's layers in training mode and under autocast: (b, 3, h, w) to the same.

    Args:
        layers: `DnCNN.dncnn`, its weights with channels last.
        noisy: float32.
    """
    first, rectify, *inner, last = layers
    x = rectify(first(noisy))
    for convolution, norm in zip(inner[::3], inner[1::3], strict=True):
        y = convolution(x)
        x = normalization.normalize_and_rectify(y, norm) if normalization.fits(y) else rectify(norm(y))
    return last(x)
