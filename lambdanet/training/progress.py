"""Show a training's progress: a bar in a terminal, a plain line per epoch anywhere else.

Not a dependency in DVC: it prints how far a training is.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from types import TracebackType

from torch import Tensor
from tqdm import tqdm

REFRESH_SECONDS = 0.5
NOTE_SECONDS = 60

# A row of the history, and how long its epoch took: None for one that an earlier process began.
OnEpoch = Callable[[dict, float | None], None]


def ignore(row: dict, seconds: float | None) -> None:
    """The `OnEpoch` that does nothing."""


class Progress:
    """Progress over `epochs` x `steps` optimiser steps, of which `done` are behind us."""

    def __init__(self, label: str, epochs: int, steps: int, done: int, on_epoch: OnEpoch = ignore) -> None:
        self.label, self.epochs, self.steps, self.on_epoch = label, epochs, steps, on_epoch
        self.first = self.done = done
        self.started = self.shown = self.noted = time.monotonic()
        self.epoch_started = None if done % steps else self.started
        self.bar = tqdm(
            total=epochs * steps, initial=done, desc=label, unit="step", disable=not sys.stderr.isatty(),
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed} + {remaining} left{postfix}", leave=False,
        )  # fmt: skip
        self.last_psnr = ""
        if done:
            self.note(f"going on from epoch {done / steps:.1f} of {epochs}")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def step(self, loss: Tensor) -> bool:
        """Count one step; the loss is read, which waits for the device, only when it is shown.

        Returns:
            Whether a minute has passed since an epoch ended or this was last true.
        """
        self.done += 1
        now = time.monotonic()
        if not self.bar.disable and now - self.shown > REFRESH_SECONDS:
            self.shown = now
            epoch = f"epoch {(self.done - 1) // self.steps + 1}/{self.epochs}"
            self.bar.set_postfix_str(f"{epoch}, loss {loss.item():.5f}{self.last_psnr}", refresh=False)
            self.bar.update(self.done - self.bar.n)
        if now - self.noted < NOTE_SECONDS:
            return False
        self.noted = now
        if self.bar.disable:
            self.note(
                f"step {self.done:,} of {self.epochs * self.steps:,}: loss {loss.item():.5f}{self.time_left}"
            )
        return True

    def epoch(self, row: dict) -> None:
        """Show an ended epoch's row of the history, and pass it on."""
        self.last_psnr = f", {row['monitored_psnr']:.2f} dB"
        self.noted = time.monotonic()
        if self.bar.disable or row["epoch"] == self.epochs:
            numbers = f"loss {row['loss']:.5f}{self.last_psnr}"
            self.note(f"epoch {row['epoch']}/{self.epochs}: {numbers}{self.time_left}")
        now = time.monotonic()
        seconds = None if self.epoch_started is None else now - self.epoch_started
        self.epoch_started = now
        self.on_epoch(row, seconds)

    @property
    def time_left(self) -> str:
        """Time since this process began to train, and what the rest will take at this speed."""
        passed = time.monotonic() - self.started
        left = self.epochs * self.steps - self.done
        rest = f", {tqdm.format_interval(left / (self.done - self.first) * passed)} left" if left else ""
        return f", {tqdm.format_interval(passed)}{rest}"

    def note(self, text: str) -> None:
        """Print one line above the bar.

        Whoever reads it may have been killed; a training does not end by that, and not without a checkpoint.
        """
        with contextlib.suppress(OSError):
            tqdm.write(f"{self.label}: {text}", file=sys.stderr)
