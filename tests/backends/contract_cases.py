"""Calls of networks that a backend may get, and what it gives beside the plain network.

As a script: reads names of cases from stdin, says each before it starts, and what was found after it, so that
whoever started it knows in which case it died.
"""

import contextlib
import copy
import json
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from lambdanet import backends
from lambdanet.models import create_model
from lambdanet.models.dncnn import DnCNN
from lambdanet.models.lambdanet import LambdaNet

NETWORKS = {
    "lambdanet": {"m": 3, "k": 4, "heads": 2, "d": 8},
    "lambdanet-u2": {"m": 3, "u": 2, "k": 4, "heads": 2, "d": 8},
    "dncnn": {"depth": 4, "width": 8},
    "autoencoder": {"width": 4},
    "cnn": {"width": 4},
    "skip-autoencoder": {"width": 4, "levels": 2},
}
KERNELS = {"lambdanet": backends.FUSED, "lambdanet-u2": backends.FUSED, "dncnn": backends.WINOGRAD}
# Forcing the kernels takes what is taken anyway; `portable` is behind them.
FORCED = {"lambdanet": [backends.PORTABLE], "lambdanet-u2": [backends.PORTABLE]}
# By norm; a hidden unit next to 0 may be on the other side of it, which changes gradients.
LIMITS = {"output": 1e-4, "gradients": 5e-3, "statistics": 1e-4}
# All that is left of equal images is rounding, which normalisation makes as large as anything.
LOOSER = {"images, all alike": {"output": 0.2, "gradients": None, "statistics": 1e-2}}
# For one image, torch 2.15's batch normalisation gives a wrong gradient where it gets one with the strides
# (channels, 1, ...), as LambdaNet's queries do: the plain network is no measure.
LOOSER |= {"shape, (1, 3, 8, 8)": {"gradients": None}}
# The plain network refuses, as it keeps the very weights; a copy of them is as good.
MAY_COMPUTE = {(backends.PORTABLE, "weight changed before backward")}
CASES = {}


@dataclass
class Call:
    """A call of a network: what is called with what, within what, and how."""

    model: nn.Module
    noisy: Any
    more: tuple = ()
    within: Any = contextlib.nullcontext
    how: Any = None
    seen: list = field(default_factory=list)  # what hooks saw

    @property
    def norms(self):
        return [part for part in self.model.modules() if isinstance(part, nn.BatchNorm2d)]

    def replace(self, kind, make, which=0):
        """Put another module in the place of one of this kind."""
        name, old = [pair for pair in self.model.named_modules() if isinstance(pair[1], kind)][which]
        *where, last = name.split(".")
        setattr(self.model.get_submodule(".".join(where)), last, make(old).train(old.training))


def case(change):
    CASES[change.__name__.replace("_", " ")] = change
    return change


