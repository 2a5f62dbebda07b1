"""Means over an image's pixels, plain and under the keys' softmax, for blocks of images.

The content lambda (Bello 2021, section 3) is a mean of the values under the softmax of the keys over
all pixels. As values are affine in the image's channels x, the mean of x under each key's weights is
enough; the mean of x x' under the same weights gives the keys' gradient without another sweep: for
logits W x, d mean(x_c') / d W_c = mean(x_c' x_c) - mean(x_c') mean(x_c).
"""

from lambdanet.backends.algebra import PAIRS
from lambdanet.backends.cpu.codegen import Kernel, accumulators


def write_moments(k: Kernel, pixels: int, keys: int, *, first_only: bool = False) -> None:
    """Image (4, h, w), weights (keys, 3) -> moments (keys, 9), plain (9): of x_i, then x_i x_j, i <= j.

    moments are means in lanes; plain are sums over pixels and lanes. `first_only`: just the means of x_i.
    """
    L, count = k.lanes, 3 if first_only else 9
    with k.loop(keys) as key:
        weights = [k.splat("weights", (key, 3), i) for i in range(3)]
        [largest] = k.registers(1, k.constant(-3e38))
        with k.loop(pixels) as n:
            largest.set(k.at_least(_logit(k, weights, _image(k, pixels, n)), largest.get()))
        k.store(largest.get(), "largest", (key, L))
    at_once = accumulators() // 10
    for first in range(0, keys, at_once):
        chosen = range(first, min(first + at_once, keys))
        weights = [[k.splat("weights", 3 * key + i) for i in range(3)] for key in chosen]
        largest = [k.load("largest", key * L) for key in chosen]
        sums = [k.registers(count + 1) for _ in chosen]
        with k.loop(pixels) as n:
            x = _image(k, pixels, n)
            terms = x if first_only else x + [k.mul(x[i], x[j]) for i, j in PAIRS]
            for total, rows, most in zip(sums, weights, largest, strict=True):
                share = k.exp(k.sub(_logit(k, rows, x), most))
                for place, term in zip(total, terms, strict=False):
                    place.fma(share, term)
                total[-1].add(share)
        for key, total in zip(chosen, sums, strict=True):
            inverse = k.div(k.constant(1.0), total[-1].get())
            for i in range(count):
                k.store(k.mul(total[i].get(), inverse), "moments", (9 * key + i) * L)
    if first_only:
        return
    sums = k.registers(9)
    with k.loop(pixels) as n:
        x = _image(k, pixels, n)
        for i in range(3):
            sums[i].add(x[i])
        for place, (i, j) in zip(sums[3:], PAIRS, strict=True):
            place.fma(x[i], x[j])
    for i, total in enumerate(sums):
        k.store_sum(total.get(), "plain", i)


def _image(k: Kernel, pixels: int, n: object) -> list:
    return [k.load("image", i * pixels * k.lanes, (n, k.lanes)) for i in range(3)]


def _logit(k: Kernel, weights: list, x: list) -> object:
    total = k.mul(weights[0], x[0])
    for i in (1, 2):
        total = k.fma(weights[i], x[i], total)
    return total
