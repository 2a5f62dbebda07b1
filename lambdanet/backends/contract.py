"""What a faster implementation may take: one predicate, for all of them.

An implementation computes what the network's own `forward` says, of the very modules that its constructor
makes, and it reads memory without asking torch. So everything is checked here before it may: the network's
structure, the tensors, the modes, and what torch does around the call. What is not certain is refused, and
the plain network runs instead, or raises what it raises.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

# A module of the network that has one of these does more than the implementations know. torch has no public
# function for them.
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")

Check = Callable[[nn.Module], bool]


@dataclass(frozen=True)
class Contract:
    """What an implementation takes.

    Attributes:
        devices: the types of device.
        dtypes: of the images, parameters and running statistics, which must be one.
        differentiable: whether autograd goes through it. Otherwise it gives gradients by the parameters only,
            and in training mode only.
        autocast: the type of torch's autocast around it; None: none.
    """

    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    differentiable: bool = False
    autocast: torch.dtype | None = None

    def admits(self, facts: "Facts", noisy: Tensor) -> bool:
        """Whether a network of which these facts hold, and images, keep to it."""
        return (
            noisy.ndim == 4
            and noisy.shape[1] == 3
            and noisy.numel() > 0
            and noisy.device.type in self.devices
            and noisy.dtype in self.dtypes
            and _autocast(noisy.device.type) == self.autocast
            and facts.kind == (noisy.dtype, noisy.device)
            and (self.differentiable or _wants_parameter_gradients_only(facts, noisy))
            and (not facts.training or _can_move_statistics(facts, noisy))
        )


@dataclass(frozen=True)
class Facts:
    """What is known of a network.

    Attributes:
        training: its mode.
        kind: dtype and device of all parameters and running statistics.
        learns: whether a parameter wants a gradient.
        written: where the memory of statistics begins that training may move; None: it may not.
    """

    training: bool
    kind: tuple[torch.dtype, torch.device]
    learns: bool
    written: set[int] | None


def facts_of(model: nn.Module, is_built: Check) -> Facts | None:
    """The facts of a network; None: it does not fit.

    Args:
        model: any network.
        is_built: checks its structure.
    """
    parameters = list(model.parameters())
    buffers = [one for _, one in model.named_buffers(remove_duplicate=False)]
    hooked = any(vars(part).get(name) for part in model.modules() if part is not model for name in HOOKS)
    first = next(iter(parameters), None)
    if first is None or hooked or not is_built(model):
        return None
    if not all(_is_alike(one, first) for one in parameters):
        return None
    if not all(_is_alike(one, first) or _is_counter(one, first) for one in buffers):
        return None
    written = {one.untyped_storage().data_ptr() for one in buffers}
    movable = (
        len(written) == len(buffers)
        and written.isdisjoint(one.untyped_storage().data_ptr() for one in parameters)
        and all(one.is_contiguous() and not one.requires_grad for one in buffers)
    )
    learns = any(one.requires_grad for one in parameters)
    return Facts(model.training, (first.dtype, first.device), learns, written if movable else None)


def is_plain_call(noisy: object) -> bool:
    """Whether torch runs the call as it stands: neither traced, exported nor compiled, nor transformed."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    if type(noisy) is not Tensor or noisy.layout is not torch.strided or noisy.is_neg() or noisy.is_meta:
        return False
    try:
        noisy.data_ptr()
    except RuntimeError:  # of torch.func's tensors, which have no memory
        return False
    return forward_ad.unpack_dual(noisy).tangent is None


@functools.cache
def chain(*checks: Check) -> Check:
    """A check that a module is exactly a Sequential of modules that pass these."""

    def check(module: nn.Module) -> bool:
        return (
            type(module) is nn.Sequential
            and len(module) == len(checks)
            and all(one(part) for one, part in zip(checks, module, strict=True))
        )

    return check


@functools.cache
def convolution(inputs: int, outputs: int, side: int = 1, *, bias: bool = False) -> Check:
    """A check for a convolution with stride 1 that keeps the size."""
    expected = (inputs, outputs, (side, side), (1, 1), (side // 2, side // 2), (1, 1), 1, "zeros")

    def check(module: nn.Module) -> bool:
        return (
            type(module) is nn.Conv2d
            and (module.bias is not None) == bias
            and expected
            == (
                module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,
                module.dilation, module.groups, module.padding_mode,
            )
            and is_parameter(module.weight, outputs, inputs, side, side)
            and (module.bias is None or is_parameter(module.bias, outputs))
        )  # fmt: skip

    return check


@functools.cache
def normalisation(channels: int, *, training: bool) -> Check:
    """A check for a batch normalisation in this mode, with all that it may have, moved at a fixed rate."""

    def check(module: nn.Module) -> bool:
        return (
            type(module) is nn.BatchNorm2d
            and module.training == training
            and isinstance(module.momentum, int | float)
            and module.track_running_stats
            and module.num_batches_tracked is not None
            and is_parameter(module.weight, channels)
            and is_parameter(module.bias, channels)
            and all(
                one is not None and one.shape == (channels,)
                for one in (module.running_mean, module.running_var)
            )
        )

    return check


def is_parameter(one: object, *shape: int) -> bool:
    """Whether this is a parameter of this shape, and not what torch.func or DataParallel put in its place."""
    return type(one) is nn.Parameter and one.shape == shape


def anything(_module: nn.Module) -> bool:
    """A check that all modules pass."""
    return True


@functools.cache
def is_a(kind: type[nn.Module]) -> Check:
    """A check for exactly this type."""
    return lambda module: type(module) is kind


def _is_alike(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and one.layout is torch.strided


def _is_counter(one: Tensor, other: Tensor) -> bool:
    return one.dtype == torch.int64 and one.ndim == 0 and one.device == other.device


def _autocast(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _wants_parameter_gradients_only(facts: Facts, noisy: Tensor) -> bool:
    return not torch.is_grad_enabled() or (not noisy.requires_grad and (facts.training or not facts.learns))


def _can_move_statistics(facts: Facts, noisy: Tensor) -> bool:
    """Whether there is more than one value a channel, and running statistics share no memory."""
    return (
        noisy[:, 0].numel() > 1
        and facts.written is not None
        and noisy.untyped_storage().data_ptr() not in facts.written
    )