def cases(name, changes):
    CASES.update({f"{name}, {which}": change for which, change in changes.items()})


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def network(name, training=True):
    """A network whose normalisations differ, and know of images."""
    torch.manual_seed(0)
    model = create_model(name.removesuffix("-u2"), **NETWORKS[name])
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.3, 0.3)
        nn.init.uniform_(norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return model.train(training)


# Images.
def shaped(*shape):
    def change(call):
        call.noisy = images(*shape)

    return change


SHAPES = [
    (4, 1, 8, 8), (4, 6, 8, 8), (4, 0, 8, 8), (3, 8, 8), (3,), (2, 4, 3, 8, 8), (0, 3, 8, 8), (4, 3, 0, 8),
    (1, 3, 8, 8), (2, 3, 8, 8), (17, 3, 8, 8), (4, 3, 7, 8), (4, 3, 8, 7), (1, 3, 1, 1), (4, 3, 2, 66),
]  # fmt: skip
cases("shape", {str(shape): shaped(*shape) for shape in SHAPES})


def stored(make):
    def change(call):
        call.noisy = make(call.noisy)

    return change


class Images(torch.Tensor):
    pass


def negated(x):
    return torch.complex(torch.zeros_like(x), -x).conj().imag


def unaligned(x):
    return torch.cat([torch.zeros(1), x.flatten()])[1:].view_as(x)


def with_nan(x):
    x = x.clone()
    x[1, 1, 2, 3] = torch.nan
    return x


cases("images", {
    "float64": stored(torch.Tensor.double), "bfloat16": stored(torch.Tensor.bfloat16),
    "int64": stored(torch.Tensor.long), "complex": stored(lambda x: x + 0j),
    "channels last": stored(lambda x: x.contiguous(memory_format=torch.channels_last)),
    "every other": stored(lambda x: images(4, 3, 16, 16)[..., ::2, ::2]),
    "one image expanded": stored(lambda x: x[:1].expand(4, 3, 8, 8)),
    "unaligned": stored(unaligned), "negated": stored(negated), "sparse": stored(torch.Tensor.to_sparse),
    "meta": stored(lambda x: x.to("meta")), "nothing": stored(lambda x: None),
    "a subclass": stored(lambda x: x.as_subclass(Images)), "a parameter": stored(nn.Parameter),
    "with a gradient": stored(lambda x: x.requires_grad_()),
    "a nan": stored(with_nan),
    "all alike": stored(lambda x: torch.full_like(x, 0.3)),
})  # fmt: skip


# Normalisations.
def of_norm(change, which=0):
    def changed(call):
        if call.norms:
            change(call.norms[which])

    return changed


def setting(**attributes):
    def change(norm):
        for name, value in attributes.items():
            setattr(norm, name, value)

    return change


def other_mode(norm):
    norm.train(not norm.training)


def instead(kind, make, which=0):
    def change(call):
        with contextlib.suppress(IndexError):
            call.replace(kind, make, which)

    return change


class Norm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


cases("normalisation", {
    **{f"{i} in the other mode": of_norm(other_mode, i) for i in range(2)},
    "last in the other mode": of_norm(other_mode, -1),
    "momentum None": of_norm(setting(momentum=None)), "momentum 0.7": of_norm(setting(momentum=0.7)),
    "eps": of_norm(setting(eps=0.1)),
    "does not track": instead(
        nn.BatchNorm2d, lambda old: nn.BatchNorm2d(old.num_features, track_running_stats=False)
    ),
    "no longer tracks": of_norm(setting(track_running_stats=False)),
    "without statistics": of_norm(setting(running_mean=None, running_var=None)),
    "without a count": of_norm(setting(num_batches_tracked=None)),
    "not affine": instead(nn.BatchNorm2d, lambda old: nn.BatchNorm2d(old.num_features, affine=False)),
    "a subclass": instead(nn.BatchNorm2d, lambda old: Norm(old.num_features)),
    "of groups": instead(nn.BatchNorm2d, lambda old: nn.GroupNorm(1, old.num_features)),
    "none": instead(nn.BatchNorm2d, lambda old: nn.Identity()),
    "of other channels": instead(nn.BatchNorm2d, lambda old: nn.BatchNorm2d(old.num_features + 1)),
    "statistics of float64": of_norm(lambda norm: setting(running_mean=norm.running_mean.double())(norm)),
    "statistics expanded": of_norm(lambda n: setting(running_mean=torch.zeros(1).expand(n.num_features))(n)),
    "statistics strided": of_norm(lambda n: setting(running_mean=torch.zeros(2 * n.num_features)[::2])(n)),
    "statistics with a gradient": of_norm(lambda n: n.running_mean.requires_grad_() and None),
})  # fmt: skip


@case
def normalisations_of_another_rate(call):
    for norm in call.norms:
        norm.momentum = 0.6


@case
def statistics_in_one_memory(call):
    first, *others = call.norms or [None]
    for norm in others:
        if norm.num_features == first.num_features:
            norm.running_mean = first.running_mean


# Other modules.
@case
def statistics_in_a_parameter_s_memory(call):
    for norm in call.norms[:1]:
        norm.running_mean = norm.bias.detach()


@case
def one_normalisation_twice(call):
    if isinstance(call.model, DnCNN):
        call.model.dncnn[6] = call.model.dncnn[3]


class Convolution(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 0.1


def convolution(which=1, kind=nn.Conv2d, **options):
    """Another convolution in the place of one."""

    def make(old):
        like = {"in_channels": old.in_channels, "out_channels": old.out_channels, "bias": False}
        return kind(**like | {"kernel_size": old.kernel_size, "padding": old.padding} | options)

    return instead(nn.Conv2d, make, which)


cases("convolution", {
    "with a bias": convolution(0, bias=True), "with stride 2": convolution(stride=2),
    "reflecting": convolution(padding_mode="reflect"), "dilated": convolution(dilation=2),
    "of another width": convolution(out_channels=12),
    "a subclass": convolution(kind=Convolution),
    "in groups": instead(nn.Conv2d, lambda old: nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), 1),
    "none": instead(nn.Conv2d, lambda old: nn.Identity(), 1),
    "of float64": instead(nn.Conv2d, lambda old: copy.deepcopy(old).double(), 1),
})  # fmt: skip
cases("activation", {
    "leaky": instead(nn.ReLU, lambda old: nn.LeakyReLU(0.5)),
    "none": instead(nn.ReLU, lambda old: nn.Identity()),
    "in place": instead(nn.ReLU, lambda old: nn.ReLU(inplace=True)),
    "with a parameter": instead(nn.ReLU, lambda old: nn.PReLU()),
})  # fmt: skip


@case
def another_layer_at_the_end(call):
    name = "dncnn" if isinstance(call.model, DnCNN) else "conv" if isinstance(call.model, LambdaNet) else None
    if name:
        getattr(call.model, name).append(nn.Tanh())


@case
def a_subclass_of_the_network(call):
    class Doubled(type(call.model)):
        def forward(self, noisy):
            return 2 * super().forward(noisy)

    call.model.__class__ = Doubled


@case
def forward_replaced(call):
    real = call.model.forward
    call.model.forward = lambda noisy: 2 * real(noisy)


# Parameters.
def without_gradient(choose):
    def change(call):
        for parameter in choose(list(call.model.parameters())):
            parameter.requires_grad_(False)

    return change


def first_weight(change):
    def changed(call):
        weight = next(one for one in call.model.parameters() if one.ndim == 4)
        weight.data = change(weight.data)

    return changed


cases("parameters", {
    "the first frozen": without_gradient(lambda found: found[:1]),
    "all but the first frozen": without_gradient(lambda found: found[1:]),
    "of one dimension frozen": without_gradient(lambda found: [one for one in found if one.ndim == 1]),
    "all frozen": without_gradient(lambda found: found),
    "channels last": lambda call: call.model.to(memory_format=torch.channels_last),
    "transposed": first_weight(lambda w: w.transpose(0, 1).contiguous().transpose(0, 1)),
    "expanded": first_weight(lambda w: w[:1].expand_as(w)),
    "negated": first_weight(negated),
    "with another shape": first_weight(lambda w: w[:1].clone()),
    "float64": lambda call: call.model.double(), "bfloat16": lambda call: call.model.bfloat16(),
    "on another device": lambda call: call.model.to("meta"),
})  # fmt: skip


@case
def parameters_in_one_memory(call):
    found = list(call.model.parameters())
    whole = torch.cat([one.detach().flatten() for one in found])
    for parameter, part in zip(found, whole.split([one.numel() for one in found]), strict=True):
        parameter.data = part.view_as(parameter)


@case
def parameters_tied(call):
    if isinstance(call.model, DnCNN):
        call.model.dncnn[5].weight = call.model.dncnn[2].weight


def of_a_convolution(change):
    def changed(call):
        change([part for part in call.model.modules() if isinstance(part, nn.Conv2d)][1])

    return changed


cases("weights", {
    "normalised": of_a_convolution(parametrizations.weight_norm),
    "spectrally normalised": of_a_convolution(parametrizations.spectral_norm),
    "pruned": of_a_convolution(lambda one: prune.random_unstructured(one, "weight", 0.5)),
})  # fmt: skip


# Hooks: they change what a part gives, or see it.
def first_convolution(model):
    return next(part for part in model.modules() if isinstance(part, nn.Conv2d))


def hooked(name, find=first_convolution):
    def change(call):
        def hook(_module, *given):
            call.seen.append(1)
            return None if "backward" in name or "pre" in name else 2 * given[1]

        getattr(find(call.model), name)(hook)

    return change


HOOKS = (
    "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
    "register_full_backward_pre_hook",
)  # fmt: skip
cases("a part's", {name: hooked(name) for name in HOOKS})
cases("the network's", {name: hooked(name, lambda model: model) for name in HOOKS})


@case
def a_parameter_s_hook(call):
    next(call.model.parameters()).register_hook(lambda gradient: 3 * gradient)


@contextlib.contextmanager
def default_type():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# What torch does around the call.
cases("within", {
    name: (lambda call, within=within: setattr(call, "within", within))
    for name, within in {
        "no_grad": torch.no_grad, "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "autocast of float16": lambda: torch.autocast("cpu", torch.float16),
        "another default type": default_type, "three threads": threads,
    }.items()
})  # fmt: skip


def run(how):
    CASES[how.__name__.replace("_", " ")] = lambda call: setattr(call, "how", how)
    return how


def weighted(output):
    return (output * torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output)).sum()


