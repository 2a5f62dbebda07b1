"""LambdaNet's layer written down in other ways, each in full precision of the type that it is given."""

from collections.abc import Callable
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanet.models.lambdanet import LambdaNet

Correlate = Callable[[Tensor, Tensor], Tensor]


class Formula(LambdaNet):
    """LambdaNet with the layer as a sum of products (einsum) and a chosen correlation."""

    def __init__(self, correlate: Correlate, **hyperparameters: float) -> None:
        """Create the network.

        Args:
            correlate: position lambdas (b, k, v, h, w) of values (b, u, v, h, w) and the embedding.
            **hyperparameters: those of LambdaNet.
        """
        super().__init__(**hyperparameters)
        self.correlate = correlate

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The lambda layer: (b, 3, h, w) to z, (b, d, h, w); Bello 2021, section 3."""
        assert context is None
        queries = self.queries(x).unflatten(1, (self.heads, self.k)).flatten(3)  # (b, heads, k, n)
        keys = self.keys(x).unflatten(1, (self.k, self.u)).flatten(3).softmax(-1)  # (b, k, u, n)
        values = self.values(x)
        content = torch.einsum("bkun,bvun->bkv", keys, values.unflatten(1, (self.v, self.u)).flatten(3))
        position = self.correlate(values.unflatten(1, (self.u, self.v)), self.embedding).flatten(3)
        z = torch.einsum("bhkn,bkv->bhvn", queries, content)
        z = z + torch.einsum("bhkn,bkvn->bhvn", queries, position)
        return z.reshape(len(x), -1, *x.shape[2:])


def by_conv3d(values: Tensor, embedding: Tensor) -> Tensor:
    """As open lambda layers do it: a 3-D convolution with a 1 x m x m window, v as its depth."""
    radius = embedding.shape[-1] // 2
    return F.conv3d(values, embedding, padding=(0, radius, radius))


def by_fft(values: Tensor, embedding: Tensor) -> Tensor:
    """By the correlation theorem, on a plane large enough that nothing wraps around into the image."""
    h, w = values.shape[-2:]
    radius = embedding.shape[-1] // 2
    plane = [fast_length(max(size, radius + 1) + radius) for size in (h, w)]
    filters = torch.fft.rfft2(embedding, plane).conj()  # (k, u, 1, plane)
    spectra = torch.fft.rfft2(values, plane)[:, None]  # (b, 1, u, v, plane)
    products = (spectra[:, :, i] * filters[:, i] for i in range(values.shape[1]))
    sums = torch.fft.irfft2(reduce(torch.add, products), plane)
    return sums.roll((radius, radius), (-2, -1))[..., :h, :w]


def fast_length(least: int) -> int:
    """The next even number that has no prime factors but 2, 3 and 5."""
    length = least + least % 2
    while _without(length, 2, 3, 5) > 1:
        length += 2
    return length


def _without(number: int, *factors: int) -> int:
    for factor in factors:
        while number % factor == 0:
            number //= factor
    return number
