"""The auto-encoder on a CPU by compiled kernels (strided.py), an image after the other in each thread.

What an image needs stays in the cache: forward its activations are stored for the backward pass, backward
nothing but the sums of the weights' gradients, of which each thread has its own. The results' last digits
depend on the number of threads.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from llvmlite import ir
from torch import Tensor, nn

from lambdanet import files
from lambdanet.kernels import vectors
from lambdanet.kernels.rooms import Rooms, zeros
from lambdanet.kernels.threads import share
from lambdanet.models.autoencoder import strided
from lambdanet.models.autoencoder.strided import Image

LANES = 8  # 12 and 24 channels fill vectors of 8, not of 16
LAYERS = 6
NUMBERS = ("images", *(f"a{i}" for i in range(LAYERS + 1)), "result")
GRADIENTS = ("d_result", *(f"g{i}" for i in range(1, LAYERS + 1)))
WEIGHTS = tuple(f"w{i}" for i in range(1, LAYERS + 1))
ARRAYS = {
    "forward": (*NUMBERS, *WEIGHTS, *(f"b{i}" for i in range(1, LAYERS + 1))),
    "backward": (*NUMBERS[1:-1], *GRADIENTS, *WEIGHTS[1:], *(f"d_{w}" for w in WEIGHTS),
                 *(f"d_b{i}" for i in range(1, LAYERS + 1))),
}  # fmt: skip
BY_IMAGE = {"images", "result", "d_result", *NUMBERS[1:-1]}


def run(model: nn.Module, noisy: Tensor) -> Tensor:
    """The network: (b, 3, h, w) to the same, differentiable by its parameters; h and w multiples of 8."""
    return Step.apply(compiled(model.encoder[0].out_channels, *noisy.shape[2:]), noisy, *parameters(model))


def parameters(model: nn.Module) -> list[Tensor]:
    """Weight and bias of each layer, from the first to the last."""
    layers = [layer for layer in (*model.encoder, *model.decoder) if hasattr(layer, "weight")]
    return [one for layer in layers for one in (layer.weight, layer.bias)]


class Kernels:
    """The compiled kernels for one width and size of images."""

    def __init__(self, width: int, h: int, w: int) -> None:
        """Lay out the arrays."""
        channels = (3, width, 2 * width, 4 * width, 2 * width, width, 3)
        halvings = (0, 1, 2, 3, 2, 1, 0)
        self.numbers = [
            Image(f"a{i}", h >> half, w >> half, count, count + (-count % LANES if i else 0))
            for i, (count, half) in enumerate(zip(channels, halvings, strict=True))
        ]
        self.gradients = [dataclasses.replace(one, name=f"g{i}") for i, one in enumerate(self.numbers)]
        self.size, self.functions = (width, h, w), {}
        self.rooms = Rooms()

    def function(self, name: str) -> Callable[..., None]:
        """A kernel, compiled when it is first asked for: inference has no need of the larger one."""
        if name not in self.functions:
            body = {"forward": self._write_forward, "backward": self._write_backward}[name]
            request = repr((name, self.size)) + files.code_of(Path(__file__).parent)
            kernels = {name: (list(ARRAYS[name]), body)}
            self.functions |= vectors.compile_kernels(kernels, LANES, request, unroll=False)
        return self.functions[name]

    def _write_forward(self, k: vectors.Kernel) -> None:
        first, *_, last = a = self.numbers
        for place, planar in strided.each(k, first):
            k.put(k.get("images", planar), first.name, place)
        for i in range(1, LAYERS + 1):

            def finish(value: ir.Value, _place: object, channel: object, i: int = i) -> ir.Value:
                value = k.add(value, k.load(f"b{i}", channel))
                return k.max(value, k.constant(0.0)) if i < LAYERS else k.sigmoid(value)

            write = strided.write_down if i <= LAYERS // 2 else strided.write_up
            write(k, a[i - 1], a[i], f"w{i}", finish)
        for place, planar in strided.each(k, last):
            k.put(k.get(last.name, place), "result", planar)

    def _write_backward(self, k: vectors.Kernel) -> None:
        a, g = self.numbers, self.gradients

        for place, planar in strided.each(k, g[LAYERS]):
            value = k.get(a[LAYERS].name, place)
            slope = k.build.fsub(value, k.build.fmul(value, value))  # of the sigmoid
            k.put(k.build.fmul(k.get("d_result", planar), slope), g[LAYERS].name, place)
        for i in range(LAYERS, 0, -1):

            def finish(value: ir.Value, place: object, _channel: object, i: int = i) -> ir.Value:
                return k.where_positive(k.load(a[i - 1].name, place), value)

            strided.write_sum(k, g[i], f"d_b{i}")
            if i > LAYERS // 2:
                strided.write_outer(k, a[i - 1], g[i], f"d_w{i}")
                strided.write_down(k, g[i], g[i - 1], f"w{i}", finish)
            else:
                strided.write_outer(k, g[i], a[i - 1], f"d_w{i}")
                if i > 1:
                    strided.write_up(k, g[i], g[i - 1], f"w{i}", finish)

    def call(self, name: str, count: int, arrays: dict[str, Tensor]) -> None:
        """Run a kernel for each image, the images shared out among torch's threads.

        Args:
            name: of the kernel.
            count: of images.
            arrays: those of BY_IMAGE have a row for each image. Of the others, what has one dimension is
                shared, and what has two has a row for each thread.
        """
        threads = min(torch.get_num_threads(), count)
        places = [_steps(one, arrays[one]) for one in ARRAYS[name]]
        function = self.function(name)

        def work(thread: int) -> None:
            for image in range(count * thread // threads, count * (thread + 1) // threads):
                function(*(base + image * own + thread * threads_own for base, own, threads_own in places))

        share(work, threads)

    def images(self, count: int) -> dict[str, Tensor]:
        """What is kept of each image, with borders of zeros."""
        return {one.name: zeros(count, one.floats) for one in self.numbers}


class Step(torch.autograd.Function):
    """The whole network: images and parameters to output."""

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, noisy: Tensor, *given: Tensor) -> Tensor:
        """Run the network on (b, 3, h, w)."""
        result = torch.empty_like(noisy, memory_format=torch.contiguous_format)
        lease = kernels.rooms.lease(len(noisy), functools.partial(kernels.images, len(noisy)))
        arrays = lease.room | {"images": noisy.contiguous().flatten(1), "result": result.flatten(1)}
        for i, (weight, bias) in enumerate(zip(given[::2], given[1::2], strict=True), 1):
            out = kernels.numbers[i]
            arrays[f"w{i}"] = _packed(weight, up=i > LAYERS // 2, pitch=out.pitch)
            arrays[f"b{i}"] = F.pad(bias.detach(), (0, out.pitch - len(bias)))
        kernels.call("forward", len(noisy), arrays)
        ctx.of = kernels, lease
        ctx.save_for_backward(*given)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_result: Tensor) -> tuple[Tensor | None, ...]:
        """The parameters' gradients; the images get none."""
        kernels, lease = ctx.of
        given, threads = ctx.saved_tensors, torch.get_num_threads()
        arrays = lease.room | {"d_result": d_result.contiguous().flatten(1)}
        for i in range(1, LAYERS + 1):
            weight, up = given[2 * i - 2], i > LAYERS // 2
            before, after = kernels.numbers[i - 1 : i + 1]
            coarse = before if up else after
            arrays[f"g{i}"] = zeros(threads, kernels.gradients[i].floats)
            arrays[f"w{i}"] = _packed(weight, up=not up, pitch=before.pitch) if i > 1 else weight
            arrays[f"d_w{i}"] = zeros(threads, 16 * weight.shape[1] * coarse.pitch)
            arrays[f"d_b{i}"] = zeros(threads, after.pitch)
        kernels.call("backward", len(d_result), arrays)
        found: list[Tensor] = []
        for i, weight in enumerate(given[::2], 1):
            coarse, fine = weight.shape[:2]
            d_w = arrays[f"d_w{i}"].sum(0).view(4, 4, fine, -1)[..., :coarse].permute(3, 2, 0, 1).contiguous()
            found += [d_w, arrays[f"d_b{i}"].sum(0)[: len(given[2 * i - 1])]]
        return None, None, *found


@functools.cache
def compiled(width: int, h: int, w: int) -> Kernels:
    """The kernels, of which each is compiled once in a process, and kept on disk for others."""
    return Kernels(width, h, w)


def _packed(weight: Tensor, *, up: bool, pitch: int) -> Tensor:
    """(c, f, 4, 4) as `down` takes it, (4, 4, f, c), or as `up`, (4, 4, c, f); the last in whole vectors."""
    weight = weight.detach().permute(2, 3, 0, 1) if up else weight.detach().permute(2, 3, 1, 0)
    result = zeros(*weight.shape[:3], pitch)
    result[..., : weight.shape[3]] = weight
    return result.flatten()


def _steps(name: str, array: Tensor) -> tuple[int, int, int]:
    """Address, and bytes from an image to the next and from a thread to the next."""
    step = 4 * array.stride(0) if array.ndim == 2 else 0
    return (array.data_ptr(), step, 0) if name in BY_IMAGE else (array.data_ptr(), 0, step)
