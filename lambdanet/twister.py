"""Salt and pepper by a compiled kernel, from the very numbers that torch's generator would have drawn.

torch draws the uniform numbers of a CPU one after the other from a Mersenne Twister (Matsumoto and Nishimura
1998, MT19937) of 624 words s. From one block of 624 to the next, all indices modulo 624,

    s[k] <- s[k + 397] ^ (y >> 1) ^ (0x9908b0df if s[k + 1] is odd)

with y the top bit of s[k] and the rest of s[k + 1]. So neighbouring words do not need each other and a
vector of them is made at once: up to k = 226 of old words, then of those just made, k + 397 - 624 = k - 227.
The vector across 226 needs both; the first new words are therefore also written behind the end, where
s[623] finds its right neighbour, too. A number is a word whose bits are mixed ("tempered"), of which torch
takes the lower 24, as multiples of 2^-24.

What is drawn is compared and used at once, instead of four sweeps over memory. The generator is left as
torch would have left it. Where the kernel does not fit, or does not agree with torch at the first
attempt, torch draws.

A call takes about 40 microseconds before it has drawn anything, so it pays from some ten thousand values on.
"""

import functools
import inspect
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

WORDS, FAR = 624, 397
MATRIX, TOP, REST = 0x9908B0DF, 0x80000000, 0x7FFFFFFF
BITS = 24  # of a float's uniform number
FEWEST = 16 * WORDS  # values for which it pays
# In the bytes of torch's `Generator.get_state`: words left + 1 (int32); the next, and all words (uint64).
LEFT, NEXT, FIRST, BYTES = 8, 16, 24, 5056


def salt_and_pepper(images: Tensor, generator: torch.Generator, amount: float) -> Tensor:
    """Replace values by 0 where a uniform number is below amount / 2, by 1 from 1 - amount / 2 on.

    Args:
        images: float, of any shape.
        generator: moves on by one number a value; on the images' device, and of one thread alone.
        amount: in [0, 1].
    """
    plain = images.dtype == torch.float32 and images.device.type == "cpu" and images.is_contiguous()
    if plain and not images.requires_grad and images.numel() >= FEWEST and agrees():
        return _by_kernel(images, generator, amount)
    return _by_torch(images, generator, amount)


@functools.cache
def agrees() -> bool:
    """Whether the kernel can be compiled here and draws what torch draws."""
    try:
        _kernel()
    except (ImportError, OSError, RuntimeError):
        return False
    mine, torchs = (torch.Generator().manual_seed(1) for _ in range(2))
    state = mine.get_state()
    if len(state) != BYTES or _left(state):  # another torch has another generator
        return False
    images = torch.full((4 * WORDS,), 0.5, dtype=torch.float32, device="cpu")
    for _ in range(2):  # from the beginning of a block, then from within one
        if not torch.equal(_by_kernel(images, mine, 0.5), _by_torch(images, torchs, 0.5)):
            return False
        _by_torch(images[:5], mine, 0.5), _by_torch(images[:5], torchs, 0.5)
    return torch.equal(mine.get_state(), torchs.get_state())


def _left(state: Tensor) -> int:
    """How many words of its block a generator has not given yet."""
    return int(state[LEFT : LEFT + 4].numpy().view(np.int32)[0]) - 1


def _by_torch(images: Tensor, generator: torch.Generator, amount: float) -> Tensor:
    uniform = torch.rand(images.shape, generator=generator, device=images.device, dtype=torch.float32)
    salted = torch.where(uniform >= 1 - amount / 2, 1.0, images)
    return torch.where(uniform < amount / 2, 0.0, salted)


