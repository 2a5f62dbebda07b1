"""DnCNN's training step on a GPU: cuDNN's convolutions in bfloat16, what lies between them by own kernels.

Up to rounding this is what the layers compute one by one under autocast; where a kernel does not fit, they
do it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lambdanet.backends.cuda import first_convolution, normalization


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
    convolutions, norms = inner[::3], inner[1::3]
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
    *weights, last_weight = _InHalf.apply(*(layer.weight for layer in (*convolutions, last)))
    if first_convolution.fits(noisy, first):
        x = first_convolution.convolve_and_rectify(noisy, first.weight)
    else:
        x = rectify(first(noisy))
    for weight, norm in zip(weights, norms, strict=True):
        y = F.conv2d(x, weight, padding=1)
        if normalization.fits(y, norm):
            x = normalization.normalize_and_rectify(y, norm)
        else:
            x = rectify(
                F.batch_norm(
                    y,
                    norm.running_mean,
                    norm.running_var,
                    norm.weight,
                    norm.bias,
                    True,
                    norm.momentum,
                    norm.eps,
                )
            )
    return F.conv2d(x, last_weight, padding=1)


class _InHalf(torch.autograd.Function):
    """Weights to bfloat16 and their gradients back, all in one kernel each, not one each."""

    @staticmethod
    def forward(_ctx: torch.autograd.function.FunctionCtx, *weights: Tensor) -> tuple[Tensor, ...]:
        return _copied(weights, torch.bfloat16)

    @staticmethod
    def backward(_ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, ...]:
        return _copied(gradients, torch.float32)


def _copied(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(one, dtype=dtype) for one in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)
