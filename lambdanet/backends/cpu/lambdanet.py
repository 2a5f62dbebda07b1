"""LambdaNet forward and backward by compiled kernels, which do not store what its layers exchange.

The kernels (moments.py, lambda_layer.py, mixing.py, decoder.py) work on blocks of images; between them
stand the small matrices of algebra.py, folded in float64 and differentiated by autograd. Sums over
images are taken block by block in a fixed order: the result does not depend on the number of threads.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanet.backends import algebra
from lambdanet.backends.algebra import Moments, symmetric
from lambdanet.backends.cpu import codegen, decoder, lambda_layer, mixing, moments
from lambdanet.backends.cpu.parallel import parallel_for
from lambdanet.backends.cpu.workspace import BLOCK, THREAD, Array, Loan, empty, zeros

TAKES = {  # the arrays that a kernel takes, in order; `arrays_of` has their contracts
    "enter": "images mask image",
    "moments": "image weights largest moments plain",
    "means": "image weights largest moments",
    "transform": "image analysis parts spectrum",
    "forward": "image spectrum filters synthesis content constant product parts t_group t",
    "mix": "t image mix heads_content features",
    "feature_sums": "features image lane_products gradient sums centres products",
    "hidden": "features image w1 b1 w3 centre c c_sums",
    "output": "features c p w2 b2 output",
    "decode": "features w1 b1 w3 p w2 b2 output",
    "leave": "output result",
    "enter_gradient": "d_result d_output",
    "output_backward": "features c output d_output lane_w2 o d_b2 d_p d_w2",
    "hidden_backward": "features image c o w1 b1 w3 p e0 e1 dc r lane_w3 lane_b1 lane_w1 da d_w3 d_b1 d_w1",
    "feature_gradient": "features image da o w1 w2 q_matrix q gradient",
    "mix_backward": "gradient t image mix lane_mix d_t d_mix d_heads_content",
    "backward": "image spectrum analysis d_t t_group parts product d_filters d_constant d_content",
}
GIVEN = {
    "images", "mask", "weights", "analysis", "synthesis", "filters", "constant", "content", "heads_content",
    "mix", "w1", "b1", "w2", "b2", "w3", "p", "centre", "e0", "e1", "q_matrix", "q", "result", "d_result",
}  # fmt: skip
PARAMETERS = (
    "embedding", "queries.0.weight", "queries.1.weight", "queries.1.bias", "keys.0.weight",
    "values.0.weight", "values.1.weight", "values.1.bias", "conv.0.weight", "conv.1.weight",
    "conv.1.bias", "conv.3.weight", "conv.4.weight", "conv.4.bias", "shortcut.0.weight",
    "shortcut.0.bias", "shortcut.1.weight", "shortcut.1.bias",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """What the code is generated for."""

    h: int
    w: int
    m: int
    u: int
    k: int
    heads: int
    v: int
    lanes: int

    @property
    def pixels(self) -> int:
        return self.h * self.w

    @property
    def hidden(self) -> int:
        return self.heads * self.v // 2

    @property
    def layer(self) -> lambda_layer.Shape:
        return lambda_layer.Shape(self.h, self.w, self.m, self.heads * self.u)

    @property
    def features(self) -> int:
        """Channels that the decoder works on: T itself, or z."""
        return self.heads * (4 if self.u == 1 else self.v)


def arrays_of(p: Problem) -> dict[str, Array]:
    """The contracts of all arrays, by name; `GIVEN` are the caller's, the others a workspace's."""
    layer, n, channels, hidden, lanes = p.layer, p.pixels, p.features, p.hidden, p.lanes
    frequencies, keys = layer.frequencies, p.k * p.u
    one = {
        "weights": (keys, 3), "analysis": (p.w // 2, frequencies, 2), "synthesis": (frequencies, p.w // 2, 2),
        "filters": (layer.groups, 4, frequencies, p.m + 2, 2), "constant": (layer.groups, 4, p.h, p.w),
        "mix": (p.v, p.u, 4), "w1": (hidden, channels), "b1": (hidden,), "w2": (3, channels), "b2": (3,),
        "w3": (3, hidden), "p": (3,), "centre": (3,), "e0": (3,), "e1": (3,),
        "q_matrix": (channels, channels), "q": (channels,),
    }  # fmt: skip
    a_block = {
        "images": (lanes, 3, p.h, p.w), "mask": (lanes,), "result": (lanes, 3, p.h, p.w),
        "d_result": (lanes, 3, p.h, p.w), "content": (16 * layer.groups, lanes),
        "heads_content": (4 * p.heads * p.v, lanes),
        "image": (4, n, lanes), "moments": (keys, 9, lanes), "plain": (9,),
        "spectrum": (frequencies, p.h + 2 * lambda_layer.PAD, 6, lanes),
        "features": (n, channels, lanes), "sums": (channels,), "centres": (channels, lanes),
        "products": (channels, channels), "c": (n, 3, lanes), "c_sums": (3, 2), "output": (3, n, lanes),
        "d_output": (3, n, lanes), "o": (n, 3, lanes), "d_b2": (3,), "d_p": (3,), "d_w2": (3, channels),
        "da": (n, hidden, lanes), "d_w3": (3, hidden), "d_b1": (hidden,), "d_w1": (hidden, channels),
        "d_filters": (layer.groups, 4, frequencies, p.m, 2), "d_constant": (layer.groups, 4, n),
        "d_content": (layer.groups, 4, 4, lanes), "t": (n, layer.channels, lanes),
        "d_mix": (p.v, 4 * p.u), "d_heads_content": (p.heads, p.v, 4, lanes),
    }  # fmt: skip
    a_thread = {
        "largest": (keys, lanes), "parts": (p.w // 2, 6, lanes), "product": (p.h * 6 * frequencies, lanes),
        "t_group": (n, 3, lanes), "lane_products": (channels**2, lanes), "lane_w2": (3 * channels, lanes),
        "lane_w3": (3 * hidden, lanes), "lane_b1": (hidden, lanes), "lane_w1": (hidden * channels, lanes),
        "dc": (p.w, 3, lanes), "r": (p.w, hidden, lanes), "gradient": (n, channels, lanes),
        "d_t": (n, layer.channels, lanes), "lane_mix": (4 * p.u * p.v, lanes),
    }  # fmt: skip
    kinds = (None, one), (BLOCK, a_block), (THREAD, a_thread)
    return {name: Array(shape, each) for each, shapes in kinds for name, shape in shapes.items()}


class Fused:
    """The compiled kernels for one problem, and the workspaces that are free."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.contracts, layer = problem, arrays_of(problem), problem.layer
        size = decoder.Size(problem.pixels, problem.w, problem.features, problem.hidden)
        keys = problem.k * problem.u
        mixed = mixing.Size(problem.pixels, problem.w, problem.heads, problem.v, 4 * problem.u)
        write: dict[str, Callable[[codegen.Kernel], None]] = {
            "enter": lambda k: lambda_layer.write_enter(k, problem.pixels),
            "leave": lambda k: lambda_layer.write_leave(k, problem.pixels),
            "enter_gradient": lambda k: lambda_layer.write_enter_gradient(k, problem.pixels),
            "moments": lambda k: moments.write_moments(k, problem.pixels, keys),
            "means": lambda k: moments.write_moments(k, problem.pixels, keys, first_only=True),
        }
        for module, shape, names in (
            (lambda_layer, layer, "transform forward backward"),
            (mixing, mixed, "mix mix_backward" if problem.u > 1 else ""),
            (decoder, size, "feature_sums hidden output decode"),
            (decoder, size, "output_backward hidden_backward feature_gradient"),
        ):
            for name in names.split():
                write[name] = functools.partial(getattr(module, f"write_{name}"), size=shape)
        functions = codegen.compile_kernels(
            {name: (TAKES[name].split(), body) for name, body in write.items()},
            problem.lanes,
            repr(problem),
        )
        self.kernels = {name: (kernel, TAKES[name].split()) for name, kernel in functions.items()}
        self.tables = {
            "analysis": torch.from_numpy(lambda_layer.analysis_table(layer)),
            "synthesis": torch.from_numpy(lambda_layer.synthesis_table(layer)),
        }
        self.to_spectra, self.from_spectra = map(torch.from_numpy, lambda_layer.filter_tables(layer))
        self.down = algebra.window(problem.h, problem.m)
        self.across = algebra.window(problem.w, problem.m)
        self.free = {}

    def run(self, names: str, workspace: "Workspace", arrays: dict[str, Tensor]) -> None:
        """Run kernels one after the other for every block, the blocks shared out among torch's threads.

        Args:
            names: of the kernels; "mix" and "mix_backward" are left out where nothing is mixed.
            workspace: of this batch.
            arrays: by name; those of `GIVEN` are entered, the others were when the workspace was made.
        """
        wanted = [self.kernels[name] for name in names.split() if name in self.kernels]
        given = GIVEN.intersection(name for _, needed in wanted for name in needed)
        places = workspace.places | {
            name: self.contracts[name].enter(name, arrays[name], workspace.counts) for name in given
        }
        blocks, threads = workspace.counts[BLOCK], workspace.counts[THREAD]

        def work(thread: int) -> None:
            for block in range(thread, blocks, threads):
                for kernel, needed in wanted:
                    kernel(*(base + block * b + thread * t for base, b, t in map(places.get, needed)))

        parallel_for(work, min(threads, blocks))

    def layer_arrays(self, folded: algebra.Layer) -> dict[str, Tensor]:
        """The lambda layer's coefficients as the kernels take them."""
        problem, layer = self.problem, self.problem.layer
        filters = folded.filters.detach()
        spectra = zeros(layer.groups, 4, layer.frequencies, problem.m + 2, 2)
        spectra[:, :, :, 1:-1] = torch.einsum("gcyx,xfr->gcfyr", filters, self.to_spectra)
        content = folded.content.detach().float().flatten(1)
        blocks = -(-len(content) // problem.lanes)
        content = F.pad(content, (0, 0, 0, blocks * problem.lanes - len(content)))
        content = content.view(blocks, problem.lanes, -1).transpose(1, 2).contiguous()
        arrays = {"filters": spectra, "constant": _float(self.down @ filters @ self.across.T)}
        if problem.u == 1:
            return arrays | {"content": content}
        none = zeros(blocks, layer.groups * 16, problem.lanes)
        return arrays | {"content": none, "heads_content": content, "mix": _float(folded.mix)}

    def layer_gradients(self, arrays: dict[str, Tensor], count: int) -> tuple[Tensor, Tensor]:
        """Of `Layer.filters` and `Layer.content`."""
        problem = self.problem
        d_constant = _total(arrays["d_constant"]).unflatten(-1, (problem.h, problem.w))
        d_filters = torch.einsum("gcfyr,xfr->gcyx", _total(arrays["d_filters"]), self.from_spectra)
        d_filters += self.down.T @ d_constant @ self.across
        d_content = arrays["d_content" if problem.u == 1 else "d_heads_content"]
        d_content = d_content.flatten(1, 3).transpose(1, 2).flatten(0, 1)[:count].double()
        return d_filters, d_content.view(count, problem.heads, -1, 4)

    def feature_moments(self, arrays: dict[str, Tensor], count: int) -> Moments:
        """Mean and covariance of the features, from sums about each block's own centre."""
        problem = self.problem
        sums, products = arrays["sums"].double(), arrays["products"].double()
        products = products.triu() + products.triu(1).transpose(1, 2)
        whole = problem.lanes * problem.pixels
        vectors_of = torch.full((len(sums), 1), float(whole), dtype=torch.float64)
        vectors_of[-1] = count - (len(sums) - 1) * whole
        mean = sums.sum(0) / count
        # With c the centre and d = c - mean, sum (f - mean)(f - mean)' is
        # sum (f - c)(f - c)' + s d' + d s' + n d d', where s = sum (f - c).
        centres = arrays["centres"][:, :, 0].double()
        d, s = centres - mean, sums - vectors_of * centres
        cross = s[:, :, None] * d[:, None, :]
        products = products + cross + cross.transpose(1, 2)
        products += vectors_of[:, :, None] * d[:, :, None] * d[:, None, :]
        return Moments(mean, products.sum(0) / count, count)


class Workspace:
    """Memory for one batch, from the forward pass to its backward pass."""

    def __init__(self, fused: Fused, blocks: int, threads: int) -> None:
        self.counts = {BLOCK: blocks, THREAD: threads}
        same = {"t": "features", "d_t": "gradient"} if fused.problem.u == 1 else {}
        kept = {name: one for name, one in fused.contracts.items() if name not in GIVEN | same.keys()}
        self.arrays = {
            name: (zeros if name == "spectrum" else empty)(*one.whole(self.counts))
            for name, one in kept.items()
        }
        self.arrays |= {name: self.arrays[other] for name, other in same.items()}
        self.places = {
            name: fused.contracts[name].enter(name, array, self.counts) for name, array in self.arrays.items()
        }


class Step(torch.autograd.Function):
    """The whole network in training mode: images and parameters to output."""

    @staticmethod
    def forward(ctx: Any, fused: Fused, model: torch.nn.Module, noisy: Tensor, *parameters: Tensor) -> Tensor:
        """Run the network on (b, 3, h, w), and move its running statistics."""
        count = len(noisy) * fused.problem.pixels
        p = {name: _leaf(one) for name, one in zip(PARAMETERS, parameters, strict=True) if one is not None}
        ctx.loan, arrays, keyed = _begin(fused, noisy, p, "moments")
        plain = _total(arrays["plain"]) / count
        x = Moments(plain[:3], symmetric(plain[3:]) - torch.outer(plain[:3], plain[:3]), count)
        mean = _leaf(keyed[..., :3].unflatten(1, (model.k, model.u)))
        with _graph():
            layer = algebra.fold_layer(model, p, x, mean)
        arrays |= fused.layer_arrays(layer)
        workspace = ctx.loan.workspace
        fused.run("forward mix feature_sums", workspace, arrays)

        found = fused.feature_moments(arrays, count)
        features, mix = Moments(_leaf(found.mean), _leaf(found.covariance), count), _leaf(layer.mix)
        cut = dataclasses.replace(layer, mix=mix)
        with _graph():
            decoded = algebra.fold_decoder(model, p, features, cut)
        w1, b1, w2, shift = decoded
        w3 = p["conv.3.weight"].flatten(1)
        centre = _float(w3 @ (w1 @ features.mean + b1).clamp(min=0))
        arrays |= {"w1": _float(w1), "b1": _float(b1), "w3": _float(w3), "centre": centre}
        fused.run("hidden", workspace, arrays)

        sums = _total(arrays["c_sums"]) / count
        c_mean, c_variance = _leaf(centre + sums[:, 0]), _leaf(sums[:, 1] - sums[:, 0] ** 2)
        with _graph():
            ends = algebra.fold_output(model, p, (c_mean, c_variance, count))
        arrays |= {"p": _float(ends[0]), "w2": _float(w2), "b2": _float(shift + ends[1])}
        result = _end(fused, "output leave", noisy, workspace, arrays)
        pairs = zip(PARAMETERS, parameters, strict=True)
        ctx.save_for_backward(noisy, *(one for name, one in pairs if not name.endswith("bias")))
        ctx.of = fused, arrays, p, keyed, count
        ctx.graphs = (layer, mean), (decoded, features, mix), (ends, c_mean, c_variance)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_result: Tensor) -> tuple[Tensor | None, ...]:
        """The parameters' gradients; the images get none."""
        _ = ctx.saved_tensors  # raises if one of them was changed since, or let go of
        fused, arrays, p, keyed, count = ctx.of
        (layer, mean), (decoded, features, mix), (ends, c_mean, c_variance) = ctx.graphs
        workspace = ctx.loan.workspace
        grads: dict[str, Tensor] = {}

        def back(outputs: list, gradients: list, *more: Tensor) -> list[Tensor]:
            """Through a part of the algebra: add to `grads`, return the gradients of `more`."""
            with _graph():  # a sum of products: to take gradients itself, torch loads sympy
                total = sum((one * given).sum() for one, given in zip(outputs, gradients, strict=True))
            found = torch.autograd.grad(total, [*p.values(), *more], allow_unused=True, retain_graph=True)
            for name, value in zip(p, found, strict=False):
                if value is not None:
                    grads[name] = grads[name] + value if name in grads else value
            return list(found[len(p) :])

        arrays = arrays | {"d_result": _by_block(d_result, fused.problem.lanes)}
        fused.run("enter_gradient output_backward", workspace, arrays)
        d_b2 = _total(arrays["d_b2"])
        d_mean, d_variance = back(ends, [_total(arrays["d_p"]), d_b2], c_mean, c_variance)
        e1 = 2 * d_variance / count
        arrays |= {"e0": _float(d_mean / count - e1 * c_mean), "e1": _float(e1)}
        fused.run("hidden_backward", workspace, arrays)

        grads["conv.3.weight"] = _total(arrays["d_w3"]).view_as(p["conv.3.weight"])
        gradients = [_total(arrays["d_w1"]), _total(arrays["d_b1"]), _total(arrays["d_w2"]), d_b2]
        d_mean, d_covariance, d_mix = back(decoded, gradients, features.mean, features.covariance, mix)
        q_matrix = (d_covariance + d_covariance.T) / count
        q = d_mean / count - q_matrix @ features.mean
        arrays |= {"q_matrix": _float(q_matrix), "q": _float(q)}
        fused.run("feature_gradient mix_backward backward", workspace, arrays)

        d_filters, d_content = fused.layer_gradients(arrays, len(d_result))
        if fused.problem.u > 1:
            d_mix = _total(arrays["d_mix"]).view_as(mix)
        [d_keyed] = back([layer.filters, layer.content, layer.mix], [d_filters, d_content, d_mix], mean)
        grads["keys.0.weight"] = _keys_gradient(d_keyed.flatten(1, 2), keyed).view_as(p["keys.0.weight"])
        of_parameters = (grads[name].float() if name in grads else None for name in PARAMETERS)
        return None, None, None, *of_parameters


