"""What follows the lambda layer, forward and backward, and the sums that its normalisations need.

With features f (see lambda_layer.py), every affine map folded into one, batch normalisation included:

    a = W1 f + b1,  r = max(a, 0),  c = W3 r,  output = sigmoid(p c + W2 f + b2).

W1, b1, W2 and b2 depend on the mean and covariance of f, p and b2 on the mean and variance of c: so
there are three sweeps forward. Backward, with o the derivative by the sigmoid's argument,

    dc = p o + e0 + e1 c,  da = (W3' dc) where a > 0,  df = W1' da + W2' o + Q f + q,

where e0, e1, Q and q are what the derivatives by those means and (co)variances come to.

Arrays of a block of images, lanes last: features and gradient (h w, channels), c and o (h w, 3),
da (h w, hidden), image (4, h w), whose last channel is 1, or 0 for a lane without image; output and
d_output (3, h w). Weights and sums are scalars; a sum runs over pixels, then over lanes.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llvmlite import ir

from lambdanet.backends.cpu.codegen import Kernel, Offset, accumulators, evenly

UNITS = 8  # of a matrix product at a time, or as many as fit
PIXELS = 2  # that share the loading of a weight
SIDE = 4  # of a tile of an outer product, or what fits


@dataclass(frozen=True)
class Size:
    """What the code is generated for; `pixels` of an image is a multiple of `row`, and that is even."""

    pixels: int
    row: int
    channels: int
    hidden: int


def write_feature_sums(k: Kernel, size: Size) -> None:
    """features, image, lane_products, gradient -> sums, centres (channels), products (channels, channels).

    products are of f - centre, upper triangle only (by tiles); each centre is stored in all lanes.
    `gradient` is workspace for a row of f - centre.
    """
    L, channels = k.lanes, size.channels
    for first, count in k.chunks(channels, min(2 * UNITS, accumulators())):
        sums = k.registers(count)
        with k.loop(size.pixels) as n:
            for i, total in enumerate(sums):
                total.add(k.load("features", (n, channels * L), (first, L), i * L))
        for i, total in enumerate(sums):
            k.store_sum(total.get(), "sums", first, i)
            mean = k.mul(k.splat("sums", first, i), k.constant(1 / (size.pixels * L)))
            k.store(mean, "centres", (first, L), i * L)

    clear(k, "lane_products", channels * channels)
    with rows(k, size.pixels, size.row) as pixels:
        start, end = pixels
        with k.loop(end, start) as n:
            mask = k.neg(k.load("image", 3 * size.pixels * L, (n, L)))
            with k.loop(channels) as i:
                value = k.load("features", (n, channels * L), (i, L))
                value = k.fma(mask, k.load("centres", (i, L)), value)
                k.store(value, "gradient", (n, channels * L), (start, -channels * L), (i, L))
        centred = (channels, in_row(k, "gradient", channels, start))
        add_outer(k, pixels, "lane_products", centred, centred, triangle=True)
    sum_lanes(k, "lane_products", "products", channels * channels)


def write_hidden(k: Kernel, size: Size) -> None:
    """features, image, w1, b1, w3, centre (3) -> c; c_sums (3, 2): sums of c - centre and its square."""
    L = k.lanes
    sums = k.registers(6)
    with k.loop(size.pixels, step=PIXELS) as n:
        c = _hidden(k, size, n)
        for p in range(PIXELS):
            mask = k.load("image", 3 * size.pixels * L, (n, L), p * L)
            for i in range(3):
                k.store(c[3 * p + i], "c", (n, 3 * L), (3 * p + i) * L)
                value = k.mul(mask, k.sub(c[3 * p + i], k.splat("centre", i)))
                sums[2 * i].add(value)
                sums[2 * i + 1].fma(value, value)
    for i, total in enumerate(sums):
        k.store_sum(total.get(), "c_sums", i)


def write_output(k: Kernel, size: Size) -> None:
    """features, c, p, w2, b2 -> output."""
    with k.loop(size.pixels, step=PIXELS) as n:
        _output(k, size, n, [k.load("c", (n, 3 * k.lanes), i * k.lanes) for i in range(3 * PIXELS)])


def write_decode(k: Kernel, size: Size) -> None:
    """features, w1, b1, w3, p, w2, b2 -> output, where the normalisations are known."""
    with k.loop(size.pixels, step=PIXELS) as n:
        _output(k, size, n, _hidden(k, size, n))


def _hidden(k: Kernel, size: Size, n: Offset) -> list[ir.Value]:
    """The three c of each of PIXELS pixels from n on."""
    c = k.registers(3 * PIXELS)
    for unit, units in k.chunks(size.hidden, evenly(size.hidden, at_once())):
        a = _affine(k, size, n, unit, units)
        for p in range(PIXELS):
            for j in range(units):
                r = k.at_least(a[p][j], k.constant(0.0))
                for i in range(3):
                    c[3 * p + i].fma(k.splat("w3", i * size.hidden + j, unit), r)
    return [total.get() for total in c]


def _output(k: Kernel, size: Size, n: Offset, c: list[ir.Value]) -> None:
    """Output of PIXELS pixels from n on."""
    L = k.lanes
    sums = k.registers(3 * PIXELS)
    for p in range(PIXELS):
        for i in range(3):
            sums[3 * p + i].set(k.fma(k.splat("p", i), c[3 * p + i], k.splat("b2", i)))
    with k.loop(size.channels) as j:
        for p in range(PIXELS):
            f = k.load("features", (n, size.channels * L), (j, L), p * size.channels * L)
            for i in range(3):
                sums[3 * p + i].fma(k.splat("w2", i * size.channels, j), f)
    for p in range(PIXELS):
        for i in range(3):
            value = k.sigmoid(sums[3 * p + i].get())
            k.store(value, "output", (n, L), (i * size.pixels + p) * L)


def write_output_backward(k: Kernel, size: Size) -> None:
    """features, c, output, d_output, lane_w2 -> o; d_b2 (3), d_p (3), d_w2 (3, channels)."""
    L = k.lanes
    sums = k.registers(6)
    clear(k, "lane_w2", 3 * size.channels)
    with rows(k, size.pixels, size.row) as pixels:
        with k.loop(pixels[1], pixels[0]) as n:
            for i in range(3):
                y = k.load("output", (n, L), i * size.pixels * L)
                slope = k.fma(k.neg(y), y, y)
                o = k.mul(slope, k.load("d_output", (n, L), i * size.pixels * L))
                k.store(o, "o", (n, 3 * L), i * L)
                sums[i].add(o)
                sums[3 + i].fma(o, k.load("c", (n, 3 * L), i * L))
        add_outer(k, pixels, "lane_w2", (3, values(k, "o", 3)), (size.channels, _features(k, size)))
    for i in range(3):
        k.store_sum(sums[i].get(), "d_b2", i)
        k.store_sum(sums[3 + i].get(), "d_p", i)
    sum_lanes(k, "lane_w2", "d_w2", 3 * size.channels)


def write_hidden_backward(k: Kernel, size: Size) -> None:
    """features, image, c, o, w1, b1, w3, p, e0, e1 -> da; d_w3 (3, hidden), d_b1, d_w1.

    dc and r (a row of pixels each) and lane_... are workspace.
    """
    hidden = size.hidden
    clear(k, "lane_w3", 3 * hidden)
    clear(k, "lane_b1", hidden)
    clear(k, "lane_w1", hidden * size.channels)
    with rows(k, size.pixels, size.row) as pixels:
        with k.loop(pixels[1], pixels[0], PIXELS) as n:
            _hidden_gradient(k, size, n, k.sum(n, (pixels[0], -1)))
        r, da = in_row(k, "r", hidden, pixels[0]), values(k, "da", hidden)
        one = (1, lambda n, i: k.constant(1.0))
        add_outer(k, pixels, "lane_w3", (3, in_row(k, "dc", 3, pixels[0])), (hidden, r))
        add_outer(k, pixels, "lane_b1", (hidden, da), one)
        add_outer(k, pixels, "lane_w1", (hidden, da), (size.channels, _features(k, size)))
    sum_lanes(k, "lane_w3", "d_w3", 3 * hidden)
    sum_lanes(k, "lane_b1", "d_b1", hidden)
    sum_lanes(k, "lane_w1", "d_w1", hidden * size.channels)


def _hidden_gradient(k: Kernel, size: Size, n: Offset, place: Offset) -> None:
    """da, and r and dc at `place` in their row, of PIXELS pixels from n on."""
    L, hidden = k.lanes, size.hidden
    dc = []
    for p in range(PIXELS):
        mask = k.load("image", 3 * size.pixels * L, (n, L), p * L)
        for i in range(3):
            o, c = (k.load(name, (n, 3 * L), (3 * p + i) * L) for name in ("o", "c"))
            shift = k.fma(k.splat("e1", i), c, k.splat("e0", i))
            dc.append(k.fma(k.splat("p", i), o, k.mul(mask, shift)))
            k.store(dc[-1], "dc", (place, 3 * L), (3 * p + i) * L)
    for unit, units in k.chunks(hidden, evenly(hidden, at_once())):
        a = _affine(k, size, n, unit, units)
        for j in range(units):
            weights = [k.splat("w3", i * hidden + j, unit) for i in range(3)]
            for p in range(PIXELS):
                total = k.mul(weights[0], dc[3 * p])
                for i in (1, 2):
                    total = k.fma(weights[i], dc[3 * p + i], total)
                of_unit = k.sum((p * hidden + j) * L, (unit, L))
                k.store(k.where_positive(a[p][j], total), "da", (n, hidden * L), of_unit)
                k.store(k.at_least(a[p][j], k.constant(0.0)), "r", (place, hidden * L), of_unit)


@contextlib.contextmanager
def rows(k: Kernel, pixels: int, row: int) -> Iterator[tuple[Offset, Offset]]:
    """A loop over rows of pixels, so that what a row needs stays in the cache: first pixel and end."""
    with k.loop(pixels, step=row) as first:
        yield first, k.sum(first, row)


def write_feature_gradient(k: Kernel, size: Size) -> None:
    """features, image, da, o, w1, w2, q_matrix (symmetric), q -> gradient.

    It is 0 in lanes without image.
    """
    L, channels = k.lanes, size.channels
    sources = [("da", "w1", size.hidden), ("o", "w2", 3), ("features", "q_matrix", channels)]
    with k.loop(size.pixels, step=PIXELS) as n:
        masks = [k.load("image", 3 * size.pixels * L, (n, L), p * L) for p in range(PIXELS)]
        for channel, count in k.chunks(channels, evenly(channels, at_once())):
            sums = k.registers(PIXELS * count)
            for j in range(count):
                for p in range(PIXELS):
                    sums[p * count + j].set(k.mul(k.splat("q", channel, j), masks[p]))
            for source, weights, units in sources:
                with k.loop(units) as i:
                    values = [k.load(source, (n, units * L), (i, L), p * units * L) for p in range(PIXELS)]
                    for j in range(count):
                        weight = k.splat(weights, (i, channels), channel, j)
                        for p in range(PIXELS):
                            sums[p * count + j].fma(weight, values[p])
            for j in range(count):
                for p in range(PIXELS):
                    place = k.sum((n, channels * L), (p * channels + j) * L, (channel, L))
                    k.store(sums[p * count + j].get(), "gradient", place)


def at_once() -> int:
    """As many as have accumulators for PIXELS."""
    return min(UNITS, accumulators() // PIXELS)


def _affine(k: Kernel, size: Size, n: Offset, unit: Offset, units: int) -> list[list[ir.Value]]:
    """A of hidden units from `unit` on, for each of PIXELS pixels."""
    L, channels = k.lanes, size.channels
    sums = [[k.registers(1, k.splat("b1", unit, j))[0] for j in range(units)] for _ in range(PIXELS)]
    with k.loop(channels) as i:
        f = [k.load("features", (n, channels * L), (i, L), p * channels * L) for p in range(PIXELS)]
        for j in range(units):
            weight = k.splat("w1", (unit, channels), j * channels, i)
            for p in range(PIXELS):
                sums[p][j].fma(weight, f[p])
    return [[total.get() for total in row] for row in sums]


Source = tuple[int, Callable[[Offset, Offset], ir.Value]]


def clear(k: Kernel, target: str, count: int) -> None:
    """Set `count` vectors to 0."""
    with k.loop(count) as i:
        k.store(k.constant(0.0), target, (i, k.lanes))


def add_outer(
    k: Kernel, pixels: tuple[Offset, Offset], target: str, a: Source, b: Source, *, triangle: bool = False
) -> None:
    """Target (a's count, b's count, lanes) += sum over a row of pixels of a b'.

    `triangle`: of a square, what is on the diagonal or right of it; by tiles, so also some that is not.
    """
    L, across = k.lanes, min(SIDE, accumulators() // SIDE)
    (count_a, value_a), (count_b, value_b) = a, b
    for i, high in k.chunks(count_a, SIDE):
        for j, wide in k.chunks(count_b, across, start=k.multiple(i, across) if triangle else 0):
            places = [
                k.sum((i, count_b * L), p * count_b * L, (j, L), q * L)
                for p in range(high)
                for q in range(wide)
            ]
            sums = [k.registers(1, k.load(target, place))[0] for place in places]
            with k.loop(pixels[1], pixels[0]) as n:
                right = [value_b(n, k.sum(j, q)) for q in range(wide)]
                for p in range(high):
                    left = value_a(n, k.sum(i, p))
                    for q in range(wide):
                        sums[p * wide + q].fma(left, right[q])
            for total, place in zip(sums, places, strict=True):
                k.store(total.get(), target, place)


def sum_lanes(k: Kernel, source: str, target: str, count: int) -> None:
    with k.loop(count) as i:
        k.store_sum(k.load(source, (i, k.lanes)), target, i)


def values(k: Kernel, array: str, count: int) -> Callable[[Offset, Offset], ir.Value]:
    """A function of a pixel and of which of its `count` vectors."""
    return lambda n, i: k.load(array, (n, count * k.lanes), (i, k.lanes))


def in_row(k: Kernel, array: str, count: int, start: Offset) -> Callable[[Offset, Offset], ir.Value]:
    """As `values`, of an array of a row of pixels only, which begins at `start`."""
    L = k.lanes
    return lambda n, i: k.load(array, (n, count * L), (start, -count * L), (i, L))


def _features(k: Kernel, size: Size) -> Callable[[Offset, Offset], ir.Value]:
    return values(k, "features", size.channels)
