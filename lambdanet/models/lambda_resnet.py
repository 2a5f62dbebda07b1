"""LambdaResNet: lambda layers between 3x3 convolutions, all residual, which predict the noise.

The lambda layer is that of "Image Denoising Using LambdaNetworks" (Cheplanov and Ben-Gigi), section 4, and of
"LambdaNetworks: Modeling Long-Range Interactions Without Attention" (Bello 2021,
https://arxiv.org/abs/2102.08602), sections 3.1 and 3.2. Symbols are the papers': n positions, k queries'
depth, v = width / heads values' depth, m window; u, the intra-depth, is 1.

What differs from the paper's network, and why:
- convolutions: the paper's queries, keys and values see one pixel, here features of its neighbourhood;
- several layers, each added to its input, instead of one layer and a decoder;
- the network predicts what to add to the noisy image (as DnCNN does), not the clean image: no sigmoid;
- biases instead of batch normalisation, which is slower, and depends on the batch when batches are small.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of torch's own initial queries: so that lambda layers, which are products, start as small corrections.
QUERIES_SCALE = 0.3
LAST_SCALE = 0.1  # of torch's own initial weights
GREY = 0.5  # subtracted first: what convolutions add beyond the border is 0


class LambdaLayer(nn.Module):
    """(b, width, h, w) to the same shape: at each pixel, a linear function of its surroundings and the image.

    To a pixel n, y_n = (content + position_n)^T q_n for each head's query q_n. The content lambda (k, v) sums
    up all values of the image, the position lambda (k, v) those of the window around n. So the query mixes
    k windows of m x m into the filter of its pixel.
    """

    def __init__(self, width: int, *, k: int, heads: int, m: int, content: bool = True) -> None:
        super().__init__()
        self.k, self.heads, self.v = k, heads, width // heads
        self.queries = nn.Conv2d(width, heads * k, 1)
        self.values = nn.Conv2d(width, self.v, 1)
        self.keys = nn.Conv2d(width, k, 1) if content else None
        self.embedding = nn.Parameter(torch.randn(k, 1, m, m) / m)
        with torch.no_grad():
            self.queries.weight *= QUERIES_SCALE

    def forward(self, x: Tensor) -> Tensor:
        b, width, h, w = x.shape
        n = h * w
        values = self.values(x)  # (b, v, h, w)
        planes = values.reshape(b * self.v, 1, h, w)
        position = F.conv2d(planes, self.embedding, padding=self.embedding.shape[-1] // 2)
        lambdas = position.reshape(b, self.v, self.k, n)
        if self.keys is not None:
            keys = self.keys(x).reshape(b, self.k, n).softmax(dim=-1)
            content = torch.einsum("bkn,bvn->bvk", keys, values.reshape(b, self.v, n))
            lambdas = lambdas + content[..., None]

        queries = self.queries(x).permute(0, 2, 3, 1).reshape(b * n, self.heads, self.k)
        lambdas = lambdas.permute(0, 3, 2, 1).reshape(b * n, self.k, self.v)
        y = torch.bmm(queries, lambdas)  # (b * n, heads, v)
        return y.reshape(b, h, w, width).permute(0, 3, 1, 2)


class Residual(nn.Module):
    """Adds to its input what its layers make of it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class LambdaResNet(nn.Module):
    """Denoise (b, 3, h, w), any h and w, to the same shape, not confined to [0, 1]; 8,859 parameters."""

    def __init__(
        self,
        *,
        blocks: str = "clclc",
        width: int = 16,
        k: int = 4,
        heads: int = 4,
        m: int = 5,
        content: bool = True,
    ) -> None:
        """Create the network.

        Args:
            blocks: the residual blocks between the first and the last convolution, a letter each: "c" a 3x3
                convolution with ReLU, "d" a 3x3 convolution of each channel and a 1x1 convolution with ReLU,
                "l" a lambda layer. Without "l" it is a plain convolutional network, for comparison.
            width: channels of all blocks.
            k: depth of queries and keys.
            heads: number of query heads; divides `width`.
            m: side of the square window of the position lambdas, odd.
            content: content lambdas too. Without them an output pixel sees no further than `halo`.

        Raises:
            ValueError: a value is out of range.
        """
        super().__init__()
        for name, value in {"width": width, "k": k, "heads": heads, "m": m}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, must be at least 1")
        if m % 2 == 0:
            raise ValueError(f"m is {m}, must be odd")
        if width % heads:
            raise ValueError(f"width is {width}, must be a multiple of heads ({heads})")
        if not blocks or set(blocks) - set("cdl"):
            raise ValueError(f"blocks is {blocks!r}, must be letters of c, d and l")
        lambdas = blocks.count("l")
        reach = 2 + len(blocks) - lambdas + lambdas * (m // 2)  # pixels to each side
        self.stride, self.halo = 1, None if lambdas and content else reach

        def block(letter: str) -> Residual:
            if letter == "l":
                return Residual(LambdaLayer(width, k=k, heads=heads, m=m, content=content))
            if letter == "c":
                return Residual(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
            each = nn.Conv2d(width, width, 3, padding=1, groups=width)
            return Residual(each, nn.Conv2d(width, width, 1), nn.ReLU())

        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*map(block, blocks))
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        with torch.no_grad():  # start near the noisy image
            self.last.weight *= LAST_SCALE
            self.last.bias.zero_()

    def forward(self, noisy: Tensor) -> Tensor:
        return noisy + self.last(self.blocks(self.first(noisy - GREY)))