@contextlib.contextmanager
def _graph() -> Iterator[None]:
    """Record a graph of the algebra; hooks that the caller has for saved tensors are not for its tensors.

    Each tensor is saved without its graph: an operation that saves its own result would hold itself forever.
    """
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(Tensor.detach, Tensor.detach):
        yield


def run(model: torch.nn.Module, noisy: Tensor) -> Tensor:
    """The network in its mode: (b, 3, h, w) to the same."""
    return train(model, noisy) if model.training else evaluate(model, noisy)


def train(model: torch.nn.Module, noisy: Tensor) -> Tensor:
    """The network in training mode: (b, 3, h, w) to the same, differentiable by its parameters."""
    named = dict(model.named_parameters())
    fused = compiled(problem(model, noisy))
    return Step.apply(fused, model, noisy, *map(named.get, PARAMETERS))  # None: no shortcut


@torch.no_grad()
def evaluate(model: torch.nn.Module, noisy: Tensor) -> Tensor:
    """The network in evaluation mode: (b, 3, h, w) to the same."""
    fused = compiled(problem(model, noisy))
    p = {name: parameter.double() for name, parameter in model.named_parameters()}
    loan, arrays, keyed = _begin(fused, noisy, p, "means")
    layer = algebra.fold_layer(model, p, None, keyed[..., :3].unflatten(1, (model.k, model.u)))
    w1, b1, w2, shift = algebra.fold_decoder(model, p, None, layer)
    scale, offset = algebra.fold_output(model, p, None)
    arrays |= fused.layer_arrays(layer) | {"w1": _float(w1), "b1": _float(b1), "w2": _float(w2)}
    arrays |= {"w3": _float(p["conv.3.weight"].flatten(1))}
    arrays |= {"p": _float(scale), "b2": _float(shift + offset)}
    return _end(fused, "forward mix decode leave", noisy, loan.workspace, arrays)


