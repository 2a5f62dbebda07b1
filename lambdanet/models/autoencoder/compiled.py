"""The auto-encoder on a CPU by compiled kernels (strided.py), an image after the other in each thread.

What an image needs stays in the cache: forward its activations are stored for the backward pass, backward
nothing but the sums of the weights' gradients, of which each thread has its own. The results' last digits
depend on the number of threads.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir
from torch import Tensor, nn

from lambdanet.kernels import vectors
from lambdanet.kernels.threads import share
from lambdanet.models.autoencoder import strided
from lambdanet.models.autoencoder.strided import Image

LANES = 8  # 12 and 24 channels fill vectors of 8, not of 16
LAYERS = 6
ROOMS = 2  # kept for the next batch
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
            Image(f"a{i}", h >> half, w >> half, count, _padded(count) if i else count)
            for i, (count, half) in enumerate(zip(channels, halvings, strict=True))
        ]
        # The last gradient's channels are read one by one, the others' written as vectors.
        self.gradients = [
            Image(f"g{i}", one.h, one.w, one.channels, one.pitch) for i, one in enumerate(self.numbers)
        ]
        self.size, self.functions = (width, h, w), {}
        self.rooms: dict[int, dict[str, Tensor]] = {}

    def function(self, name: str) -> Callable[..., None]:
        """A kernel, compiled when it is first asked for: inference has no need of the larger one."""
        if name not in self.functions:
            body = {"forward": self._write_forward, "backward": self._write_backward}[name]
            request = repr((name, self.size)) + vectors.text_of(__file__)
            kernels = {name: (list(ARRAYS[name]), body)}
            self.functions |= vectors.compile_kernels(kernels, LANES, request, unroll=False)
        return self.functions[name]

    def _write_forward(self, k: vectors.Kernel) -> None:
        first, *_, last = a = self.numbers
        strided.write_each(k, first, lambda y, x, c: strided.get(k, "images", _planar(k, first, y, x, c)))
        for i in range(1, LAYERS + 1):

            def finish(value: ir.Value, _place: object, channel: object, i: int = i) -> ir.Value:
                value = k.add(value, k.load(f"b{i}", channel))
                return k.max(value, k.constant(0.0)) if i < LAYERS else _sigmoid(k, value)

            write = strided.write_down if i <= LAYERS // 2 else strided.write_up
            write(k, a[i - 1], a[i], f"w{i}", finish)
        with k.loop(last.h) as y, k.loop(last.w) as x:
            for c in range(last.channels):
                value = strided.get(k, last.name, _place(k, last, y, x, c))
                strided.put(k, value, "result", _planar(k, last, y, x, c))

    def _write_backward(self, k: vectors.Kernel) -> None:
        a, g = self.numbers, self.gradients

        def slope(y: ir.Value, x: ir.Value, c: int) -> ir.Value:
            build, value = k.build, strided.get(k, a[LAYERS].name, _place(k, a[LAYERS], y, x, c))
            gradient = strided.get(k, "d_result", _planar(k, a[LAYERS], y, x, c))
            return build.fmul(gradient, build.fsub(value, build.fmul(value, value)))

        strided.write_each(k, g[LAYERS], slope)
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


class Lease:
    """What is kept of each image, with borders of zeros; it goes back when nobody can ask for it any more."""

    def __init__(self, kernels: Kernels, count: int) -> None:
        """Take what fits, or make it."""
        self.kernels, self.count = kernels, count
        self.arrays = kernels.rooms.pop(count, None)  # at once, as other threads may ask too
        if self.arrays is None:
            self.arrays = {one.name: _zeros(count, one.floats) for one in kernels.numbers}

    def __del__(self) -> None:
        if self.arrays is not None:
            rooms = self.kernels.rooms
            rooms[self.count] = self.arrays
            for old in tuple(rooms)[:-ROOMS]:
                rooms.pop(old, None)


class Step(torch.autograd.Function):
    """The whole network: images and parameters to output."""

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, noisy: Tensor, *given: Tensor) -> Tensor:
        """Run the network on (b, 3, h, w)."""
        result = torch.empty_like(noisy, memory_format=torch.contiguous_format)
        lease = Lease(kernels, len(noisy))
        arrays = lease.arrays | {"images": noisy.contiguous().flatten(1), "result": result.flatten(1)}
        for i, (weight, bias) in enumerate(zip(given[::2], given[1::2], strict=True), 1):
            out = kernels.numbers[i]
            arrays[f"w{i}"] = _packed(weight, up=i > LAYERS // 2, pitch=out.pitch)
            arrays[f"b{i}"] = _padded_to(bias, out.pitch)
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
        arrays = lease.arrays | {"d_result": d_result.contiguous().flatten(1)}
        for i in range(1, LAYERS + 1):
            weight, up, coarse = given[2 * i - 2], i > LAYERS // 2, kernels.numbers[i - (i > LAYERS // 2)]
            before = kernels.numbers[i - 1]
            arrays[f"g{i}"] = _zeros(threads, kernels.gradients[i].floats)
            arrays[f"w{i}"] = _packed(weight, up=not up, pitch=before.pitch) if i > 1 else weight
            arrays[f"d_w{i}"] = _zeros(threads, 16 * weight.shape[1] * coarse.pitch)
            arrays[f"d_b{i}"] = _zeros(threads, kernels.numbers[i].pitch)
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
    result = _zeros(*weight.shape[:3], pitch)
    result[..., : weight.shape[3]] = weight
    return result.flatten()


def _padded_to(vector: Tensor, length: int) -> Tensor:
    result = _zeros(length)
    result[: len(vector)] = vector.detach()
    return result


def _padded(channels: int) -> int:
    return -(-channels // LANES) * LANES


def _sigmoid(k: vectors.Kernel, value: ir.Value) -> ir.Value:
    # Far below -87 the exponential would overflow; the sigmoid is 0 there in any case.
    exponential = k.exp(k.least_of(k.neg(value), k.constant(87.0)))
    return k.div(k.constant(1.0), k.add(k.constant(1.0), exponential))


def _place(k: vectors.Kernel, image: Image, y: ir.Value, x: ir.Value, c: int) -> ir.Value:
    return k.sum((y, image.row), (x, image.pitch), image.row + image.pitch + c)


def _planar(k: vectors.Kernel, image: Image, y: ir.Value, x: ir.Value, c: int) -> ir.Value:
    """The place in (3, h, w)."""
    return k.sum((y, image.w), x, c * image.h * image.w)


def _steps(name: str, array: Tensor) -> tuple[int, int, int]:
    """Address, and bytes from an image to the next and from a thread to the next."""
    step = 4 * array.stride(0) if array.ndim == 2 else 0
    return (array.data_ptr(), step, 0) if name in BY_IMAGE else (array.data_ptr(), 0, step)


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device="cpu")  # whatever is usual
