"""Run a command whose stages share one loaded torch: each starts in hundredths of a second, not in two.

    python -m pipelines.warm dvc repro
    python -m pipelines.warm --jobs auto dvc repro     # several at once; see abreast.py

A process loads what the stages load and then waits. Each stage script asks it (stages/handover.py) for a
copy of itself, by `fork`, that runs the script with the stage's words, folder, environment, output and
signals. The stages compute the same as by themselves, which they do where this process declines: another
Python, other settings of the numeric libraries, or code that was changed since it was loaded. Linux only;
elsewhere the command runs as it is. A `dvc` writes its dvc.lock as pipelines/lockfile.py says.
"""

import atexit
import contextlib
import gc
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines import cores

LOCKFILE = (sys.executable, "-m", "pipelines.lockfile")
ROOT = Path(__file__).resolve().parent.parent
STAGES = ROOT / "stages"
LOADED = (
    "torch", "skimage.data:chelsea", "skimage.io:imsave", "skimage.transform:resize",
    "imageio.plugins.pillow", "lambdanet.experiment", "lambdanet.backends.cpu.lambdanet",
    "lambdanet.backends.cpu.dncnn",
)  # fmt: skip
# What the libraries read once, while they are loaded.
READ_EARLY = (
    "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTORCH_", "CUDA_", "NVIDIA_", "LD_", "PYTHON",
)  # fmt: skip
SPIN = {"GOMP_SPINCOUNT": "1000"}  # as in stages/door.py
SOCKET, STANDS_FOR = "LAMBDANET_WARM", "LAMBDANET_STANDS_FOR"
PATIENCE_SECONDS = 10  # between SIGTERM and SIGKILL for a stage that nobody waits for any more


def main(command: list[str], jobs: int = 1) -> int:
    """Run a command with a process standing ready for its stages; returns its exit status.

    Args:
        command: of `dvc`, or any other.
        jobs: stages at once, of `dvc`; see pipelines/abreast.py.
    """
    environment = SPIN | os.environ
    if command[0] == "dvc":
        environment = cores.environment(jobs) | environment
        command = [*LOCKFILE, "--jobs", str(jobs), *command]
    if sys.platform != "linux":
        return subprocess.call(command, env=environment)
    with tempfile.TemporaryDirectory(prefix="lambdanet-") as folder:  # of mode 700
        path = str(Path(folder) / "stages")
        ready = subprocess.Popen(
            [sys.executable, "-m", "pipelines.warm", "--wait", path],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        child = subprocess.Popen(command, env=environment | {SOCKET: path})
        previous = signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
        while child.returncode is None:
            with contextlib.suppress(KeyboardInterrupt):  # the command got it too, and ends in its own way
                child.wait()
        signal.signal(signal.SIGTERM, previous)
        ready.terminate()
        ready.wait()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


@dataclass
class Job:
    """A stage that runs.

    Attributes:
        connection: to who waits for it; None when nobody does any more.
        process: its number.
        end: a file that becomes readable when it has ended.
        kill_at: when patience with it ends.
    """

    connection: socket.socket | None
    process: int
    end: int
    kill_at: float = float("inf")

    def leave(self) -> None:
        """Nobody waits any more: it ends, as it would if it were run by the one who has gone."""
        self.connection.close()
        self.connection, self.kill_at = None, time.monotonic() + PATIENCE_SECONDS
        os.kill(self.process, signal.SIGTERM)

    def finish(self) -> None:
        """Tell who waits how it ended."""
        _, status = os.waitpid(self.process, 0)
        os.close(self.end)
        if self.connection:
            with contextlib.suppress(OSError):
                self.connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))
            self.connection.close()