def problem(model: torch.nn.Module, noisy: Tensor) -> Problem:
    """What has to be compiled for a batch; few images take vectors of half the length."""
    h, w = noisy.shape[-2:]
    lanes = codegen.lanes()
    if len(noisy) <= lanes // 2:
        lanes //= 2
    return Problem(h, w, model.embedding.shape[-1], model.u, model.k, model.heads, model.v, lanes)


@functools.cache
def compiled(wanted: Problem) -> Fused:
    """The kernels, compiled once in a process (about a second)."""
    return Fused(wanted)


def _begin(
    fused: Fused, noisy: Tensor, p: dict[str, Tensor], kernel: str
) -> tuple[Loan, dict[str, Tensor], Tensor]:
    """Images in lanes, their spectra and, by "moments" or "means", their means under the keys.

    These are (b, keys, 9), in float64; the kernel "means" fills in the first three.
    """
    lanes = fused.problem.lanes
    images = _by_block(noisy, lanes)
    blocks = len(images)
    kind = blocks, torch.get_num_threads()
    loan = Loan(fused.free, kind, functools.partial(Workspace, fused, *kind))
    mask = torch.ones_like(images[:, :, 0, 0, 0])
    mask.view(-1)[len(noisy) :] = 0
    arrays = loan.workspace.arrays | fused.tables | {
        "images": images, "mask": mask, "weights": _float(p["keys.0.weight"].flatten(1))
    }  # fmt: skip
    fused.run(f"enter {kernel} transform", loan.workspace, arrays)
    keyed = arrays["moments"].permute(0, 3, 1, 2).flatten(0, 1)[: len(noisy)].double()
    return loan, arrays, keyed


def _end(fused: Fused, names: str, noisy: Tensor, workspace: Workspace, arrays: dict[str, Tensor]) -> Tensor:
    blocks = workspace.counts[BLOCK]
    result = empty(blocks * fused.problem.lanes, *noisy.shape[1:])
    arrays |= {"result": result.unflatten(0, (blocks, -1))}
    fused.run(names, workspace, arrays)
    return result[: len(noisy)]


def _keys_gradient(d_mean: Tensor, keyed: Tensor) -> Tensor:
    """(keys, 3), from the gradient (b, keys, 3) of the means under the keys' softmax; see moments.py."""
    mean = keyed[..., :3]
    covariance = symmetric(keyed[..., 3:]) - mean[..., :, None] * mean[..., None, :]
    return torch.einsum("bkd,bkcd->kc", d_mean, covariance)


def _by_block(images: Tensor, lanes: int) -> Tensor:
    """(b, 3, h, w) to (blocks, lanes, 3, h, w), zeros for what the last block lacks."""
    missing = -len(images) % lanes
    if missing:
        images = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
    return images.contiguous().resolve_neg().unflatten(0, (-1, lanes))


def _total(array: Tensor) -> Tensor:
    return array.double().sum(0)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().double().requires_grad_()


def _float(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous()
