"""Files out of an archive or a folder, read in place; archives from the first mirror that delivers one."""

import io
import logging
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Mirror(NamedTuple):
    """Where an archive can be had: its URL, its file's name here, and its checksum if it has one."""

    url: str
    name: str
    checksum: str | None = None


def members(path: Path, *, skip_links: bool = False) -> Iterator[tuple[str, int, io.BufferedIOBase]]:
    """Walk the files of a folder, or of a tar of any compression: name, size, content.

    Nothing is extracted, so the caller must read each file before the next, and should refuse a
    member whose claimed size is absurd before it asks for the next, as tarfile would read all of it.

    Args:
        path: the folder or the tar.
        skip_links: pass over a tar's links and devices, instead of refusing it.

    Raises:
        ValueError: a link or a device, or a name that points outside.
        tarfile.TarError, EOFError, OSError: damaged or cut short.
    """
    return _folder(path) if path.is_dir() else _archive(path, skip_links)


def first_mirror(
    mirrors: Iterable[Mirror], folder: Path, read: Callable[[Path], T], *, seconds: float, tries: int
) -> T:
    """Fetch an archive from the first mirror that delivers it whole, and read it.

    The file appears under its name only when its checksum, if it has one, was right, and stays there
    only if `read` took it. What stands there already is not fetched again.

    Args:
        mirrors: in the order in which they are tried.
        folder: keeps the archive.
        read: of the archive's path; raises ValueError for one that is not what it should be.
        seconds: without an answer after which a mirror is given up.
        tries: of each mirror.

    Returns:
        What `read` returned.

    Raises:
        ValueError: each mirror's reason.
    """
    import pooch
    import requests

    reasons = []
    for url, name, checksum in mirrors:
        if checksum is None and (folder / name).exists():  # perhaps not yet read when it was fetched
            try:
                return read(folder / name)
            except ValueError:
                (folder / name).unlink()
        fetcher = pooch.create(
            folder, base_url="", registry={name: checksum}, urls={name: url}, retry_if_failed=tries - 1
        )
        downloader = pooch.HTTPDownloader(timeout=seconds, progressbar=True)
        pooch.get_logger().setLevel("WARNING")
        try:
            path = Path(fetcher.fetch(name, downloader=downloader))
        except (requests.RequestException, ValueError, OSError) as error:
            reasons.append(f"{url}: {_reason(error)}")
        else:
            try:
                return read(path)
            except ValueError as error:
                path.unlink()
                reasons.append(f"{url}: {error}")
        log.warning("no luck with %s", reasons[-1])
    raise ValueError("; ".join(reasons))


def _archive(path: Path, skip_links: bool) -> Iterator[tuple[str, int, io.BufferedIOBase]]:
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            parts = PurePosixPath(member.name).parts
            if member.name.startswith("/") or ".." in parts:
                raise ValueError(f"member {member.name!r} points outside the archive's folder; not used")
            if member.isfile():
                yield member.name, member.size, archive.extractfile(member)
            elif not (member.isdir() or skip_links):
                raise ValueError(f"member {member.name!r} is a link or a device; not used")


def _folder(path: Path) -> Iterator[tuple[str, int, io.BufferedIOBase]]:
    for file in sorted(path.rglob("*")):
        if file.is_file():
            with open(file, "rb") as opened:
                yield file.relative_to(path).as_posix(), file.stat().st_size, opened


def _reason(error: Exception) -> str:
    """The innermost cause of a request's failure, in one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return " ".join(str(error).split())[:200]