def _by_kernel(images: Tensor, generator: torch.Generator, amount: float) -> Tensor:
    """Whole blocks of words by the kernel; torch draws what is left of one before, and the part after."""
    values = images.flatten()
    output = torch.empty_like(values)
    first = _left(generator.get_state())
    blocks = (len(values) - first) // WORDS
    last = first + blocks * WORDS
    output[:first] = _by_torch(values[:first], generator, amount)

    state = generator.get_state()
    stored = state.numpy()[NEXT : FIRST + 8 * WORDS].view(np.uint64)
    words = np.zeros(WORDS + 16, np.uint32)
    words[:WORDS] = stored[1:]
    # As torch compares: in float32, here times 2^24 on both sides, which rounds nothing.
    bounds = np.array([amount / 2, 1 - amount / 2], np.float32) * np.float32(2**BITS)
    count = np.array([blocks], np.int64)
    places = (words.ctypes.data, values[first:].data_ptr(), output[first:].data_ptr())
    _kernel()(*places, bounds.ctypes.data, count.ctypes.data)
    stored[0], stored[1:] = WORDS, words[:WORDS]
    generator.set_state(state)

    output[last:] = _by_torch(values[last:], generator, amount)
    return output.view(images.shape)


@functools.cache
def _kernel() -> Any:
    from lambdanet.kernels import vectors

    arrays = ["words", "values", "output", "bounds", "count"]
    request = inspect.getsource(sys.modules[__name__])
    return vectors.compile_kernels({"replace": (arrays, _write)}, vectors.lanes(), request)["replace"]


def _write(k: Any) -> None:
    """Words (624 + lanes, the rest is overwritten), values and output (624 count), bounds (2), count (1)."""
    from llvmlite import ir

    build, lanes = k.build, k.lanes
    integers = ir.VectorType(ir.IntType(32), lanes)

    def constant(value: int) -> ir.Constant:
        return ir.Constant(integers, [ir.IntType(32)(value)] * lanes)

    def at(array: str, *place: Any) -> ir.Value:
        offset = k.sum(*place)
        index = ir.IntType(64)(offset) if isinstance(offset, int) else offset
        return build.gep(k.arrays[array], [index], source_etype=ir.FloatType())

    def load(array: str, *place: Any, kind: ir.Type = integers) -> ir.Value:
        return build.load(at(array, *place), typ=kind, align=4)

    def twisted(n: Any, across: int) -> ir.Value:
        """The next words n to n + lanes; `across` is 397, or -227."""
        word, right = load("words", n), load("words", n, 1)
        mixed = build.or_(build.and_(word, constant(TOP)), build.and_(right, constant(REST)))
        odd = build.trunc(right, ir.VectorType(ir.IntType(1), lanes))
        matrix = build.select(odd, constant(MATRIX), constant(0))
        return build.xor(build.xor(load("words", n, across), build.lshr(mixed, constant(1))), matrix)

    def tempered(y: ir.Value) -> ir.Value:
        y = build.xor(y, build.lshr(y, constant(11)))
        y = build.xor(y, build.and_(build.shl(y, constant(7)), constant(0x9D2C5680)))
        y = build.xor(y, build.and_(build.shl(y, constant(15)), constant(0xEFC60000)))
        return build.xor(y, build.lshr(y, constant(18)))

    def advance(block: Any, n: Any, across: int) -> ir.Value:
        word = twisted(n, across)
        build.store(word, at("words", n), align=4)
        uniform = build.and_(tempered(word), constant(2**BITS - 1))
        uniform = build.sitofp(uniform, k.vector)  # they are not negative: quicker than from unsigned
        value = load("values", (block, WORDS), n, kind=k.vector)
        value = build.select(build.fcmp_ordered(">=", uniform, high), k.constant(1.0), value)
        value = build.select(build.fcmp_ordered("<", uniform, low), k.constant(0.0), value)
        build.store(value, at("output", (block, WORDS), n), align=4)
        return word

    low, high = k.splat("bounds", 0), k.splat("bounds", 1)
    count = build.load(k.arrays["count"], typ=ir.IntType(64), align=8)
    with k.loop(count) as block:
        build.store(advance(block, 0, FAR), at("words", WORDS), align=4)
        crossing = (WORDS - FAR) // lanes * lanes + lanes
        with k.loop(crossing, start=lanes, step=lanes) as n:
            advance(block, n, FAR)
        with k.loop(WORDS, start=crossing, step=lanes) as n:
            advance(block, n, FAR - WORDS)
