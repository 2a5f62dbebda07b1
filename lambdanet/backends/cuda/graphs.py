"""A training step recorded once as a CUDA graph and then replayed, without Python between its kernels.

What is recorded are the very kernels that run otherwise, so the results are the same bytes; a small network's
step is several times as fast, as launching its kernels takes longer than running them.

Not a dependency in DVC: a recorded step gives the bytes of one that is not (tests/backends/test_cuda.py).
"""

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor], Tensor]


def usable(device: torch.device, optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step can be recorded: on CUDA, with an optimizer that keeps all it counts on the device."""
    return device.type == "cuda" and optimizer.defaults.get("capturable", False)


class Recorded:
    """A step that runs as it is for the first batch of a size, and from the second on as a recorded graph.

    The first call is what warms up libraries and compiles kernels, which may not happen while recording;
    it is a step like any other.
    """

    def __init__(self, step: Step, generator: torch.Generator) -> None:
        """Take a step to record.

        Args:
            step: a function of a tensor on the device, of which it may read nothing back.
            generator: what the step draws its numbers from; it may be seeded anew before each call.
        """
        self.step, self.generator = step, generator
        self.aside = torch.cuda.Stream()
        self.warm: set[int] = set()
        self.recorded: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def __call__(self, batch: Tensor) -> Tensor:
        """Run the step; what it returns is overwritten by the next call."""
        size = len(batch)
        if size not in self.warm:
            self.warm.add(size)
            return self._run_aside(batch)
        if size not in self.recorded:
            self.recorded[size] = self._record(batch)
        graph, given, result = self.recorded[size]
        given.copy_(batch)
        graph.replay()
        return result

    def _run_aside(self, batch: Tensor) -> Tensor:
        """Recording is done on a separate stream; what is made lazily has to be made on such a one."""
        self.aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.aside):
            result = self.step(batch)
        torch.cuda.current_stream().wait_stream(self.aside)
        return result

    def _record(self, batch: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        graph, given = torch.cuda.CUDAGraph(), batch.clone()
        graph.register_generator_state(self.generator)
        pool = next((other.pool() for other, *_ in self.recorded.values()), None)
        with torch.cuda.graph(graph, pool=pool, stream=self.aside):
            result = self.step(given)
        return graph, given, result
