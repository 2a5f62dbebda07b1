"""3x3 convolutions with a quarter of the products, forward and backward, by kernels for the CPU.

Winograd's F(4x4, 3x3) (Lavin and Gray 2015, https://arxiv.org/abs/1509.09308): a tile of 4x4 outputs sees
6x6 inputs d, and with the filter w

    y = A' [sum over input channels of (G w G') * (B' d B)] A,

where * is a product of 36 numbers by 36: per channel 36 products for 16 pixels, not 144. Backward, with
dy of the tile,

    d_(G w G') = sum over tiles of (B' d B) * (A dy A'),    d_w = G' d_(G w G') G,

and the gradient by the input is the convolution of dy with the filter turned by 180 degrees.
A, B and G follow from six points at which polynomials are multiplied.

What stands between two convolutions of DnCNN is done where a kernel reads, so that nothing of it is stored:
batch normalisation and ReLU, x = max(scale z + shift, 0), of the previous convolution's output z; backward,
dy = slope g + curve z + level of the gradient g after them (`dncnn.py` has the coefficients). Where it
writes, it sums what these need: z and its square about a pixel's value; g, and g (z - mean).

Arrays: images (n, h, w, channels), so that a vector holds channels of one pixel, a multiple of the lanes in
number. u, the transformed filters: (36, columns / panel, rows, panel), what a product's inner loop takes one
after the other; d_w, a thread's gradient by the filters: the same with 9. A unit of work is some rows of
tiles of an image, from left to right in blocks whose intermediate values stay in the cache.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from lambdanet.backends.cpu.codegen import FLOAT, LONG, Kernel, Offset

TILE, SIDE = 4, 6  # of outputs, and of what they see
POINTS = SIDE * SIDE
ROWS = 6  # of a matrix product at a time
DEPTH = 4  # of its inner loop at a time
MOST_TILES = 36  # of a block
BORDERED = (TILE + 2) * (TILE * MOST_TILES + 2)  # the most pixels of a block with its border
GAP = 16  # floats between the points' arrays, or all would fall into the same places of the cache

# The points 0, P, -P, Q, -Q and infinity. With P Q = 1 and neither far from 1, float32 loses a third of what
# it loses by the usual 1, -1, 2 and -2: 4e-7 of an output's size, where the sum itself loses 1e-7.
P, Q = 2 / 3, 3 / 2
_FINITE = (0, P, -P, Q, -Q)
_G = np.array(
    [[x**i / math.prod(x - y for y in _FINITE if y != x) for i in range(3)] for x in _FINITE] + [[0, 0, 1]]
)
FILTER = np.einsum("ai,bj->abij", _G, _G).reshape(POINTS, 9)  # w (9) to G w G' (36)

# Of an image's size and a call's share: what the array of integers `n` holds, in this order.
SIZES = ("begin", "end", "h", "w", "rows", "columns")


@dataclass(frozen=True)
class Shape:
    """Channels into and out of a convolution, multiples of the lanes."""

    inputs: int
    outputs: int


def panel(channels: int, lanes: int) -> int:
    """How many columns of a product are taken at a time."""
    return next(wide for wide in (4 * lanes if lanes == 16 else 2 * lanes, lanes) if channels % wide == 0)


def length(channels: int) -> int:
    """Floats of a block's transformed tiles."""
    return POINTS * _pitch(channels)


def _pitch(channels: int) -> int:
    return MOST_TILES * channels + GAP


@dataclass
class Unit:
    """Where the kernel is: of a unit the image, its first row and rows of tiles; of a block the columns."""

    number: ir.Value
    image: ir.Value
    h: ir.Value
    w: ir.Value
    y: ir.Value
    high: ir.Value
    x: ir.Value | None = None
    wide: ir.Value | None = None
    across: ir.Value | None = None  # pixels of a row of the block with its border
    tiles: ir.Value | None = None
    full: ir.Value | None = None  # tiles, rounded up to whole ROWS


def write_forward(k: Kernel, shape: Shape, *, active: bool, summed: bool) -> None:
    """x, scale, shift, u, inside, v, m, y, sums, n -> y.

    inside, v and m are workspace.

    Args:
        k: what it is written to.
        shape: of the convolution.
        active: whether x goes through scale, shift and ReLU.
        summed: whether sums (units, 3, outputs) are wanted: a value c of the unit, and sums of y - c and its
            square.
    """
    finish = _sum_squares(k, shape.outputs) if summed else _as_it_is
    for unit in _units(k):
        for block in _blocks(k, unit):
            _enter(k, block, "inside", shape.inputs, _activation(k) if active else _plain(k, "x"))
            _transform(k, block, "inside", "v", shape.inputs)
            _product(k, block, "v", "u", "m", shape)
            _leave(k, block, "m", "y", "inside", shape.outputs, finish)


def write_backward(k: Kernel, shape: Shape, *, active: bool, normalised: bool, further: bool) -> None:
    """g, z, slope, curve, level, x, scale, shift, mean, u, ... -> d_w and d_x, sums.

    d_x is the gradient before scale and shift, 0 where ReLU cut off; sums (units, 2, inputs): of it,
    and of it times x - mean. u has the filters turned by 180 degrees, outputs as rows.

    Args:
        k: what it is written to.
        shape: of the convolution, as forward.
        active: whether x goes through scale, shift and ReLU.
        normalised: whether dy is slope g + curve z + level; else it is g.
        further: whether d_x and sums are wanted.
    """
    before = _activation(k) if active else _plain(k, "x")
    after = _line(k, "g", "z") if normalised else _plain(k, "g")
    with k.loop(POINTS * shape.inputs * shape.outputs, 0, k.lanes) as i:
        k.store(k.constant(0.0), "d_u", i)
    for unit in _units(k):
        for block in _blocks(k, unit):
            _enter(k, block, "inside", shape.inputs, before)
            _transform(k, block, "inside", "v", shape.inputs)
            _enter(k, block, "outside", shape.outputs, after)
            _spread(k, block, "outside", "s", shape.outputs)
            _outer_product(k, block, "v", "s", "d_u", shape)
            if further:
                _transform(k, block, "outside", "s", shape.outputs)
                _product(k, block, "s", "u", "m", Shape(shape.outputs, shape.inputs))
                _leave(k, block, "m", "d_x", "inside", shape.inputs, _cut_off(k, shape.inputs))
    size = shape.inputs * shape.outputs
    with k.loop(size, 0, k.lanes) as i:
        points = [[k.load("d_u", (SIDE * a + b) * size, i) for b in range(SIDE)] for a in range(SIDE)]
        for tap, value in enumerate(itertools.chain(*_on_both(k, _times_g_transposed, points))):
            k.store(value, "d_w", tap * size, i)


# What a block is read through: given channels, a function of a place and of which of them.
Reader = Callable[[Sequence[int]], Callable[[Offset, int], ir.Value]]


def _plain(k: Kernel, array: str) -> Reader:
    return lambda _channels: lambda place, _i: k.load(array, place)


def _activation(k: Kernel) -> Reader:
    def of(channels: Sequence[int]) -> Callable[[Offset, int], ir.Value]:
        affine = [(k.load("scale", j), k.load("shift", j)) for j in channels]
        return lambda place, i: k.max(k.fma(k.load("x", place), *affine[i]), k.constant(0.0))

    return of


def _line(k: Kernel, gradient: str, output: str) -> Reader:
    def of(channels: Sequence[int]) -> Callable[[Offset, int], ir.Value]:
        lines = [tuple(k.load(name, j) for name in ("slope", "curve", "level")) for j in channels]

        def read(place: Offset, i: int) -> ir.Value:
            slope, curve, level = lines[i]
            return k.fma(k.load(gradient, place), slope, k.fma(k.load(output, place), curve, level))

        return read

    return of


def _integer(k: Kernel, name: str) -> ir.Value:
    place = k.build.gep(k.arrays["n"], [LONG(SIZES.index(name))], source_etype=LONG)
    return k.build.load(place, typ=LONG, align=8)


def _units(k: Kernel) -> Iterator[Unit]:
    """The units from `begin` to `end`, in a loop."""
    build = k.build
    begin, end, h, w, rows = (_integer(k, name) for name in SIZES[:5])
    down = _tiles(k, h)
    of_image = _rounded_up(k, down, rows)
    with k.loop(end, begin) as number:
        first = build.mul(build.srem(number, of_image), rows)
        high = k.least(rows, build.sub(down, first))
        y = build.mul(first, LONG(TILE))
        yield Unit(number, build.sdiv(number, of_image), h, w, y, high)


def _blocks(k: Kernel, unit: Unit) -> Iterator[Unit]:
    """A unit's blocks, in a loop."""
    build = k.build
    columns, across = _integer(k, "columns"), _tiles(k, unit.w)
    with k.loop(_rounded_up(k, across, columns)) as number:
        first = build.mul(number, columns)
        unit.wide = k.least(columns, build.sub(across, first))
        unit.x = build.mul(first, LONG(TILE))
        unit.across = build.add(build.mul(unit.wide, LONG(TILE)), LONG(2))
        unit.tiles = build.mul(unit.high, unit.wide)
        unit.full = build.mul(_rounded_up(k, unit.tiles, LONG(ROWS)), LONG(ROWS))
        yield unit


def _tiles(k: Kernel, pixels: ir.Value) -> ir.Value:
    return _rounded_up(k, pixels, LONG(TILE))


def _rounded_up(k: Kernel, count: ir.Value, by: ir.Value) -> ir.Value:
    """How many times `by`, an integer, reaches `count`."""
    return k.build.sdiv(k.build.add(count, k.build.sub(by, LONG(1))), by)


def _some(channels: int, size: int, lanes: int) -> Iterator[Sequence[int]]:
    for first in range(0, channels, size):
        yield range(first, min(channels, first + size), lanes)


def _enter(k: Kernel, block: Unit, target: str, channels: int, reader: Reader) -> None:
    """A block with a border of one pixel: (4 high + 2, 4 wide + 2, channels), 0 outside of the image."""
    build, L = k.build, k.lanes

    def clear(stop: ir.Value, start: Offset, row: ir.Value) -> None:
        with k.loop(stop, start) as column:
            for j in range(0, channels, L):
                k.store(k.constant(0.0), target, row, (column, channels), j)

    with k.loop(build.add(build.mul(block.high, LONG(TILE)), LONG(2))) as i:
        y = build.sub(build.add(block.y, i), LONG(1))
        seen = build.and_(build.icmp_signed(">=", y, LONG(0)), build.icmp_signed("<", y, block.h))
        left = build.select(build.icmp_signed("==", block.x, LONG(0)), LONG(1), LONG(0))
        right = k.least(block.across, build.add(build.sub(block.w, block.x), LONG(1)))
        right = build.select(seen, right, left)
        row = build.mul(i, build.mul(block.across, LONG(channels)))
        pixel = build.add(build.mul(build.add(build.mul(block.image, block.h), y), block.w), block.x)
        source = build.mul(build.sub(pixel, LONG(1)), LONG(channels))
        clear(left, 0, row)
        for some in _some(channels, 4 * L, L):
            read = reader(some)
            with k.loop(right, left) as column:
                for which, j in enumerate(some):
                    value = read(k.sum(source, (column, channels), j), which)
                    k.store(value, target, row, (column, channels), j)
        clear(block.across, right, row)


def _each_tile(k: Kernel, block: Unit, channels: int, border: int) -> Iterator[tuple]:
    """A block's tiles, in a loop: where rows begin, from the corner + border, and where the result does."""
    build = k.build
    pitch = build.mul(block.across, LONG(channels))
    with k.loop(block.high) as i, k.loop(block.wide) as j:
        corner = build.add(build.mul(build.mul(i, LONG(TILE)), pitch), build.mul(j, LONG(TILE * channels)))
        rows = [build.add(corner, build.mul(pitch, LONG(row + border))) for row in range(SIDE - border)]
        yield rows, build.mul(build.add(build.mul(i, block.wide), j), LONG(channels))


def _transform(k: Kernel, block: Unit, source: str, target: str, channels: int) -> None:
    """B' d B of each tile: target (36, tiles, channels)."""
    for rows, to in _each_tile(k, block, channels, 0):
        with k.loop(channels, 0, k.lanes) as j:
            tile = [[k.load(source, row, column * channels, j) for column in range(SIDE)] for row in rows]
            _store_points(k, _on_both(k, _times_b, tile), target, channels, to, j)


def _spread(k: Kernel, block: Unit, source: str, target: str, channels: int) -> None:
    """A d A' of each tile without its border: target (36, tiles, channels)."""
    for rows, to in _each_tile(k, block, channels, 1):
        with k.loop(channels, 0, k.lanes) as j:
            tile = [
                [k.load(source, row, (column + 1) * channels, j) for column in range(TILE)]
                for row in rows[:TILE]
            ]
            _store_points(k, _on_both(k, _times_a, tile), target, channels, to, j)


def _store_points(
    k: Kernel, points: list[list[ir.Value]], target: str, channels: int, *place: ir.Value
) -> None:
    for i, row in enumerate(points):
        for j, value in enumerate(row):
            k.store(value, target, (SIDE * i + j) * _pitch(channels), *place)


@dataclass(frozen=True)
class Tile:
    """Where a tile's 16 pixels are.

    Attributes:
        later: whether the unit has tiles before it.
        offsets: of each pixel in an image's array; of the array's first pixel where it lies outside.
        seen: 1 where it lies in the image, else 0, in all lanes.
    """

    later: ir.Value
    offsets: list[ir.Value]
    seen: list[ir.Value]


# What a tile's pixels become, from a channel on, before they are written.
Finish = Callable[[Unit, Tile, ir.Value, list[ir.Value]], list[ir.Value]]


def _as_it_is(_unit: Unit, _tile: Tile, _channel: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
    return values


def _sum_squares(k: Kernel, channels: int) -> Finish:
    """Sums (units, 3, channels): the unit's first pixel c, and sums of y - c and its square."""

    def finish(unit: Unit, tile: Tile, channel: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
        centre, total, squares = _sums(k, unit, tile, channel, channels, [values[0]] + 2 * [k.constant(0.0)])
        for value, seen in zip(values, tile.seen, strict=True):
            d = k.mul(k.sub(value, centre), seen)
            total, squares = k.add(total, d), k.fma(d, d, squares)
        _keep_sums(k, unit, channel, channels, [centre, total, squares])
        return values

    return finish


def _cut_off(k: Kernel, channels: int) -> Finish:
    """The gradient before ReLU. Sums (units, 2, channels): of it, and of it times x - mean."""

    def finish(unit: Unit, tile: Tile, channel: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
        total, products = _sums(k, unit, tile, channel, channels, 2 * [k.constant(0.0)])
        scale, shift, mean = (k.load(name, channel) for name in ("scale", "shift", "mean"))
        result = []
        for value, offset, seen in zip(values, tile.offsets, tile.seen, strict=True):
            x = k.load("x", offset, channel)
            g = k.where_positive(k.fma(x, scale, shift), value)
            result.append(g)
            g = k.mul(g, seen)
            total, products = k.add(total, g), k.fma(g, k.sub(x, mean), products)
        _keep_sums(k, unit, channel, channels, [total, products])
        return result

    return finish


def _sums(
    k: Kernel, unit: Unit, tile: Tile, channel: ir.Value, channels: int, first: list[ir.Value]
) -> list[ir.Value]:
    """A unit's sums so far; of its first tile, `first`."""
    rows = range(len(first))
    kept = [k.load("sums", (unit.number, len(first) * channels), row * channels, channel) for row in rows]
    return [k.build.select(tile.later, *pair) for pair in zip(kept, first, strict=True)]


def _keep_sums(k: Kernel, unit: Unit, channel: ir.Value, channels: int, sums: list[ir.Value]) -> None:
    for row, value in enumerate(sums):
        k.store(value, "sums", (unit.number, len(sums) * channels), row * channels, channel)


def _leave(
    k: Kernel, block: Unit, source: str, target: str, spare: str, channels: int, finish: Finish
) -> None:
    """A' m A of each tile, finished, into the image; what would lie outside goes to `spare`.

    Sums are made here, and where vectors are whole lines of the caches the images pass these by: those of a
    large batch would not be there any more when the next kernel reads them, and to write into the caches
    takes twice as long.
    """
    build = k.build
    with k.loop(block.high) as i, k.loop(block.wide) as j:
        number = build.add(build.mul(i, block.wide), j)
        pointers, offsets, seen = [], [], []
        for row in range(TILE):
            y = build.add(block.y, k.sum((i, TILE), row))
            above = build.icmp_signed("<", y, block.h)
            line = build.mul(build.add(build.mul(block.image, block.h), y), block.w)
            for column in range(TILE):
                x = build.add(block.x, k.sum((j, TILE), column))
                there = build.and_(above, build.icmp_signed("<", x, block.w))
                offset = build.mul(build.add(line, x), LONG(channels))
                pointers.append(build.select(there, k.at(target, offset), k.arrays[spare]))
                offsets.append(build.select(there, offset, LONG(0)))
                seen.append(k.broadcast(build.uitofp(there, FLOAT)))
        later = build.icmp_signed("!=", build.or_(number, block.x), LONG(0))
        tile = Tile(later, offsets, seen)
        with k.loop(channels, 0, k.lanes) as channel:
            points = [
                [
                    k.load(source, (row + column) * _pitch(channels), (number, channels), channel)
                    for column in range(SIDE)
                ]
                for row in range(0, POINTS, SIDE)
            ]
            values = itertools.chain(*_on_both(k, _times_a_transposed, points))
            values = finish(block, tile, channel, list(values))
            for value, pointer in zip(values, pointers, strict=True):
                k.stream(value, build.gep(pointer, [channel], source_etype=FLOAT))


def _product(k: Kernel, block: Unit, left: str, right: str, target: str, shape: Shape) -> None:
    """Target (36, tiles, outputs) = left (36, tiles, inputs) right (36, inputs, outputs), that in panels."""
    inputs, outputs, wide = shape.inputs, shape.outputs, panel(shape.outputs, k.lanes)
    count = wide // k.lanes
    with k.loop(POINTS) as point, k.loop(outputs, 0, wide) as column:
        filters = k.sum((point, inputs * outputs), (column, inputs))
        with k.loop(block.full, 0, ROWS) as tile:
            sums = k.registers(ROWS * count)
            rows = k.sum((point, _pitch(inputs)), (tile, inputs))
            with k.loop(inputs, 0, DEPTH) as p:
                for q in range(DEPTH):
                    here = [k.load(right, filters, (p, wide), q * wide + c * k.lanes) for c in range(count)]
                    for r in range(ROWS):
                        value = k.splat(left, rows, p, r * inputs + q)
                        for c in range(count):
                            sums[r * count + c].fma(value, here[c])
            place = k.sum((point, _pitch(outputs)), (tile, outputs), column)
            for r in range(ROWS):
                for c in range(count):
                    k.store(sums[r * count + c].get(), target, place, r * outputs + c * k.lanes)


def _outer_product(k: Kernel, block: Unit, left: str, right: str, target: str, shape: Shape) -> None:
    """Target (36, inputs, outputs), in panels, += left' right over a block's tiles."""
    inputs, outputs, wide = shape.inputs, shape.outputs, panel(shape.outputs, k.lanes)
    count = wide // k.lanes

    with k.loop(POINTS) as point, k.loop(outputs, 0, wide) as column:
        for first, high in k.chunks(inputs, ROWS):
            where = k.sum((point, inputs * outputs), (column, inputs), (first, wide))
            places = [k.sum(where, r * wide + c * k.lanes) for r in range(high) for c in range(count)]
            sums = [k.registers(1, k.load(target, place))[0] for place in places]
            lines, columns = k.sum((point, _pitch(inputs)), first), k.sum((point, _pitch(outputs)), column)
            with k.loop(block.tiles) as tile:
                here = [k.load(right, columns, (tile, outputs), c * k.lanes) for c in range(count)]
                for r in range(high):
                    value = k.splat(left, lines, (tile, inputs), r)
                    for c in range(count):
                        sums[r * count + c].fma(value, here[c])
            for total, place in zip(sums, places, strict=True):
                k.store(total.get(), target, place)


def _on_both(k: Kernel, matrix: Callable, tile: list[list[ir.Value]]) -> list[list[ir.Value]]:
    """A matrix from the left and its transpose from the right."""
    columns = [matrix(k, list(column)) for column in zip(*tile, strict=True)]
    return [matrix(k, list(row)) for row in zip(*columns, strict=True)]


def _times_b(k: Kernel, d: list[ir.Value]) -> list[ir.Value]:
    """B' d: the coefficients of x (x^2 - P^2) (x^2 - Q^2), without one factor each, and whole."""
    c = k.constant
    rows = []
    for point, other in ((P, Q), (Q, P)):
        even, odd = (k.fma(d[i], c(-(other**2)), d[i + 2]) for i in (2, 1))
        rows += [k.fma(odd, c(point), even), k.fma(odd, c(-point), even)]
    first, last = (k.fma(d[i + 2], c(-(P**2) - Q**2), k.add(d[i], d[i + 4])) for i in (0, 1))
    return [first, *rows, last]


def _times_a(k: Kernel, y: list[ir.Value]) -> list[ir.Value]:
    """A y: the polynomial with these coefficients, at the points."""
    rows = []
    for point in (P, Q):
        even, odd = (k.fma(y[i + 2], k.constant(point**2), y[i]) for i in (0, 1))
        rows += [k.fma(odd, k.constant(point), even), k.fma(odd, k.constant(-point), even)]
    return [y[0], *rows, y[3]]


def _times_a_transposed(k: Kernel, m: list[ir.Value]) -> list[ir.Value]:
    """A' m: the columns are the rows of A."""
    even, odd, even_2, odd_2 = k.add(m[1], m[2]), k.sub(m[1], m[2]), k.add(m[3], m[4]), k.sub(m[3], m[4])

    def both(a: ir.Value, b: ir.Value, power: int) -> ir.Value:
        return k.fma(b, k.constant(Q**power), k.mul(a, k.constant(P**power)))

    return [
        k.add(m[0], k.add(even, even_2)),
        both(odd, odd_2, 1),
        both(even, even_2, 2),
        k.add(both(odd, odd_2, 3), m[5]),
    ]


def _times_g_transposed(k: Kernel, m: list[ir.Value]) -> list[ir.Value]:
    """G' m."""
    rows = []
    for column in _G.T:
        (first, factor), *others = [(i, factor) for i, factor in enumerate(column) if factor]
        total = k.mul(m[first], k.constant(factor))
        for i, factor in others:
            total = k.fma(m[i], k.constant(factor), total)
        rows.append(total)
    return rows
