"""The lambda layer of an image's own three channels, and its gradients, for blocks of images.

The layer (Bello 2021, section 3) computes z_hv(n) = sum_k q_hk(n) (content_kv + position_kv(n)) with
position_kv = sum_u E_ku * v_uv, * the correlation over the m x m window. Here queries and values are
affine in x = (x_0, x_1, x_2, 1), where 1 is 0 outside of the image: q_hk = sum_c A_hkc x_c and
v_uv = sum_c' B_uvc' x_c', normalisation included. So, exactly,

    position part of z_hv(n) = sum_uc' B_uvc' T_huc'(n),   T_huc'(n) = sum_c x_c(n) (F_huc * x_c')(n),
    F_huc = sum_k A_hkc E_ku.

The correlations are 4 heads x u x 4 filters with 3 channels (that with c' = 3, the constant, is the
same for all images and comes from the caller), whatever k and d are; nothing of (k, v, n) is stored.
The content part has the same form, as a matrix per image instead of F_huc *, and is added to T.

(F * x)(y, s) along x becomes a product of spectra: N = w + m // 2 rounded up to odd is enough for all
that the image's columns see, so (N + 1) / 2 complex numbers a row. Columns are counted from the middle,
s = -(w - 1) / 2 .. (w - 1) / 2: then s and -s share their cosines and sines, which halves the work.
Along y the m taps are summed as they stand: within the image a row sees 19 of 23 on average.

A block is one image per lane of a vector register: every number below is a vector, every coefficient
a scalar, and no size has to be a multiple of anything but 2. Arrays (floats, lanes last):

    image     (4, h, w)                       channels and the constant, 0 for a lane without image
    spectrum  (frequencies, PAD + h + PAD, 3, 2)   real and imaginary part; rows outside are 0
    filters   (groups, 4, frequencies, 1 + m + 1, 2), scalars; groups = heads * u
    t, d_t    (h, w, groups, 4)               T and its gradient; the fourth is its constant's part
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from lambdanet.backends.cpu.codegen import FLOAT, LONG, Kernel, Offset, accumulators, evenly

TAPS = 6  # at most, of a tile in the filters' gradient: 12 accumulators
PAD = TAPS - 1
ROWS = 2  # of a tile in the correlation: 12 accumulators
TILE = 4  # columns or frequencies of a tile in the transforms: 12 accumulators for each of two parts


@dataclass(frozen=True)
class Shape:
    """What the code is generated for: h x w images, both even, and m at most 2 min(h, w) - 1."""

    h: int
    w: int
    m: int
    groups: int

    @property
    def length(self) -> int:
        """Of the transform along x, odd."""
        return (self.w + self.m // 2) | 1

    @property
    def frequencies(self) -> int:
        return self.length // 2 + 1

    @property
    def channels(self) -> int:
        """Of t."""
        return 4 * self.groups


def analysis_table(size: Shape) -> np.ndarray:
    """Cos and -sin of frequency f at column s: (w / 2, frequencies, 2)."""
    angle = _angles(size)
    return np.ascontiguousarray(np.stack([np.cos(angle), -np.sin(angle)], -1), np.float32)


def synthesis_table(size: Shape) -> np.ndarray:
    """The way back, with its factors 1 / N and 2 / N: (frequencies, w / 2, 2)."""
    angle = _angles(size).T
    weight = np.where(np.arange(size.frequencies) == 0, 1, 2)[:, None] / size.length
    table = np.stack([weight * np.cos(angle), -weight * np.sin(angle)], -1)
    return np.ascontiguousarray(table, np.float32)


def filter_tables(size: Shape) -> tuple[np.ndarray, np.ndarray]:
    """From a filter's columns to its spectrum, and back: (m, frequencies, 2) twice, float64."""
    offsets = np.arange(size.m) - size.m // 2
    angle = 2 * np.pi / size.length * np.outer(offsets, np.arange(size.frequencies))
    weight = np.where(np.arange(size.frequencies) == 0, 1, 2) / size.length
    forth = np.stack([np.cos(angle), np.sin(angle)], -1)
    return forth, np.stack([weight * np.cos(angle), -weight * np.sin(angle)], -1)


