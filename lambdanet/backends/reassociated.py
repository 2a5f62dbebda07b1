"""LambdaNet re-associated, in plain torch: exact, for any size, by autograd, on devices with float64.

The lambda layer's queries and values are affine in the image's three channels and a constant, so that
position lambdas become correlations of those channels with 4 heads x u x 4 filters; cpu/lambda_layer.py
has the algebra, which does not change with the implementation. What k and d add is in small matrices.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambdanet.backends import algebra
from lambdanet.backends.algebra import Moments

SPECTRAL = 64  # columns up to which a Fourier transform along x as a matrix pays
WIDE = 9  # the window from which it does
LARGE = 15  # the window from which one of the whole image does, on a CPU
IMAGES = 32  # at a time on a CPU: their spectra stay in the cache


def run(model: nn.Module, noisy: Tensor, context: Tensor | None = None) -> Tensor:
    """The network, in its mode: (b, 3, h, w) to the same.

    Args:
        model: a LambdaNet.
        noisy: the images, or tiles of the image that `context` is of.
        context: the content lambda of `LambdaNet.context`.
    """
    p = {name: parameter.double() for name, parameter in model.named_parameters()}
    x = noisy.flatten(2)  # (b, 3, n)
    moments = _moments(x.double()) if model.training else None
    if context is None:
        keys = (model.keys[0].weight.flatten(1) @ x).softmax(-1)  # (b, k u, n)
        keyed = (keys @ x.mT).unflatten(1, (model.k, model.u))
        layer = algebra.fold_layer(model, p, moments, keyed.double())
    else:
        layer = algebra.fold_layer(model, p, moments, None, context.double())
    t = _correlate(x.unflatten(2, noisy.shape[2:]), layer.filters)
    ones = torch.ones_like(x[:, :1])
    x = torch.cat([x, ones], 1)
    if layer.mixed:
        mix = layer.mix.flatten(1).to(x.dtype)  # (v, 4 u)
        features = mix @ t.view(len(x), model.heads, -1, x.shape[-1])
        features = features + layer.content.to(x.dtype) @ x[:, None]  # (b, heads, v, n)
    else:
        features = t + torch.einsum("bhcd,bcn->bhdn", layer.content.to(x.dtype), x)
    features = features.reshape(len(x), -1, *noisy.shape[2:])

    def first(conv: nn.Conv2d) -> Tensor:
        weight = algebra.first_weight(model, conv.weight.double().flatten(1), layer)
        return F.conv2d(features, weight.to(x.dtype)[..., None, None], conv.bias)

    entering = first(model.conv[0])
    hidden = model.conv[1:3](entering)
    decoded = model.conv[3:](hidden + entering if model.inner_skip else hidden)
    if model.shortcut is not None:
        decoded = decoded + model.shortcut[1](first(model.shortcut[0]))
    return torch.sigmoid(decoded)


def _moments(x: Tensor) -> Moments:
    mean = x.mean((0, 2))
    centred = (x - mean[:, None]).transpose(0, 1).flatten(1)
    count = centred.shape[1]
    return Moments(mean, centred @ centred.T / count, count)


def _correlate(x: Tensor, filters: Tensor) -> Tensor:
    """T of lambda_layer.py without its content.

    Args:
        x: images, (b, 3, h, w).
        filters: (groups, 4, m, m).

    Returns:
        (b, groups, 4, h w).
    """
    h, w = x.shape[2:]
    m = filters.shape[-1]
    down, across = (algebra.window(size, m, x.device).to(filters) for size in (h, w))
    constant = (down @ filters @ across.T).to(x.dtype).flatten(2)  # (groups, 4, n)
    spectral = max(h, w) <= SPECTRAL and WIDE <= m < 2 * w
    transformed = x.device.type == "cpu" and m >= LARGE
    seen = _by_spectra if spectral else _by_transform if transformed else _by_convolution
    filters = filters if spectral else filters.to(x.dtype)
    parts = x.split(IMAGES if x.device.type == "cpu" else len(x))
    return torch.cat([_apply(part, filters, constant, seen) for part in parts])


def _apply(x: Tensor, filters: Tensor, constant: Tensor, seen: object) -> Tensor:
    images = seen(x, filters)  # (b, 3, groups, 4, n)
    x = x.flatten(2)
    of_images = (images[:, :, :, :3] * x[:, None, None]).sum(3) + images[:, :, :, 3]  # (b, 3, groups, n)
    of_constant = torch.einsum("gcn,bcn->bgn", constant[:, :3], x) + constant[:, 3]
    return torch.cat([of_images.transpose(1, 2), of_constant[:, :, None]], 2)


def _by_convolution(x: Tensor, filters: Tensor) -> Tensor:
    b, _, h, w = x.shape
    m = filters.shape[-1]
    sums = F.conv2d(x.reshape(b * 3, 1, h, w), filters.reshape(-1, 1, m, m), padding=m // 2)
    return sums.view(b, 3, *filters.shape[:2], h * w)


def _by_transform(x: Tensor, filters: Tensor) -> Tensor:
    """By a Fourier transform of whole images; a CPU's convolutions are slow with windows so large."""
    h, w = x.shape[2:]
    m = filters.shape[-1]
    # What wraps around falls on the border of zeros.
    sides = [_fast_length(size + m // 2) for size in (h, w)]
    conjugate = torch.fft.rfft2(filters, s=sides).conj()
    images = torch.fft.rfft2(F.pad(x, (m // 2, 0, m // 2, 0)), s=sides)
    parts = []
    for channel in range(3):
        product = images[:, channel, None, None] * conjugate
        parts.append(torch.fft.irfft2(product, s=sides)[..., :h, :w].flatten(3))
    return torch.stack(parts, 1)


def _fast_length(least: int) -> int:
    """The smallest length from `least` on that a Fourier transform is fast for: a product of 2, 3 and 5."""
    length = least
    while 30 ** length.bit_length() % length:  # which holds each prime often enough
        length += 1
    return length


def _by_spectra(x: Tensor, filters: Tensor) -> Tensor:
    """A Fourier transform along x, as a matrix; along y a band matrix for each frequency."""
    b, _, h, w = x.shape
    groups, _, m, _ = filters.shape
    analysis, synthesis, of_filters = _tables(w, m, x.dtype, x.device)
    spectra = torch.einsum("gcyx,xf->fgcy", filters.to(of_filters.dtype), of_filters)
    rows = torch.arange(h, device=x.device)
    tap = rows[None, :] - rows[:, None] + m // 2  # from the output's row to the one it sees
    band = spectra[..., tap.clamp(0, m - 1)] * ((tap >= 0) & (tap < m))  # (f, groups, 4, h, h)
    images = torch.einsum("bdyx,xf->fybd", x.to(analysis.dtype), analysis)
    product = band.flatten(1, 3).to(images.dtype) @ images.flatten(2)  # (f, groups 4 h, b 3)
    product = torch.view_as_real(product).permute(0, 3, 1, 2).flatten(0, 1)
    sums = (synthesis.T @ product.flatten(1)).view(w, groups, 4, h, b, 3)
    return sums.permute(4, 5, 1, 2, 3, 0).reshape(b, 3, groups, 4, h * w)


@functools.cache
def _tables(w: int, m: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """From columns to frequencies, back (real and imaginary parts in turn), and a filter's columns."""
    length = (w + m // 2) | 1
    frequencies = torch.arange(length // 2 + 1, dtype=torch.float64)
    columns = torch.arange(w, dtype=torch.float64)
    turn = 2 * torch.pi / length
    analysis = torch.exp(-1j * turn * columns[:, None] * frequencies)
    weight = torch.where(frequencies == 0, 1.0, 2.0).double() / length
    angle = turn * frequencies[:, None] * columns
    synthesis = torch.stack([angle.cos(), -angle.sin()], 1) * weight[:, None, None]
    offsets = torch.arange(m, dtype=torch.float64) - m // 2
    of_filters = torch.exp(1j * turn * offsets[:, None] * frequencies)
    return (
        analysis.to(device, torch.complex64 if dtype == torch.float32 else torch.complex128),
        synthesis.flatten(0, 1).to(device, dtype),
        of_filters.to(device),
    )
