"""How a result came about: code, versions, device, time and memory. Never part of what DVC hashes."""

import platform
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import torch

from lambdanet import files
from lambdanet.devices import describe_device

PACKAGES = ("torch", "torchvision", "numpy", "scikit-image", "dvc", "prefect", "mlflow")
# What a run changes itself, and the parameters, which model.json records in full.
_NOT_CODE = (":!dvc.lock", ":!results", ":!weights", ":!params.yaml")


class Log:
    """Measures from its creation on; `write` leaves a JSON file in a git-ignored folder."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.started = device, time.time()

    def write(self, path: Path, **details: object) -> None:
        """Write device, seconds, peak memory, versions and commit, and `details` beside them."""
        content = {
            "device": describe_device(self.device),
            "seconds": round(time.time() - self.started, 1),
            "peak_memory_bytes": self._peak_memory(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": commit(),
            "python": platform.python_version(),
            "versions": versions(),
        }
        files.write_json(path, content | details)

    def _peak_memory(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def versions() -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The checked-out commit, with "+changes" where the code differs from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD").strip()
        return head + ("+changes" if _git("status", "--porcelain", "--", ".", *_NOT_CODE) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout
