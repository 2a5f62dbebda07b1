"""Show a training's progress: a bar in a terminal, a plain line per epoch and per minute anywhere else.

Not a dependency in DVC: it prints how far a training is.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable

from torch import Tensor
from tqdm import tqdm

NOTE_SECONDS = 60

# A row of the history, and how long its epoch took: None for one that an earlier process began.
OnEpoch = Callable[[dict, float | None], None]


def ignore(row: dict, seconds: float | None) -> None:
    """The `OnEpoch` that does nothing."""


class Progress:
    """Progress over `epochs` x `steps` optimiser steps, of which `done` are behind us."""

    def __init__(self, label: str, epochs: int, steps: int, done: int, on_epoch: OnEpoch = ignore) -> None:
        self.label, self.epochs, self.on_epoch = label, epochs, on_epoch
        self.first, self.done, self.total = done, done, epochs * steps
        self.started = self.noted = time.monotonic()
        self.epoch_started = None if done % steps else self.started
        self.bar = tqdm(
            total=self.total, initial=done, desc=label, unit="step", mininterval=0.5, disable=None,
            leave=False, bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed} + {remaining} left{postfix}",
        )  # fmt: skip
        if done:
            self.note(f"resumes from epoch {done / steps:.1f} of {epochs}")

    def step(self, loss: Tensor) -> bool:
        """Count one step; the loss is read, which waits for the device, only when it is shown.

        Returns:
            Whether a minute has passed since an epoch ended or this was last true.
        """
        self.done += 1
        self.bar.update()
        now = time.monotonic()
        if now - self.noted < NOTE_SECONDS:
            return False
        self.noted = now
        if self.bar.disable:
            self.note(f"step {self.done:,} of {self.total:,}: loss {loss.item():.5f}{self._times()}")
        return True

    def epoch(self, row: dict) -> None:
        """Show an ended epoch's row of the history, and pass it on."""
        self.noted = now = time.monotonic()
        numbers = f"loss {row['loss']:.5f}, {row['monitored_psnr']:.2f} dB"
        self.bar.set_postfix_str(f"epoch {row['epoch']}/{self.epochs}, {numbers}", refresh=False)
        if self.bar.disable or row["epoch"] == self.epochs:
            self.note(f"epoch {row['epoch']}/{self.epochs}: {numbers}{self._times()}")
        seconds = None if self.epoch_started is None else now - self.epoch_started
        self.epoch_started = now
        self.on_epoch(row, seconds)

    def note(self, text: str) -> None:
        """Print one line above the bar.

        Whoever reads it may have been killed; a training does not end by that, and not without a checkpoint.
        """
        try:
            tqdm.write(f"{self.label}: {text}", file=sys.stderr)
        except OSError:  # what is left to flush would make Python's exit status 120
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()

    def _times(self) -> str:
        """Time since this process began to train, and what the rest will take at this speed."""
        passed = time.monotonic() - self.started
        left = (self.total - self.done) / (self.done - self.first) * passed
        rest = f", {tqdm.format_interval(left)} left" if left else ""
        return f", {tqdm.format_interval(passed)}{rest}"
