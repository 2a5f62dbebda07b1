"""How LambdaNet's time grows: with the batch, with d, and with threads, on each of its backends.

    python -m benchmarks.growth [--quick]

Needs nothing but the project, and llvmlite for the fused path.
"""

import functools
from collections.abc import Iterator

import torch

from benchmarks import pictures
from benchmarks.measuring import interleave, medians
from benchmarks.methods import Method, Seconds
from benchmarks.tables import Table, command
from lambdanet import backends
from lambdanet.models.lambdanet import LambdaNet
from pipelines.cores import available

BACKENDS = (backends.REFERENCE, backends.PORTABLE, backends.FUSED)
LIMIT = 6  # seconds of turns for a row


def measure(quick: bool = False) -> Iterator[Table]:
    """Time LambdaNet, u=1 m=23, over batch, d and threads."""
    repeats = 1 if quick else 5
    available = [name for name in BACKENDS if name != backends.FUSED or not backends.unavailable()]
    missing = [f"fused: not available: {backends.unavailable()}"] if len(available) < len(BACKENDS) else []
    yield over("batch", [1, 8] if quick else [1, 8, 32, 128, 256], available, missing, repeats)
    yield over("d", [4, 16] if quick else [4, 8, 16, 32, 64, 128, 256, 512], available, missing, repeats)
    yield over_threads(4 if quick else 128, available, missing, repeats)


def over(what: str, values: list[int], names: list[str], missing: list[str], repeats: int) -> Table:
    """Time over the batch at d=16, or over d at batch 8."""
    rows, seconds = [], {}
    for value in values:
        d, count = (16, value) if what == "batch" else (value, 8)
        row, found = _row(d, count, names, repeats)
        rows.append({what: value} | row)
        seconds |= {f"{what} {value}, {key}": times for key, times in found.items()}
    fixed = "d=16" if what == "batch" else "batch 8"
    about = (
        f"LambdaNet, u=1 m=23 {fixed}, 32 x 32, float32, {torch.get_num_threads()} threads: ms an image of a "
        "training step and of an inference, medians of the backends in turns."
    )
    notes = list(missing)
    if what == "batch" and backends.FUSED in names:
        notes.append(f"Fewer than {backends.FEWEST_IMAGES} images are for `portable` instead of `fused`.")
    return Table(f"LambdaNet over {what}", about, rows, notes, seconds)


def over_threads(count: int, names: list[str], missing: list[str], repeats: int) -> Table:
    """Time over the number of threads, 1 to all cores in powers of two."""
    before, rows, seconds = torch.get_num_threads(), [], {}
    try:
        for threads in thread_counts(available()):
            torch.set_num_threads(threads)
            row, found = _row(16, count, names, repeats)
            rows.append({"threads": threads} | row)
            seconds |= {f"{threads} threads, {key}": times for key, times in found.items()}
    finally:
        torch.set_num_threads(before)
    about = (
        f"LambdaNet, u=1 m=23 d=16, batch {count}, 32 x 32, float32: ms an image of a training step and of "
        "an inference, medians of the backends in turns."
    )
    return Table("LambdaNet over threads", about, rows, missing, seconds)


def thread_counts(available: int) -> list[int]:
    """1, 2, 4 and so on, and all."""
    powers = [2**power for power in range(available.bit_length())]
    return sorted({*powers, available})


def _row(d: int, count: int, names: list[str], repeats: int) -> tuple[dict, Seconds]:
    """Times of the backends as a row's columns, and each call's seconds."""
    clean, noisy = pictures.pairs(count)
    torch.manual_seed(0)
    methods = {
        name: Method(LambdaNet(d=d, embedding_std=0.02), functools.partial(backends.forced, name))
        for name in names
    }
    training = {f"training, {name}": m.training(clean, noisy) for name, m in methods.items()}
    inference = {f"inference, {name}": m.inference(noisy) for name, m in methods.items()}
    found = interleave(training | inference, repeats, limit=LIMIT)
    return {key: 1000 * seconds for key, seconds in medians(found, count).items()}, found


main = command(measure)

if __name__ == "__main__":
    main()