@run
def backward_twice(call):
    loss = weighted(call.model(call.noisy))
    loss.backward(retain_graph=True)
    loss.backward()
    return {}


@run
def weight_changed_before_backward(call):
    loss = weighted(call.model(call.noisy))
    with torch.no_grad():
        next(one for one in call.model.parameters() if one.ndim == 4).add_(1)
    loss.backward()
    return {}


@run
def two_calls_then_backward(call):
    losses = [weighted(call.model(call.noisy)), 2 * weighted(call.model(call.noisy.flip(0)))]
    for loss in losses:
        loss.backward()
    return {}


@run
def expanded_gradient(call):
    call.model(call.noisy).sum().backward()
    return {}


@run
def recomputed(call):
    weighted(checkpoint(call.model, call.noisy, use_reentrant=False)).backward()
    return {}


@run
def traced(call):
    call.model.eval().requires_grad_(False)
    program = torch.jit.trace(call.model, (call.noisy,), check_trace=False)
    return {"output": program(images(6, 3, 8, 8))}


@run
def exported(call):
    call.model.eval().requires_grad_(False)
    return {"output": torch.export.export(call.model, (call.noisy,)).module()(call.noisy)}


@run
def functional_gradient(call):
    parameters = {name: one.detach() for name, one in call.model.named_parameters()}

    def loss(parameters):
        return weighted(torch.func.functional_call(call.model, parameters, (call.noisy,)))

    return {"output": torch.cat([one.flatten() for one in torch.func.grad(loss)(parameters).values()])}


