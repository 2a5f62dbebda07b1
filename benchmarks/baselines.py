"""DnCNN's and the auto-encoder's training step and inference: type, memory format, compiled kernels.

    python -m benchmarks.baselines [--quick]

Needs nothing but the project.
"""

import contextlib
import functools
from collections.abc import Iterator

import torch

from benchmarks import pictures
from benchmarks.methods import Method, Methods, Within, autocast, compare, how, without_bf16
from benchmarks.tables import Table, command
from lambdanet import backends

PLAIN = "float32"
LAYOUTS = {  # and the backend that runs the layers as they are
    "": (torch.contiguous_format, backends.REFERENCE),
    ", channels_last": (torch.channels_last, backends.CHANNELS_LAST),
}


def variants(name: str) -> Methods:
    """A trained network in both types and both memory formats and by its kernels, with the same weights."""
    found = {}
    for type_name, within in ((PLAIN, contextlib.nullcontext), ("bf16 autocast", autocast)):
        for suffix, (layout, backend) in LAYOUTS.items():
            model = pictures.trained(name).to(memory_format=layout)
            missing = None if type_name == PLAIN else without_bf16()
            found[type_name + suffix] = missing or Method(model, within, layout, around=_forced(backend))
    if name == "dncnn":
        model = pictures.trained(name)
        reason = backends.unavailable()
        kernels = f"not available: {reason}" if reason else Method(model, around=_forced(backends.WINOGRAD))
        found[f"{PLAIN}, Winograd kernels"] = kernels
    return found


def _forced(backend: str) -> Within:
    return functools.partial(backends.forced, backend)


def measure(quick: bool = False) -> Iterator[Table]:
    """Time the two networks that LambdaNet is compared with."""
    for name, title, count in (("dncnn", "DnCNN", 64), ("autoencoder", "Auto-encoder", 256)):
        clean, noisy = pictures.pairs(count // 16 if quick else count)
        methods = variants(name)
        rows, seconds = compare(methods, clean, noisy, 1 if quick else 5, formulas=(PLAIN,), exact=True)
        about = f"A training step (MSE, Adam) and an inference, {how(noisy, seconds)}."
        notes = ["speed: of plain float32, as 1; difference: the largest of an output from plain float32's."]
        yield Table(title, about, rows, notes, seconds)


main = command(measure)

if __name__ == "__main__":
    main()
