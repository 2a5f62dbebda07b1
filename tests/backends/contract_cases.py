"""Calls of networks that a backend may get, and what each gives."""

import contextlib
import copy
import functools
from dataclasses import dataclass, field
from typing import Any

import helpers
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
    "unet": {"width": 4, "levels": 2, "blocks": 1},
}
CASES = {}
images = functools.partial(helpers.images, seed=1)


def usual(call):
    output = call.model(call.noisy, *call.more)
    if output.requires_grad and not output.is_meta:
        loss = weighted(output)
        (loss.real if loss.is_complex() else loss).backward()
    return output


@dataclass
class Call:
    """A call of a network: what is called with what, within what, and how."""

    model: nn.Module
    noisy: Any
    more: tuple = ()  # arguments behind the images
    within: Any = contextlib.nullcontext
    how: Any = usual
    seen: list = field(default_factory=list)  # what hooks saw

    @property
    def norms(self):
        return [part for part in self.model.modules() if isinstance(part, nn.BatchNorm2d)]


def case(change):
    CASES[change.__name__.replace("_", " ")] = change
    return change


def cases(name, changes):
    CASES.update({f"{name}, {which}": change for which, change in changes.items()})


def setting(**attributes):
    """Set attributes of a call, or of a part of the network."""

    def change(one):
        for name, value in attributes.items():
            setattr(one, name, value)

    return change


def network(name, training=True):
    """A network whose normalisations differ, and know of images."""
    torch.manual_seed(0)
    model = create_model(name.removesuffix("-u2"), **NETWORKS[name])
    return helpers.with_history(model).train(training)


def of_part(kind, change, which=0):
    """Change one of the network's parts of a kind, or put the module that `change` gives in its place.

    With `which` of None, each of them.
    """

    def changed(call):
        parts = [pair for pair in call.model.named_modules() if isinstance(pair[1], kind)]
        for name, old in parts if which is None else parts[which : which + 1 or None]:
            if isinstance(new := change(old), nn.Module):
                call.model.set_submodule(name, new.train(old.training))

    return changed


# Images.
def stored(make):
    def change(call):
        call.noisy = make(call.noisy)

    return change


def shaped(*shape):
    return stored(lambda _: images(*shape))


class Images(torch.Tensor):
    pass


def negated(x):
    return torch.complex(torch.zeros_like(x), -x).conj().imag


def unaligned(x):
    return torch.cat([torch.zeros(1), x.flatten()])[1:].view_as(x)


# Normalisations.
def other_mode(norm):
    norm.train(not norm.training)


class Norm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


@case
def statistics_in_one_memory(call):
    shared = {}
    for norm in call.norms:
        norm.running_mean = shared.setdefault(norm.num_features, norm.running_mean)


@case
def statistics_in_the_images_memory(call):
    for norm in call.norms[:1]:
        norm.running_mean = call.noisy.flatten()[: norm.num_features]


# Other modules.
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

    return of_part(nn.Conv2d, make, which)


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
    return of_part(nn.Conv2d, lambda one: setattr(one.weight, "data", change(one.weight.data)))


@case
def parameters_in_one_memory(call):
    whole = nn.utils.parameters_to_vector(call.model.parameters())
    nn.utils.vector_to_parameters(whole, call.model.parameters())


@case
def parameters_tied(call):
    if isinstance(call.model, DnCNN):
        call.model.dncnn[5].weight = call.model.dncnn[2].weight


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


@contextlib.contextmanager
def default_type():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


# Behind the images: the content lambda of LambdaNet.
def with_context(*shape, **options):
    return lambda call: setattr(call, "more", (images(*shape).requires_grad_(**options),))


def run(how):
    CASES[how.__name__.replace("_", " ")] = setting(how=how)
    return how


def weighted(output):
    return (output * torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output)).sum()


@run
def backward_twice(call):
    loss = weighted(call.model(call.noisy))
    loss.backward(retain_graph=True)
    loss.backward()


@run
def weight_changed_before_backward(call):
    loss = weighted(call.model(call.noisy))
    with torch.no_grad():
        next(one for one in call.model.parameters() if one.ndim == 4).add_(1)
    loss.backward()


