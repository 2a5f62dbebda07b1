"""Run a stage in a process that has loaded torch already, where one stands ready; see pipelines/warm.py.

Importing this does it, so that a stage script loads nothing else before.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

SOCKET = "LAMBDANET_WARM"  # environment variable: where the process that stands ready listens
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def hand_over() -> None:
    """Have this script run there and end with its status; return where nobody takes it.

    It gets this process's words, folder, environment, files 0 to 2, and the signals that this one gets.
    """
    path = os.environ.pop(SOCKET, None)  # what this script starts, however it is run, is no stage
    if not path:
        return
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        try:
            connection.connect(path)
            request = {
                "words": sys.argv, "folder": str(Path.cwd()), "environment": dict(os.environ),
                "python": python(), "process": os.getpid(),
            }  # fmt: skip
            text = json.dumps(request).encode()
            socket.send_fds(connection, [len(text).to_bytes(8, "big")], [0, 1, 2])
            connection.sendall(text)
            taken_by = int.from_bytes(connection.recv(8), "big")
        except OSError:
            return
        if taken_by:
            _wait(connection, taken_by)


def python() -> str:
    """Which Python this is, whatever name it was started by."""
    return f"{os.path.realpath(sys.executable)} in {sys.prefix}"


def _wait(connection: socket.socket, process: int) -> None:
    def pass_on(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    for number in SIGNALS:
        signal.signal(number, pass_on)
    answer = connection.recv(8)  # goes on after a signal
    if not answer:
        sys.exit(f"error: the process that ran {sys.argv[0]} has gone; run it again")
    status = int.from_bytes(answer, "big", signed=True)
    if status < 0:  # a signal ended it, and ends this one
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


hand_over()
