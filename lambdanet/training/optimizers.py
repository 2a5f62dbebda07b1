"""The optimizers by name, and their learning rate."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from lambdanet.backends.cuda import graphs
from lambdanet.config import Training


class Adam:
    """torch.optim.Adam with fused=True, by torch's functional form, for the CPU.

    Torch's own class loads torch.compile, which takes as long as a short training here.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float) -> None:
        self.parameters = list(parameters)
        self.defaults = {}  # nothing of it can be recorded as a CUDA graph
        self.param_groups, self.weight_decay = [{"lr": 0.0}], weight_decay
        self.state = {
            "exp_avgs": [torch.zeros_like(p) for p in self.parameters],
            "exp_avg_sqs": [torch.zeros_like(p) for p in self.parameters],
            "state_steps": [torch.zeros(()) for _ in self.parameters],
        }

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        gradients = [parameter.grad for parameter in self.parameters]
        adam(
            self.parameters, gradients, **self.state, max_exp_avg_sqs=[], fused=True, amsgrad=False,
            lr=self.param_groups[0]["lr"], weight_decay=self.weight_decay, beta1=0.9, beta2=0.999, eps=1e-8,
            maximize=False,
        )  # fmt: skip

    def state_dict(self) -> dict[str, list[Tensor]]:
        return self.state

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        for name, tensors in state.items():
            for mine, stored in zip(self.state[name], tensors, strict=True):
                mine.copy_(stored)


Optimizer = torch.optim.Optimizer | Adam


def create(name: str, model: nn.Module, weight_decay: float, device: torch.device) -> Optimizer:
    """Create "adam", "adamax" or "sgd" (with momentum 0.9), each with its L2 term.

    The first two count their steps on a GPU, so that a step can be recorded there.
    """
    parameters, on_gpu = model.parameters(), {"capturable": True} if device.type == "cuda" else {}
    if name == "sgd":
        return torch.optim.SGD(parameters, weight_decay=weight_decay, momentum=0.9, fused=True)
    if name == "adamax":
        return torch.optim.Adamax(parameters, weight_decay=weight_decay, **on_gpu)
    if on_gpu:
        return torch.optim.Adam(parameters, weight_decay=weight_decay, fused=True, **on_gpu)
    return Adam(parameters, weight_decay)


def learning_rate(settings: Training, step: int, steps_per_epoch: int) -> float:
    """The learning rate of one step, counted from 0 over all epochs."""
    if settings.schedule == "exponential":
        return settings.learning_rate * settings.decay ** (step // steps_per_epoch)
    total = settings.epochs * steps_per_epoch
    warmup = settings.warmup * total
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def set_rate(optimizer: Optimizer, rate: float, device: torch.device) -> None:
    """Set the learning rate: of a recorded step, in a tensor that it reads anew each time."""
    for group in optimizer.param_groups:
        if not graphs.usable(device, optimizer):
            group["lr"] = rate
        elif isinstance(group["lr"], Tensor) and group["lr"].device.type == device.type:
            group["lr"].fill_(rate)
        else:  # the first time, or from a checkpoint
            group["lr"] = torch.tensor(rate, device=device)
