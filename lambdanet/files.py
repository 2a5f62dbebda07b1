"""Write files and folders that are never there in part, and lock outputs.

A new one gets the mode that the user's umask says, one that replaces another keeps its mode.

Not a dependency in DVC: it says how files are written, not what.
"""

import contextlib
import csv
import glob
import hashlib
import inspect
import io
import json
import math
import os
import secrets
import shutil
import stat
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import filelock
import numpy as np

T = TypeVar("T")
WAIT_SECONDS = 10
_NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name beside `path`, flush it to disk and rename it."""
    with _new_file(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text; see `write_bytes`."""
    write_bytes(path, content.encode())


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Raises:
        ValueError: it is none.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object")
    return content


def write_json(path: Path, content: object) -> None:
    """Write indented JSON in the order given; NaN and infinity are errors."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows that share their keys; floats in full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy, readable with `mmap_mode`, without a copy in memory; see `write_bytes`."""
    with _new_file(path) as file:
        # Of a real file numpy writes the end itself, and does not notice when the disk is full.
        only_write = types.SimpleNamespace(write=file.write)
        np.save(only_write, np.ascontiguousarray(array), allow_pickle=False)


def code_of(folder: Path) -> str:
    """The text of a folder's Python files, in the order of their names."""
    return "".join(file.read_text() for file in sorted(folder.glob("*.py")))


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[io.BufferedWriter]:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _part(path)
    try:
        with open(temporary, "xb") as file:  # with the mode that the user's umask says
            yield file
            file.flush()
            os.fsync(file.fileno())
        _keep_mode(path, temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(path)  # what a write raises, as of a full disk, names no file
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `path` if the block ends well.

    On an error in the block the temporary folder goes and what stood at `path` stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _part(path)
    temporary.mkdir()
    try:
        yield temporary
        _keep_mode(path, temporary)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def discard_parts(path: Path) -> None:
    """Remove the temporary folders that a killed `new_folder(path)` left; only under its lock."""
    for part in path.parent.glob(f".{glob.escape(_short(path.name))}.{'[0-9a-f]' * 8}.part"):
        shutil.rmtree(part, ignore_errors=True)


def _part(path: Path) -> Path:
    """A temporary name beside `path`, which nothing has yet."""
    return path.with_name(f".{_short(path.name)}.{secrets.token_hex(4)}.part")


def _short(name: str) -> str:
    """A name to which something may be added: file systems take 255 bytes."""
    return name if len(os.fsencode(name)) <= 200 else hashlib.sha256(os.fsencode(name)).hexdigest()[:32]


def _keep_mode(old: Path, new: Path) -> None:
    """Give what replaces a file or folder the permissions that this one has, if it is there."""
    if old.exists():
        os.chmod(new, stat.S_IMODE(old.stat().st_mode))


@contextlib.contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Hold the lock of one output; the lock falls with the process, however that dies.

    Args:
        path: the lock's file; it stays behind and says who held it last.

    Raises:
        ValueError: another process still holds it after `WAIT_SECONDS`, in which one that is ending ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = path.with_suffix(".pid")
    lock = filelock.FileLock(path, timeout=WAIT_SECONDS)
    try:
        lock.acquire()
    except filelock.Timeout:
        pid = holder.read_text().strip() if holder.exists() else "unknown"
        raise ValueError(f"process {pid} is writing the same output; wait for it or stop it") from None
    try:
        write_text(holder, f"{os.getpid()}\n")
        yield
    finally:
        lock.release()


def sha256(path: Path) -> str:
    """Hash a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def call_with_known(function: Callable[..., T], label: str, keywords: dict) -> T:
    """Call `function(**keywords)` if it takes these keywords, with values of these types.

    Raises:
        ValueError: names the keyword, and what is allowed.
    """
    signature = inspect.signature(function, eval_str=True)
    known = {p.name: p.annotation for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    unknown = [str(name) for name in keywords if name not in known]
    if unknown:
        allowed = ", ".join(known) or "none"
        raise ValueError(f"{label} has no parameter {', '.join(unknown)}; it takes: {allowed}")
    for name, value in keywords.items():
        kind = known[name]
        fits = type(value) in ((int, float) if kind is float else (kind,))
        if kind in _NAMES and not (fits and (kind in (str, bool) or abs(value) < math.inf)):
            raise ValueError(f"{name} of {label} is {value!r}, must be {_NAMES[kind]}")
    return function(**keywords)