@run
def vmapped(call):
    return {"output": torch.func.vmap(call.model)(torch.stack([call.noisy, call.noisy.flip(0)])).detach()}


@run
def forward_derivative(call):
    with forward_ad.dual_level():
        output = call.model(forward_ad.make_dual(call.noisy, torch.ones_like(call.noisy)))
        return {"output": forward_ad.unpack_dual(output).tangent.detach()}


@run
def second_derivative_by_the_images(call):
    call.noisy.requires_grad_()
    (first,) = torch.autograd.grad(weighted(call.model(call.noisy)), call.noisy, create_graph=True)
    first.square().sum().backward()
    return {}


@run
def with_a_context(call):
    return {"output": call.model(call.noisy, torch.linspace(-1, 1, 4 * 4 * 4).view(4, 4, 4)).detach()}


@run
def with_a_context_of_another_shape(call):
    return {"output": call.model(call.noisy, torch.ones(4, 3, 4)).detach()}


@run
def with_a_context_of_another_count(call):
    return {"output": call.model(call.noisy, torch.ones(3, 4, 4)).detach()}


@run
def with_a_context_with_a_gradient(call):
    context = torch.ones(4, 4, 4, requires_grad=True)
    weighted(call.model(call.noisy, context)).backward()
    return {"output": context.grad}