def wait(path: str) -> None:
    """Load, then serve stages until SIGTERM, or until the process above has gone.

    It returns in every copy too, after that copy's stage, so that its interpreter ends like a script's.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who waits for a stage passes it on
    above = os.getppid()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(64)  # who comes early waits
    ending = Ending()  # before what it loads asks for something to be done at the end: that comes first
    for name in LOADED:
        pkgutil.resolve_name(name)  # what scikit-image loads only when a function is asked for, too
    loaded = _sources()
    gc.collect()
    gc.freeze()  # the copies share this memory
    jobs: list[Job] = []
    while os.getppid() == above:
        waiting = [job.connection for job in jobs if job.connection]
        ready, _, _ = select.select([listener, *waiting, *(job.end for job in jobs)], [], [], 1)
        for job in list(jobs):
            if job.end in ready:
                job.finish()
                jobs.remove(job)
            elif job.connection in ready:  # it says nothing more: the connection has ended
                job.leave()
            elif time.monotonic() > job.kill_at:
                os.kill(job.process, signal.SIGKILL)
        if listener not in ready:
            continue
        connection, _ = listener.accept()
        request, files = _receive(connection)
        if not request or not _fits(request) or loaded != _sources():
            connection.close()
        elif process := os.fork():
            jobs.append(Job(connection, process, os.pidfd_open(process)))
            with contextlib.suppress(OSError):
                connection.sendall(process.to_bytes(8, "big"))
        else:
            for other in (listener, connection, *waiting):
                other.close()
            with ending.of_stage():
                _become(request, files)
            return
        for file in files:
            os.close(file)


class Ending:
    """How a copy's interpreter ends: at once, after what was asked to be done at the end.

    Taking down all that was loaded would touch, and thereby copy, most of the memory that the copies share,
    which takes longer than a short stage.
    """

    def __init__(self) -> None:
        """Have the interpreter end so, as the last of its `atexit` functions."""
        self.status: int | None = None
        atexit.register(self._leave)

    @contextlib.contextmanager
    def of_stage(self) -> Iterator[None]:
        """Note the exit status of the block; any other exception than SystemExit is the interpreter's."""
        try:
            yield
            self.status = 0
        except SystemExit as end:
            if end.code is None or isinstance(end.code, int):
                self.status = end.code or 0
            raise

    def _leave(self) -> None:
        if self.status is None:
            return
        with contextlib.suppress(OSError, ValueError):  # else the interpreter says that it cannot
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.status & 0xFF)


def _receive(connection: socket.socket) -> tuple[dict | None, list[int]]:
    connection.settimeout(5)
    files: list[int] = []
    try:
        head, files, _, _ = socket.recv_fds(connection, 8, 3)
        left, parts = int.from_bytes(head, "big"), []
        while left and (part := connection.recv(left)):
            parts.append(part)
            left -= len(part)
        request = json.loads(b"".join(parts))
    except (OSError, ValueError):
        return None, list(files)
    connection.settimeout(None)
    return request, list(files)


def _fits(request: dict) -> bool:
    """Whether a copy of this process computes what the script would by itself."""

    def read_early(environment: dict[str, str]) -> dict[str, str]:
        return {k: v for k, v in (SPIN | environment).items() if k.startswith(READ_EARLY)}

    script = Path(request["folder"], request["words"][0]).resolve()
    same_settings = read_early(request["environment"]) == read_early(dict(os.environ))
    return script.parent == STAGES and request["python"] == python() and same_settings


def python() -> str:
    """Which Python this is, whatever name it was started by; as in stages/handover.py."""
    return f"{os.path.realpath(sys.executable)} in {sys.prefix}"


def _sources() -> dict[str, int]:
    """The project's modules that are loaded, and when their files were changed."""
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    mine = {file for file in files if file and Path(file).is_relative_to(ROOT)}
    return {file: Path(file).stat().st_mtime_ns if Path(file).exists() else 0 for file in mine}


def _become(request: dict, files: list[int]) -> None:
    """Run the script in this copy as if it had been started; SystemExit is for the interpreter."""
    os.setpgid(0, 0)  # Ctrl-C reaches who waits, who passes it on: once
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        lines = number == 2 or os.isatty(number)
        raw = open(number, "wb", closefd=False)  # noqa: SIM115
        unbuffered = bool(request["environment"].get("PYTHONUNBUFFERED"))
        stream = io.TextIOWrapper(raw, errors=errors, line_buffering=lines, write_through=unbuffered)
        setattr(sys, name, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(request["environment"] | {STANDS_FOR: str(request["process"])})
    os.chdir(request["folder"])
    sys.argv = request["words"]
    sys.path[0] = str(STAGES)
    runpy.run_path(str(STAGES / Path(sys.argv[0]).name), run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--wait"]:
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)  # no thread runs Python here
        wait(sys.argv[2])
        sys.exit()
    match sys.argv[1:]:
        case ["--jobs", number, "dvc", *words] if number == "auto" or (number.isdecimal() and int(number)):
            sys.exit(main(["dvc", *words], cores.usual_jobs() if number == "auto" else int(number)))
        case [command, *words] if not command.startswith("-"):
            sys.exit(main([command, *words]))
    sys.exit("usage: python -m pipelines.warm [--jobs auto|N] COMMAND...")
