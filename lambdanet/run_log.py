"""How a result came about: code, versions, device, time and memory. Never part of what DVC hashes.

Not a dependency in DVC: the log is no output.
"""

import contextlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from lambdanet import files

if TYPE_CHECKING:
    import torch  # whoever only reads logs does not load it

TRAININGS = "trainings.json"  # of a report: the score of each training in it, and how it was trained
_SCORED = {
    "profile", "noise", "model", "seed", "psnr", "ssim", "parameters",
    "clean_sha256", "noisy_sha256", "weights_sha256",
}  # fmt: skip
PACKAGES = ("torch", "torchvision", "llvmlite", "numpy", "scikit-image", "dvc", "prefect", "mlflow")
# What a run changes itself, and the parameters, which model.json records in full.
_NOT_CODE = (":!*dvc.lock", ":!results", ":!weights", ":!params.yaml", ":!*profile.yaml")


class Log:
    """One record in a JSON file of such records, kept up to date while what it tells of goes on."""

    def __init__(self, path: Path, device: "torch.device", **details: object) -> None:
        """Begin a record, or continue the last one where a killed process left it unfinished.

        Args:
            path: JSON file; it keeps the finished records of earlier times.
            device: where the computation runs.
            **details: what identifies it; only a record with the same ones is continued.
        """
        from lambdanet import devices

        self.path, self.began = path, time.time()
        self.peak_memory = lambda: devices.peak_memory(device)
        self.older = read_records(path)
        last = self.older.pop() if self.older and "weights_sha256" not in self.older[-1] else {}
        if not all(last.get(key) == value for key, value in details.items()):
            last = {}
        self.seconds = last.get("seconds", 0.0)
        self.record = {
            "device": devices.describe_device(device),
            "seconds": self.seconds,
            "peak_memory_bytes": 0,
            "started": last.get("started") or _now(),
            "finished": None,
            "commit": commit(),
            "stage": os.environ.get("DVC_STAGE"),
            "python": platform.python_version(),
            "versions": versions(),
            **details,
            "history": last.get("history", []),
        }
        self.write()

    def epoch(self, row: dict, seconds: float | None) -> None:
        """Add an epoch's row, its time and its moment; an `OnEpoch` of the training."""
        history = [old for old in self.record["history"] if old["epoch"] < row["epoch"]]
        self.record["history"] = [*history, row | {"seconds": seconds, "finished": _now()}]
        self.write()

    def finish(self, weights_sha256: str) -> None:
        """Write the record for good, with the digest of the weights that it is about.

        Where a training had nothing left to do but to write weights of which there is a record already, that
        one stays instead: it says which commit trained them, and for how long.
        """
        if not self.record["history"] and (old := find_record(self.path, weights_sha256)):
            self.older.remove(old)
            files.write_json(self.path, [*self.older, old])
            return
        self.record |= {"finished": _now(), "weights_sha256": weights_sha256}
        self.write()

    def write(self) -> None:
        """Write the record as far as it has come."""
        self.record["seconds"] = round(self.seconds + time.time() - self.began, 1)
        self.record["peak_memory_bytes"] = self.peak_memory()
        files.write_json(self.path, [*self.older, self.record])


def read_records(path: Path) -> list[dict]:
    """The records of a log, oldest first; none where it is missing or damaged."""
    try:
        records = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return records if isinstance(records, list) else []


def find_record(path: Path, weights_sha256: str) -> dict | None:
    """The newest record of a log that is of these weights.

    A run's log outlives its outputs: DVC may restore those of an earlier training from its cache.
    """
    found = [one for one in read_records(path) if one.get("weights_sha256") == weights_sha256]
    return found[-1] if found else None


def read_trainings(results: Path) -> dict[str, dict]:
    """What a report keeps of each training, by the run's name: `scores`, `log` and `description` or None.

    Args:
        results: folder of `report.write_report`.

    Raises:
        ValueError: the file is missing or damaged, or an entry is not whole.
    """
    trainings = files.read_json(path := results / TRAININGS)
    for name, entry in trainings.items():
        try:
            log = entry.setdefault("log", None)
            whole = entry["scores"].keys() >= _SCORED and (log is None or log.keys() >= {"weights_sha256"})
        except (AttributeError, KeyError, TypeError):
            whole = False
        if not whole:
            raise ValueError(f"{path} is damaged at {name}; restore it, or remove it and run `dvc repro`")
    return trainings


def _now() -> str:
    """UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
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
