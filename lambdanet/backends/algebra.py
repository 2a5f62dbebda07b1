"""LambdaNet's small matrices: what its 1x1 convolutions and normalisations fold into (float64).

Everything here is tiny beside the images and differentiable by autograd; see lambda_layer.py and
decoder.py in cpu/ for the symbols.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Moments:
    """Mean (c,) and covariance (c, c), not corrected for the sample's size, of `count` vectors."""

    mean: Tensor
    covariance: Tensor
    count: int


def normalised(
    weight: Tensor,
    bias: Tensor | None,
    norm: nn.BatchNorm2d,
    moments: Moments | None,
    gamma: Tensor,
    beta: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fold y = BatchNorm(weight x + bias) into y = matrix x + offset.

    Returns:
        matrix, offset, and the mean and variance of weight x + bias that it was normalised by.
    """
    if moments is None:
        mean, variance = (s.to(gamma.dtype) for s in (norm.running_mean, norm.running_var))
    else:
        mean = weight @ moments.mean + (0 if bias is None else bias)
        variance = ((weight @ moments.covariance) * weight).sum(1).clamp(min=0)  # rounding may go below
    scale = gamma * (variance + norm.eps).rsqrt()
    offset = (0 if bias is None else bias) - mean
    return scale[:, None] * weight, scale * offset + beta, mean, variance


@torch.no_grad()
def update(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Move a normalisation's running statistics, as torch does in training."""
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    corrected = variance * (count / max(1, count - 1))
    norm.running_var.lerp_(corrected.to(norm.running_var.dtype), norm.momentum)


PAIRS = [(i, j) for i in range(3) for j in range(i, 3)]  # the order of second moments
PLACES = torch.tensor(
    [[PAIRS.index((min(i, j), max(i, j))) for j in range(3)] for i in range(3)], device="cpu"
)


def symmetric(pairs: Tensor) -> Tensor:
    """(..., 6) in the order of `PAIRS` to (..., 3, 3)."""
    return pairs[..., PLACES]


def window(size: int, m: int, device: torch.device | None = None) -> Tensor:
    """1 where row y of an image sees through the filter's row t another row of it: (size, m), float64."""
    row, tap = (torch.arange(count, device=device) for count in (size, m))
    seen = row[:, None] + tap[None, :] - m // 2
    return ((seen >= 0) & (seen < size)).double()


@dataclass(frozen=True)
class Layer:
    """The lambda layer, folded.

    filters: (heads u, 4, m, m). mix: (v, u, 4), the values' matrix.
    content: (b, heads, 4, 4), to be added to T, or where `mixed`, (b, heads, v, 4), to be added to z.
    mixed: z is made of T; otherwise T is kept, and `mix` folded into what follows.
    """

    filters: Tensor
    content: Tensor
    mix: Tensor
    mixed: bool


def fold_layer(
    model: nn.Module,
    p: dict[str, Tensor],
    x: Moments | None,
    keyed: Tensor | None,
    context: Tensor | None = None,
) -> Layer:
    """Fold queries and values into filters and content.

    Args:
        model: the LambdaNet, for its sizes and running statistics.
        p: its parameters by name, float64.
        x: of the images' channels; None: the running statistics.
        keyed: (b, k, u, 3), means of the channels under the keys' softmax; or None and
        context: the content lambda, (b, k, v).
    """
    k, u, heads, v = model.k, model.u, model.heads, model.v
    matrices = []
    for name in ("queries", "values"):
        norm = getattr(model, name)[1]
        matrix, offset, *statistics = normalised(
            p[f"{name}.0.weight"].flatten(1), None, norm, x, p[f"{name}.1.weight"], p[f"{name}.1.bias"]
        )
        matrices.append(torch.cat([matrix, offset[:, None]], 1))
        if x is not None:
            update(norm, *statistics, x.count)
    a, b = matrices[0].view(heads, k, 4), matrices[1]
    filters = torch.einsum("hkc,kuyx->hucyx", a, p["embedding"][:, :, 0]).flatten(0, 1)
    mix = b.view(u, v, 4).transpose(0, 1)  # the (u, v) layout
    if keyed is not None:
        keyed = torch.cat([keyed, torch.ones_like(keyed[..., :1])], -1)
        if u == 1:
            return Layer(filters, torch.einsum("hkc,bkd->bhcd", a, keyed[:, :, 0]), mix, mixed=False)
        context = torch.einsum("vud,bkud->bkv", b.view(v, u, 4), keyed)  # the (v, u) layout
    return Layer(filters, torch.einsum("hkc,bkv->bhvc", a, context), mix, mixed=True)


def first_weight(model: nn.Module, weight: Tensor, layer: Layer) -> Tensor:
    """What a 1x1 convolution of z, (o, d), is on the features: the same, or (o, heads 4) on T."""
    if layer.mixed:
        return weight
    return (weight.unflatten(1, (model.heads, model.v)) @ layer.mix[:, 0]).flatten(1)


def fold_decoder(
    model: nn.Module, p: dict[str, Tensor], features: Moments | None, layer: Layer
) -> list[Tensor]:
    """Fold values, first convolutions and their normalisations: w1, b1, w2, b2 of decoder.py.

    Args:
        model: the LambdaNet.
        p: its parameters by name, float64.
        features: their moments; None: the running statistics.
        layer: of `fold_layer`.
    """
    folded = []
    for conv, norm, bias in (("conv.0", "conv.1", None), ("shortcut.0", "shortcut.1", "shortcut.0.bias")):
        if conv == "shortcut.0" and model.shortcut is None:
            folded += [folded[0].new_zeros(3, folded[0].shape[1]), folded[0].new_zeros(3)]
            continue
        weight = first_weight(model, p[f"{conv}.weight"].flatten(1), layer)
        module = model.get_submodule(norm)
        matrix, offset, *statistics = normalised(
            weight, p.get(bias), module, features, p[f"{norm}.weight"], p[f"{norm}.bias"]
        )
        folded += [matrix, offset]
        if features is not None:
            update(module, *statistics, features.count)
    return folded


def fold_output(
    model: nn.Module, p: dict[str, Tensor], c: tuple[Tensor, Tensor, int] | None
) -> tuple[Tensor, Tensor]:
    """Fold the last normalisation: p of decoder.py, and what is left of it for b2.

    Args:
        model: the LambdaNet.
        p: its parameters by name, float64.
        c: mean, variance and number of the values to normalise; None: the running statistics.
    """
    norm = model.conv[4]
    if c is None:
        mean, variance = (s.to(p["conv.4.bias"].dtype) for s in (norm.running_mean, norm.running_var))
    else:
        mean, variance, count = c[0], c[1].clamp(min=0), c[2]
        update(norm, mean, variance, count)
    scale = p["conv.4.weight"] * (variance + norm.eps).rsqrt()
    return scale, p["conv.4.bias"] - scale * mean
