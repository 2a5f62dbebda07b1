"""Faster implementations of the networks in `models/`: `select` takes one, `of_training` says which trains.

A network's `forward` says what it computes and is one of its backends, `reference`. LambdaNet has two more:
`portable`, re-associated (reassociated.py), and `fused`, that by kernels for a CPU. The convolutional
networks have some for training: `channels-last`, with a pixel's channels side by side in memory, as a CPU's
convolutions take them; and `bf16`, so too and with products in half the precision, summed in float32, where
the processor has units for them. DnCNN has two more: `bf16-fused` for a GPU, that with kernels between its
convolutions, and `winograd` for other CPUs, by kernels that multiply a quarter as often.

All give the network's values up to rounding, none the same bytes; a run's log names the backend as it names
the device. `force` takes one wherever it fits. What fits, one predicate decides (contract.py); all else is
the plain network's.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lambdanet import files
from lambdanet.backends import contract
from lambdanet.backends.contract import Contract, chain, convolution, is_a, normalisation

NAMES = ("auto", "reference", "portable", "fused", "channels-last", "winograd", "bf16", "bf16-fused")
AUTO, REFERENCE, PORTABLE, FUSED, CHANNELS_LAST, WINOGRAD, BF16, BF16_FUSED = NAMES
HALF = (BF16, BF16_FUSED)
# Of `fused`: sides and channels up to which a block's arrays stay in the cache, and from how many images on
# it pays.
LARGEST_SIDE, MOST_FEATURES, FEWEST_IMAGES = 64, 64, 3
# Of `portable`: pixels of a batch, and for u > 1 the depth of the values, from which it pays.
FEWEST_PIXELS, LEAST_DEPTH = 4096, 16

# Computes in float64 too, which other devices, as Apple's mps, may lack.
BY_TORCH = Contract(("cpu", "cuda"), (torch.float32, torch.float64), differentiable=True)
BY_CPU = Contract(("cpu",))
BY_GPU = Contract(("cuda",), autocast=torch.bfloat16)

_forced = AUTO


@dataclass(frozen=True)
class Backend:
    """An implementation of a network.

    Attributes:
        name: one of `NAMES`.
        run: computes what the network's `forward` does, of the network and the same arguments.
    """

    name: str
    run: Callable[..., Tensor]


def accelerated(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a network's `forward`, whatever it is called with, be computed by what `select` finds."""

    @functools.wraps(forward)
    def run(model: nn.Module, noisy: Tensor, *more: Tensor, **named: Tensor) -> Tensor:
        backend = select(model, noisy, *more, **named)
        return (backend.run if backend else forward)(model, noisy, *more, **named)

    return run


def select(model: nn.Module, noisy: Tensor, context: Tensor | None = None) -> Backend | None:
    """The faster backend for a batch: what is forced if it fits, else the fastest that fits.

    Args:
        model: any network.
        noisy: what it is called with; anything that it may refuse.
        context: as of `LambdaNet.forward`.

    Returns:
        None for the plain network, `reference`.
    """
    from lambdanet.models.dncnn import DnCNN  # which import this module
    from lambdanet.models.lambdanet import LambdaNet

    if _forced == REFERENCE or not contract.is_plain_call(noisy):
        return None
    if type(model) is LambdaNet:
        return _of_lambdanet(model, noisy, context)
    return _of_dncnn(model, noisy) if type(model) is DnCNN and context is None else None


def force(name: str) -> None:
    """Take this backend from now on in this process; "auto" for the fastest that fits.

    Raises:
        ValueError: an unknown backend, or one whose kernels cannot be compiled.
    """
    global _forced
    if name not in NAMES:
        raise ValueError(f"unknown backend {name!r}; choose one of {', '.join(NAMES)}")
    if name in (FUSED, WINOGRAD) and (reason := unavailable()):
        raise ValueError(f"the {name} backend is not available here: {reason}; choose another, or auto")
    _forced = name


@contextlib.contextmanager
def forced(name: str) -> Iterator[None]:
    """Take one backend within this block; see `force`."""
    before = _forced
    force(name)
    try:
        yield
    finally:
        force(before)


@functools.cache
def unavailable() -> str | None:
    """Why the kernels for a CPU cannot be compiled here, or None."""
    try:
        from lambdanet.backends.cpu import codegen

        return codegen.trial()
    except ImportError as error:
        return str(error)


@functools.cache
def unavailable_on_gpu() -> str | None:
    """Why the kernels for a GPU cannot run here, or None; one is tried."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        from lambdanet.backends.cuda import normalization

        normalization.trial()
    except Exception as error:  # of Triton, of the C compiler that it calls, of the driver
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    return None


def of_training(name: str, device: str, **hyperparameters: object) -> str:
    """The backend that a network of this name is trained on, on a kind of device; single batches may not fit.

    Like the device, it shows in a result's digits, and is recorded but not hashed by DVC. A name that no
    network has is for `create_model` to refuse. DnCNN's kernels have no biases.
    """
    if name == "lambdanet":
        if _forced in (REFERENCE, PORTABLE):
            return _forced
        return FUSED if device == "cpu" and not unavailable() else PORTABLE
    backend = of_convolutions(device)
    if name == "dncnn" and not hyperparameters.get("outer_bias"):
        if device == "cuda" and backend == BF16 and _may_take(BF16_FUSED):
            return backend if unavailable_on_gpu() else BF16_FUSED
        if device == "cpu" and backend == CHANNELS_LAST and _may_take(WINOGRAD) and not unavailable():
            return WINOGRAD
    return backend


def of_convolutions(device: str) -> str:
    """The backend on which a convolutional network without kernels is trained on a kind of device.

    What is forced on LambdaNet alone leaves it with the plain network. Inference is in float32, and on a CPU
    with channels last unless the backend is `reference`.
    """
    if _forced in (CHANNELS_LAST, BF16):
        return _forced
    if _forced in (BF16_FUSED, WINOGRAD):
        return BF16 if _forced == BF16_FUSED else CHANNELS_LAST  # of those that have no kernels
    if _forced != AUTO:
        return REFERENCE
    if _multiplies_bf16(device):
        return BF16
    return CHANNELS_LAST if device == "cpu" else REFERENCE


def describe(device: str) -> str:
    """Which backends trainings take on a kind of device, in words."""
    names = {"LambdaNet": "lambdanet", "DnCNN": "dncnn", "the others": "cnn"}
    return "trained by: " + ", ".join(f"{who} {of_training(name, device)}" for who, name in names.items())


def source() -> str:
    """The code of all backends."""
    here = Path(__file__).parent
    return "".join(files.code_of(folder) for folder in (here, here / "cpu", here / "cuda"))


def _may_take(name: str) -> bool:
    return _forced in (AUTO, name)


def _multiplies_bf16(device: str) -> bool:
    """Whether bfloat16 is several times as fast as float32 there: tensor cores, or a CPU's AMX."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)  # which older releases lack
    return device == "cpu" and bool(capabilities().get("amx_tile"))


