"""The networks on a GPU: backends, compilation, types, and the share of the matrix rate that they reach.

    python -m benchmarks.gpu [--quick]

Yields nothing where there is no GPU.
"""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import networks, pictures
from benchmarks.measuring import interleave, medians
from benchmarks.methods import Method, Methods, autocast, compare, how
from benchmarks.tables import Table, command
from lambdanet import backends
from lambdanet.devices import be_deterministic

SIDE = 8192  # of the matrices whose product measures the rate
MULTIPLIED = "bfloat16"

Wrap = Callable[[nn.Module], nn.Module]


def measure(
    quick: bool = False, device: str = "cuda", side: int = SIDE, compiled: bool = True
) -> Iterator[Table]:
    """Time the networks on a GPU, and the matrix products that bound them.

    Without `compiled`, torch.compile is left out, whose compilations take minutes.
    """
    if device == "cuda" and not torch.cuda.is_available():
        return
    be_deterministic()
    side = 256 if quick else side
    rates, seconds = matrix_rates(device, side, 1 if quick else 9)
    rows = [{"type": name, "TFLOP/s": rate / 1e12} for name, rate in rates.items()]
    yield Table("Matrix products on the GPU", f"Of two square matrices of {side}.", rows, seconds=seconds)
    clean, noisy = pictures.pairs(16 if quick else 256, device)
    for title, methods in (
        ("LambdaNet, u=1 m=23 d=16, on the GPU", lambdanets(networks.LARGE, device)),
        ("LambdaNet, u=4 m=7 d=16, on the GPU", lambdanets(networks.SMALL, device)),
        ("DnCNN on the GPU", others("dncnn", device)),
        ("Auto-encoder on the GPU", others("autoencoder", device)),
    ):
        if not compiled:
            methods = {name: "not run" if "compile" in name else method for name, method in methods.items()}
        yield table(title, methods, clean, noisy, rates, 1 if quick else 9)


def table(
    title: str, methods: Methods, clean: Tensor, noisy: Tensor, rates: dict[str, float], repeats: int
) -> Table:
    """Compare methods, and set their arithmetic beside the rate of a matrix product."""
    first = next(iter(methods))
    methods = {name: tried(method, clean, noisy) for name, method in methods.items()}
    rows, seconds = compare(methods, clean, noisy, repeats, formulas=(first,), exact=True)
    work = {
        name: flops(method, clean, noisy)
        for name, method in methods.items()
        if isinstance(method, Method) and "compile" not in name
    }
    for row in rows:
        if row["method"] in work:
            rate = 1e3 * work[row["method"]] / (len(noisy) * row["training, ms/image"])
            row["training, share of the bf16 rate"] = rate / rates[MULTIPLIED]
    about = (
        f"A training step (MSE, Adam) and an inference, {how(noisy, seconds)}, each until the GPU is done."
    )
    notes = [
        f"speed: of {first}, as 1; difference: the largest of an output from its output.",
        "share: multiplications and additions of real products and convolutions as torch counts them.",
        "bf16: inference under autocast too, where evaluation and applications compute in float32.",
    ]
    return Table(title, about, rows, notes, seconds)


def lambdanets(hyperparameters: dict, device: str) -> Methods:
    """The backends that a GPU has, as they are and recorded, and the portable one compiled."""

    def method(backend: str, recorded: bool = False, wrap: Wrap = _as_it_is) -> Method:
        model = networks.create(hyperparameters).to(device)
        return Method(wrap(model), functools.partial(backends.forced, backend), recorded=recorded)

    return {
        "reference": method(backends.REFERENCE),
        "reference, recorded": method(backends.REFERENCE, device == "cuda"),
        "portable": method(backends.PORTABLE),
        "portable, torch.compile": method(backends.PORTABLE, wrap=torch.compile),
        "ours: portable, recorded": method(backends.PORTABLE, device == "cuda"),
    }


def others(name: str, device: str) -> Methods:
    """DnCNN or the auto-encoder: plain, in bfloat16 with channels last, also compiled, and our backend."""
    last = torch.channels_last

    def method(wrap: Wrap = _as_it_is, *, ours: bool = False, recorded: bool = False) -> Method:
        model = pictures.trained(name).to(device, memory_format=last)
        images = torch.contiguous_format if ours else last  # as trainings make them
        around = functools.partial(backends.forced, backends.BF16_FUSED if ours else backends.BF16)
        within = functools.partial(autocast, device)
        return Method(wrap(model), within, images, recorded=recorded, around=around)

    backend = backends.of_training(name, device)
    return {
        "float32": Method(pictures.trained(name).to(device)),
        "float32 as TF32": Method(pictures.trained(name).to(device), around=_as_tf32),
        "bf16, channels_last": method(),
        "bf16, channels_last, torch.compile": method(torch.compile),
        "bf16, channels_last, recorded": method(recorded=device == "cuda"),
        f"ours: {backend}, recorded": method(ours=backend == backends.BF16_FUSED, recorded=device == "cuda"),
    }


def _as_it_is(model: nn.Module) -> nn.Module:
    return model


@contextlib.contextmanager
def _as_tf32() -> Iterator[None]:
    """As torch computes convolutions of float32 unless told otherwise."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def tried(method: Method | str, clean: Tensor, noisy: Tensor) -> Method | str:
    """The method, or why it cannot run: torch.compile and Triton need a compiler at run time."""
    if isinstance(method, str):
        return method
    try:
        method.output(noisy)
        if method.recorded:
            dataclasses.replace(method, model=copy.deepcopy(method.model)).training(clean, noisy)()
    except Exception as error:
        return f"does not run: {type(error).__name__}"
    return method


def flops(method: Method, clean: Tensor, noisy: Tensor) -> int:
    """What torch counts in a training step."""
    step = dataclasses.replace(method, recorded=False).training(clean, noisy)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def matrix_rates(device: str, side: int, repeats: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """FLOP/s of a square product in bfloat16, in float32, and in float32 as TF32 where there is that."""
    before = torch.get_float32_matmul_precision()
    whole = torch.randn(side, side, device=device)
    matrices = {torch.float32: whole, torch.bfloat16: whole.bfloat16()}

    def product(kind: torch.dtype, precision: str) -> None:
        torch.set_float32_matmul_precision(precision)
        (matrices[kind] @ matrices[kind])[0, 0].item()  # .item() waits for the device

    calls = {
        MULTIPLIED: functools.partial(product, torch.bfloat16, "highest"),
        "float32": functools.partial(product, torch.float32, "highest"),
        "float32 as TF32": functools.partial(product, torch.float32, "high"),
    }
    try:
        seconds = interleave(calls, repeats)
    finally:
        torch.set_float32_matmul_precision(before)
    return {name: 2 * side**3 / time for name, time in medians(seconds).items()}, seconds


main = command(measure)

if __name__ == "__main__":
    main()
