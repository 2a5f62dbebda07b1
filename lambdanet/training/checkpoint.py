"""Checkpoints of a training in progress: two files, the newer and the one before it.

Not a dependency in DVC: a resumed training is byte-identical (tests/training/test_loop.py).
"""

import contextlib
import io
import logging
import pickle
import re
import zipfile
from pathlib import Path

import torch

from lambdanet import files

log = logging.getLogger(__name__)

KEEP = 2


def save(folder: Path, key: str, steps: int, state: dict) -> None:
    """Write `state` after `steps` optimiser steps; keep the newest two.

    Args:
        folder: holds the checkpoints of one training.
        key: names everything that decides the training's result; see `load_newest`.
        steps: optimiser steps done so far.
        state: tensors and plain values.
    """
    buffer = io.BytesIO()
    torch.save({"key": key, "state": state}, buffer)
    files.write_bytes(folder / f"{steps:09d}.pt", buffer.getvalue())
    for old in _newest_first(folder)[KEEP:]:
        old.unlink(missing_ok=True)


def load_newest(folder: Path, key: str) -> dict | None:
    """Read the newest checkpoint that is whole and belongs to this very training.

    One that is damaged, or was made under other settings, data or code (another key), is removed
    with a line that says so: left there, it could count as newer than those to come.

    Returns:
        The state that was saved, or None.
    """
    for path in _newest_first(folder):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            if content["key"] == key:
                return content["state"]
            log.warning("%s belongs to other settings, data or code; not used, removed", path)
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError,
                pickle.UnpicklingError, zipfile.BadZipFile) as error:  # fmt: skip
            log.warning("%s is damaged (%s); not used, removed", path, type(error).__name__)
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def discard(folder: Path) -> None:
    """Remove all checkpoints of one training, and parts of them that a killed process left."""
    for path in [*_newest_first(folder), *folder.glob(".*.part")]:
        path.unlink(missing_ok=True)


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("*.pt") if re.fullmatch(r"\d{9}\.pt", path.name)]
    return sorted(found, reverse=True)