def _angles(size: Shape) -> np.ndarray:
    columns = np.arange(size.w // 2) + 0.5
    return 2 * np.pi / size.length * np.outer(columns, np.arange(size.frequencies))


def write_enter(k: Kernel, pixels: int) -> None:
    """Images (lanes, 3, h, w) and mask (lanes) -> image."""
    _into_lanes(k, "images", "image", 3 * pixels)
    mask = k.load("mask", 0)
    with k.loop(pixels) as n:
        k.store(mask, "image", 3 * pixels * k.lanes, (n, k.lanes))


def write_enter_gradient(k: Kernel, pixels: int) -> None:
    """d_result (lanes, 3, h, w) -> d_output (3, h, w) in lanes."""
    _into_lanes(k, "d_result", "d_output", 3 * pixels)


def _into_lanes(k: Kernel, source: str, target: str, count: int) -> None:
    for n, some in k.chunks(count, k.lanes):
        if some == k.lanes:
            rows = [k.build.load(k.at(source, n, i * count), typ=k.vector, align=4) for i in range(k.lanes)]
            found = k.transposed(rows)
        else:
            found = [k.gather(source, count, n, i) for i in range(some)]
        for i, value in enumerate(found):
            k.store(value, target, (n, k.lanes), i * k.lanes)


def write_leave(k: Kernel, pixels: int) -> None:
    """Output (3, h, w) in lanes -> result (lanes, 3, h, w)."""
    count = 3 * pixels
    for n, some in k.chunks(count, k.lanes):
        values = [k.load("output", (n, k.lanes), i * k.lanes) for i in range(some)]
        if some == k.lanes:  # an image's line of the cache at once, or the images would fight for its place
            for i, row in enumerate(k.transposed(values)):
                k.build.store(row, k.at("result", n, i * count), align=4)
        else:
            for i, value in enumerate(values):
                k.scatter(value, "result", count, n, i)


def write_transform(k: Kernel, size: Shape) -> None:
    """image, analysis, parts -> spectrum."""
    row = size.w * k.lanes
    with k.loop(size.h) as y:

        def pixel(c: int, column: int, y: Offset = y) -> ir.Value:
            return k.load("image", c * size.h * row, (y, row), column)

        _analyse(k, size, pixel)
        _store_spectrum(k, size, y, "spectrum", PAD)


def write_forward(k: Kernel, size: Shape) -> None:
    """image, spectrum, filters, synthesis, content, constant, product, parts, t_group -> t.

    content (groups, 4, 4) in lanes: added to F_c * x_c'; constant (groups, 4, h, w): F_c * 1.
    A group's T is summed in `t_group` (h, w, 3), close together: in t its lines would drive each other out of
    the cache.
    """
    L, channels = k.lanes, size.channels
    pixels = size.h * size.w
    with k.loop(size.groups) as g:
        matrix = [[k.load("content", (g, 16 * L), (4 * c + d) * L) for d in range(4)] for c in range(4)]
        with k.loop(pixels) as n:
            image = [k.load("image", c * pixels * L, (n, L)) for c in range(4)]
            for d in range(4):
                total = k.constant(0.0)
                for c in range(4):
                    factor = matrix[c][d]
                    if d == 3:
                        factor = k.add(factor, k.splat("constant", (g, 4 * pixels), c * pixels, n))
                    total = k.fma(image[c], factor, total)
                if d == 3:
                    k.store(total, "t", (n, channels * L), (g, 4 * L), d * L)
                else:
                    k.store(total, "t_group", (n, 3 * L), d * L)
        with k.loop(4) as c:
            write_correlation(k, size, g, c)
            _synthesise(k, size, g, c)


def write_correlation(k: Kernel, size: Shape, g: Offset, c: Offset) -> None:
    """Product (h, 3, frequencies, 2) = filter (g, c) times spectrum, summed over the rows seen."""
    L, h, m, radius = k.lanes, size.h, size.m, size.m // 2
    spectra = ["spectrum"] + [k.again("spectrum")] * (ROWS - 1)  # for each row of a tile
    with k.loop(size.frequencies) as f, k.loop(h, step=ROWS) as y:
        sums = k.registers(ROWS * 3 * 2)
        first = k.greatest(0, k.sum(y, -radius))
        last = k.least(h, k.sum(y, radius + ROWS))
        filters = k.sum((g, 4 * size.frequencies * (m + 2) * 2), (c, size.frequencies * (m + 2) * 2),
                        (f, (m + 2) * 2))  # fmt: skip
        with k.loop(last, first) as r:
            place = k.sum((f, (h + 2 * PAD) * 6 * L), (r, 6 * L), PAD * 6 * L)
            tap = k.sum(filters, (r, 2), (y, -2), 2 * (radius + 1))  # row y sees row r through it
            for j in range(ROWS):
                re, im = (k.splat("filters", tap, part - 2 * j) for part in (0, 1))
                seen = [k.load(spectra[j], place, i * L) for i in range(6)]
                for d in range(3):
                    real, imaginary = sums[6 * j + 2 * d : 6 * j + 2 * d + 2]
                    real.fma(re, seen[2 * d])
                    imaginary.fma(re, seen[2 * d + 1])
                    real.fma(k.neg(im), seen[2 * d + 1])
                    imaginary.fma(im, seen[2 * d])
        for j in range(ROWS):
            for d in range(3):
                for part in range(2):
                    k.store(sums[6 * j + 2 * d + part].get(), "product",
                            (y, 6 * size.frequencies * L), (6 * j + 2 * d) * size.frequencies * L,
                            (f, 2 * L), part * L)  # fmt: skip


def _synthesise(k: Kernel, size: Shape, g: Offset, c: Offset) -> None:
    """t_group += x_c times the product's way back from frequencies to columns; the last sum into t.

    The even and the odd part of a row's columns are put together in `parts`.
    """
    L, w, half = k.lanes, size.w, size.w // 2
    last = k.build.icmp_signed("==", c, LONG(3))
    target = k.build.select(last, k.at("t", (g, 4 * L)), k.arrays["t_group"])
    step = k.build.select(last, LONG(size.channels * L), LONG(3 * L))
    summed = k.again("parts")
    with k.loop(size.h) as y:
        for tile in range(0, half, TILE):
            columns = range(tile, min(tile + TILE, half))
            for parts in _parts():
                sums = {(s, d, part): k.registers(1)[0] for s in columns for d in range(3) for part in parts}
                with k.loop(size.frequencies) as f:
                    for part in parts:
                        values = [
                            k.load("product", (y, 6 * size.frequencies * L), 2 * d * size.frequencies * L,
                                   (f, 2 * L), part * L)
                            for d in range(3)
                        ]  # fmt: skip
                        for s in columns:
                            factor = k.splat("synthesis", (f, 2 * half), 2 * s + part)
                            for d in range(3):
                                sums[s, d, part].fma(factor, values[d])
                for (s, d, part), total in sums.items():
                    k.store(total.get(), "parts", (6 * s + 2 * d + part) * L)
            for s in columns:
                for column, combine in ((half + s, k.add), (half - 1 - s, k.sub)):
                    image = k.load("image", (c, size.h * w * L), (y, w * L), column * L)
                    pixel = k.sum((y, w), column)
                    to = k.build.gep(target, [k.build.mul(pixel, step)], source_etype=FLOAT)
                    for d in range(3):
                        value = combine(*(k.load(summed, (6 * s + 2 * d + part) * L) for part in (0, 1)))
                        value = k.fma(image, value, k.load("t_group", (pixel, 3 * L), d * L))
                        k.store_to(value, k.build.gep(to, [LONG(d * L)], source_etype=FLOAT))


def _parts() -> tuple[tuple[int, ...], ...]:
    """Which of the two parts that do not meet, real and imaginary or even and odd, a loop sums at once."""
    return ((0, 1),) if accumulators() >= 6 * TILE else ((0,), (1,))


def write_backward(k: Kernel, size: Shape) -> None:
    """image, spectrum, analysis, d_t, t_group, parts, product -> d_...

    d_filters (groups, 4, frequencies, m, 2) and d_constant (groups, 4, h, w) are summed over the
    block's images, d_content (groups, 4, 4) stays in lanes. A group's d_t is first gathered in `t_group`.
    """
    L, channels, pixels = k.lanes, size.channels, size.h * size.w
    with k.loop(size.groups) as g:
        sums = k.registers(16)
        with k.loop(pixels) as n:
            image = [k.load("image", c * pixels * L, (n, L)) for c in range(4)]
            for d in range(4):
                gradient = k.load("d_t", (n, channels * L), (g, 4 * L), d * L)
                if d < 3:
                    k.store(gradient, "t_group", (n, 3 * L), d * L)
                for c in range(4):
                    sums[4 * c + d].fma(image[c], gradient)
                    if d == 3:
                        k.store_sum(k.mul(image[c], gradient), "d_constant", (g, 4 * pixels), c * pixels, n)
        for i in range(16):
            k.store(sums[i].get(), "d_content", (g, 16 * L), i * L)
        with k.loop(4) as c:
            with k.loop(size.h) as y:
                image = k.sum((c, pixels * L), (y, size.w * L))
                _analyse(k, size, functools.partial(_of_product, k, image, k.sum((y, size.w * 3 * L))))
                _store_spectrum(k, size, y, "product", 0)
            _correlate_gradient(k, size, g, c)


def _of_product(k: Kernel, image: Offset, first: Offset, d: int, column: int) -> ir.Value:
    """x_c times the gradient of T's channel d, at a column of a row."""
    value = k.load("t_group", first, column * 3, d * k.lanes)
    return k.mul(k.load("image", image, column), value)


def _correlate_gradient(k: Kernel, size: Shape, g: Offset, c: Offset) -> None:
    """d_filters (g, c) = spectrum times the conjugate of product, summed over rows and channels."""
    L, h, m, radius = k.lanes, size.h, size.m, size.m // 2
    with k.loop(size.frequencies) as f:
        together = evenly(m, TAPS)
        for tile in range(0, m, together):
            taps = range(tile, min(tile + together, m))
            sums = k.registers(2 * len(taps))
            low, high = taps[0] - radius, taps[-1] - radius  # row y of the gradient met row y + tap
            with k.loop(min(h, h - low), max(0, -high)) as y:
                for d in range(3):
                    re, im = (
                        k.load("product", (f, h * 6 * L), (y, 6 * L), (2 * d + part) * L) for part in (0, 1)
                    )
                    for i, tap in enumerate(taps):
                        place = k.sum((f, (h + 2 * PAD) * 6 * L), (y, 6 * L),
                                      (PAD + tap - radius) * 6 * L)  # fmt: skip
                        seen_re, seen_im = (k.load("spectrum", place, (2 * d + part) * L) for part in (0, 1))
                        real, imaginary = sums[2 * i : 2 * i + 2]
                        real.fma(seen_re, re)
                        real.fma(seen_im, im)
                        imaginary.fma(seen_im, re)
                        imaginary.fma(k.neg(seen_re), im)
            for i, tap in enumerate(taps):
                for part in (0, 1):
                    k.store_sum(sums[2 * i + part].get(), "d_filters",
                                (g, 4 * size.frequencies * m * 2), (c, size.frequencies * m * 2),
                                (f, m * 2), 2 * tap + part)  # fmt: skip


def _analyse(k: Kernel, size: Shape, value: Callable[[int, int], ir.Value]) -> None:
    """Parts (w / 2, 3, 2): sum and difference of `value(d, column)` at s and -s; column counts floats."""
    L, half = k.lanes, size.w // 2
    for s in range(half):
        for d in range(3):
            right, left = value(d, (half + s) * L), value(d, (half - 1 - s) * L)
            k.store(k.add(right, left), "parts", (6 * s + 2 * d) * L)
            k.store(k.sub(right, left), "parts", (6 * s + 2 * d + 1) * L)


def _store_spectrum(k: Kernel, size: Shape, y: Offset, target: str, pad: int) -> None:
    """Transform `parts` into row y of (frequencies, pad + h + pad, 3, 2)."""
    L, half = k.lanes, size.w // 2
    for tile in range(0, size.frequencies, TILE):
        frequencies = range(tile, min(tile + TILE, size.frequencies))
        for parts in _parts():
            sums = {(f, d, part): k.registers(1)[0] for f in frequencies for d in range(3) for part in parts}
            with k.loop(half) as s:
                values = [k.load("parts", (s, 6 * L), i * L) for i in range(6)]
                for f in frequencies:
                    for part in parts:
                        factor = k.splat("analysis", (s, 2 * size.frequencies), 2 * f + part)
                        for d in range(3):
                            sums[f, d, part].fma(factor, values[2 * d + part])
            for (f, d, part), total in sums.items():
                k.store(total.get(), target, (f * (size.h + 2 * pad) + pad) * 6 * L, (y, 6 * L),
                        (2 * d + part) * L)  # fmt: skip