@run
def two_calls_then_backward(call):
    losses = [weighted(call.model(call.noisy)), 2 * weighted(call.model(call.noisy.flip(0)))]
    for loss in losses:
        loss.backward()


def frozen(call):
    return call.model.eval().requires_grad_(False)


@run
def functional_gradient(call):
    parameters = {name: one.detach() for name, one in call.model.named_parameters()}

    def loss(parameters):
        return weighted(torch.func.functional_call(call.model, parameters, (call.noisy,)))

    return torch.cat([one.flatten() for one in torch.func.grad(loss)(parameters).values()])


@run
def vmapped(call):
    return torch.func.vmap(call.model)(torch.stack([call.noisy, call.noisy.flip(0)])).detach()


@run
def forward_derivative(call):
    with forward_ad.dual_level():
        output = call.model(forward_ad.make_dual(call.noisy, torch.ones_like(call.noisy)))
        return forward_ad.unpack_dual(output).tangent.detach()


@run
def second_derivative_by_the_images(call):
    call.noisy.requires_grad_()
    (first,) = torch.autograd.grad(weighted(call.model(call.noisy)), call.noisy, create_graph=True)
    first.square().sum().backward()


# Each a table of cases: what is changed, and how.
SHAPES = [
    (4, 1, 8, 8), (4, 6, 8, 8), (4, 0, 8, 8), (3, 8, 8), (3,), (2, 4, 3, 8, 8), (0, 3, 8, 8), (4, 3, 0, 8),
    (1, 3, 8, 8), (2, 3, 8, 8), (17, 3, 8, 8), (4, 3, 7, 8), (4, 3, 8, 7), (1, 3, 1, 1), (4, 3, 2, 66),
]  # fmt: skip
cases("shape", {str(shape): shaped(*shape) for shape in SHAPES})
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
    "all alike": stored(lambda x: torch.full_like(x, 0.3)),
    "some nan": stored(lambda x: x.index_fill(3, torch.tensor([2]), torch.nan)),
})  # fmt: skip
of_norm = functools.partial(of_part, nn.BatchNorm2d)
cases("normalisation", {
    **{f"{i} in the other mode": of_norm(other_mode, i) for i in range(2)},
    "last in the other mode": of_norm(other_mode, -1),
    "momentum None": of_norm(setting(momentum=None)), "momentum 0.7": of_norm(setting(momentum=0.7)),
    "eps": of_norm(setting(eps=0.1)), "none": of_norm(lambda old: nn.Identity()),
    "does not track": of_norm(lambda n: nn.BatchNorm2d(n.num_features, track_running_stats=False)),
    "no longer tracks": of_norm(setting(track_running_stats=False)),
    "without statistics": of_norm(setting(running_mean=None, running_var=None)),
    "without a count": of_norm(setting(num_batches_tracked=None)),
    "not affine": of_norm(lambda old: nn.BatchNorm2d(old.num_features, affine=False)),
    "a subclass": of_norm(lambda old: Norm(old.num_features)),
    "of groups": of_norm(lambda old: nn.GroupNorm(1, old.num_features)),
    "of other channels": of_norm(lambda old: nn.BatchNorm2d(old.num_features + 1)),
    "statistics of float64": of_norm(lambda norm: setting(running_mean=norm.running_mean.double())(norm)),
    "statistics expanded": of_norm(lambda n: setting(running_mean=torch.zeros(1).expand(n.num_features))(n)),
    "statistics strided": of_norm(lambda n: setting(running_mean=torch.zeros(2 * n.num_features)[::2])(n)),
    "statistics with a gradient": of_norm(lambda n: n.running_mean.requires_grad_()),
    "statistics in a parameter's memory": of_norm(lambda n: setting(running_mean=n.bias.detach())(n)),
    "each of another rate": of_norm(setting(momentum=0.6), None),
})  # fmt: skip
cases("convolution", {
    "with a bias": convolution(0, bias=True), "with stride 2": convolution(stride=2),
    "reflecting": convolution(padding_mode="reflect"), "dilated": convolution(dilation=2),
    "of another width": convolution(out_channels=12), "a subclass": convolution(kind=Convolution),
    "in groups": of_part(nn.Conv2d, lambda old: nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), 1),
    "none": of_part(nn.Conv2d, lambda old: nn.Identity(), 1),
    "of float64": of_part(nn.Conv2d, lambda old: copy.deepcopy(old).double(), 1),
})  # fmt: skip
cases("activation", {
    "leaky": of_part(nn.ReLU, lambda old: nn.LeakyReLU(0.5)),
    "in place": of_part(nn.ReLU, lambda old: nn.ReLU(inplace=True)),
    "none": of_part(nn.ReLU, lambda old: nn.Identity()),
    "with a parameter": of_part(nn.ReLU, lambda old: nn.PReLU()),
})  # fmt: skip
cases("parameters", {
    "the first frozen": without_gradient(lambda found: found[:1]),
    "all but the first frozen": without_gradient(lambda found: found[1:]),
    "of one dimension frozen": without_gradient(lambda found: [one for one in found if one.ndim == 1]),
    "all frozen": without_gradient(lambda found: found),
    "channels last": lambda call: call.model.to(memory_format=torch.channels_last),
    "transposed": first_weight(lambda w: w.transpose(0, 1).contiguous().transpose(0, 1)),
    "expanded": first_weight(lambda w: w[:1].expand_as(w)), "negated": first_weight(negated),
    "float64": lambda call: call.model.double(), "bfloat16": lambda call: call.model.bfloat16(),
    "on another device": lambda call: call.model.to("meta"),
    "with another shape": first_weight(lambda w: w[:1].clone()),
    "with a hook": lambda call: next(call.model.parameters()).register_hook(lambda gradient: 3 * gradient),
})  # fmt: skip
cases("weights", {
    "normalised": of_part(nn.Conv2d, parametrizations.weight_norm, 1),
    "spectrally normalised": of_part(nn.Conv2d, parametrizations.spectral_norm, 1),
    "pruned": of_part(nn.Conv2d, lambda one: prune.random_unstructured(one, "weight", 0.5), 1),
})  # fmt: skip
HOOKS = [f"register_{kind}_hook" for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre")]
cases("a part's", {name: hooked(name) for name in HOOKS})
cases("the network's", {name: hooked(name, lambda model: model) for name in HOOKS})
cases("within", {
    "no_grad": setting(within=torch.no_grad), "inference_mode": setting(within=torch.inference_mode),
    "autocast": setting(within=lambda: torch.autocast("cpu", torch.bfloat16)),
    "autocast of float16": setting(within=lambda: torch.autocast("cpu", torch.float16)),
    "another default type": setting(within=default_type),
})  # fmt: skip
cases("context", {
    "that fits": with_context(4, 4, 4, requires_grad=False), "with a gradient": with_context(4, 4, 4),
    "of another shape": with_context(4, 1, 4), "of another count": with_context(3, 4, 4),
})  # fmt: skip
for name, how in {
    "expanded gradient": lambda call: call.model(call.noisy).sum().backward(),
    "recomputed": lambda call: weighted(checkpoint(call.model, call.noisy, use_reentrant=False)).backward(),
    "traced": lambda call: torch.jit.trace(frozen(call), call.noisy, check_trace=False)(images(6, 3, 8, 8)),
    "exported": lambda call: torch.export.export(frozen(call), (call.noisy,)).module()(call.noisy),
}.items():
    CASES[name] = setting(how=how)
CASES["as it is"] = lambda call: None


def result(name, which, training, backend):
    """What a call gives and leaves, or its error; what is random is the same for the same case."""
    torch.manual_seed(0)
    call = Call(network(name, training), images(4, 3, 8, 8))
    try:
        CASES[which](call)
        torch.manual_seed(0)
        with backends.forced(backend), call.within():
            output = call.how(call)
    except Exception as error:
        return {"error": type(error)}
    leaves = dict(call.model.named_parameters())
    leaves |= {f"argument {i}": one for i, one in enumerate((call.noisy, *call.more))}
    gradients = {key: one.grad for key, one in leaves.items() if getattr(one, "is_leaf", False)}
    return {
        "output": there({"": output}),
        "gradients": there(gradients),
        "statistics": there(dict(call.model.named_buffers())),
        "hooks": len(call.seen),
    }


def there(tensors):
    """Those that there are; zeros instead of those without values."""
    return {
        key: torch.zeros_like(one, device="cpu") if one.is_meta else one.detach()
        for key, one in tensors.items()
        if one is not None
    }
