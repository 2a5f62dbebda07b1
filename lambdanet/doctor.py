"""Whether this installation can work, and where there is one the clone: versions, servers, device, disk."""

import functools
import importlib
import importlib.util
import multiprocessing
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from lambdanet import run_log

OK, NOTE, BAD = "ok", "note", "BAD"
PACKAGES = ("torch", "numpy", "safetensors")
OF_PIPELINE = ("torchvision", "dvc", "prefect", "mlflow", "scikit-image", "pandas", "fastapi")
LOCKED = "pip install --require-hashes -r requirements.lock -c requirements.lock"
GIB = 2**30


class SlowerError(ValueError):
    """What was tried does not work; the networks run without, but slower."""


def _torch() -> str:
    import torch

    version = torch.__version__
    if importlib.util.find_spec("torchvision"):
        import torchvision

        assert torch.ops.torchvision.nms
        version += f" with torchvision {torchvision.__version__}"
    device = f"CPU, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        device = f"{torch.cuda.get_device_name()}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    return f"{version} on {device}"


def _cpu() -> str:
    from lambdanet import backends

    if reason := backends.unavailable():
        raise SlowerError(f"{reason}; the networks run without, which is slower")
    from lambdanet.backends.cpu import codegen

    return f"compiled kernels on vectors of {codegen.lanes()} floats; {backends.describe('cpu')}"


def _gpu() -> str:
    from lambdanet import backends

    reason = backends.unavailable_on_gpu()
    if reason not in (None, "no CUDA device"):
        raise SlowerError(f"{reason}; its layers run one by one, which is slower")
    return reason or f"kernels by Triton; {backends.describe('cuda')}"


def _import(package: str, module: str) -> str:
    importlib.import_module(module)
    return metadata.version(package)


# What is tried as it would be used, and what to do where it fails; a process for each group. The first is
# the library's, the others are the pipeline's.
TRIALS = [
    {
        "torch": (_torch, "install torch, and torchvision from the same index, in a fresh environment"),
        "LambdaNet and DnCNN on the CPU": (_cpu, "pip install llvmlite"),
        "DnCNN on a GPU": (_gpu, "pip install triton; gcc or clang, and Python's headers (python3-dev)"),
    },
    {"Prefect's server": (functools.partial(_import, "prefect", "prefect.server.api.server"), LOCKED)},
    {"MLflow's server": (functools.partial(_import, "mlflow", "mlflow.server.fastapi_app"), LOCKED)},
]


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


def diagnose(fix: bool, begin: Callable[[str], None]) -> Iterator[Finding]:
    """Look at the installation and, in a project's folder, at its parameters, clone and cluster.

    Args:
        fix: mend what is safe to mend.
        begin: called with what is tried next, where it can take seconds.
    """
    yield Finding(OK, f"Python {platform.python_version()} on {platform.system()}")
    pipeline = importlib.util.find_spec("pipelines") is not None  # else this is the library alone
    found = run_log.versions(PACKAGES + OF_PIPELINE)
    missing = [name for name in PACKAGES + OF_PIPELINE * pipeline if name not in found]
    advice = "`make setup`" if pipeline else f"pip install {' '.join(missing)}"
    yield from (Finding(BAD, f"{name} is not installed", advice) for name in missing)
    yield Finding(OK, ", ".join(f"{name} {version}" for name, version in found.items()))
    for group in TRIALS if pipeline else TRIALS[:1]:
        yield from _tried(group, begin)
    yield from _space()
    if Path("params.yaml").is_file():
        yield from _tried({"parameters": (_parameters, "")}, begin)
    if pipeline and Path("dvc.yaml").is_file() and "dvc" in found:
        yield from _tried({"the clone": (functools.partial(_clone, fix), "")}, begin)


def _tried(group: dict[str, tuple[Callable, str]], begin: Callable[[str], None]) -> Iterator[Finding]:
    """Call functions that return a text or findings, in one process, which a broken library may end."""
    os.environ |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "CRITICAL"}
    os.environ["PYTHONWARNINGS"] = "ignore"
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        for what, (trial, advice) in group.items():
            begin(what)
            try:
                found = process.submit(trial).result()
            except BrokenProcessPool:
                yield Finding(BAD, f"{what}: the process that tried it was killed", advice)
                return
            except Exception as error:  # whatever a library raises
                kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                said = " ".join(f"{kind}{error}".split())
                level = NOTE if isinstance(error, SlowerError) else BAD
                yield Finding(level, f"{what}: {said[:300]}", advice)
            else:
                yield from [Finding(OK, f"{what}: {found}")] if isinstance(found, str) else found


def _space() -> Iterator[Finding]:
    memory, free = psutil.virtual_memory(), shutil.disk_usage(Path()).free / GIB
    enough = memory.available > 2 * GIB
    text = f"memory {memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free, {os.cpu_count()} cores"
    advice = "" if enough else "trainings need about 1 GiB each, LambdaNet on photographs more"
    yield Finding(OK if enough else NOTE, text, advice)
    level = OK if free > 5 else NOTE if free > 1 else BAD
    yield Finding(level, f"disk {free:.1f} GiB free", "" if level == OK else "free some; `paper` needs 5 GiB")


def _parameters() -> str:
    from lambdanet import checking

    return "; ".join(checking.check())


def _clone(fix: bool) -> list[Finding]:
    if not any((place / ".git").exists() for place in (Path.cwd(), *Path.cwd().parents)):
        raise ValueError("it is not in git, and DVC works in git repositories only; `git init`, or clone")
    return list(importlib.import_module("pipelines.health").look(fix))
