"""Batch normalisation with ReLU on a GPU, by kernels that Triton compiles.

Of a convolution's output y, (b, c, h, w) with a pixel's channels side by side, over all n = b h w pixels:

    m = r + sum(y - r) / n              v = sum((y - r)^2) / n - (m - r)^2
    x = (y - m) / sqrt(v + eps)         z = gamma x + beta            a = max(z, 0)

with r the first pixel, so that v keeps its digits where the mean is large; and back, from the gradient of a,
with g = da where z > 0, else 0:

    dbeta = sum(g)      dgamma = sum(g x)      dy = gamma / sqrt(v + eps) (g - dbeta / n - x dgamma / n)

So the way forward reads y twice and writes a, the way back reads y and da twice and writes dy; z is computed
again instead of stored. (torch's own two layers also store and read z.) Sums are taken block by block, then
over the blocks, in a fixed order, so that the same input gives the same bytes. What follows a kernel begins
where it ended, where the data is still in the GPU's cache.

Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167. Types: y, a and their gradients bfloat16 or float32,
all else float32, the last step to m and v float64.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

ROWS = 64  # pixels that a program holds at a time
SUMMED_ROWS, TILES = 32, 16  # the same for sums, and how many of these go into one
AHEAD = tl.constexpr(3)  # of these that are on their way
SUMMED = 8  # channels whose blocks' sums a program adds up
LARGEST = 2**31  # elements: kernels count in 32 bits
WIDEST = 256  # channels


def fits(y: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Whether the kernels take this batch: a power of two of channels, side by side, in training mode."""
    channels = y.shape[1]
    return (
        norm.training
        and norm.momentum is not None
        and norm.affine
        and norm.track_running_stats
        and y.is_cuda
        and y.dtype == torch.bfloat16
        and y.is_contiguous(memory_format=torch.channels_last)
        and SUMMED <= channels <= WIDEST
        and channels & (channels - 1) == 0
        and channels < y.numel() < LARGEST
    )


