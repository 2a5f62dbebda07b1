"""What the terminal shows of a `reproduce`: a few lines; everything the stages print goes to a log file."""

import logging
import re
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

from tqdm import tqdm

from pipelines import graph, stage

REPORT_SECONDS = 60
_LINE = logging.Formatter("%(asctime)s %(task_run_name)s: %(message)s", "%H:%M:%S")


class Terminal(logging.FileHandler):
    """Writes what Prefect's tasks log into a file; shows a bar in a terminal, a line a minute anywhere else.

    Both get a line when all stages of a kind have ended, and one for each failure.
    """

    def __init__(self, names: list[str], profile: str) -> None:
        log = _log(profile)
        log.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(log)
        self.setFormatter(_LINE)
        self.kinds = Counter(map(graph.kind, names))
        self.left, self.good = self.kinds.copy(), Counter()
        self.began: dict[str, float] = {}
        self.start = self.reported = time.monotonic()
        shown = "{n_fmt} of {total_fmt} ended, {elapsed}{postfix}"
        self.bar = tqdm(total=len(names), bar_format=shown, disable=None, leave=False)
        self.say(f"{len(names)} stages to run; their output: {log}")

    def __enter__(self) -> "Terminal":
        logging.getLogger("prefect.task_runs").addHandler(self)
        return self

    def __exit__(self, *_error: object) -> None:
        logging.getLogger("prefect.task_runs").removeHandler(self)
        self.bar.close()
        self.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line of a stage; logging holds the lock."""
        super().emit(record)
        name, now = record.task_run_name, time.monotonic()
        self.began.setdefault(name, now)
        if said := stage.progress(record.getMessage()):
            self.bar.set_postfix_str(f"{name} {said}")
            if self.bar.disable and now - self.reported > REPORT_SECONDS:
                self.reported = now
                self.say(f"{self._ended()}; {name} {said}")

    def end(self, name: str, how: str) -> None:
        """A stage has ended: "done", "unchanged", or why it failed."""
        with self.lock:
            now, kind, good = time.monotonic(), graph.kind(name), how in stage.GOOD
            # What a Dask worker's stage prints does not pass here, so nothing is known of when it began.
            took = f" in {now - self.began[name]:.0f} s" if good and name in self.began else ""
            super().emit(logging.makeLogRecord({"task_run_name": name, "msg": f"{how}{took}"}))
            if not good and "was not run, as" not in how:
                self.say(how)
            self.left[kind] -= 1
            self.good[kind] += good
            if not self.left[kind]:
                self.say(f"{kind}: {self.good[kind]} of {self.kinds[kind]} done; {self._ended()}")
            self.bar.update()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.write(text, file=sys.stderr)

    def _ended(self) -> str:
        total, passed = self.kinds.total(), timedelta(seconds=round(time.monotonic() - self.start))
        return f"{total - self.left.total()} of {total} stages ended, {passed}"


def seconds(profile: str) -> dict[str, int]:
    """How long each stage took when it last ran to its end, by the log file of earlier runs."""
    log = _log(profile)
    text = log.read_text(errors="replace") if log.is_file() else ""
    return {name: int(took) for name, took in re.findall(r"^\S+ (\S+): done in (\d+) s$", text, re.MULTILINE)}


def _log(profile: str) -> Path:
    return Path("runs", profile, "reproduce.log")
