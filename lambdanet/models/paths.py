"""Which way a network computes: LambdaNet as the paper has it, re-associated, or by compiled kernels.

The ways of LambdaNet give the same values up to rounding. The convolutional networks have some beside the
reference: `channels-last`, trained with a pixel's channels side by side in memory, as a CPU's convolutions
take them; and `bf16`, so too and with products in half the precision, summed in float32, where the processor
has units for them. DnCNN has two more: `bf16-fused` for a GPU, that with own kernels between its
convolutions, and `winograd` for other CPUs, by compiled kernels that multiply a quarter as often. None gives
the same bytes, so a run's log names the path as it names the device. `force` takes one path wherever it fits.
"""

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

NAMES = ("auto", "reference", "portable", "fused", "channels-last", "winograd", "bf16", "bf16-fused")
AUTO, REFERENCE, PORTABLE, FUSED, CHANNELS_LAST, WINOGRAD, BF16, BF16_FUSED = NAMES
LARGEST = 64  # side of an image that the kernels take: a block's arrays stay in the cache
FEATURES = 64  # channels that they take: a covariance has their square
FEWEST = 3  # images for which they pay
PIXELS = 4096  # of a batch, below which re-association costs more than it saves
DEPTH = 16  # of the values, from which it pays for u > 1 too

_forced = AUTO


def force(name: str) -> None:
    """Take this path from now on in this process; "auto" for the fastest that fits.

    Raises:
        ValueError: an unknown path, or "fused" where it cannot be compiled.
    """
    global _forced
    if name not in NAMES:
        raise ValueError(f"unknown path {name!r}; choose one of {', '.join(NAMES)}")
    if name in (FUSED, WINOGRAD) and (reason := unavailable()):
        raise ValueError(f"the {name} path is not available here: {reason}; choose another, or auto")
    _forced = name


@contextlib.contextmanager
def forced(name: str) -> Iterator[None]:
    """Take one path within this block; see `force`."""
    before = _forced
    force(name)
    try:
        yield
    finally:
        force(before)


@functools.cache
def unavailable() -> str | None:
    """Why the kernels cannot be compiled here, or None."""
    try:
        from lambdanet.kernels import vectors

        return vectors.trial()
    except ImportError as error:
        return str(error)


def choose(model: nn.Module, noisy: Tensor, context: Tensor | None = None) -> str:
    """The path for a batch: what is forced if it fits, else the fastest that fits.

    A program that is being exported keeps the paper's formula.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return REFERENCE
    if _forced == REFERENCE or not model.foldable:
        return REFERENCE
    if _forced == PORTABLE:
        return PORTABLE
    if _fits(model, noisy, context) and not unavailable():
        return FUSED
    if noisy.device.type == "cuda":
        return PORTABLE  # plain convolutions with windows of this kind are slow there at any size
    pays = noisy.numel() >= 3 * PIXELS and (model.u == 1 or model.v >= DEPTH)
    return PORTABLE if pays else REFERENCE


def _fits(model: nn.Module, noisy: Tensor, context: Tensor | None) -> bool:
    b, _, h, w = noisy.shape
    features = model.heads * (4 if model.u == 1 else model.v)
    return (
        model.plain
        and context is None
        and _suits_kernels(model, noisy)
        and b >= FEWEST
        and h % 2 == w % 2 == 0
        and max(h, w) <= LARGEST
        and model.embedding.shape[-1] < 2 * min(h, w)
        and features <= FEATURES
    )


def of_convolutions(device: str) -> str:
    """The path on which a convolutional network is trained on a kind of device.

    What is forced on LambdaNet alone leaves it with the reference. Inference is in float32, and on a CPU
    with channels last unless the path is the reference.
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


def takes(name: str) -> bool:
    """Whether a path may be taken where it fits: it, or none, is forced."""
    return _forced in (AUTO, name)


def compiles(name: str) -> bool:
    """Whether a path of compiled kernels for the CPU may be taken, and can be."""
    return takes(name) and not unavailable()


def on_cpu(model: nn.Module, noisy: Tensor, name: str) -> bool:
    """Whether a convolutional network's kernels for a CPU, a path of this name, may take a batch.

    None may take a program that is exported.
    """
    return (
        not torch.jit.is_tracing()  # which warns of what is asked below
        and compiles(name)
        and _suits_kernels(model, noisy)
        and noisy.numel() > 0
        and noisy.ndim == 4
        and noisy.shape[1] == 3
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
    )


def _suits_kernels(model: nn.Module, noisy: Tensor) -> bool:
    """Whether a batch is what a CPU's kernels compute: float32, without a gradient by itself.

    Gradients by the parameters they have in training mode only.
    """
    parameters = list(model.parameters())
    learns = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
    return (
        noisy.device.type == "cpu"
        and not noisy.requires_grad
        and (model.training or not learns)
        and all(one.dtype == torch.float32 for one in (noisy, *parameters))
    )


def _multiplies_bf16(device: str) -> bool:
    """Whether bfloat16 is several times as fast as float32 there: tensor cores, or a CPU's AMX."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def usual(device: str) -> str:
    """The path of a usual batch of a LambdaNet on a kind of device; single batches may not fit it."""
    if _forced in (REFERENCE, PORTABLE):
        return _forced
    return FUSED if device == "cpu" and not unavailable() else PORTABLE
