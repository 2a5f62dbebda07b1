"""Whether this installation can work: versions, servers, device, disk, parameters."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement

OK, NOTE, BAD = "ok", "note", "BAD"
PACKAGES = (
    "torch", "torchvision", "dvc", "prefect", "mlflow", "scikit-image", "pandas", "numpy", "fastapi",
    "safetensors",
)  # fmt: skip
LOCKED = "pip install --require-hashes -r requirements.lock"
# Versions that were seen to fail together.
BAD_PAIRS = [("prefect>=3.8,<3.9", "fastapi>=0.151", f"fastapi<0.151: {LOCKED}")]
STILL_SECONDS = 120  # without computing; on a busy machine torch alone takes minutes to load, and is no fault
GIB = 2**30
SYSTEMS = {"Linux": "Linux", "Darwin": "macOS"}
# Each is tried as it would be used, in a process of its own.
TRIALS = {
    "torch with torchvision": (
        "import torch, torchvision; torch.ops.torchvision.nms;"
        "print(torch.__version__, 'with', torchvision.__version__)",
        "they must come from one index: `make` again in a fresh .venv, and no CPU-only torch",
    ),
    "Prefect's server": (
        "import prefect.server.api.server as server, prefect; print(prefect.__version__)",
        f"prefect 3.8 needs fastapi>=0.139,<0.151: {LOCKED}",
    ),
    "MLflow's server": (
        "import mlflow.server.fastapi_app, mlflow; print(mlflow.__version__)",
        LOCKED,
    ),
    "device": (
        "import torch; c = torch.cuda\n"
        "if c.is_available():\n"
        "    free, total = c.mem_get_info()\n"
        "    print(c.get_device_name(), f'{free / 2**30:.1f} of {total / 2**30:.1f} GiB free')\n"
        "else:\n"
        "    print('CPU,', torch.get_num_threads(), 'threads')",
        "see `nvidia-smi`; LAMBDANET_DEVICE=cpu keeps off the GPU",
    ),
    "LambdaNet and DnCNN on the CPU": (
        "from lambdanet import backends\n"
        "reason = backends.unavailable()\n"
        "assert not reason, reason + '; they run without, which is slower'\n"
        "from lambdanet.backends.cpu import codegen\n"
        "print('compiled kernels on vectors of', codegen.lanes(), 'floats;', backends.describe('cpu'))",
        "pip install llvmlite",
    ),
    "DnCNN on a GPU": (
        "from lambdanet import backends\n"
        "reason = backends.unavailable_on_gpu()\n"
        "assert reason in (None, 'no CUDA device'), reason + '; its layers run one by one, which is slower'\n"
        "print(reason or 'kernels by Triton; ' + backends.describe('cuda'))",
        "pip install triton; gcc or clang, and Python's headers (python3-dev)",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One line of what `lambdanet doctor` says.

    Attributes:
        level: OK, NOTE (may well be so) or BAD (something will not work).
        what: was looked at, and what was found.
        advice: what to do; empty where nothing is.
    """

    level: str
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:<5} {self.what}{f': {self.advice}' if self.advice else ''}"


def installation(folder: Path) -> Iterator[Finding]:
    """Look at Python, the packages, the servers, the device and the disk of a folder."""
    yield Finding(OK, f"Python {platform.python_version()}")
    if platform.system() not in SYSTEMS:
        advice = f"supported are {' and '.join(SYSTEMS.values())}; on Windows use one in WSL"
        yield Finding(NOTE, f"the system is {platform.system()}", advice)
    yield from _packages()
    trials = {what: (_start(code), advice) for what, (code, advice) in TRIALS.items()}
    for what, (process, advice) in trials.items():
        yield _end(what, process, advice)
    memory = psutil.virtual_memory()
    yield Finding(
        OK if memory.available > 2 * GIB else NOTE,
        f"memory {memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free, {os.cpu_count()} cores",
        ""
        if memory.available > 2 * GIB
        else "trainings need about 1 GiB each, LambdaNet on photographs more",
    )
    free = shutil.disk_usage(folder).free / GIB
    level = OK if free > 5 else NOTE if free > 1 else BAD
    yield Finding(level, f"disk {free:.1f} GiB free", "" if level == OK else "free some; `paper` needs 3 GiB")


def parameters(check: Callable[[], str]) -> Finding:
    """Whether params.yaml is valid, by a function that raises ValueError where it is not."""
    try:
        return Finding(OK, check())
    except (ValueError, OSError) as error:
        return Finding(BAD, "params.yaml", " ".join(str(error).split()))


def _packages() -> Iterator[Finding]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(BAD, f"{name} is not installed", "make repro, or pip install -r requirements.lock")
    yield Finding(OK, ", ".join(f"{name} {version}" for name, version in found.items()))
    for one, other, advice in BAD_PAIRS:
        pair = [Requirement(one), Requirement(other)]
        if all(found.get(each.name) and each.specifier.contains(found[each.name]) for each in pair):
            text = " with ".join(f"{each.name} {found[each.name]}" for each in pair)
            yield Finding(BAD, f"{text} does not work", advice)


def _start(code: str) -> subprocess.Popen:
    environment = os.environ | {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
    }
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _end(what: str, process: subprocess.Popen, advice: str) -> Finding:
    used = None
    while True:
        try:
            out, err = process.communicate(timeout=STILL_SECONDS)
            break
        except subprocess.TimeoutExpired:
            before, used = used, _computing_seconds(process.pid)
            if used == before:
                process.kill()
                process.communicate()
                return Finding(BAD, f"{what} stands still, after {used:.0f} s of computing", advice)
    if process.returncode:
        last = (err.strip().splitlines() or [f"status {process.returncode}"])[-1]
        return Finding(BAD, f"{what} does not load ({last[:200]})", advice)
    return Finding(OK, f"{what}: {(out.strip().splitlines() or ['?'])[-1]}")


def _computing_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def project(folder: Path, fix: bool) -> Iterator[Finding]:
    """What `pipelines.health` finds of the clone and of the cluster; nothing where there is no project.

    It is a process of its own, as nothing in this package knows DVC or Prefect.
    """
    if not (folder / "dvc.yaml").is_file() or not importlib.util.find_spec("dvc"):
        return
    here = folder.resolve()
    if not any((place / ".git").exists() for place in (here, *here.parents)):
        yield Finding(
            BAD, "this is no clone, and DVC works in git repositories only", "`git init` here, or clone"
        )
        return
    command = [sys.executable, "-m", "pipelines.health", *(["--fix"] if fix else [])]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    for line in done.stdout.splitlines():
        level, _, rest = line.partition("\t")
        what, _, advice = rest.partition("\t")
        yield Finding(level, what, advice)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        yield Finding(
            BAD, f"the clone could not be looked at ({last[:300]})", "is this the project's folder?"
        )
