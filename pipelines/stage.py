"""Run one DVC stage as a process of its own, as a person would, and tell what became of it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

# A training that is asked to stop writes a checkpoint first.
GRACE_SECONDS = 25
# A `dvc` that outlived a flow would train what another worker trains by then. Linux tells it.
_PRCTL = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"
_DIE_WITH_PARENT = [sys.executable, "-ISc", _PRCTL] if sys.platform == "linux" else []
_BUSY = ("Unable to acquire lock", "is busy", "rwlock")
_KILLED = re.compile(r"exited with (-\d+|1(?:3[4-9]|4[0-3]))\b")
_MEMORY = ("out of memory", "OutOfMemoryError", "can't allocate memory", "MemoryError")


class StageError(RuntimeError):
    """A stage failed; its text says how, in one line."""


class PassingError(StageError):
    """It may well succeed when it is run again: it was killed, or DVC was busy."""


def run(
    name: str,
    on_line: Callable[[str], None],
    *,
    words: tuple[str, ...] = ("repro", "--single-item"),
    environment: dict[str, str] | None = None,
    limit: float | None = None,
    stopping: threading.Event | None = None,
) -> str:
    """Run `dvc repro --single-item NAME` in the current folder; it ends when this process does.

    Args:
        name: of the stage.
        on_line: called with each line that it prints.
        words: the `dvc` command instead of `repro --single-item`.
        environment: variables for it, beside this process's own.
        limit: seconds after which it is stopped.
        stopping: when set, the stage is asked to stop, with time to write a checkpoint.

    Returns:
        "run", or "unchanged" where DVC found nothing to do.

    Raises:
        PassingError: it was killed, or DVC was busy.
        StageError: it failed, or took longer than its limit.
    """
    # Without --wait-for-lock DVC throws a finished training away when another stage holds its lock.
    command = [sys.executable, "-m", *_dvc(), "--wait-for-lock", *words, name]
    process = subprocess.Popen(
        [*_DIE_WITH_PARENT, *command],
        env=os.environ | {"DVC_NO_ANALYTICS": "1"} | (environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,  # Ctrl-C reaches the stages through `stopping`, once each
    )
    last: deque[str] = deque(maxlen=50)
    done, timed_out = threading.Event(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(process, done, limit, stopping, timed_out), daemon=True)
    watcher.start()
    ran = False
    try:
        for line in process.stdout:
            ran = ran or line.startswith((f"Running stage '{name}'", f"Stage '{name}' is cached"))
            last.append(line.rstrip())
            on_line(line.rstrip())
        status = process.wait()
    finally:
        done.set()
        watcher.join()
        _stop(process)
        process.stdout.close()
    text = "\n".join(last)
    if status and stopping and stopping.is_set():
        raise StageError(f"{name} was stopped")  # not to be tried again, however it ended
    if status == 0:
        return "run" if ran else "unchanged"
    raise _failure(name, text, status, limit if timed_out.is_set() else None)


def _dvc() -> list[str]:
    """DVC as pipelines/lockfile.py runs it; its own where the current folder's commit is older than that."""
    return ["pipelines.lockfile", "dvc"] if Path("pipelines/lockfile.py").is_file() else ["dvc"]


def _failure(name: str, text: str, status: int, limit: float | None) -> StageError:
    look = f"look at it with `dvc repro --single-item {name}`"
    if limit is not None:
        return StageError(f"{name} took longer than its limit of {limit:.0f} s; {look}")
    errors = [line for line in text.splitlines() if re.match(r"(error: |ERROR: |\w*Error\b)", line)]
    said = next((line for line in errors if not line.startswith("ERROR: failed to repro")), "")
    if any(word in text for word in _MEMORY):
        return StageError(f"{name} ran out of memory ({said[:200]}); lower its batch_size, or run fewer jobs")
    if any(word in text for word in _BUSY):
        return PassingError(f"DVC was busy when it came to {name}")
    if (match := _KILLED.search(text)) or status < 0:
        return PassingError(f"{name} was killed ({match.group(0) if match else f'status {status}'})")
    return StageError(f"{name} failed: {said[:300] or f'status {status}'}; {look}")


def _watch(
    process: subprocess.Popen,
    done: threading.Event,
    limit: float | None,
    stopping: threading.Event | None,
    timed_out: threading.Event,
) -> None:
    began = time.monotonic()
    while not done.wait(0.2):
        if limit is not None and time.monotonic() - began > limit:
            timed_out.set()
        if timed_out.is_set() or (stopping and stopping.is_set()):
            _stop(process)
            return


def _stop(process: subprocess.Popen) -> None:
    """End a process and all below it: with SIGTERM, and SIGKILL after the grace."""
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            process.poll()
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)
