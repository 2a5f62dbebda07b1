"""For u > 1: from what the lambda layer correlates to its output z, and back, for blocks of images.

    z_hv(n) = sum_i M_vi T_hi(n) + sum_c x_c(n) content_hvc,   i = (u, c'),

see lambda_layer.py. Positions and content read the values' memory in different orders of u and v
(models/lambdanet.py), so that the content cannot be added to T as for u = 1, where T itself is kept
instead of z and M is folded into what follows.

Arrays, lanes last: t and d_t (h w, heads, 4 u), features and gradient (h w, heads, v), image (4, h, w).
"""

from dataclasses import dataclass

from lambdanet.backends.cpu.codegen import Kernel, accumulators, evenly
from lambdanet.backends.cpu.decoder import PIXELS, add_outer, at_once, clear, rows, sum_lanes, values

VALUES = 4  # at a time, or as many as fit
TOGETHER = 4  # pixels that share the loading of a weight, forward


@dataclass(frozen=True)
class Size:
    """What the code is generated for; `row` is even, and `pixels` of an image a multiple of 4."""

    pixels: int
    row: int
    heads: int
    v: int
    terms: int  # 4 u


def write_mix(k: Kernel, size: Size) -> None:
    """t, image, mix (v, 4 u), heads_content (heads, v, 4) in lanes -> features."""
    L, v, terms = k.lanes, size.v, size.terms
    with k.loop(size.pixels, step=TOGETHER) as n, k.loop(size.heads) as head:
        for first, count in k.chunks(v, evenly(v, min(VALUES, accumulators() // TOGETHER))):
            sums = [k.registers(count) for _ in range(TOGETHER)]
            for c in range(4):
                x = [k.load("image", c * size.pixels * L, (n, L), p * L) for p in range(TOGETHER)]
                for j in range(count):
                    place = k.sum((head, 4 * v * L), (first, 4 * L), (4 * j + c) * L)
                    content = k.load("heads_content", place)
                    for p in range(TOGETHER):
                        sums[p][j].fma(x[p], content)
            with k.loop(terms) as i:
                place = k.sum((n, size.heads * terms * L), (head, terms * L), (i, L))
                t = [k.load("t", place, p * size.heads * terms * L) for p in range(TOGETHER)]
                for j in range(count):
                    weight = k.splat("mix", (first, terms), j * terms, i)
                    for p in range(TOGETHER):
                        sums[p][j].fma(weight, t[p])
            place = k.sum((n, size.heads * v * L), (head, v * L), (first, L))
            for p in range(TOGETHER):
                for j in range(count):
                    k.store(sums[p][j].get(), "features", place, (p * size.heads * v + j) * L)


def write_mix_backward(k: Kernel, size: Size) -> None:
    """gradient, t, image, mix, lane_mix -> d_t; d_mix (v, 4 u), d_heads_content (heads, v, 4) in lanes."""
    L, v, heads, terms = k.lanes, size.v, size.heads, size.terms
    image = (4, lambda n, c: k.load("image", (c, size.pixels * L), (n, L)))
    clear(k, "d_heads_content", heads * v * 4)
    clear(k, "lane_mix", v * terms)
    with rows(k, size.pixels, size.row) as pixels:
        add_outer(k, pixels, "d_heads_content", (heads * v, values(k, "gradient", heads * v)), image)
        start, end = (k.sum((pixel, heads)) for pixel in pixels)
        with k.loop(end, start, PIXELS) as n:
            for first, count in k.chunks(terms, evenly(terms, at_once())):
                sums = [k.registers(count) for _ in range(PIXELS)]
                with k.loop(v) as j:
                    z = [k.load("gradient", (n, v * L), p * v * L, (j, L)) for p in range(PIXELS)]
                    for i in range(count):
                        weight = k.splat("mix", (j, terms), first, i)
                        for p in range(PIXELS):
                            sums[p][i].fma(weight, z[p])
                place = k.sum((n, terms * L), (first, L))
                for p in range(PIXELS):
                    for i in range(count):
                        k.store(sums[p][i].get(), "d_t", place, (p * terms + i) * L)
        gradient, t = (v, values(k, "gradient", v)), (terms, values(k, "t", terms))
        add_outer(k, (start, end), "lane_mix", gradient, t)
    sum_lanes(k, "lane_mix", "d_mix", v * terms)
