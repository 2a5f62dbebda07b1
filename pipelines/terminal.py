"""What the terminal shows of a `reproduce`: a few lines; everything the stages print goes to a log file."""

import re
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipelines import stage

REPORT_SECONDS = 60
GOOD = ("done", "unchanged")
MOST_FAILURES = 5  # that are shown; the log file has all


class Terminal:
    """Thread-safe. In a terminal the running stages, live; anywhere else a line a minute.

    Both print a line when all stages of a kind have ended, and one for each failure.
    """

    def __init__(self, names: list[str], log: Path, stream: TextIO = sys.stderr) -> None:
        self.console = Console(file=stream, highlight=False, soft_wrap=True)
        self.log_path = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log.open("a", buffering=1)
        self.left = dict.fromkeys(names)  # in order, as a set
        self.ended: dict[str, str] = {}
        self.running: dict[str, tuple[float, str]] = {}
        self.failures = 0
        self.began = self.reported = time.monotonic()
        self.lock = threading.RLock()
        self.live = Live(
            get_renderable=self._display, console=self.console, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> "Terminal":
        self.say(f"{len(self.left)} stages to run; their output: {self.log_path}")
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.live.stop()
        with self.lock:
            self.log.close()

    def start(self, name: str) -> None:
        """A stage begins, again or for the first time."""
        with self.lock:
            self.running[name] = (time.monotonic(), "")

    def line(self, name: str, text: str) -> None:
        """A stage has printed a line."""
        with self.lock:
            with suppress(ValueError):  # the file is closed when a stage is stopped
                self.log.write(f"{time.strftime('%H:%M:%S')} {name}: {text}\n")
            if (found := stage.progress(text)) and name in self.running:
                self.running[name] = (self.running[name][0], found)
            if not self.console.is_terminal and time.monotonic() - self.reported > REPORT_SECONDS:
                self.reported = time.monotonic()
                self.say(str(self._display()).replace("\n  ", "; "))

    def end(self, name: str, how: str) -> None:
        """A stage has ended: "done", "unchanged", or why it failed."""
        with self.lock:
            if name in self.ended or name not in self.left:
                return
            began, _ = self.running.pop(name, (time.monotonic(), ""))
            self.ended[name] = how
            if how in GOOD:
                self.note(f"{name} {how} in {duration(time.monotonic() - began)}")
            elif "was not run, as" in how or self.failures >= MOST_FAILURES:
                self.note(how)
            else:
                self.failures += 1
                self.say(how, "bold red")
            group = [one for one in self.left if kind(one) == kind(name)]
            if all(one in self.ended for one in group):
                good = sum(self.ended[one] in GOOD for one in group)
                place = f"[{len(self.ended)}/{len(self.left)}]"
                self.say(f"{place} {kind(name)}: {good} of {len(group)} done, {self._passed}")

    def say(self, text: str, style: str = "") -> None:
        """Print a line that stays."""
        self.console.print(Text(text, style=style))
        self.note(text)

    def note(self, text: str) -> None:
        """Write a line to the log file only."""
        with self.lock, suppress(ValueError):
            self.log.write(f"{time.strftime('%H:%M:%S')} {text}\n")

    @property
    def _passed(self) -> str:
        return duration(time.monotonic() - self.began)

    def _display(self) -> Text:
        with self.lock:
            lines = [
                f"  {name} {duration(time.monotonic() - began)} {last}".rstrip()
                for name, (began, last) in self.running.items()
            ]
            return Text("\n".join([f"{len(self.ended)} of {len(self.left)} ended, {self._passed}", *lines]))


def duration(seconds: float) -> str:
    """Seconds as 1:02 or 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def seconds(log: Path) -> dict[str, float]:
    """How long each stage took when it last ended well, by the log file of earlier runs."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    found = re.findall(r"^[\d:]{8} (\S+) done in ([\d:]+)$", text, re.MULTILINE)
    return {
        name: sum(60**place * int(part) for place, part in enumerate(reversed(took.split(":"))))
        for name, took in found
    }


def kind(name: str) -> str:
    """The kind of a stage: `train` of sample/dvc.yaml:train@speckle-dncnn-0."""
    return name.rpartition(":")[2].partition("@")[0]
