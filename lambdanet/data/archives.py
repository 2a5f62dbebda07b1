"""Data sets that come as an archive: read in place, downloaded from the first mirror that delivers one."""

import logging
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30
TRIES = 3  # of each mirror
LARGEST = 64 << 20  # bytes of a file; a python batch of CIFAR-10 has 31 MB

T = TypeVar("T")


def load(
    title: str,
    source: str | None,
    downloads: Path,
    *,
    variable: str,
    mirrors: Iterable[str],
    read: Callable[[Path], T],
) -> T:
    """Read a data set from `source`, or download it; a downloaded archive stays if `read` takes it.

    Args:
        title: of the data set, for messages.
        source: an archive or a folder on disk; None downloads.
        downloads: folder that keeps the downloaded archive; one that it holds is not downloaded again.
        variable: the environment variable that names `source`.
        mirrors: URLs of the archive, in the order in which they are tried.
        read: of a path; raises ValueError for what is not exactly the data set.

    Raises:
        ValueError: the source does not exist or is not the data set, or no mirror delivers it.
    """
    if source:
        path = Path(source).expanduser()
        if not path.exists():
            raise ValueError(f"{variable} names {path}, which does not exist")
        try:
            return read(path)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    kept = {url: downloads / url.rsplit("/", 1)[-1] for url in mirrors}
    for path in filter(Path.exists, kept.values()):
        try:
            return read(path)
        except ValueError:
            path.unlink()
    reasons = []
    for url, path in kept.items():
        try:
            _fetch(url, path)
            return read(path)
        except (ValueError, OSError) as error:
            path.unlink(missing_ok=True)
            reasons.append(f"{url}: {' '.join(str(error).split())[:300]}")
            log.warning("no luck with %s", reasons[-1])
    raise ValueError(
        f"{title} could not be downloaded; set {variable} to an archive or folder on disk, "
        f"or run the profile sample. Tried {'; '.join(reasons)}"
    )


def contents(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Walk the wanted files of a folder, or of a tar of any compression: name and content.

    Nothing is extracted to disk. A name begins with the folder's own.

    Raises:
        ValueError: damaged, cut short, or with a file that claims to be absurdly large.
    """
    try:
        yield from _of_folder(path, wanted) if path.is_dir() else _of_archive(path, wanted)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"damaged or cut short ({error}); get it again") from None


def _of_folder(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    path = path.resolve()
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path.parent).as_posix()
        if wanted(name) and file.is_file():
            yield name, file.read_bytes()


def _of_archive(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if not (member.isfile() and wanted(member.name)):
                continue
            if member.size > LARGEST:
                raise ValueError(f"member {member.name} claims {member.size:,} bytes")
            yield member.name, archive.extractfile(member).read()


def _fetch(url: str, path: Path) -> None:
    """Download a file, which appears under its name when it is whole."""
    import pooch

    name = path.name
    fetcher = pooch.create(
        path.parent, base_url="", registry={name: None}, urls={name: url}, retry_if_failed=TRIES - 1
    )
    pooch.get_logger().setLevel("WARNING")
    fetcher.fetch(name, downloader=pooch.HTTPDownloader(timeout=TIMEOUT_SECONDS, progressbar=True))
