"""End a long computation at a good moment: on SIGINT, on SIGTERM, and when DVC has died.

Not a dependency in DVC: it says when a training stops.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import psutil

WATCH_SECONDS = 0.5


class Interruption:
    """What has asked the computation to stop: false until something did.

    Attributes:
        signal: the signal's number, 0 for none; 128 plus it is the exit status to end with.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __bool__(self) -> bool:
        return self.signal != 0


@contextlib.contextmanager
def watch_for_interruption() -> Iterator[Interruption]:
    """Turn SIGINT and SIGTERM into a flag, and the death of the `dvc` above into a SIGTERM.

    `dvc` may be killed without a word to what it runs; a training that lived on would write the
    same output as its successor. Handlers are put back on leaving. Main thread only.
    """
    interruption = Interruption()

    def note(number: int, _frame: object) -> None:
        interruption.signal = number

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    left = threading.Event()
    threading.Thread(target=_watch_ancestors, args=(left,), daemon=True).start()
    try:
        yield interruption
    finally:
        left.set()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch_ancestors(left: threading.Event) -> None:
    while not left.wait(WATCH_SECONDS):
        if not all(map(_lives, _ancestors)):
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _lives(process: psutil.Process) -> bool:
    # psutil knows a process by its number and start time, so a reused number does not count.
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def remember_dvc() -> None:
    """Look up the processes above this one, up to and with the `dvc` that runs it, if one does.

    To be called early: one that died before is not found.
    """
    _ancestors.clear()
    if "DVC_STAGE" not in os.environ:
        return
    for ancestor in psutil.Process().parents():
        _ancestors.append(ancestor)
        with contextlib.suppress(psutil.Error):
            if any(os.path.basename(word) in ("dvc", "dvc.exe") for word in ancestor.cmdline()[:4]):
                return
    del _ancestors[1:]  # no dvc: whoever started this


_ancestors: list[psutil.Process] = []
