"""How long an image takes in each network of params.yaml, beside its size.

    python -m benchmarks.sizes [--quick]

Needs nothing but the project.
"""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import pictures
from benchmarks.measuring import interleave, medians
from benchmarks.tables import Table, command
from lambdanet import backends, config
from lambdanet.inference.denoise import denoise
from lambdanet.models import count_parameters, create_model

BATCH = 128
SIDE = 32  # of the images that the multiply-adds are counted for
LIMIT = 60  # seconds of turns
ROOT = Path(__file__).resolve().parent.parent


def measure(quick: bool = False) -> Iterator[Table]:
    """Time an inference of every model and variation as the profile `paper` has it."""
    with contextlib.chdir(ROOT):
        known = config.load("profile.yaml")
    names = [*known.models, *known.profile.ablations]
    # Trained otherwise, but the same network.
    configs = {name: known.model(name) for name in (names[::8] if quick else names)}
    batch = 8 if quick else BATCH
    networks = {name: create_model(**config).eval() for name, config in configs.items()}
    _, noisy = pictures.pairs(batch)
    calls = {name: functools.partial(denoise, network, noisy) for name, network in networks.items()}
    seconds = interleave(calls, 1 if quick else 5, limit=LIMIT)
    microseconds = medians(seconds, batch / 1e6)
    rows = [
        {
            "network": name,
            "parameters": count_parameters(networks[name]),
            "multiply-adds": multiply_adds(config),
            "us an image": microseconds[name],
        }
        for name, config in configs.items()
    ]
    about = (
        f"Inference on {batch} images of 32 x 32, {torch.get_num_threads()} threads, the fastest backend "
        "that fits: medians of all networks in turns. Multiply-adds are those of the paper's formulas."
    )
    yield Table("Inference of every network", about, rows, seconds=seconds)


def multiply_adds(config: dict) -> int:
    """Multiply-adds of a network for one image of 32 x 32, as its paper writes it.

    Counted by torch in convolutions and matrix products; half of its floating-point operations.
    """
    model = create_model(**config).eval()
    with torch.no_grad(), backends.forced(backends.REFERENCE), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, SIDE, SIDE))
    return counter.get_total_flops() // 2


main = command(measure)

if __name__ == "__main__":
    main()
