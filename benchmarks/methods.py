"""A network, and how it is run: what the benchmarks of networks time."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measuring import interleave, medians
from lambdanet.backends.cuda import graphs

LIMIT = 40  # seconds of turns of all methods

Step = Callable[[], None]
Seconds = dict[str, list[float]]
Within = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class Method:
    """A network with what stands around its forward pass, and the memory format of its images."""

    model: nn.Module
    within: Within = contextlib.nullcontext
    memory_format: torch.memory_format = torch.contiguous_format
    note: str = ""
    recorded: bool = False  # on a GPU: its training step as a graph, as our trainings run it
    around: Within = contextlib.nullcontext  # what stands around whole steps, backward and all

    def training(self, clean: Tensor, noisy: Tensor) -> Step:
        """One step: gradients to zero, forward, MSE, backward, Adam."""
        optimizer = torch.optim.Adam(self.model.parameters(), fused=True, capturable=self.recorded)
        noisy = noisy.contiguous(memory_format=self.memory_format)

        def learn(noisy: Tensor) -> Tensor:
            self.model.train()
            optimizer.zero_grad()
            with self.within():
                output = self.model(noisy)
            loss = F.mse_loss(output.float(), clean)
            loss.backward()
            optimizer.step()
            return loss.detach()

        if self.recorded:
            learn = graphs.Recorded(learn, torch.Generator(noisy.device))
            learn(noisy)  # interleave's first call is then the one that records

        def step() -> None:
            with self.around():
                learn(noisy)
            _wait(noisy)

        return step

    def inference(self, noisy: Tensor) -> Step:
        """One forward pass in evaluation mode, without gradients."""
        noisy = noisy.contiguous(memory_format=self.memory_format)

        def step() -> None:
            self.output(noisy)
            _wait(noisy)

        return step

    @torch.no_grad()
    def output(self, noisy: Tensor) -> Tensor:
        """The network's output in evaluation mode."""
        self.model.eval()
        with self.around(), self.within():
            return self.model(noisy)


Methods = dict[str, Method | str]  # a text says why one is missing


def autocast(device: str = "cpu") -> AbstractContextManager:
    """Convolutions and products in bfloat16."""
    return torch.autocast(device, torch.bfloat16)


def without_bf16() -> str | None:
    """Why convolutions in bfloat16 are not timed on this CPU, or None: without AVX-512 they take minutes."""
    return None if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no bfloat16 without AVX-512"


def measured(methods: dict[str, Method], clean: Tensor, noisy: Tensor, repeats: int) -> tuple[Seconds, ...]:
    """Seconds of training steps and of inferences, each in turns.

    Returns:
        Two dicts by method.
    """
    training = {name: method.training(clean, noisy) for name, method in methods.items()}
    inference = {name: method.inference(noisy) for name, method in methods.items()}
    return interleave(training, repeats, limit=LIMIT), interleave(inference, repeats, limit=LIMIT)


def compare(
    methods: Methods, clean: Tensor, noisy: Tensor, repeats: int, *, formulas: tuple[str, ...], exact: bool
) -> tuple[list[dict], Seconds]:
    """Time what there is and set it beside the slowest of `formulas` and beside the fastest.

    Args:
        methods: by name; a text in place of a method says why it is missing.
        clean: (n, 3, h, w).
        noisy: the same shape.
        repeats: turns.
        formulas: the names whose slowest is speed 1.
        exact: all have the same weights, so that their outputs can be set beside the first one's.

    Returns:
        A table's rows, and each call's seconds.
    """
    present = {name: method for name, method in methods.items() if isinstance(method, Method)}
    rows = {name: {"method": name} for name in methods}
    expected = next(iter(present.values())).output(noisy) if exact else None
    differences = {
        name: (method.output(noisy).float() - expected).abs().max().item() if exact else None
        for name, method in present.items()
    }
    seconds = {}
    for kind, found in zip(("training", "inference"), measured(present, clean, noisy, repeats), strict=True):
        times = medians(found, len(noisy))
        slowest = max(times[name] for name in formulas if name in times)
        for name, value in times.items():
            rows[name] |= {
                f"{kind}, ms/image": 1000 * value,
                f"{kind}, speed": slowest / value,
                f"{kind} / best": value / min(times.values()),
            }
        seconds |= {f"{kind}: {name}": values for name, values in found.items()}
    for name, method in methods.items():
        if exact and name in present:
            rows[name]["difference"] = differences[name]
        note = method.note if isinstance(method, Method) else method
        rows[name] |= {"note": note} if note else {}
    return list(rows.values()), seconds


def how(noisy: Tensor, seconds: Seconds) -> str:
    """How a table of `compare` was measured."""
    n, _, h, w = noisy.shape
    turns = min(map(len, seconds.values()))
    return (
        f"batch {n}, {h} x {w}, {torch.get_num_threads()} threads, medians of {turns} turns of all methods "
        "in one process"
    )


def _wait(images: Tensor) -> None:
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
