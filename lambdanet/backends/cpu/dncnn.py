"""DnCNN on a CPU by compiled kernels (winograd.py): training and inference, of any size.

Of a layer only the convolution's output z and, backward, the gradient g after its normalisation and ReLU are
stored. With a = weight / sqrt(variance + eps) and m the mean of z,

    x = max(a z + (bias - a m), 0),
    d_bias = sum g,  d_weight = sum g (z - m) / sqrt(variance + eps),
    d_z = a (g - mean of g - (z - m) mean of g (z - m) / (variance + eps)),

the last two from sums that the kernels return. Channels are padded with zeros to whole vectors.
The results' last digits depend on the number of threads.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambdanet.backends.cpu import codegen, winograd
from lambdanet.backends.cpu.parallel import parallel_for
from lambdanet.backends.cpu.winograd import MOST_TILES, POINTS, ROWS, TILE, Shape
from lambdanet.backends.cpu.workspace import THREAD, Array, Loan, empty, zeros

FILTER = torch.from_numpy(winograd.FILTER).float()

Line = tuple[Tensor, Tensor, Tensor, Tensor]  # a convolution's output; slope, curve and level of its gradient


def run(model: nn.Module, noisy: Tensor) -> Tensor:
    """A DnCNN: (b, 3, h, w) to the same, differentiable by its parameters."""
    output = run_layers(model.dncnn, noisy)
    return noisy - output if model.residual else output


def run_layers(layers: nn.Sequential, noisy: Tensor) -> Tensor:
    """The layers of `DnCNN.dncnn`: (b, 3, h, w) to the same, differentiable by their parameters."""
    parts = Parts(layers)
    if layers.training:
        parameters = (*parts.weights, *(one for norm in parts.norms for one in (norm.weight, norm.bias)))
        return Step.apply(parts, noisy, *parameters)
    machine = Machine(parts, noisy)
    known = [machine.affine(i, norm.running_mean, norm.running_var) for i, norm in enumerate(parts.norms)]
    *_, output = machine.forward(machine.images(noisy), lambda i, _sums: known[i])
    return machine.colours(output)


class Parts:
    """The convolutions and normalisations of a network."""

    def __init__(self, layers: nn.Sequential) -> None:
        """Take `DnCNN.dncnn` apart."""
        first, _, *inner, last = layers
        self.weights = [one.weight for one in (first, *inner[::3], last)]
        self.norms = inner[1::3]
        self.width = first.out_channels


@dataclass(frozen=True)
class Affine:
    """A convolution's output z, normalised: scale z + shift; its mean (0 where there is no normalisation).

    All are of float32 and padded, but for the last: weight / scale, in float64.
    """

    scale: Tensor
    shift: Tensor
    mean: Tensor
    deviation: np.ndarray


class Machine:
    """The kernels for a network and the images that it runs on."""

    def __init__(self, parts: Parts, noisy: Tensor) -> None:
        """Choose how a batch (b, 3, h, w) is cut into units of work; see `winograd`."""
        self.parts, self.lanes, self.threads = parts, codegen.lanes(), torch.get_num_threads()
        self.channels = -(-parts.width // self.lanes) * self.lanes
        self.shapes = _shapes(self.channels, self.lanes)
        self.count, _, self.h, self.w = noisy.shape
        rows, columns = cut(self.count, self.h, self.w, self.threads)
        pixels = [min(TILE * rows, self.h - y) * self.w for y in range(0, self.h, TILE * rows)]
        self.pixels = np.tile(pixels, self.count)[:, None]  # of each unit
        self.units, self.total = len(self.pixels), self.count * self.h * self.w
        self.threads = min(self.threads, self.units)
        ends = [self.units * thread // self.threads for thread in range(self.threads + 1)]
        sizes = [(*part, self.h, self.w, rows, columns) for part in pairwise(ends)]
        self.sizes = torch.tensor(sizes, device="cpu")
        stacked = torch.stack([one for norm in parts.norms for one in (norm.weight, norm.bias)]).detach()
        self.norms = np.zeros((len(parts.norms), 2, self.channels))  # weights and biases, padded
        self.norms[..., : parts.width] = stacked.view(-1, 2, parts.width)

    def images(self, given: Tensor) -> Tensor:
        """(b, 3, h, w) to (b, h, w, lanes)."""
        result = zeros(self.count, self.h, self.w, self.lanes)
        result[..., :3] = given.permute(0, 2, 3, 1)
        return result

    def colours(self, images: Tensor) -> Tensor:
        """(b, h, w, lanes) to (b, 3, h, w)."""
        return images[..., :3].permute(0, 3, 1, 2).contiguous()

    def forward(
        self, images: Tensor, normalise: Callable[[int, Tensor], Affine], *, summed: bool = False
    ) -> Iterator[Tensor]:
        """The convolutions' outputs, one after the other.

        Args:
            images: of `images`.
            normalise: for the number of an inner convolution and its sums, its normalisation.
            summed: whether sums are wanted.
        """
        ends, inner = self.filters()
        z = self._convolve("first", images, None, ends[0])[0]
        yield z
        affine = self.rectified()
        for i, u in enumerate(inner):
            z, sums = self._convolve("summed" if summed else "inner", z, affine, u)
            yield z
            affine = normalise(i, sums)
        yield self._convolve("last", z, affine, ends[1])[0]

    def _convolve(self, which: str, x: Tensor, affine: Affine | None, u: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.shapes[which]
        y = empty(self.count, self.h, self.w, shape.outputs)
        sums = empty(self.units, 3, shape.outputs)
        self._call("forward", which, {"x": x, "u": u, "y": y, "sums": sums} | _named(affine))
        return y, sums

    def backward(
        self,
        which: str,
        g: Tensor,
        line: Line | None,
        x: Tensor,
        affine: Affine | None,
        u: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Back through a convolution and what stands before it.

        Args:
            which: "first", "inner" or "last".
            g: the gradient by what follows the convolution.
            line: its output z, and slope, curve and level (see winograd.py); None: g is that of the output.
            x: the output of the convolution before it.
            affine: how that was normalised.
            u: the turned filters.

        Returns:
            The filters' gradient (outputs, inputs, 3, 3), still padded; the images', and sums of it.
        """
        shape = self.shapes[which]
        d_x = empty(self.count, self.h, self.w, shape.inputs)
        sums = empty(self.units, 2, shape.inputs)
        of_line = dict(zip(("z", "slope", "curve", "level"), line or (), strict=False))
        arrays = {"g": g, "x": x, "u": u, "d_x": d_x, "sums": sums} | of_line | _named(affine)
        loan = self._call("backward", which, arrays)
        found = loan.workspace["d_w"][:, : 9 * shape.inputs * shape.outputs].numpy()
        d_w = torch.from_numpy(found.sum(0))  # torch would wake its threads for so little
        return filter_gradient(d_w, shape, self.lanes), d_x, sums

    def _call(self, direction: str, which: str, arrays: dict[str, Tensor]) -> Loan:
        """Run a kernel on every thread; the workspace that it worked in."""
        kernels, takes = compiled(direction, self.channels, self.lanes), takes_of(direction, which)
        loan = Loan(kernels.free, self.threads, functools.partial(kernels.workspace, self.threads))
        arrays = loan.workspace | arrays | {"n": self.sizes}
        sizes = self.count, self.h, self.w, self.units
        contracts = _contracts(direction, self.shapes[which], *sizes) | kernels.contracts
        counts = {THREAD: self.threads}
        places = [contracts[name].enter(name, arrays[name], counts) for name in takes]
        call = kernels.functions[which]
        parallel_for(lambda thread: call(*(base + step * thread for base, _, step in places)), self.threads)
        return loan

    def filters(self, *, turned: bool = False) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The first and last convolution's transformed filters, and those of all between."""
        first, *inner, last = self.parts.weights
        ends = tuple(transformed(one[None], self.lanes, turned=turned)[0] for one in (first, last))
        return ends, transformed(torch.stack(inner), self.lanes, turned=turned)

    def affine(self, i: int, mean: np.ndarray, variance: np.ndarray) -> Affine:
        """An inner convolution's normalisation, by this mean and variance (channels, perhaps padded)."""
        weight, bias = self.norms[i]
        result = zeros(3, self.channels)  # numpy's own arrays need not lie as vectors have to
        found = result.numpy()
        deviation = np.ones(self.channels)
        deviation[: len(variance)] = np.sqrt(np.float64(variance) + self.parts.norms[i].eps)
        scale = weight / deviation
        found[0] = scale
        found[2, : len(mean)] = mean
        found[1] = bias - scale * found[2]
        return Affine(*result, deviation)

    def rectified(self) -> Affine:
        """What follows the first convolution: ReLU alone."""
        nothing = zeros(self.channels)
        return Affine(zeros(self.channels) + 1, nothing, nothing, np.ones(self.channels))


