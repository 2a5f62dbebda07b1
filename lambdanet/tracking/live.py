"""Tell MLflow of a training while it runs, from a process of its own: the training never waits.

The training writes its log and says so down a pipe; the follower reads the log and brings MLflow up
to date with it. A pipe that ends without a last word is a training that was killed, and the follower
marks its run so. What a server misses, slow or dead, the log keeps: `lambdanet.tracking.sync` catches up.

Not a dependency in DVC: it starts a process that only reads what the stage writes.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

# Of stages: what takes less is told of by `register`.
PATIENCE_SECONDS = 20
# For the follower's last words to MLflow; the training ends without them after that.
WAIT_SECONDS = 5
RETRY_SECONDS = 30
CONSOLATION = "nothing waits for it, `lambdanet models sync` fills it in"
# A training is long, and its machine's load worth recording, after so much of it.
LONG_SECONDS = 60
STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


@contextlib.contextmanager
def follow(log: Path, *, patience: float | None = None) -> Iterator[Callable[[], None]]:
    """Have MLflow follow what happens in this block, once it has lasted `patience`.

    What ends well before that is left to `lambdanet.tracking.sync`, so to the stage `register`: it is over
    before anybody looks, and loading MLflow for each costs more. What fails or is killed is told of.
    A server that `MLFLOW_TRACKING_URI` names, which others may be watching, is told at once.

    `LAMBDANET_TRACKING=off` switches it off, and so does an environment without MLflow; `on` follows at
    once.

    Args:
        log: file of `provenance.Log`.
        patience: seconds; `PATIENCE_SECONDS` by default.

    Yields:
        What to call when the log has news; it never blocks and never fails.
    """
    wanted = os.environ.get("LAMBDANET_TRACKING")
    if wanted == "off" or not importlib.util.find_spec("mlflow"):
        yield lambda: None
        return
    follower = _Follower(log)
    patience = PATIENCE_SECONDS if patience is None else patience
    timer = threading.Timer(patience, follower.start)
    timer.daemon = True
    if patience and wanted != "on" and not os.environ.get("MLFLOW_TRACKING_URI"):
        timer.start()
    else:
        follower.start()
    last = "failed"
    try:
        yield follower.tell
        last = "finished"
    except (SystemExit, KeyboardInterrupt):
        last = "killed"
        raise
    finally:
        timer.cancel()
        if timer.ident:
            timer.join()  # it may be starting the follower just now
        follower.end(last)


class _Follower:
    """The process that follows a log, and what it has to be told."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process: subprocess.Popen | None = None
        self.heard = False
        self.lock = threading.Lock()

    def start(self) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        with self.lock:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lambdanet.tracking.follower", str(self.log)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,  # a word there: it has told of its trouble
                env={"MLFLOW_HTTP_REQUEST_TIMEOUT": str(WAIT_SECONDS)} | os.environ | {"PYTHONPATH": path},
                process_group=0,  # Ctrl-C is for the training; the follower ends with it
            )
            os.set_blocking(self.process.stdin.fileno(), False)
            if self.heard:
                self._say("news")

    def tell(self) -> None:
        with self.lock:
            self.heard = True
            if self.process:
                self._say("news")

    def end(self, last: str) -> None:
        """Say how it ended, and wait a little for the follower's last words to MLflow."""
        if not self.process:
            if last == "finished" or not self.heard:
                return
            self.start()
        self._say(last)
        self.process.stdin.close()
        try:
            self.process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            if not self.process.stdout.read():
                with contextlib.suppress(OSError):  # nobody may read it any more
                    print(f"MLflow answers too slowly; {CONSOLATION}", file=sys.stderr)
        self.process.stdout.close()

    def _say(self, word: str) -> None:
        with contextlib.suppress(OSError):  # the follower has ended, or has much to do
            os.write(self.process.stdin.fileno(), f"{word}\n".encode())
