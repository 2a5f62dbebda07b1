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
from lambdanet.backends.cpu.workspace import Loan, Workspaces, address, empty, zeros

ARRAYS = {
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
# One of these has a row for every block of images; the others are the same for all.
BY_BLOCK = frozenset(
    name
    for names in (
        "images mask image moments plain spectrum content heads_content t features sums centres products",
        "c c_sums output result d_result d_output o d_b2 d_p d_w2 da d_w3 d_b1 d_w1 d_mix d_heads_content",
        "d_filters d_constant d_content",
    )
    for name in names.split()
)

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


class Fused:
    """The compiled kernels for one problem, and the workspaces that are free."""

    def __init__(self, problem: Problem) -> None:
        self.problem, layer = problem, problem.layer
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
            {name: (ARRAYS[name].split(), body) for name, body in write.items()},
            problem.lanes,
            repr(problem),
        )
        self.kernels = {name: (kernel, ARRAYS[name].split()) for name, kernel in functions.items()}
        self.tables = {
            "analysis": torch.from_numpy(lambda_layer.analysis_table(layer)),
            "synthesis": torch.from_numpy(lambda_layer.synthesis_table(layer)),
        }
        self.to_spectra, self.from_spectra = map(torch.from_numpy, lambda_layer.filter_tables(layer))
        self.down = algebra.window(problem.h, problem.m)
        self.across = algebra.window(problem.w, problem.m)
        self.free = Workspaces()
        self.plans: dict[str, tuple[list, list[str]]] = {}

    def plan(self, names: str, workspace: "Workspace") -> tuple[list, list[str]]:
        """The kernels of these names, and which of their arrays are not in a workspace."""
        if names not in self.plans:
            wanted = [self.kernels[name] for name in names.split() if name in self.kernels]
            needed = dict.fromkeys(name for _, arrays in wanted for name in arrays)
            self.plans[names] = wanted, [name for name in needed if name not in workspace.places]
        return self.plans[names]

    def run(self, names: str, workspace: "Workspace", arrays: dict[str, Tensor]) -> None:
        """Run kernels one after the other for every block, the blocks shared out among torch's threads.

        Args:
            names: of the kernels; "mix" and "mix_backward" are left out where nothing is mixed.
            workspace: of this batch.
            arrays: by name, with those of the workspace or without. Those of `BY_BLOCK` have a row for each
                block.
        """
        wanted, others = self.plan(names, workspace)
        places = workspace.places | {name: _place(name, arrays[name]) for name in others}
        blocks, threads = workspace.blocks, torch.get_num_threads()

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
    """Memory for one batch, from the forward pass to its backward pass.

    What is to work in has a row for each thread, and its name ends in "*".
    """

    def __init__(self, fused: Fused, blocks: int) -> None:
        p, layer, L = fused.problem, fused.problem.layer, fused.problem.lanes
        nf, n, C, H = layer.frequencies, p.pixels, p.features, p.hidden
        self.blocks, self.threads = blocks, torch.get_num_threads()

        def of_blocks(*shape: int) -> Tensor:
            return empty(blocks, *shape)

        def of_threads(*shape: int) -> Tensor:
            return empty(self.threads, *shape)

        self.arrays = fused.tables | {
            "image": of_blocks(4, n, L), "moments": of_blocks(p.k * p.u, 9, L), "plain": of_blocks(9),
            "spectrum": zeros(blocks, nf, p.h + 2 * lambda_layer.PAD, 6, L),
            "features": of_blocks(n, C, L), "sums": of_blocks(C), "centres": of_blocks(C, L),
            "products": of_blocks(C, C), "c": of_blocks(n, 3, L), "c_sums": of_blocks(3, 2),
            "output": of_blocks(3, n, L), "d_output": of_blocks(3, n, L), "o": of_blocks(n, 3, L),
            "d_b2": of_blocks(3), "d_p": of_blocks(3), "d_w2": of_blocks(3, C), "da": of_blocks(n, H, L),
            "d_w3": of_blocks(3, H), "d_b1": of_blocks(H), "d_w1": of_blocks(H, C),
            "d_filters": of_blocks(layer.groups, 4, nf, p.m, 2), "d_constant": of_blocks(layer.groups, 4, n),
            "d_content": of_blocks(layer.groups, 4, 4, L),
            "largest*": of_threads(p.k * p.u, L), "parts*": of_threads(p.w // 2, 6, L),
            "product*": of_threads(p.h * 6 * nf, L), "t_group*": of_threads(n, 3, L),
            "lane_products*": of_threads(C * C, L),
            "lane_w2*": of_threads(3 * C, L), "lane_w3*": of_threads(3 * H, L),
            "lane_b1*": of_threads(H, L), "lane_w1*": of_threads(H * C, L), "dc*": of_threads(p.w, 3, L),
            "r*": of_threads(p.w, H, L), "gradient*": of_threads(n, C, L),
        }  # fmt: skip
        if p.u == 1:
            self.arrays |= {"t": self.arrays["features"], "d_t*": self.arrays["gradient*"]}
        else:
            self.arrays |= {
                "t": of_blocks(n, layer.channels, L), "d_t*": of_threads(n, layer.channels, L),
                "lane_mix*": of_threads(p.v * 4 * p.u, L), "d_mix": of_blocks(p.v, 4 * p.u),
                "d_heads_content": of_blocks(p.heads, p.v, 4, L),
            }  # fmt: skip
        self.places = {name.rstrip("*"): _place(name, array) for name, array in self.arrays.items()}


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
            with torch.enable_grad():
                total = Given.apply(gradients, *outputs)
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
    """Record a graph of the algebra; hooks that the caller has for saved tensors are not for its tensors."""
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
        yield


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class Given(torch.autograd.Function):
    """A number whose gradients by some tensors are given: torch loads sympy if it is given them itself."""

    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor], *outputs: Tensor) -> Tensor:
        """0, with these gradients by these outputs."""
        ctx.gradients = gradients
        return outputs[0].new_zeros(())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, _one: Tensor) -> tuple[Tensor | None, ...]:
        """What was given."""
        return None, *ctx.gradients


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
    loan = fused.free.borrow(kind, functools.partial(Workspace, fused, blocks))
    mask = torch.ones_like(images[:, :, 0, 0, 0])
    mask.view(-1)[len(noisy) :] = 0
    arrays = loan.workspace.arrays | {
        "images": images, "mask": mask, "weights": _float(p["keys.0.weight"].flatten(1))
    }  # fmt: skip
    fused.run(f"enter {kernel} transform", loan.workspace, arrays)
    keyed = arrays["moments"].permute(0, 3, 1, 2).flatten(0, 1)[: len(noisy)].double()
    return loan, arrays, keyed


def _end(fused: Fused, names: str, noisy: Tensor, workspace: Workspace, arrays: dict[str, Tensor]) -> Tensor:
    result = empty(workspace.blocks * fused.problem.lanes, *noisy.shape[1:])
    arrays |= {"result": result.unflatten(0, (workspace.blocks, -1))}
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


def _place(name: str, array: Tensor) -> tuple[int, int, int]:
    """Address, and bytes from a block to the next and from a thread to the next."""
    step = 4 * array.stride(0) if array.ndim else 0
    return address(array), step if name in BY_BLOCK else 0, step if name.endswith("*") else 0


def _total(array: Tensor) -> Tensor:
    return array.double().sum(0)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().double().requires_grad_()


def _float(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous()