class Step(torch.autograd.Function):
    """The network in training mode: images and parameters to output."""

    @staticmethod
    def forward(ctx: Any, parts: Parts, noisy: Tensor, *parameters: Tensor) -> Tensor:
        """Run the layers on (b, 3, h, w), and move their running statistics."""
        machine = Machine(parts, noisy)
        affine, found = [machine.rectified()], []

        def normalise(i: int, sums: Tensor) -> Affine:
            found.append(moments(sums, machine.pixels))
            affine.append(machine.affine(i, *found[-1]))
            return affine[-1]

        images = machine.images(noisy)
        *outputs, result = machine.forward(images, normalise, summed=True)
        _follow(parts, np.array(found), machine.total)
        filters, norms = parameters[: len(parts.weights)], parameters[len(parts.weights) :]
        ctx.save_for_backward(noisy, *filters, *norms[::2])  # what autograd would save
        ctx.of = machine, images, outputs, affine
        return machine.colours(result)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_result: Tensor) -> tuple[Tensor | None, ...]:
        """The parameters' gradients; the images get none."""
        _ = ctx.saved_tensors  # raises if one of them was changed since, or let go of
        machine, images, outputs, affine = ctx.of
        ends, inner = machine.filters(turned=True)
        d_w, g, sums = machine.backward(
            "last", machine.images(d_result), None, outputs[-1], affine[-1], ends[1]
        )
        of_weights, of_norms = [d_w], []
        for i in reversed(range(len(inner))):
            norm, deviation = affine[i + 1], affine[i + 1].deviation
            sum_g, sum_gz = sums.numpy().sum(0, np.float64)
            of_norms += [sum_g, sum_gz / deviation]
            line = empty(3, machine.channels)
            slope = machine.norms[i, 0] / deviation
            curve = -slope * sum_gz / (deviation**2 * machine.total)
            line.numpy()[:] = slope, curve, -slope * sum_g / machine.total - curve * norm.mean.numpy()
            line = outputs[i + 1], *line
            d_w, g, sums = machine.backward("inner", g, line, outputs[i], affine[i], inner[i])
            of_weights.append(d_w)
        of_weights.append(machine.backward("first", g, None, images, None, ends[0])[0])
        ours = [
            d_w[: len(weight), : weight.shape[1]]
            for d_w, weight in zip(reversed(of_weights), machine.parts.weights, strict=True)
        ]
        theirs = torch.from_numpy(np.array(of_norms[::-1], np.float32)[:, : machine.parts.width])
        return None, None, *ours, *theirs


