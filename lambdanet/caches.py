"""Where a user's machine keeps what can be made again: the compiled kernels.

Not a dependency in DVC: it says where what can be made again is kept.
"""

import os
from pathlib import Path


def folder(name: str) -> Path:
    """Name `lambdanet/NAME` in the user's cache folder (`XDG_CACHE_HOME`, or ~/.cache).

    Raises:
        RuntimeError: the user has no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lambdanet" / name


def keep_newest(place: Path, pattern: str, most: int) -> None:
    """Remove the oldest of a cache folder's files."""
    by_age = sorted(place.glob(pattern), key=lambda file: file.stat().st_mtime)
    for old in by_age[:-most]:
        old.unlink(missing_ok=True)
