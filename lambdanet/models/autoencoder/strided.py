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

from lambdanet.kernels.vectors import FLOAT, LONG, Kernel, Offset

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
    with k.loop(coarse.pitch, 0, wide * k.lanes) as c, k.loop(coarse.h) as y:

        def at(x: Offset, count: int) -> None:
            sums = k.registers(count * wide)
            together = TAPS if fine.channels < TAPS else 1  # rows of taps
            with k.loop(TAPS, 0, together) as i, k.loop(TAPS, 0, APART) as j:
                row = k.sum((k.sum((y, 2), i), fine.row), _times(k, x, 2 * fine.pitch), (j, fine.pitch))
                filters = k.sum((k.sum((i, TAPS), j), fine.channels * coarse.pitch), c)
                for f, some in _unrolled(k, fine.channels):
                    for down, right, step in itertools.product(range(together), range(APART), range(some)):
                        tap = (down * TAPS + right) * fine.channels + step
                        place = k.sum(filters, _times(k, f, coarse.pitch), tap * coarse.pitch)
                        here = [k.load(weights, place, v * k.lanes) for v in range(wide)]
                        for p in range(count):
                            shift = down * fine.row + (right + 2 * p) * fine.pitch + step
                            value = k.splat(fine.name, row, f, shift)
                            for v in range(wide):
                                sums[p * wide + v].fma(value, here[v])
            _write(k, coarse, (y, x), (1, 1), c, sums, count, finish)

        _along(k, coarse.w, pixels, at)


def write_up(k: Kernel, coarse: Image, fine: Image, weights: str, finish: Finish) -> None:
    """Fine = finish(up(coarse))."""
    wide, pixels = blocks(fine.pitch // k.lanes, coarse.w)
    with k.loop(fine.pitch, 0, wide * k.lanes) as f, k.loop(coarse.h) as y:
        for odd_y, rows in SEEN.items():
            for odd_x, columns in SEEN.items():

                def at(
                    x: Offset,
                    count: int,
                    rows: tuple = rows,
                    columns: tuple = columns,
                    odd: tuple = (odd_y, odd_x),
                ) -> None:
                    sums = k.registers(count * wide)
                    (top, down), (left, right) = rows, columns
                    # The second tap of two is that of the pixel before.
                    with k.loop(2) as i, k.loop(2) as j:
                        corner = k.sum((k.sum(y, 1 + down), coarse.row), _times(k, x, coarse.pitch))
                        corner = k.sum(
                            corner, (1 + right) * coarse.pitch, (i, -coarse.row), (j, -coarse.pitch)
                        )
                        tap = k.sum((i, 2 * TAPS), (j, 2), top * TAPS + left)
                        filters = k.sum((tap, coarse.channels * fine.pitch), f)
                        for c, some in _unrolled(k, coarse.channels):
                            for step in range(some):
                                place = k.sum(filters, _times(k, c, fine.pitch), step * fine.pitch)
                                here = [k.load(weights, place, v * k.lanes) for v in range(wide)]
                                for p in range(count):
                                    value = k.splat(coarse.name, corner, c, step + p * coarse.pitch)
                                    for v in range(wide):
                                        sums[p * wide + v].fma(value, here[v])
                    _write(k, fine, (y, x), odd, f, sums, count, finish, step=2)

                _along(k, coarse.w, pixels, at)


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
                place = k.sum((y, coarse.row), (x, coarse.pitch), c, coarse.row + coarse.pitch)
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
            total.add(k.load(image.name, (y, image.row), (x, image.pitch), c, image.row + image.pitch))
        k.store(total.get(), target, c)


def write_each(k: Kernel, image: Image, value: Callable[[ir.Value, ir.Value, int], ir.Value]) -> None:
    """Set every channel of every pixel, one by one, to value(y, x, channel)."""
    with k.loop(image.h) as y, k.loop(image.w) as x:
        for c in range(image.channels):
            place = k.sum((y, image.row), (x, image.pitch), image.row + image.pitch + c)
            put(k, value(y, x, c), image.name, place)


def get(k: Kernel, array: str, place: Offset) -> ir.Value:
    """One number."""
    return k.build.load(k.build.gep(k.arrays[array], [_long(place)], source_etype=FLOAT), typ=FLOAT, align=4)


def put(k: Kernel, value: ir.Value, array: str, place: Offset) -> None:
    """Write one number."""
    k.build.store(value, k.build.gep(k.arrays[array], [_long(place)], source_etype=FLOAT), align=4)


def _unrolled(k: Kernel, count: int) -> Iterator[tuple[Offset, int]]:
    """Offsets and sizes that cover range(count): in a loop, four or fewer at a time."""
    size = next(size for size in (4, 3, 2, 1) if count % size == 0)
    with k.loop(count, 0, size) as first:
        yield first, size


def _long(place: Offset) -> ir.Value:
    return LONG(place) if isinstance(place, int) else place


def _times(k: Kernel, offset: Offset, stride: int) -> Offset:
    return k.sum(k.scaled(offset, stride))


def _along(k: Kernel, width: int, pixels: int, at: Callable[[Offset, int], None]) -> None:
    """`at` for all pixels of a row, some at a time, then the rest."""
    whole = width - width % pixels
    if whole:
        with k.loop(whole, 0, pixels) as x:
            at(x, pixels)
    if width % pixels:
        at(whole, width % pixels)


def _write(
    k: Kernel,
    image: Image,
    corner: tuple[Offset, Offset],
    shift: tuple[int, int],
    channel: Offset,
    sums: list,
    count: int,
    finish: Finish,
    step: int = 1,
) -> None:
    """Sums of `count` pixels, `step` apart, from step corner + shift on (step 1: past the border already)."""
    y, x = corner
    border = 1 if step == 2 else 0
    wide = len(sums) // count
    origin = (shift[0] + border) * image.row + (shift[1] + border) * image.pitch
    place = k.sum(_times(k, y, step * image.row), _times(k, x, step * image.pitch), channel, origin)
    for p in range(count):
        for v in range(wide):
            here = k.sum(place, p * step * image.pitch + v * k.lanes)
            value = finish(sums[p * wide + v].get(), here, k.sum(channel, v * k.lanes))
            k.store(value, image.name, here)