def usual(call):
    output = call.model(call.noisy, *call.more)
    if output.requires_grad and output.device.type != "meta":
        loss = weighted(output)
        (loss.real if loss.is_complex() else loss).backward()
    return {"output": output.detach()}


CASES["as it is"] = lambda call: None


def found(name, which, training, backend):
    """What a call gives, or its error; with the seed of the case, so that what is random is the same."""
    torch.manual_seed(0)
    call = Call(network(name, training), images(4, 3, 8, 8))
    result = {}
    try:
        CASES[which](call)
        torch.manual_seed(0)
        with backends.forced(backend), call.within():
            result |= (call.how or usual)(call)
    except Exception as error:
        return {"error": type(error).__name__, "text": str(error)[:200]}
    model, noisy = call.model, call.noisy
    leaf = isinstance(noisy, torch.Tensor) and noisy.is_leaf
    result["gradients"] = {key: one.grad for key, one in model.named_parameters()}
    result["gradients"]["images"] = noisy.grad if leaf else None
    result["statistics"] = dict(model.named_buffers())
    return result | {"seen": len(call.seen)}


def differences(ours, plain, limits):
    """What is not alike, in words."""
    if "error" in ours or "error" in plain:
        both = [one.get("error") for one in (ours, plain)]
        return (
            [] if both[0] == both[1] else [f"{ours.get('text', 'a value')} != {plain.get('text', 'a value')}"]
        )
    wrong = [] if ours["seen"] == plain["seen"] else ["hooks"]
    for key, limit in limits.items():
        pair = [one.get(key) for one in (ours, plain)]
        pair = [one if isinstance(one, dict) else {"": one} for one in pair]
        there = [{name for name, value in one.items() if value is not None} for one in pair]
        if there[0] != there[1]:
            wrong.append(f"{key}: not of the same: {sorted(there[0] ^ there[1])}")
            continue
        values = [one[name] for one in pair for name in sorted(there[0]) if one[name].device.type != "meta"]
        apart = distance(values[: len(values) // 2], values[len(values) // 2 :])
        if limit is not None and not apart <= limit:
            wrong.append(f"{key}: {apart:.2g} apart")
    return wrong


def distance(ours, plain):
    """By norm; of what is no number, whether it is at the same places."""
    if not ours:
        return 0
    if [(one.shape, one.dtype) for one in ours] != [(one.shape, one.dtype) for one in plain]:
        return float("nan")
    ours, plain = (
        torch.cat([one.detach().to_dense().to(torch.complex128).flatten() for one in each])
        for each in (ours, plain)
    )
    if not torch.equal(ours.isfinite(), plain.isfinite()):
        return float("inf")
    ours, plain = (torch.where(one.isfinite(), one, 0) for one in (ours, plain))
    return ((ours - plain).norm() / plain.norm().clamp(min=1e-12)).item() if len(ours) else 0


def compare(name, which, training):
    """Differences of each backend that can be forced, and of what is taken of itself; by backend."""
    plain = found(name, which, training, backends.REFERENCE)
    result = {}
    for backend in (backends.AUTO, *FORCED.get(name, [])):
        taken, real = [], backends._find

        def spy(*given, real=real, taken=taken, **named):
            chosen = real(*given, **named)
            taken.extend([chosen.name] if chosen else [])
            return chosen

        backends._find = spy
        try:
            ours = found(name, which, training, backend)
        finally:
            backends._find = real
        limits = LIMITS | LOOSER.get(which, {})
        wrong = [] if (backend, which) in MAY_COMPUTE else differences(ours, plain, limits)
        result[backend] = {"wrong": wrong, "taken": sorted(set(taken))}
    return result


def main():
    torch.set_num_threads(1)
    for name, which, training in json.load(sys.stdin):
        print("begins", flush=True)
        print(json.dumps(compare(name, which, training)), flush=True)


if __name__ == "__main__":
    main()
