"""LambdaNet's layer as other implementations write it, in full precision of the type that it is given."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanet.models.lambdanet import LambdaNet


class Formula(LambdaNet):
    """LambdaNet with the layer as a sum of products (einsum) and a 3-D convolution."""

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The lambda layer: (b, 3, h, w) to z, (b, d, h, w); Bello 2021, section 3."""
        assert context is None
        queries = self.queries(x).unflatten(1, (self.heads, self.k)).flatten(3)  # (b, heads, k, n)
        keys = self.keys(x).unflatten(1, (self.k, self.u)).flatten(3).softmax(-1)  # (b, k, u, n)
        values = self.values(x)
        content = torch.einsum("bkun,bvun->bkv", keys, values.unflatten(1, (self.v, self.u)).flatten(3))
        position = by_conv3d(values.unflatten(1, (self.u, self.v)), self.embedding).flatten(3)
        z = torch.einsum("bhkn,bkv->bhvn", queries, content)
        z = z + torch.einsum("bhkn,bkvn->bhvn", queries, position)
        return z.reshape(len(x), -1, *x.shape[2:])


def by_conv3d(values: Tensor, embedding: Tensor) -> Tensor:
    """As open lambda layers do it: a 3-D convolution with a 1 x m x m window, v as its depth."""
    radius = embedding.shape[-1] // 2
    return F.conv3d(values, embedding, padding=(0, radius, radius))
