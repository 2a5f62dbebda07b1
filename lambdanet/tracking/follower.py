"""The process that `lambdanet.tracking.live` starts: it keeps MLflow up to date with a training's log.

Not a dependency in DVC: it only reads what a stage writes.
"""

import contextlib
import os
import queue
import sys
import threading
import time
from pathlib import Path

from lambdanet.tracking.live import CONSOLATION, LONG_SECONDS, RETRY_SECONDS, STATUS, WAIT_SECONDS


def main(log: Path) -> None:
    """Bring MLflow up to date with a log each time that a word comes in, until the last one."""
    began, words, loaded = time.monotonic(), queue.SimpleQueue(), threading.Event()
    threading.Thread(target=_read, args=(words, loaded), daemon=True).start()
    from lambdanet.tracking import mlflow_runs

    loaded.set()

    mirror, heard, said, retry_at, last = mlflow_runs.Mirror(log), False, False, None, None
    while last is None:
        with contextlib.suppress(queue.Empty):
            word = words.get(timeout=RETRY_SECONDS)
            while True:  # only where the log stands now counts
                last, heard = STATUS.get(word), heard or word == "news"
                if last:
                    break
                word = words.get_nowait()
        if last is None and retry_at and time.monotonic() < retry_at:
            continue
        if not heard and last is None:
            continue
        if not heard and last != "FINISHED":
            return  # it ended before it began; the log is that of another one
        try:
            mirror.update(last or "RUNNING", watch_system=time.monotonic() - began > LONG_SECONDS)
            retry_at = None
        except ValueError as error:  # unreachable, or its experiment was deleted
            retry_at = time.monotonic() + RETRY_SECONDS
            if not said:
                with contextlib.suppress(OSError):  # nobody may read it any more
                    print(f"{error}; {CONSOLATION}", file=sys.stderr)
                    print("said", flush=True)
            said = True


def _read(words: queue.SimpleQueue, loaded: threading.Event) -> None:
    ended = False
    for line in sys.stdin:
        words.put(line.strip())
        ended = ended or line.strip() in STATUS
    if not ended:
        words.put("killed")
    # Nobody waits for longer than this; a follower must not outlive its training for hours. On a busy
    # machine MLflow alone takes as long to load, and one that began with the end has done nothing yet.
    loaded.wait()
    time.sleep(2 * WAIT_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
