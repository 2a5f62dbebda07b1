"""How a result came about: code, versions, device, time and memory. Never part of what DVC hashes."""

import json
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
    """Measures from its creation on; `append` adds a record to a list in a JSON file."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.started = device, time.time()
        self.code = {"commit": commit(), "python": platform.python_version(), "versions": versions()}

    def append(self, path: Path, **details: object) -> None:
        """Add a record of device, seconds, peak memory, versions and commit, with `details`."""
        content = {
            "device": describe_device(self.device),
            "seconds": round(time.time() - self.started, 1),
            "peak_memory_bytes": self._peak_memory(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        files.write_json(path, [*read_records(path), content | self.code | details])

    def _peak_memory(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def read_records(path: Path) -> list[dict]:
    """The records of a log, oldest first; none where it is missing or damaged."""
    try:
        records = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return records if isinstance(records, list) else []


def find_record(path: Path, **details: object) -> dict | None:
    """The newest record of a log that has these details.

    A cell's log outlives its outputs: DVC may restore those of an earlier training from its cache.
    """
    for record in reversed(read_records(path)):
        if all(record.get(key) == value for key, value in details.items()):
            return record
    return None


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
