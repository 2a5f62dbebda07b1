"""Processes that stay: servers and workers started, watched, found again by their pid files, ended."""

import contextlib
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

RESTART_SECONDS = 5
START_SECONDS = 180
# Longer than a stage's grace: what a worker runs copies its checkpoint when it is stopped.
STOP_SECONDS = 45


def prefect_server(port: int, host: str = "127.0.0.1") -> list[str]:
    """The command of a Prefect server."""
    return [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port)]


def mlflow_server(port: int, folder: Path, host: str = "127.0.0.1") -> list[str]:
    """The command of an MLflow server that keeps its database and models in a folder."""
    store = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    artifacts = ["--artifacts-destination", str(folder / "mlartifacts")]
    return [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), *store, *artifacts]


def supervise(commands: list[tuple[list[str], dict[str, str]]]) -> None:
    """Run commands until SIGTERM or SIGINT; start one that ends again; then end all that they run."""
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: stopping.append(received))

    def launch(index: int) -> subprocess.Popen:
        command, environment = commands[index]
        # A shell that starts us in the background has us ignore SIGINT, and Prefect relies on it.
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, process_group=0)

    running = [launch(index) for index in range(len(commands))]
    while not stopping:
        time.sleep(0.5)
        for index, process in enumerate(running):
            if process.poll() is not None and not stopping:
                print(f"{commands[index][0][3:6]} ended with {process.returncode}; started again", flush=True)
                time.sleep(RESTART_SECONDS)
                running[index] = launch(index)
    _end_below([process.pid for process in running])
    for process in running:
        for number in (signal.SIGTERM, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
    _end([psutil.Process(process.pid) for process in running if process.poll() is None], [])


def start(
    folder: Path, name: str, command: list[str], environment: dict[str, str], cwd: Path | None = None
) -> None:
    """Start a process that outlives this one, unless it runs already; its log and pid go to a folder."""
    if _process(folder, name):
        return
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=cwd, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    process.returncode = 0  # it outlives this object, which is not to complain of that
    # A number may be given out again; with the moment of its start it is one process.
    (folder / f"{name}.pid").write_text(f"{process.pid} {psutil.Process(process.pid).create_time()}\n")


def stop(folder: Path, name: str) -> int | None:
    """End a process of `start` and all that it runs; its number, or None where it does not run."""
    process = _process(folder, name)
    if process:
        below = _tree(process.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
        _end([process], below)
    (folder / f"{name}.pid").unlink(missing_ok=True)
    return process.pid if process else None


def wait_for(folder: Path, name: str, url: str) -> None:
    """Wait until a server of `start` answers.

    Raises:
        ValueError: it ended, or does not answer in three minutes.
    """
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        if not _process(folder, name):
            break
        time.sleep(0.5)
    raise ValueError(f"the server {name} did not start; see {folder / f'{name}.log'}")


def _end_below(pids: list[int]) -> None:
    """Ask what some processes run to end, and wait for it, while they themselves are held still.

    A Prefect worker that is asked to end kills its flows at once, without a last checkpoint, and one
    that only sees them end takes the next run.
    """
    below = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            holder = psutil.Process(pid)
            below += holder.children(recursive=True)
            holder.suspend()
            for one in holder.children():
                one.terminate()
    until = time.monotonic() + STOP_SECONDS
    while any(map(lives, below)) and time.monotonic() < until:
        time.sleep(0.1)
    for one in filter(lives, below):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def lives(process: psutil.Process) -> bool:
    """Whether a process runs; it may end while it is asked."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _process(folder: Path, name: str) -> psutil.Process | None:
    try:
        pid, began = (folder / f"{name}.pid").read_text().split()
        process = psutil.Process(int(pid))
        return process if abs(process.create_time() - float(began)) < 1 and lives(process) else None
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _end(first: list[psutil.Process], rest: list[psutil.Process]) -> None:
    """Wait for processes that were asked to end, with patience; then see that none is left."""
    _, alive = psutil.wait_procs(first, STOP_SECONDS)
    _, left = psutil.wait_procs(rest, 5)
    for process in [*alive, *left]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs([*alive, *left], 5)
