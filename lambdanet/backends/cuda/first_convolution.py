"""DnCNN's first convolution with ReLU on a GPU, by kernels that Triton compiles.

Three channels are too few for the matrix units' own layouts. Here a pixel's 3 x 3 surroundings, 27 values
of the image x (zeros outside), are a row of a matrix p, and the filters a matrix w with 27 rows:

    a = max(p w, 0)                       dw = p^T (da where a > 0, else 0)

Products are of bfloat16, summed in float32; p is put together in registers, in both directions. The image
needs no gradient. dw is summed block by block, then over the blocks, in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

ROWS = 64  # pixels that a program holds at a time
TILES = 8  # of these, of which a program makes one sum
TAPS = 32  # 27 and zeros
WIDEST = 128  # filters; twice as many need more shared memory than some cards have
LARGEST = 2**31  # elements: kernels count in 32 bits
FACTORS = tl.bfloat16  # what is multiplied; Triton's interpreter cannot multiply these


def fits(noisy: Tensor, convolution: nn.Conv2d) -> bool:
    """Whether the kernels take these images, (b, 3, h, w) float32, and a power of two of 3 x 3 filters."""
    filters = convolution.out_channels
    return (
        noisy.is_cuda
        and noisy.dtype == torch.float32
        and noisy.is_contiguous()
        and not noisy.requires_grad
        and 16 <= filters <= WIDEST
        and filters & (filters - 1) == 0
        and noisy.numel() // 3 * filters < LARGEST
    )


def convolve_and_rectify(noisy: Tensor, weight: Tensor) -> Tensor:
    """max(0, conv(noisy)) with zeros around it, bfloat16, (b, c, h, w), a pixel's channels side by side.

    Args:
        noisy: (b, 3, h, w), images that fit.
        weight: (c, 3, 3, 3), float32.
    """
    return _ConvolveAndRectify.apply(noisy, weight)


class _ConvolveAndRectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, noisy: Tensor, weight: Tensor) -> Tensor:
        b, _, h, w = noisy.shape
        c = len(weight)
        a = torch.empty(
            (b, c, h, w), device=noisy.device, dtype=torch.bfloat16, memory_format=torch.channels_last
        )
        n = b * h * w
        _forward[(triton.cdiv(n, ROWS),)](noisy, weight, a, n, h, w, *weight.stride(), c, ROWS, TAPS, FACTORS)
        ctx.save_for_backward(noisy, a)
        return a

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, da: Tensor) -> tuple[None, Tensor]:
        noisy, a = ctx.saved_tensors
        b, c, h, w = a.shape
        da = da.contiguous(memory_format=torch.channels_last)
        n = b * h * w
        blocks = triton.cdiv(n, ROWS * TILES)
        sums = torch.empty(blocks, TAPS, c, device=a.device)
        _backward[(blocks,)](noisy, a, da, sums, n, h, w, c, ROWS, TILES, TAPS, FACTORS)
        dw = sums.sum(0)[:27].view(3, 3, 3, c)  # rows, columns, channels, filters
        return None, dw.permute(3, 2, 0, 1)


@triton.jit
def _surroundings(x, row, n, h, w, TAPS: tl.constexpr):
    """The matrix p of these pixels, bfloat16; tap = 9 y + 3 x + channel."""
    tap = tl.arange(0, TAPS)
    channel, column, line = tap % 3, (tap // 3) % 3 - 1, tap // 9 - 1
    image, pixel = row // (h * w), row % (h * w)
    y, z = (pixel // w)[:, None] + line[None, :], (pixel % w)[:, None] + column[None, :]
    there = (row < n)[:, None] & (tap < 27)[None, :] & (y >= 0) & (y < h) & (z >= 0) & (z < w)
    offset = ((image * 3)[:, None] + channel[None, :]) * h * w + y * w + z
    return tl.load(x + offset, mask=there, other=0.0).to(tl.bfloat16)


@triton.jit
def _forward(
    x, weight, a, n, h, w, filter_stride, channel_stride, line_stride, column_stride,
    C: tl.constexpr, ROWS: tl.constexpr, TAPS: tl.constexpr, FACTORS: tl.constexpr,
):  # fmt: skip
    row, tap, filters = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, TAPS), tl.arange(0, C)
    of_tap = tap % 3 * channel_stride + tap // 9 * line_stride + (tap // 3) % 3 * column_stride
    matrix = tl.load(
        weight + of_tap[:, None] + (filters * filter_stride)[None, :], mask=(tap < 27)[:, None], other=0.0
    )
    z = tl.dot(_surroundings(x, row, n, h, w, TAPS).to(FACTORS), matrix.to(tl.bfloat16).to(FACTORS))
    offset = row[:, None] * C + filters[None, :]
    tl.store(a + offset, tl.where(z < 0, 0.0, z).to(tl.bfloat16), mask=(row < n)[:, None])  # NaN stays NaN


@triton.jit
def _backward(
    x, a, da, sums, n, h, w,
    C: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr, TAPS: tl.constexpr,
    FACTORS: tl.constexpr,
):  # fmt: skip
    tap, filters = tl.arange(0, TAPS), tl.arange(0, C)
    total = tl.zeros((TAPS, C), tl.float32)
    for tile in range(TILES):
        row = (tl.program_id(0) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        offset, there = row[:, None] * C + filters[None, :], (row < n)[:, None]
        value = tl.load(a + offset, mask=there, other=0.0)
        gradient = tl.load(da + offset, mask=there, other=0.0)
        gradient = tl.where(value > 0, gradient, 0.0).to(FACTORS)
        total = tl.dot(tl.trans(_surroundings(x, row, n, h, w, TAPS).to(FACTORS)), gradient, total)
    tl.store(sums + (tl.program_id(0) * TAPS + tap)[:, None] * C + filters[None, :], total)