def _of_lambdanet(model: nn.Module, noisy: Tensor, context: Tensor | None) -> Backend | None:
    facts = contract.facts_of(model, _is_foldable)
    if facts is None:
        return None
    fused = _forced != PORTABLE and context is None and BY_CPU.admits(facts, noisy)
    if fused and _fits_fused(model, noisy) and not unavailable():
        from lambdanet.backends.cpu import lambdanet  # llvmlite may be missing

        return Backend(FUSED, lambdanet.run)
    if not BY_TORCH.admits(facts, noisy) or not _fits_context(model, noisy, context):
        return None
    if _forced == PORTABLE or _pays(model, noisy):
        from lambdanet.backends import reassociated

        return Backend(PORTABLE, reassociated.run)
    return None


def _is_foldable(model: nn.Module) -> bool:
    """Whether a LambdaNet has the parts that re-association folds: all but what follows its first layers."""
    if not isinstance(model.conv, nn.Sequential) or len(model.conv) != 5:
        return False
    u, k, v, d = model.u, model.k, model.v, model.heads * model.v
    norm = functools.partial(normalisation, training=model.training)
    rest = chain(convolution(d, 3, bias=True), norm(3))
    return (
        chain(convolution(3, k * model.heads), norm(k * model.heads))(model.queries)
        and chain(convolution(3, k * u))(model.keys)
        and chain(convolution(3, v * u), norm(v * u))(model.values)
        and chain(convolution(d, d // 2), norm(d // 2), contract.anything, convolution(d // 2, 3), norm(3))(
            model.conv
        )
        and (model.shortcut is None or rest(model.shortcut))
        and contract.is_parameter(model.embedding, k, u, 1, *2 * model.embedding.shape[-1:])
        and model.embedding.shape[-1] % 2 == 1
    )


def _fits_context(model: nn.Module, noisy: Tensor, context: Tensor | None) -> bool:
    if context is None:
        return True
    return (
        contract.is_plain_call(context)
        and (context.dtype, context.device) == (noisy.dtype, noisy.device)
        and context.shape[1:] == (model.k, model.v)
        and len(context) in (1, len(noisy))
    )


def _fits_fused(model: nn.Module, noisy: Tensor) -> bool:
    b, _, h, w = noisy.shape
    return (
        type(model.conv[2]) is nn.ReLU
        and not model.inner_skip
        and b >= FEWEST_IMAGES
        and h % 2 == w % 2 == 0
        and max(h, w) <= LARGEST_SIDE
        and model.embedding.shape[-1] < 2 * min(h, w)
        and model.heads * (4 if model.u == 1 else model.v) <= MOST_FEATURES
    )


def _pays(model: nn.Module, noisy: Tensor) -> bool:
    if noisy.device.type == "cuda":
        return True  # plain convolutions with windows of this kind are slow there at any size
    return noisy.numel() >= 3 * FEWEST_PIXELS and (model.u == 1 or model.v >= LEAST_DEPTH)


def _of_dncnn(model: nn.Module, noisy: Tensor) -> Backend | None:
    facts = contract.facts_of(model, _is_as_built)
    if facts is None:
        return None
    if _may_take(WINOGRAD) and BY_CPU.admits(facts, noisy) and not unavailable():
        from lambdanet.backends.cpu import dncnn  # llvmlite may be missing

        return Backend(WINOGRAD, dncnn.run)
    if model.training and _may_take(BF16_FUSED) and BY_GPU.admits(facts, noisy) and not unavailable_on_gpu():
        from lambdanet.backends.cuda import dncnn  # Triton may be missing

        return Backend(BF16_FUSED, dncnn.run)
    return None


def _is_as_built(model: nn.Module) -> bool:
    """Whether a DnCNN has the layers of its constructor, with one rate of its normalisations."""
    layers = model.dncnn
    if type(layers) is not nn.Sequential or len(layers) < 6 or len(layers) % 3:
        return False
    rates = {norm.momentum for norm in layers if isinstance(norm, nn.BatchNorm2d)}
    if len(rates) != 1 or not isinstance(layers[0], nn.Conv2d):
        return False
    width = layers[0].out_channels
    inner = convolution(width, width, 3), normalisation(width, training=model.training), is_a(nn.ReLU)
    ends = convolution(3, width, 3), convolution(width, 3, 3)
    return chain(ends[0], is_a(nn.ReLU), *inner * ((len(layers) - 3) // 3), ends[1])(layers)
