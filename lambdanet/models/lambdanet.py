"""LambdaNet: one lambda layer as encoder, two 1x1 convolutions as decoder (Figures 3 to 6).

"Image Denoising Using LambdaNetworks" (Cheplanov and Ben-Gigi), section 4; the layer is the
local lambda convolution of Bello 2021 (https://arxiv.org/abs/2102.08602), section 3.
Symbols are the papers': k queries' depth, u intra-depth, v = d / heads values' depth, m window.

Deviations from the text, all taken from the authors' released weights:
- queries and values are batch-normalised, keys are not;
- for u > 1 the values' memory is read as (v, u) in the content lambda and as (u, v) in the
  position lambda; weights with u = 4 reproduce their published numbers only so;
- the skip goes from z to the output through a 1x1 convolution with bias and a normalisation.
"""

import functools
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambdanet.backends import accelerated

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "leaky-relu": nn.LeakyReLU, "elu": nn.ELU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh,
}  # fmt: skip
# Layer normalisation of an image: over its channels and pixels, with a scale and a shift a channel.
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d, "layer": functools.partial(nn.GroupNorm, 1),
}  # fmt: skip
DECODERS = ("convolutional", "connected")
CONNECTED = 64  # hidden units of the fully connected decoder


class LambdaNet(nn.Module):
    """Denoise (b, 3, h, w) to values in (0, 1), any h and w; u=1, m=23 has 9,083 parameters."""

    def __init__(
        self,
        *,
        u: int = 1,
        m: int = 23,
        k: int = 16,
        heads: int = 4,
        d: int = 16,
        embedding_std: float = 1.0,
        skip: bool = True,
        inner_skip: bool = False,
        decoder: str = "convolutional",
        side: int = 32,
        norm: str = "batch",
        activation: str = "relu",
    ) -> None:
        """Create the network.

        Args:
            u: intra-depth of keys and values.
            m: side of the square window that a pixel attends to, odd.
            k: depth of queries and keys.
            heads: number of query heads; divides `d`.
            d: channels of the lambda layer's output, even.
            embedding_std: standard deviation of the initial position embedding (paper: 1).
            skip: the shortcut from z to the output; without it u=1, m=23 has 9,026 parameters.
            inner_skip: also add what enters the decoder's first normalisation to what leaves its
                activation (section 6 proposes such a skip and does not draw it).
            decoder: "convolutional", the paper's; or "connected", which section 4 says did worse and
                does not describe: here a layer from all of z to 64 hidden units and one to the image.
            side: of the images that the connected decoder is for; it takes no others.
            norm: "batch", the paper's; or "layer", which section 6 proposes.
            activation: between the decoder's layers, one of `ACTIVATIONS`.

        Raises:
            ValueError: a value is out of range.
        """
        super().__init__()
        for name, value in {"u": u, "m": m, "k": k, "heads": heads, "d": d}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, must be at least 1")
        if m % 2 == 0:
            raise ValueError(f"m is {m}, must be odd")
        if d % heads or d % 2:
            raise ValueError(f"d is {d}, must be even and a multiple of heads ({heads})")
        if embedding_std <= 0:
            raise ValueError(f"embedding_std is {embedding_std}, must be above 0")
        for name, value, known in (
            ("decoder", decoder, DECODERS), ("norm", norm, NORMS), ("activation", activation, ACTIVATIONS),
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"{name} is {value!r}, must be one of {', '.join(known)}")
        if decoder == "connected" and inner_skip:
            raise ValueError("inner_skip is for the convolutional decoder only")
        self.u, self.k, self.heads, self.v, self.inner_skip = u, k, heads, d // heads, inner_skip
        whole = norm == "layer" or decoder == "connected"  # an output pixel depends on all others
        self.halo = None if whole else m // 2  # what it sees to each side, beside `context`
        normed, active = NORMS[norm], ACTIVATIONS[activation]
        self.queries = nn.Sequential(nn.Conv2d(3, k * heads, 1, bias=False), normed(k * heads))
        self.keys = nn.Sequential(nn.Conv2d(3, k * u, 1, bias=False))
        self.values = nn.Sequential(nn.Conv2d(3, self.v * u, 1, bias=False), normed(self.v * u))
        self.embedding = nn.Parameter(embedding_std * torch.randn(k, u, 1, m, m))
        if decoder == "convolutional":
            self.conv = nn.Sequential(
                nn.Conv2d(d, d // 2, 1, bias=False),
                normed(d // 2),
                active(),
                nn.Conv2d(d // 2, 3, 1, bias=False),
                normed(3),
            )
        else:
            self.conv = nn.Sequential(
                nn.Flatten(),
                nn.Linear(d * side**2, CONNECTED),
                active(),
                nn.Linear(CONNECTED, 3 * side**2),
                nn.Unflatten(1, (3, side, side)),
            )
        self.side = side if decoder == "connected" else None
        self.shortcut = nn.Sequential(nn.Conv2d(d, 3, 1), normed(3)) if skip else None

    @accelerated
    def forward(self, noisy: Tensor, context: Tensor | None = None) -> Tensor:
        if self.side and noisy.shape[-2:] != (self.side, self.side):
            raise ValueError(
                f"images of {noisy.shape[-2]} x {noisy.shape[-1]}: this connected decoder takes "
                f"{self.side} x {self.side} only"
            )
        z = self.encode(noisy, context)
        if self.inner_skip:
            first = self.conv[0](z)
            decoded = self.conv[3:](self.conv[1:3](first) + first)
        else:
            decoded = self.conv(z)
        return torch.sigmoid(decoded if self.shortcut is None else decoded + self.shortcut(z))

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The lambda layer: (b, 3, h, w) to z, (b, d, h, w), channel = head * v + value.

        With `context`, x is a tile of the image that `context` is of.
        """
        b, _, h, w = x.shape
        n = h * w
        queries = self.queries(x).view(b, self.heads, self.k, n)
        values = self.values(x)

        if context is None:
            keys = self.keys(x).view(b, self.k, self.u, n).softmax(dim=-1)
            content = torch.einsum("bkun,bvun->bkv", keys, values.view(b, self.v, self.u, n))
        else:
            content = context
        # (u, v) where the content lambda has (v, u): see the deviations above.
        position = correlate(values.view(b, self.u, self.v, h, w), self.embedding)

        queries = queries.permute(0, 3, 1, 2)  # (b, n, heads, k)
        z_content = queries.reshape(b, n * self.heads, self.k) @ content  # (b, n * heads, v)
        z_position = queries @ position.permute(0, 3, 4, 1, 2).reshape(
            b, n, self.k, self.v
        )  # (b, n, heads, v)
        z = z_content.view(b, n, self.heads * self.v) + z_position.flatten(2)
        return z.transpose(1, 2).reshape(b, self.heads * self.v, h, w)

    def context(self, tiles: Iterable[Tensor]) -> Tensor:
        """The content lambda, (b, k, v), of images in tiles: the softmax runs over all their pixels.

        In evaluation mode only, where normalisation is the same everywhere.
        """
        peak, total, weighted = torch.tensor(-torch.inf), 0, 0
        for x in tiles:  # each (b, 3, h, w)
            logits = self.keys(x).unflatten(1, (self.k, self.u)).flatten(3)  # (b, k, u, n)
            values = self.values(x).unflatten(1, (self.v, self.u)).flatten(3)  # (b, v, u, n)
            before, peak = peak, torch.maximum(peak.to(x.device), logits.amax(-1, keepdim=True))
            keys, rescale = (logits - peak).exp(), (before.to(x.device) - peak).exp()
            total = total * rescale + keys.sum(-1, keepdim=True)
            weighted = weighted * rescale + torch.einsum("bkun,bvun->bkuv", keys, values)
        return (weighted / total).sum(2)


def correlate(values: Tensor, embedding: Tensor) -> Tensor:
    """Position lambdas: sum over u and the m x m window of embedding times values, zero outside.

    Args:
        values: (b, u, v, h, w).
        embedding: (k, u, 1, m, m).

    Returns:
        (b, k, v, h, w).
    """
    b, u, v, h, w = values.shape
    planes = values.transpose(1, 2).reshape(b * v, u, h, w)
    sums = F.conv2d(planes, embedding[:, :, 0], padding=embedding.shape[-1] // 2)
    return sums.unflatten(0, (b, v)).transpose(1, 2)
