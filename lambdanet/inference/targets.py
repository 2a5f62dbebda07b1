"""Which image files to denoise, and to which file each goes; nothing is loaded or written here."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from lambdanet.data import imagefile

STREAM = Path("-")  # standard input or output
NAMED = 10  # files named in a line


def plan(images: Sequence[Path], out: Path) -> tuple[dict[Path, Path], list[str]]:
    """Pair the images with the files to write.

    Args:
        images: files and folders, or `STREAM` alone; what begins with a dot in a folder is skipped.
        out: of one image a .png file, `STREAM` or a folder that exists; else a folder, for .png files of
            the images' names.

    Returns:
        The target of each image, and a line for each folder that holds what is not taken.

    Raises:
        ValueError: the targets collide with each other or with the images, or cannot be written.
    """
    notes = []
    if len(images) == 1 and not images[0].is_dir() and not out.is_dir():
        targets = {images[0]: _file(out)}
    else:
        if STREAM in (*images, out):
            raise ValueError(
                "- is one image, from standard input or to standard output; name one image and one file"
            )
        if out.exists() and not out.is_dir():
            raise ValueError(f"{out} is a file; for several images, or those of a folder, name a folder")
        targets = {}
        for image in images:
            found, note = _in_folder(image, out) if image.is_dir() else ([image], [])
            targets |= {path: out / f"{path.stem}.png" for path in found}
            notes += note
    _check_apart(targets)
    if out != STREAM:
        _check_writable(out if out.is_dir() else out.parent)
    return targets, notes


def identity(path: Path) -> tuple[int, int] | None:
    """What a file is, whatever names lead to it; None: there is no such file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _file(out: Path) -> Path:
    if out != STREAM and out.suffix.lower() != ".png":
        raise ValueError(f"{out}: the output is a PNG file, name it .png")
    return out


def _in_folder(folder: Path, out: Path) -> tuple[list[Path], list[str]]:
    """The images of a folder, and a line on what else it holds."""
    if out.exists() and out.samefile(folder):
        raise ValueError(f"{out} is the folder of the images themselves; name another one")
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    taken = [path for path in paths if path.suffix.lower() in imagefile.SUFFIXES and path.is_file()]
    left = [f"{path.name}/" if path.is_dir() else path.name for path in paths if path not in set(taken)]
    note = [f"{folder}: not taken: {_names(left)}"] if left else []
    if not taken:
        raise ValueError(
            f"{folder} holds no images ({', '.join(imagefile.SUFFIXES)}){'; '.join(['', *note])}"
        )
    return taken, note


def _check_apart(targets: dict[Path, Path]) -> None:
    of_target: dict[Path, list[Path]] = {}
    for path, target in targets.items():
        of_target.setdefault(target, []).append(path)
    twice = [path for paths in of_target.values() if len(paths) > 1 for path in paths]
    if twice:
        raise ValueError(f"{_names(map(str, twice))} would be written to the same file; rename one")
    originals = {identity(path): path for path in targets if path != STREAM}
    for target in targets.values():
        if target != STREAM and (found := identity(target)) and found in originals:
            raise ValueError(f"{target} is the image {originals[found]} itself; name another output")


def _check_writable(folder: Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is not a folder; name another output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{there} cannot be written to; name another output")


def _names(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
