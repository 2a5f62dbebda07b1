"""What a person sees of stages that run at once: one line each while they run, then one for good."""

import re
import sys
import threading
import time
from collections.abc import Callable

from rich.console import Console as Terminal
from rich.live import Live
from rich.text import Text

# What a stage prints that tells how far it is: `lambdanet/progress.py`, without the cell's name.
_PROGRESS = re.compile(r"^[\w.-]+: ((?:epoch|step|going on) .*)$")
MARKS = {"run": ("done", "green"), "unchanged": ("up to date", "dim")}


def progress(line: str) -> str:
    """What a stage's line says of how far it is; empty where it says nothing of that."""
    match = _PROGRESS.match(line)
    return match.group(1) if match else ""


class Console:
    """Thread-safe; a live display in a terminal, plain lines anywhere else."""

    def __init__(self, total: int, sink: Callable[[str], None] | None = None) -> None:
        """Begin to count.

        Args:
            total: stages that there are.
            sink: takes the lines instead of the terminal.
        """
        self.sink = sink
        self.total, self.ended = total, 0
        self.began = time.monotonic()
        self.running: dict[str, tuple[float, str]] = {}
        self.lock = threading.RLock()
        self.terminal = Terminal(file=sys.stderr, highlight=False, soft_wrap=True)
        self.live = Live(
            get_renderable=self._display, console=self.terminal, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> "Console":
        if self.terminal.is_terminal and not self.sink:
            self.live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.live.stop()

    def start(self, name: str) -> None:
        """A stage begins."""
        with self.lock:
            self.running[name] = (time.monotonic(), "")
        if self.sink or not self.terminal.is_terminal:
            self.say(f"start {name}")

    def line(self, name: str, text: str) -> None:
        """A stage has printed a line."""
        if found := progress(text):
            self.progress(name, found)

    def progress(self, name: str, text: str) -> None:
        """A stage is so far."""
        with self.lock:
            if name in self.running:
                self.running[name] = (self.running[name][0], text)

    def end(self, name: str, how: str) -> None:
        """A stage has ended: "run", "unchanged", or why it failed."""
        with self.lock:
            began, last = self.running.pop(name, (time.monotonic(), ""))
            self.ended += 1
        mark, style = MARKS.get(how, ("failed", "bold red"))
        text = f"{mark} {name}, {_time(time.monotonic() - began)}{': ' if last else ''}{last}"
        self.say(f"[{self.ended}/{self.total}] {how if mark == 'failed' else text}", style)

    def say(self, text: str, style: str = "") -> None:
        """Print a line that stays."""
        if self.sink:
            self.sink(text)
        else:
            self.terminal.print(Text(text, style=style))

    def _display(self) -> Text:
        with self.lock:
            lines = [
                f"  {name} {_time(time.monotonic() - began)} {last}"
                for name, (began, last) in self.running.items()
            ]
            left = self.total - self.ended - len(self.running)
            passed = time.monotonic() - self.began
            rest = (
                f", about {_time(passed / self.ended * (self.total - self.ended))} left" if self.ended else ""
            )
        lines.append(f"{self.ended} of {self.total} done, {left} waiting, {_time(passed)}{rest}")
        return Text("\n".join(lines))


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
