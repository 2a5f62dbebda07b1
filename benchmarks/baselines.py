"""DnCNN's and the auto-encoder's training step and inference: type, memory format, compiled kernels.

    python -m benchmarks.baselines [--quick]

Needs nothing but the project; deepinv is measured where it is installed (see peers.py).
"""

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks import peers, pictures
from benchmarks.methods import Method, Methods, Within, autocast, compare, how, without_bf16
from benchmarks.tables import Table, command
from lambdanet import backends
from lambdanet.models import create_model

PLAIN = "float32"
LAYOUTS = {  # and the backend that runs the layers as they are
    "": (torch.contiguous_format, backends.REFERENCE),
    ", channels_last": (torch.channels_last, backends.CHANNELS_LAST),
}
# What the project takes on a CPU; where that has units for bfloat16, DnCNN is trained by those.
KERNELS = "Winograd kernels"


def variants(name: str) -> Methods:
    """A trained network in both types and both memory formats and by its kernels, with the same weights."""
    found = {}
    for type_name, within in ((PLAIN, contextlib.nullcontext), ("bf16 autocast", autocast)):
        for suffix, (layout, way) in LAYOUTS.items():
            model = pictures.trained(name).to(memory_format=layout)
            missing = None if type_name == PLAIN else without_bf16()
            found[type_name + suffix] = missing or Method(model, within, layout, around=_forced(way))
    if name == "dncnn":
        found[f"{PLAIN}, {KERNELS}"] = by_kernels(pictures.trained(name))
    return found


def by_kernels(model: nn.Module) -> Method | str:
    """DnCNN by its compiled kernels, or why there are none."""
    if reason := backends.unavailable():
        return f"not available: {reason}"
    return Method(model, around=_forced(backends.WINOGRAD))


def _forced(way: str) -> Within:
    return functools.partial(backends.forced, way)


def measure(quick: bool = False) -> Iterator[Table]:
    """Time the two networks that LambdaNet is compared with."""
    for name, title, count in (("dncnn", "DnCNN", 64), ("autoencoder", "Auto-encoder", 256)):
        clean, noisy = pictures.pairs(count // 16 if quick else count)
        methods = variants(name)
        rows, seconds = compare(methods, clean, noisy, 1 if quick else 5, formulas=(PLAIN,), exact=True)
        about = f"A training step (MSE, Adam) and an inference, {how(noisy, seconds)}."
        notes = ["speed: of plain float32, as 1; difference: the largest of an output from plain float32's."]
        yield Table(title, about, rows, notes, seconds)
        if name == "dncnn":
            yield beside_deepinv(quick)


def beside_deepinv(quick: bool) -> Table:
    """Time our DnCNN and deepinv's in float32, in both memory formats, and ours by its kernels."""
    clean, noisy = pictures.pairs(4 if quick else 32)
    ours, methods = "ours, 17 layers of 64", {}
    for suffix, (layout, way) in LAYOUTS.items():
        model = create_model("dncnn").to(memory_format=layout)
        methods[ours + suffix] = Method(model, memory_format=layout, around=_forced(way))
        methods[f"deepinv, the same{suffix}"] = peers.attempt(functools.partial(peers.deepinv_dncnn, layout))
    methods[f"ours, {KERNELS}"] = by_kernels(create_model("dncnn"))
    rows, seconds = compare(methods, clean, noisy, 1 if quick else 5, formulas=(ours,), exact=False)
    about = f"Two DnCNNs of equal size in float32, {how(noisy, seconds)}."
    return Table("DnCNN beside deepinv", about, rows, ["speed: of ours in the plain layout, as 1."], seconds)


main = command(measure)

if __name__ == "__main__":
    main()
