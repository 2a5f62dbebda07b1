"""LambdaNet's training step and inference: the formula, other people's layers, and our two backends.

    python -m benchmarks.networks [--quick]

Needs nothing but the project; peers are measured where they are installed (see peers.py).
"""

import functools
from collections.abc import Iterator

import torch

from benchmarks import formulas, peers, pictures
from benchmarks.measuring import duration
from benchmarks.methods import Method, Methods, compare, how
from benchmarks.tables import Table, command
from lambdanet import backends
from lambdanet.models.lambdanet import LambdaNet

LARGE = {"u": 1, "m": 23, "d": 16}
SMALL = {"u": 4, "m": 7, "d": 16}
REFERENCE, CONV3D = "reference formula, conv2d", "reference formula, conv3d"
PYPI, TIMM = "lambda-networks", "timm LambdaLayer"
PORTABLE, FUSED = "ours, portable", "ours, fused"
FORMULAS = (REFERENCE, CONV3D, PYPI, TIMM)  # in float32, as their authors wrote them


def create(hyperparameters: dict) -> LambdaNet:
    """A LambdaNet with trained weights."""
    return pictures.trained("lambdanet" if hyperparameters == LARGE else "lambdanet-u4-m7")


def by_backend(name: str, hyperparameters: dict) -> Method | str:
    """A backend of LambdaNet, or why it is not available."""
    if name == backends.FUSED and (reason := backends.unavailable()):
        return f"not available: {reason}"
    note = f"compiled before in {compilation(hyperparameters):.2f} s" if name == backends.FUSED else ""
    return Method(create(hyperparameters), functools.partial(backends.forced, name), note=note)


def compilation(hyperparameters: dict, side: int = 32) -> float:
    """Seconds that the compiled backend takes once in a process for a kind of batch."""
    from lambdanet.backends.cpu import lambdanet as fused  # llvmlite may be missing

    problem = fused.problem(create(hyperparameters), torch.empty(256, 3, side, side))
    return duration(lambda: fused.Fused(problem))


def by_conv3d() -> Method:
    """The formula of the larger network with conv3d, and the same weights."""
    model = formulas.Formula(**LARGE)
    model.load_state_dict(create(LARGE).state_dict())
    return Method(model)


def measure(quick: bool = False) -> Iterator[Table]:
    """Time LambdaNet at both of the paper's sizes."""
    clean, noisy = pictures.pairs(16 if quick else 256)
    everything: Methods = {
        REFERENCE: by_backend(backends.REFERENCE, LARGE),
        CONV3D: by_conv3d(),
        PYPI: peers.attempt(lambda: peers.lambda_networks(create(LARGE))),
        TIMM: peers.attempt(lambda: peers.timm(create(LARGE))),
        PORTABLE: by_backend(backends.PORTABLE, LARGE),
        FUSED: by_backend(backends.FUSED, LARGE),
    }
    few: Methods = {
        REFERENCE: by_backend(backends.REFERENCE, SMALL),
        PORTABLE: by_backend(backends.PORTABLE, SMALL),
        FUSED: by_backend(backends.FUSED, SMALL),
    }
    for methods, size in ((everything, LARGE), (few, SMALL)):
        rows, seconds = compare(methods, clean, noisy, 1 if quick else 7, formulas=FORMULAS, exact=True)
        about = f"A training step (MSE, Adam) and an inference in float32, {how(noisy, seconds)}."
        notes = [
            "speed: of the slowest formula in float32, as 1; / best: times the fastest method's time.",
            "difference: the largest of an output from the first row's, same weights, evaluation mode.",
        ]
        title = f"LambdaNet, u={size['u']} m={size['m']} d={size['d']}"
        yield Table(title, about, rows, notes, seconds)


main = command(measure)

if __name__ == "__main__":
    main()
