"""4x4 convolutions with stride 2, their transposes and their gradients, by kernels for the CPU.

Both kinds lie between a fine image x (2 h, 2 w, f) and a coarse one z (h, w, c), with weights
w (c, f, 4, 4), in torch's order for both. With X = 2 x + j - 1 and Y = 2 y + i - 1,

    down:  z(y, x, c) = sum over i, j, f of w(c, f, i, j) x(Y, X, f),
    up:    x(Y, X, f) = sum over c and those y, x, i, j that lead to Y, X of w(c, f, i, j) z(y, x, c),
    outer: d_w(c, f, i, j) = sum over y, x of z(y, x, c) x(Y, X, f).

A convolution goes down and its gradient up; of a transposed one it is the other way round; and both have
the same d_w. `up` takes the pixels of each parity (Y mod 2, X mod 2) by themselves: each sees 2 x 2 coarse
ones.

Arrays: an image is (h + 2, w + 2, channels) with a border of zeros, so that nothing is asked at the border;
channels fill whole vectors where vectors of them are written. Filters are (4, 4, f, c), and for `up`
(4, 4, c, f).
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llvmlite import ir

from lambdanet.kernels.vectors import Kernel, Offset, Register

TAPS = 4
APART = 2  # taps at a time: of more, pixels side by side share values, which then crowd out the sums
# Of a parity: the first tap that leads there, and how far its coarse pixel lies from half the fine one.
SEEN = {0: (1, 0), 1: (0, 1)}

# What a result goes through, given its vector, the place in its image's array and the first channel.
Finish = Callable[[ir.Value, Offset, Offset], ir.Value]


@dataclass(frozen=True)
class Image:
    """An array of one image: its name, size without the border, channels, and floats from pixel to pixel."""

    name: str
    h: int
    w: int
    channels: int
    pitch: int

    @property
    def row(self) -> int:
        """Floats from a row to the next."""
        return (self.w + 2) * self.pitch

    @property
    def floats(self) -> int:
        """Of the whole array."""
        return (self.h + 2) * self.row


def blocks(vectors: int, width: int) -> tuple[int, int]:
    """Vectors of channels and pixels of a product at a time: up to 12 sums, of 16 registers."""
    wide = next(count for count in (3, 2, 1) if vectors % count == 0)
    return wide, {3: 4, 2: 6 if width > 8 else 4, 1: 8}[wide]


def write_down(k: Kernel, fine: Image, coarse: Image, weights: str, finish: Finish) -> None:
    """Coarse = finish(down(fine))."""
    wide, pixels = blocks(coarse.pitch // k.lanes, coarse.w)
    together = TAPS if fine.channels < TAPS else 1  # rows of taps
    with k.loop(coarse.pitch, 0, wide * k.lanes) as c, k.loop(coarse.h) as y:
        for x, count in k.chunks(coarse.w, pixels):
            sums = k.registers(count * wide)
            with k.loop(TAPS, 0, together) as i, k.loop(TAPS, 0, APART) as j:
                row = k.sum((k.sum((y, 2), i), fine.row), _times(k, x, 2 * fine.pitch), (j, fine.pitch))
                filters = k.sum((k.sum((i, TAPS), j), fine.channels * coarse.pitch), c)
                for f, some in k.chunks(fine.channels, _together(fine.channels)):
                    for down, right, step in itertools.product(range(together), range(APART), range(some)):
                        tap = (down * TAPS + right) * fine.channels + step
                        place = k.sum(filters, _times(k, f, coarse.pitch), tap * coarse.pitch)
                        here = [k.load(weights, place, v * k.lanes) for v in range(wide)]
                        for p in range(count):
                            shift = down * fine.row + (right + 2 * p) * fine.pitch + step
                            value = k.splat(fine.name, row, f, shift)
                            for v in range(wide):
                                sums[p * wide + v].fma(value, here[v])
            _write(k, coarse, inner(k, coarse, y, x), coarse.pitch, c, sums, count, finish)


def write_up(k: Kernel, coarse: Image, fine: Image, weights: str, finish: Finish) -> None:
    """Fine = finish(up(coarse))."""
    wide, pixels = blocks(fine.pitch // k.lanes, coarse.w)
    parities = list(itertools.product(SEEN.items(), repeat=2))
    with k.loop(fine.pitch, 0, wide * k.lanes) as f, k.loop(coarse.h) as y:
        for (odd_y, (top, down)), (odd_x, (left, right)) in parities:
            for x, count in k.chunks(coarse.w, pixels):
                sums = k.registers(count * wide)
                # The second tap of two is that of the pixel before.
                with k.loop(2) as i, k.loop(2) as j:
                    corner = k.sum((k.sum(y, 1 + down), coarse.row), _times(k, x, coarse.pitch))
                    corner = k.sum(corner, (1 + right) * coarse.pitch, (i, -coarse.row), (j, -coarse.pitch))
                    tap = k.sum((i, 2 * TAPS), (j, 2), top * TAPS + left)
                    filters = k.sum((tap, coarse.channels * fine.pitch), f)
                    for c, some in k.chunks(coarse.channels, _together(coarse.channels)):
                        for step in range(some):
                            place = k.sum(filters, _times(k, c, fine.pitch), step * fine.pitch)
                            here = [k.load(weights, place, v * k.lanes) for v in range(wide)]
                            for p in range(count):
                                value = k.splat(coarse.name, corner, c, step + p * coarse.pitch)
                                for v in range(wide):
                                    sums[p * wide + v].fma(value, here[v])
                place = inner(k, fine, k.sum((y, 2), odd_y), k.sum(k.scaled(x, 2), odd_x))
                _write(k, fine, place, 2 * fine.pitch, f, sums, count, finish)


def write_outer(k: Kernel, coarse: Image, fine: Image, target: str) -> None:
    """Target (4, 4, f, c), + = outer(coarse, fine)."""
    vectors = coarse.pitch // k.lanes
    wide = next(count for count in (2, 3, 1) if vectors % count == 0)
    high = {2: 6, 3: 4, 1: 12}[wide]
    rows = [(j, f) for j in range(TAPS) for f in range(fine.channels)]
    with k.loop(coarse.pitch, 0, wide * k.lanes) as c, k.loop(TAPS) as i:
        for first in range(0, len(rows), high):
            some = rows[first : first + high]
            where = k.sum((i, len(rows) * coarse.pitch), c, first * coarse.pitch)
            places = [
                k.sum(where, r * coarse.pitch + v * k.lanes) for r in range(len(some)) for v in range(wide)
            ]
            sums = [k.registers(1, k.load(target, place))[0] for place in places]
            with k.loop(coarse.h) as y, k.loop(coarse.w) as x:
                line = k.sum((k.sum((y, 2), i), fine.row), (x, 2 * fine.pitch))
                place = inner(k, coarse, y, x, c)
                here = [k.load(coarse.name, place, v * k.lanes) for v in range(wide)]
                for r, (j, f) in enumerate(some):
                    value = k.splat(fine.name, line, j * fine.pitch + f)
                    for v in range(wide):
                        sums[r * wide + v].fma(value, here[v])
            for total, place in zip(sums, places, strict=True):
                k.store(total.get(), target, place)


def write_sum(k: Kernel, image: Image, target: str) -> None:
    """Target (channels) + = the sum over an image's pixels: a bias's gradient."""
    with k.loop(image.pitch, 0, k.lanes) as c:
        (total,) = k.registers(1, k.load(target, c))
        with k.loop(image.h) as y, k.loop(image.w) as x:
            total.add(k.load(image.name, inner(k, image, y, x, c)))
        k.store(total.get(), target, c)


def each(k: Kernel, image: Image) -> Iterator[tuple[Offset, Offset]]:
    """Every number of an image, in loops: its place in the array, and in one of (channels, h, w)."""
    with k.loop(image.h) as y, k.loop(image.w) as x:
        for c in range(image.channels):
            yield inner(k, image, y, x, c), k.sum((y, image.w), x, c * image.h * image.w)


def inner(k: Kernel, image: Image, y: Offset, x: Offset, *more: Offset) -> Offset:
    """The place of a pixel, counted from the border, and of a channel."""
    at_row, at_pixel = (k.scaled(one, stride) for one, stride in ((y, image.row), (x, image.pitch)))
    return k.sum(at_row, at_pixel, *more, image.row + image.pitch)


def _together(count: int) -> int:
    """How many of `count` are written out at a time, without a rest."""
    return next(size for size in (4, 3, 2, 1) if count % size == 0)


def _times(k: Kernel, offset: Offset, stride: int) -> Offset:
    return k.sum(k.scaled(offset, stride))


def _write(
    k: Kernel,
    image: Image,
    place: Offset,
    step: int,
    channel: Offset,
    sums: list[Register],
    count: int,
    finish: Finish,
) -> None:
    """Sums of `count` pixels from a place on, `step` floats apart."""
    wide = len(sums) // count
    for p in range(count):
        for v in range(wide):
            here = k.sum(place, channel, p * step + v * k.lanes)
            value = finish(sums[p * wide + v].get(), here, k.sum(channel, v * k.lanes))
            k.store(value, image.name, here)