class Kernels:
    """Compiled kernels of one direction, and the workspaces that are free."""

    def __init__(self, direction: str, channels: int, lanes: int) -> None:
        """Compile them, or take what an earlier process compiled."""
        write = {"forward": _forward, "backward": _backward}[direction]
        bodies = {
            which: ([*takes_of(direction, which)], functools.partial(write, which=which, shape=shape))
            for which, shape in _shapes(channels, lanes).items()
            if (direction, which) != ("backward", "summed")
        }
        self.functions = codegen.compile_kernels(bodies, lanes, repr((direction, channels, lanes)))
        self.free = {}
        sizes = {"inside": winograd.BORDERED * channels} | dict.fromkeys("vm", winograd.length(channels))
        if direction == "backward":
            sizes |= {"outside": sizes["inside"], "s": sizes["v"]}
            sizes |= {"d_u": POINTS * channels**2, "d_w": 9 * channels**2}
        self.kept = {name: Array((size,), THREAD) for name, size in sizes.items()}
        self.contracts = self.kept | {"n": Array((len(winograd.SIZES),), THREAD, torch.int64)}

    def workspace(self, threads: int) -> dict[str, Tensor]:
        """Memory to work in, with a row for each thread."""
        return {name: zeros(*one.whole({THREAD: threads})) for name, one in self.kept.items()}


@functools.cache
def compiled(direction: str, channels: int, lanes: int) -> Kernels:
    """The kernels, compiled once in a process (some seconds), and kept on disk for others."""
    return Kernels(direction, channels, lanes)


