"""DnCNN's and the auto-encoder's training step and inference, by type and memory format.

    python -m benchmarks.baselines [--quick]

Needs nothing but the project; deepinv is measured where it is installed (see peers.py).
"""

import contextlib
import functools
from collections.abc import Iterator

import torch

from benchmarks import peers, pictures
from benchmarks.methods import Method, Methods, autocast, compare, how
from benchmarks.tables import Table, command
from lambdanet.models import create_model

PLAIN = "float32"
CHANNELS_LAST = ", channels_last"  # what the project takes on a CPU


def variants(name: str) -> Methods:
    """A trained network in both types and both memory formats, with the same weights."""
    found = {}
    for type_name, within in ((PLAIN, contextlib.nullcontext), ("bf16 autocast", autocast)):
        for suffix, layout in (("", torch.contiguous_format), (CHANNELS_LAST, torch.channels_last)):
            model = pictures.trained(name).to(memory_format=layout)
            found[type_name + suffix] = Method(model, within, layout)
    return found


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
    """Time our DnCNN and deepinv's in float32, in both memory formats."""
    clean, noisy = pictures.pairs(4 if quick else 32)
    ours, methods = "ours, 17 layers of 64", {}
    for suffix, layout in (("", torch.contiguous_format), (CHANNELS_LAST, torch.channels_last)):
        methods[ours + suffix] = Method(create_model("dncnn").to(memory_format=layout), memory_format=layout)
        methods[f"deepinv, the same{suffix}"] = peers.attempt(functools.partial(peers.deepinv_dncnn, layout))
    rows, seconds = compare(methods, clean, noisy, 1 if quick else 5, formulas=(ours,), exact=False)
    about = f"Two DnCNNs of equal size in float32, {how(noisy, seconds)}."
    return Table("DnCNN beside deepinv", about, rows, ["speed: of ours in the plain layout, as 1."], seconds)


main = command(measure)

if __name__ == "__main__":
    main()
