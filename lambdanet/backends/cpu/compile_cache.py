"""Compiled kernels, kept between processes: a second process has them in milliseconds.

A file of machine code is used only for exactly what it was made of: the text of this package, the request,
the processor and llvmlite; and only if it is whole. What cannot be read or written is compiled instead.
"""

import contextlib
import functools
import hashlib
import os
import tempfile
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from lambdanet import files

MOST_FILES = 128  # the oldest go; one has up to half a megabyte
DIGEST = 32  # bytes of SHA-256, before the code


def find(request: str) -> bytes | None:
    """The machine code that `keep` wrote for the same request on such a machine, or None."""
    try:
        content = _path(request).read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    digest, code = content[:DIGEST], content[DIGEST:]
    return code if hashlib.sha256(code).digest() == digest else None


def keep(request: str, code: bytes) -> None:
    """Write machine code for later processes, where that is possible."""
    with contextlib.suppress(OSError, RuntimeError):
        path = _path(request)
        # Others must not be able to write what is run here.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as part:
            part.write(hashlib.sha256(code).digest() + code)
        os.replace(part.name, path)
        by_age = sorted(path.parent.glob("*.o"), key=lambda file: file.stat().st_mtime)
        for old in by_age[:-MOST_FILES]:
            old.unlink(missing_ok=True)


def _path(request: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "lambdanet/kernels" / f"{hashlib.sha256((_made_of() + request).encode()).hexdigest()}.o"


@functools.cache
def _made_of() -> str:
    source = files.code_of(Path(__file__).parent)
    machine = (llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten(), llvm.get_default_triple())
    return repr((source, machine, llvmlite.__version__, llvm.llvm_version_info))