def cut(count: int, h: int, w: int, threads: int) -> tuple[int, int]:
    """Rows and columns of tiles of a block, so that few are computed in vain and no thread waits for long."""
    down, across = -(-h // TILE), -(-w // TILE)
    columns = -(-across // -(-across // MOST_TILES))

    def cost(rows: int) -> tuple[float, int]:
        tiles = [-(-min(rows, down - first) * columns // ROWS) for first in range(0, down, rows)]
        if count * len(tiles) >= 8 * threads:
            return count * sum(tiles) / threads, -rows
        units = tiles * count
        ends = [len(units) * thread // threads for thread in range(threads + 1)]
        return max(sum(units[begin:end]) for begin, end in pairwise(ends)), -rows

    return min(range(1, min(down, MOST_TILES // columns) + 1), key=cost), columns


def transformed(weights: Tensor, lanes: int, *, turned: bool) -> Tensor:
    """Filters (n, outputs, inputs, 3, 3) as the kernels take them: (n, 36, columns / panel, rows, panel).

    Columns are outputs and rows inputs; where `turned`, by 180 degrees, the other way round.
    """
    if turned:
        weights = weights.flip(3, 4).transpose(1, 2)
    n, columns, rows = weights.shape[:3]
    weights = F.pad(weights, (0, 0, 0, 0, 0, -rows % lanes, 0, -columns % lanes))
    _, columns, rows = weights.shape[:3]
    wide = winograd.panel(columns, lanes)
    weights = weights.reshape(n, columns // wide, wide, rows, 9).permute(0, 4, 1, 3, 2)
    return FILTER @ weights.reshape(n, 9, -1)


def filter_gradient(d_w: Tensor, shape: Shape, lanes: int) -> Tensor:
    """(outputs, inputs, 3, 3), from the same as the kernels have it: (9, outputs / panel, inputs, panel)."""
    wide = winograd.panel(shape.outputs, lanes)
    taps = d_w.view(3, 3, shape.outputs // wide, shape.inputs, wide).permute(2, 4, 3, 0, 1)
    return taps.reshape(shape.outputs, shape.inputs, 3, 3)


def moments(sums: Tensor, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of a convolution's output, in float64, from each unit's sums about its own value."""
    centre, first, second = sums.numpy().astype(np.float64).swapaxes(0, 1)
    total = pixels.sum()
    mean = (pixels * centre + first).sum(0) / total
    d = centre - mean
    return mean, (second + d * (2 * first + pixels * d)).sum(0) / total


@torch.no_grad()
def _follow(parts: Parts, found: np.ndarray, count: int) -> None:
    """Move the running statistics by means and variances (norms, 2, channels), as torch does."""
    norms = parts.norms
    found[:, 1] *= count / (count - 1)
    values = torch.from_numpy(found[..., : parts.width].astype(np.float32))
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
    for which, running in enumerate(zip(*((n.running_mean, n.running_var) for n in norms), strict=True)):
        torch._foreach_lerp_(list(running), list(values[:, which]), norms[0].momentum)


def _shapes(channels: int, lanes: int) -> dict[str, Shape]:
    """Of each kind of convolution; "summed" is an inner one whose output is summed too, forward."""
    inner = Shape(channels, channels)
    return {"first": Shape(lanes, channels), "inner": inner, "summed": inner, "last": Shape(channels, lanes)}


@functools.lru_cache(maxsize=64)
def _contracts(direction: str, shape: Shape, count: int, h: int, w: int, units: int) -> dict[str, Array]:
    """Of the arrays that a convolution of `count` images is given."""
    inside, outside = ((count, h, w, one) for one in (shape.inputs, shape.outputs))
    sums = (units, 3, shape.outputs) if direction == "forward" else (units, 2, shape.inputs)
    shapes = {"x": inside, "d_x": inside, "y": outside, "g": outside, "z": outside, "sums": sums}
    shapes |= {"u": (POINTS, shape.inputs * shape.outputs)}
    shapes |= dict.fromkeys(("scale", "shift", "mean"), (shape.inputs,))
    shapes |= dict.fromkeys(("slope", "curve", "level"), (shape.outputs,))
    return {name: Array(one) for name, one in shapes.items()}


@functools.cache
def takes_of(direction: str, which: str) -> tuple[str, ...]:
    """The arrays that a kernel takes, in order; see winograd.py."""
    if direction == "forward":
        names = "x scale shift u inside v m y sums n"
        missing = {"first": "scale shift sums", "summed": ""}.get(which, "sums")
    else:
        names = "g z slope curve level x scale shift mean u inside outside v s m d_u d_w d_x sums n"
        line = "z slope curve level"
        missing = {"first": f"{line} scale shift mean u m d_x sums", "last": line}.get(which, "")
    return tuple(name for name in names.split() if name not in missing.split())


def _forward(k: codegen.Kernel, which: str, shape: Shape) -> None:
    winograd.write_forward(k, shape, active=which != "first", summed=which == "summed")


def _backward(k: codegen.Kernel, which: str, shape: Shape) -> None:
    further = which != "first"
    winograd.write_backward(k, shape, active=further, normalised=which == "inner", further=further)


def _named(affine: Affine | None) -> dict[str, Tensor]:
    return {"scale": affine.scale, "shift": affine.shift, "mean": affine.mean} if affine else {}
