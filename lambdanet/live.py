"""Tell MLflow of a training while it runs, from a process of its own: the training never waits.

The training writes its log and says so down a pipe; the follower reads the log and brings MLflow up
to date with it. A pipe that ends without a last word is a training that was killed, and the follower
marks its run so. What a server misses, slow or dead, the log keeps: `lambdanet.publish` catches up.
"""

import contextlib
import importlib.util
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# For the follower's last words to MLflow; the training ends without them after that.
WAIT_SECONDS = 5
RETRY_SECONDS = 30
CONSOLATION = "nothing waits for it, `lambdanet publish` fills it in"
# A training is long, and its machine's load worth recording, after so much of it.
LONG_SECONDS = 60
STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


@contextlib.contextmanager
def follow(log: Path) -> Iterator[Callable[[], None]]:
    """Have MLflow follow what happens in this block.

    `LAMBDANET_TRACKING=off` switches it off; so does an environment without MLflow.

    Args:
        log: file of `provenance.Log`.

    Yields:
        What to call when the log has news; it never blocks and never fails.
    """
    if os.environ.get("LAMBDANET_TRACKING") == "off" or not importlib.util.find_spec("mlflow"):
        yield lambda: None
        return
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    follower = subprocess.Popen(
        [sys.executable, "-m", "lambdanet.live", str(log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,  # a word there: it has told of its trouble
        env={"MLFLOW_HTTP_REQUEST_TIMEOUT": str(WAIT_SECONDS)} | os.environ | {"PYTHONPATH": path},
        process_group=0,  # Ctrl-C is for the training; the follower ends with it
    )
    os.set_blocking(follower.stdin.fileno(), False)

    def tell(word: str = "news") -> None:
        with contextlib.suppress(OSError):  # the follower has ended, or has much to do
            os.write(follower.stdin.fileno(), f"{word}\n".encode())

    last = "failed"
    try:
        yield tell
        last = "finished"
    except (SystemExit, KeyboardInterrupt):
        last = "killed"
        raise
    finally:
        tell(last)
        follower.stdin.close()
        try:
            follower.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            follower.kill()
            follower.wait()
            if not follower.stdout.read():
                print(f"MLflow answers too slowly; {CONSOLATION}", file=sys.stderr)
        follower.stdout.close()


def main(log: Path) -> None:
    """Bring MLflow up to date with a log each time that a word comes in, until the last one."""
    began, words = time.monotonic(), queue.SimpleQueue()
    threading.Thread(target=_read, args=(words,), daemon=True).start()
    from lambdanet import tracking

    mirror, heard, said, retry_at, last = tracking.Mirror(log), False, False, None, None
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
                print(f"{error}; {CONSOLATION}", file=sys.stderr)
                print("said", flush=True)
            said = True


def _read(words: queue.SimpleQueue) -> None:
    ended = False
    for line in sys.stdin:
        words.put(line.strip())
        ended = ended or line.strip() in STATUS
    if not ended:
        words.put("killed")
    # Nobody waits for longer than this; a follower must not outlive its training for hours.
    time.sleep(2 * WAIT_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
