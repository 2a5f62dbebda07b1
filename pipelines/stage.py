"""Run one DVC stage as a process: its progress, its signals, how it ended and whether to try again."""

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

# A training that is asked to stop writes a checkpoint first; Prefect kills a cancelled flow after 30 s.
GRACE_SECONDS = 25
# On Linux the kernel ends a `dvc` whose parent was killed; another process may run its stage by then.
_PRCTL = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"
_DIE_WITH_PARENT = [sys.executable, "-ISc", _PRCTL] if sys.platform == "linux" else []
RETRIES, AWAY_RETRIES = 4, 60  # of what was killed or found DVC busy; while a remote is away
GOOD = ("done", "unchanged")  # how a stage ends that has not failed
stopping = threading.Event()  # set when this process has to end: its stages stop, and none begins
_BUSY = ("Unable to acquire lock", "is busy", "rwlock")
_KILLED = re.compile(r"exited with (-9|-15|137|143)\b")  # not 134, 139: a crash is a mistake in code
_MEMORY = ("out of memory", "OutOfMemoryError", "can't allocate memory", "MemoryError")
_PROGRESS = re.compile(r"^[\w.-]+: ((?:epoch|step|resum\w+) .*)$")
# Dask's workers set these to 1; the number of threads is a parameter of the stage, not of where it runs.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class StageError(RuntimeError):
    """A stage failed; the text says how, in one line."""

    def __init__(self, text: str, retries: int = 0) -> None:
        super().__init__(text)
        self.retries = retries  # how often another attempt may help; 0: a bug stays one


def run(
    name: str,
    on_line: Callable[[str], None] = lambda line: None,
    *,
    words: tuple[str, ...] = ("repro", "--single-item"),
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    limit: float = math.inf,
) -> str:
    """Run `dvc --wait-for-lock WORDS NAME`; it ends when this process does.

    Args:
        name: address of the stage, as `dvc repro` takes it.
        on_line: called with each line that it prints.
        words: the command of DVC.
        folder: where; default: the current folder.
        environment: variables for it, besides this process's.
        limit: seconds after which it is stopped.

    Returns:
        "done", or "unchanged" where DVC found nothing to do.

    Raises:
        StageError: it failed, took longer than its limit, or `stopping` was set.
    """
    if stopping.is_set():
        raise StageError(f"{name} was stopped")
    process = _start([*words, name], folder, environment or {})
    last: deque[str] = deque(maxlen=50)
    deadline, ran = time.monotonic() + limit, False

    def stop_if_due() -> None:
        if stopping.is_set() or time.monotonic() > deadline:
            _stop(process)

    try:
        with repeating(stop_if_due, 0.2):
            for line in map(str.rstrip, process.stdout):
                ran = ran or line.startswith((f"Running stage '{name}'", f"Stage '{name}' is cached"))
                last.append(line)
                on_line(line)
            status = process.wait()
    finally:
        _stop(process)
        process.stdout.close()
    if status == 0:
        return "done" if ran else "unchanged"
    if stopping.is_set():
        raise StageError(f"{name} was stopped")  # however it ended
    look = f"look at it with `dvc repro --single-item {name}`"
    if time.monotonic() > deadline:
        raise StageError(f"{name} took longer than its limit of {limit:.0f} s; {look}")
    raise _failure(name, "\n".join(last), status, look)


@contextlib.contextmanager
def repeating(work: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call `work` every so many seconds, in a thread, for the time of the block."""
    left = threading.Event()

    def repeat() -> None:
        while not left.wait(seconds):
            work()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join(5)  # what hangs, as a network may, holds nobody up


def progress(line: str) -> str:
    """What a line says about how far the stage is; empty where it says nothing about that."""
    match = _PROGRESS.match(line)
    return match[1] if match else ""


def _start(words: list[str], folder: Path | None, environment: Mapping[str, str]) -> subprocess.Popen:
    dask = "distributed" in sys.modules
    inherited = {key: value for key, value in os.environ.items() if not (dask and key in _THREADS)}
    # `python` in a stage's command is the Python that runs this.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # Without --wait-for-lock DVC discards a finished training when another stage holds its lock.
    return subprocess.Popen(
        [*_DIE_WITH_PARENT, sys.executable, "-m", "dvc", "--wait-for-lock", *words],
        cwd=folder,
        env=inherited | {"PATH": path, "DVC_NO_ANALYTICS": "1"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,  # Ctrl-C reaches the stages through `stopping`, once each
    )


def _failure(name: str, text: str, status: int, look: str) -> StageError:
    errors = re.findall(r"^(?:error: |ERROR: |\w*Error\b).*", text, re.MULTILINE)
    said = next((line for line in errors if "failed to run: " not in line), "")
    ended = re.search(r"exited with -?\d+", text)
    how = ended[0] if ended else f"status {status}"
    if any(word in text for word in _MEMORY):
        return StageError(f"{name} ran out of memory ({said[:200]}); lower its batch_size, or run fewer jobs")
    if any(word in text for word in _BUSY):
        return StageError(f"DVC was busy when it came to {name}; {look}", RETRIES)
    if _KILLED.search(text) or status in (-signal.SIGKILL, -signal.SIGTERM):
        return StageError(f"{name} was killed ({how}); {look}", RETRIES)
    return StageError(f"{name} failed: {said or how}; {look}")


def shortened(text: object) -> str:
    """One line of an error; of a long one its beginning and its end, where the reason often stands."""
    line = " ".join(str(text).split())
    return line if len(line) <= 600 else f"{line[:200]} ... {line[-400:]}"


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