def normalize_and_rectify(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """max(0, norm(y)), (b, c, h, w) to the same; the running mean and variance move on.

    Args:
        y: a batch that `fits`.
        norm: the layer, in training mode.
    """
    return _NormalizeAndRectify.apply(
        y, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.momentum, norm.eps
    )


class _NormalizeAndRectify(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        y: Tensor,
        gamma: Tensor,
        beta: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        c = y.shape[1]
        n = y.numel() // c
        blocks, tiles = triton.cdiv(n, SUMMED_ROWS * TILES), triton.cdiv(n, ROWS)
        sums = torch.empty(blocks, 2, c, device=y.device)
        moments = torch.empty(2, c, device=y.device)  # m and 1 / sqrt(v + eps)
        a = torch.empty_like(y)
        _sum_values[(blocks,)](y, sums, n, blocks, c, SUMMED_ROWS, TILES)
        _finish_moments[(c // SUMMED,)](
            y, sums, moments, running_mean, running_var, n, momentum, eps, blocks, c, *_all(blocks)
        )
        _apply[(tiles,)](y, moments, gamma, beta, a, n, c, ROWS)
        ctx.save_for_backward(y, moments, gamma, beta)
        return a

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, da: Tensor) -> tuple[Tensor | None, ...]:
        y, moments, gamma, beta = ctx.saved_tensors
        da = da.contiguous(memory_format=torch.channels_last)
        c = y.shape[1]
        n = y.numel() // c
        blocks, tiles = triton.cdiv(n, SUMMED_ROWS * TILES), triton.cdiv(n, ROWS)
        sums = torch.empty(blocks, 2, c, device=y.device)
        gradients = torch.empty(2, c, device=y.device)  # dbeta and dgamma
        dy = torch.empty_like(y)
        _sum_gradients[(blocks,)](y, da, moments, gamma, beta, sums, n, blocks, c, SUMMED_ROWS, TILES)
        _finish_gradients[(c // SUMMED,)](sums, gradients, blocks, c, *_all(blocks))
        _apply_back[(tiles,)](y, da, moments, gamma, beta, gradients, dy, n, c, ROWS)
        return dy, gradients[1], gradients[0], None, None, None, None


def trial() -> None:
    """Compile one of the kernels and run it; whatever stands in its way is raised."""
    sums = torch.ones(3, 2, SUMMED, device="cuda")
    gradients = torch.empty(2, SUMMED, device="cuda")
    _finish_gradients[(1,)](sums, gradients, 3, SUMMED, *_all(3))
    if gradients.tolist() != [[3.0] * SUMMED] * 2:
        raise RuntimeError("a kernel compiled by Triton gives wrong sums")


def _all(blocks: int) -> tuple[int, int]:
    return triton.next_power_of_2(blocks), SUMMED


@triton.jit
def _load_rows(pointer, row, n, C: tl.constexpr):
    offset = row[:, None] * C + tl.arange(0, C)[None, :]
    return tl.load(pointer + offset, mask=row[:, None] < n, other=0.0).to(tl.float32)


@triton.jit
def _store_rows(pointer, row, n, value, C: tl.constexpr):
    offset = row[:, None] * C + tl.arange(0, C)[None, :]
    tl.store(pointer + offset, value.to(pointer.dtype.element_ty), mask=row[:, None] < n)


@triton.jit
def _normalized(y, moments, gamma, beta, C: tl.constexpr):
    """X, z and gamma / sqrt(v + eps), the first two for each pixel."""
    channel = tl.arange(0, C)
    deviation = tl.load(moments + C + channel)
    x = (y - tl.load(moments + channel)[None, :]) * deviation[None, :]
    scale = tl.load(gamma + channel)
    z = x * scale[None, :] + tl.load(beta + channel)[None, :]
    return x, z, scale * deviation


@triton.jit
def _store_sums(sums, program, first, second, C: tl.constexpr):
    channel = tl.arange(0, C)
    tl.store(sums + program * 2 * C + channel, tl.sum(first, 0))
    tl.store(sums + program * 2 * C + C + channel, tl.sum(second, 0))


@triton.jit
def _load_sums(sums, blocks, C: tl.constexpr, ALL: tl.constexpr, SUMMED: tl.constexpr):
    """Both sums over all blocks of the channels that this program adds up, and these channels."""
    block, channel = tl.arange(0, ALL), tl.program_id(0) * SUMMED + tl.arange(0, SUMMED)
    offset = block[:, None] * 2 * C + channel[None, :]
    there = block[:, None] < blocks
    first = tl.sum(tl.load(sums + offset, mask=there, other=0.0), 0)
    second = tl.sum(tl.load(sums + offset + C, mask=there, other=0.0), 0)
    return first, second, channel


@triton.jit
def _sum_values(y, sums, n, blocks, C: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr):
    program = blocks - 1 - tl.program_id(0)  # a convolution ends with the last pixels
    origin = tl.load(y + tl.arange(0, C)).to(tl.float32)
    first = tl.zeros((ROWS, C), tl.float32)
    second = tl.zeros((ROWS, C), tl.float32)
    for tile in tl.range(TILES, num_stages=AHEAD):
        row = (program * TILES + tile) * ROWS + tl.arange(0, ROWS)
        value = tl.where(row[:, None] < n, _load_rows(y, row, n, C) - origin[None, :], 0.0)
        first += value
        second += value * value
    _store_sums(sums, program, first, second, C)


@triton.jit
def _finish_moments(
    y, sums, moments, running_mean, running_var, n, momentum, eps, blocks,
    C: tl.constexpr, ALL: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    first, second, channel = _load_sums(sums, blocks, C, ALL, SUMMED)
    shift = first.to(tl.float64) / n
    variance = tl.maximum(second.to(tl.float64) / n - shift * shift, 0.0)
    mean = (tl.load(y + channel).to(tl.float32).to(tl.float64) + shift).to(tl.float32)
    unbiased = (variance * n / (n - 1)).to(tl.float32)
    tl.store(moments + channel, mean)
    tl.store(moments + C + channel, 1 / tl.sqrt(variance.to(tl.float32) + eps))
    old_mean, old_var = tl.load(running_mean + channel), tl.load(running_var + channel)
    tl.store(running_mean + channel, old_mean + momentum * (mean - old_mean))
    tl.store(running_var + channel, old_var + momentum * (unbiased - old_var))


@triton.jit
def _apply(y, moments, gamma, beta, a, n, C: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    _, z, _ = _normalized(_load_rows(y, row, n, C), moments, gamma, beta, C)
    _store_rows(a, row, n, tl.where(z < 0, 0.0, z), C)  # NaN stays NaN


@triton.jit
def _sum_gradients(
    y, da, moments, gamma, beta, sums, n, blocks,
    C: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    program = blocks - 1 - tl.program_id(0)
    first = tl.zeros((ROWS, C), tl.float32)
    second = tl.zeros((ROWS, C), tl.float32)
    for tile in tl.range(TILES, num_stages=AHEAD):
        row = (program * TILES + tile) * ROWS + tl.arange(0, ROWS)
        x, z, _ = _normalized(_load_rows(y, row, n, C), moments, gamma, beta, C)
        gradient = tl.where(z > 0, _load_rows(da, row, n, C), 0.0)  # 0 beyond the last pixel
        first += gradient
        second += gradient * x
    _store_sums(sums, program, first, second, C)


@triton.jit
def _finish_gradients(
    sums, gradients, blocks,
    C: tl.constexpr, ALL: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    first, second, channel = _load_sums(sums, blocks, C, ALL, SUMMED)
    tl.store(gradients + channel, first)
    tl.store(gradients + C + channel, second)


@triton.jit
def _apply_back(
    y, da, moments, gamma, beta, gradients, dy, n,
    C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, C)
    x, z, scale = _normalized(_load_rows(y, row, n, C), moments, gamma, beta, C)
    gradient = tl.where(z > 0, _load_rows(da, row, n, C), 0.0)
    dbeta, dgamma = tl.load(gradients + channel), tl.load(gradients + C + channel)
    dy_rows = scale[None, :] * (gradient - (dbeta[None, :] + x * dgamma[None, :]) / n)
    _store_rows(dy, row, n, dy_rows, C)
