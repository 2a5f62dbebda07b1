"""Log a training to MLflow while it runs, in a thread that the training never waits for.

The thread reads the training's log and brings MLflow up to date with it. What a server misses, slow or
dead, the log keeps: `lambdanet.tracking.sync` catches up.

Not a dependency in DVC: it only reads what the stage writes.
"""

import contextlib
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

# Of stages: what takes less is logged by `register`.
PATIENCE_SECONDS = 20
# For the last words to MLflow, and for loading it, which takes as long; the training ends without them then.
WAIT_SECONDS = 5
LOAD_SECONDS = 30
RETRY_SECONDS = 30
CATCHING_UP = "nothing waits for it, `lambdanet models sync` fills it in"


@contextlib.contextmanager
def follow(log: Path, *, patience: float | None = None) -> Iterator[Callable[[], None]]:
    """Log what happens in this block to MLflow, once it has lasted `patience`.

    What ends before that is left to `lambdanet.tracking.sync`, so to the stage `register`: it is over
    before anybody looks, and loading MLflow for each costs more. A server that `MLFLOW_TRACKING_URI`
    names, which others may be watching, is told at once.

    `LAMBDANET_TRACKING=off` switches it off, and so does an environment without MLflow; `on` logs at once.

    Args:
        log: file of `run_log.Log`.
        patience: seconds; `PATIENCE_SECONDS` by default.

    Yields:
        What to call when the log has news; it never blocks and never fails.
    """
    wanted = os.environ.get("LAMBDANET_TRACKING")
    if wanted == "off" or not importlib.util.find_spec("mlflow"):
        yield lambda: None
        return
    if wanted == "on" or os.environ.get("MLFLOW_TRACKING_URI"):
        patience = 0
    logger = _Logger(log, PATIENCE_SECONDS if patience is None else patience)
    logger.start()
    status = "FAILED"
    try:
        yield logger.tell
        status = "FINISHED"
    except (SystemExit, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        logger.end(status)


class _Logger(threading.Thread):
    """Keeps MLflow up to date with the last record of a log; a daemon, so nothing waits for its end."""

    def __init__(self, log: Path, patience: float) -> None:
        super().__init__(daemon=True, name="lambdanet-mlflow")
        self.log, self.patience = log, patience
        self.ended, self.news = threading.Event(), threading.Event()
        self.status, self.told, self.loaded, self.warned = "RUNNING", False, False, False

    def tell(self) -> None:
        self.told = True
        self.news.set()

    def end(self, status: str) -> None:
        """Say how it ended, and wait a little until MLflow knows."""
        self.status = status
        self.ended.set()
        self.news.set()
        self.join(WAIT_SECONDS if self.loaded else LOAD_SECONDS)
        if self.is_alive():
            self._warn("MLflow answers too slowly")

    def run(self) -> None:
        if self.patience and self.ended.wait(self.patience):
            return
        self.news.wait()  # until then torch is being loaded, and the log may be that of another training
        if not self.told:
            return
        # By its name, as nothing there decides what a stage that trains writes: no dependency in DVC.
        mlflow_runs = importlib.import_module("lambdanet.tracking.mlflow_runs")
        self.loaded, retry = True, None
        while True:
            self.news.wait(retry)
            self.news.clear()
            status = self.status  # before the log is read: what it says then is at least as new
            retry = None
            try:
                mlflow_runs.log_record(self.log, status)
            except Exception as error:  # whatever it is, the training is as good without it
                self._warn(" ".join(str(error).split()))
                retry = RETRY_SECONDS
            if status != "RUNNING":
                return

    def _warn(self, text: str) -> None:
        if not self.warned:
            self.warned = True
            with contextlib.suppress(OSError):  # nobody may read it any more
                print(f"{text}; {CATCHING_UP}", file=sys.stderr)
