"""For u > 1: from what the lambda layer correlates to its output z, and back, for blocks of images.

    z_hv(n) = sum_i M_vi T_hi(n) + sum_c x_c(n) content_hvc,   i = (u, c'),

see lambda_layer.py. Positions and content read the values' memory in different orders of u and v
(models/lambdanet.py), so that the content cannot be added to T as for u = 1, where T itself is kept
instead of z and M is folded into what follows.

Arrays, lanes last: t and d_t (h w, heads, 4 u), features and gradient (h w, heads, v), image (4, h, w).
"""

from dataclasses import dataclass

from lambdanet.kernels.vectors import Kernel
from lambdanet.models.lambdanet.decoder import add_outer, clear, sum_lanes, values

VALUES = 4  # at a time: 16 vectors of content


@dataclass(frozen=True)
class Size:
    """What the code is generated for."""

    pixels: int
    row: int
    heads: int
    v: int
    terms: int  # 4 u


def write_mix(k: Kernel, size: Size) -> None:
    """t, image, mix (v, 4 u), heads_content (heads, v, 4) in lanes -> features."""
    L, v = k.lanes, size.v
    with k.loop(size.heads) as head:
        for first, count in k.chunks(v, VALUES):
            content = [
                [k.load("heads_content", (head, 4 * v * L), k.scaled(first, 4 * L), (4 * j + c) * L)
                 for c in range(4)]
                for j in range(count)
            ]  # fmt: skip
            with k.loop(size.pixels) as n:
                sums = k.registers(count)
                for c in range(4):
                    x = k.load("image", c * size.pixels * L, (n, L))
                    for j in range(count):
                        sums[j].fma(x, content[j][c])
                with k.loop(size.terms) as i:
                    t = k.load("t", (n, size.heads * size.terms * L), (head, size.terms * L), (i, L))
                    for j in range(count):
                        weight = k.splat("mix", k.scaled(first, size.terms), j * size.terms, i)
                        sums[j].fma(weight, t)
                for j in range(count):
                    k.store(sums[j].get(), "features", (n, size.heads * v * L), (head, v * L),
                            k.scaled(first, L), j * L)  # fmt: skip


def write_mix_backward(k: Kernel, size: Size) -> None:
    """gradient, t, image, mix, lane_mix -> d_t; d_mix (v, 4 u), d_heads_content (heads, v, 4) in lanes."""
    L, v = k.lanes, size.v
    with k.loop(size.heads) as head:
        for first, count in k.chunks(v, VALUES):
            sums = k.registers(4 * count)
            with k.loop(size.pixels) as n:
                x = [k.load("image", c * size.pixels * L, (n, L)) for c in range(4)]
                for j in range(count):
                    z = k.load("gradient", (n, size.heads * v * L), (head, v * L), k.scaled(first, L), j * L)
                    for c in range(4):
                        sums[4 * j + c].fma(x[c], z)
            for i, total in enumerate(sums):
                k.store(total.get(), "d_heads_content", (head, 4 * v * L), k.scaled(first, 4 * L), i * L)
    clear(k, "lane_mix", v * size.terms)
    row = size.row * size.heads
    with k.loop(size.pixels * size.heads, step=row) as start:
        end = k.sum(start, row)
        with k.loop(end, start) as n:
            for first, count in k.chunks(size.terms, 8):
                sums = k.registers(count)
                with k.loop(v) as j:
                    z = k.load("gradient", (n, v * L), (j, L))
                    for i in range(count):
                        sums[i].fma(k.splat("mix", (j, size.terms), first, i), z)
                for i in range(count):
                    k.store(sums[i].get(), "d_t", (n, size.terms * L), k.scaled(first, L), i * L)
        gradient, t = (v, values(k, "gradient", v)), (size.terms, values(k, "t", size.terms))
        add_outer(k, (start, end), "lane_mix", gradient, t)
    sum_lanes(k, "lane_mix", "d_mix", v * size.terms)
