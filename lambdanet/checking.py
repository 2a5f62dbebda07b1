"""Whether params.yaml can be run: every key, every noise and model of every profile, the images' folder.

To try the noises and models takes torch, and so seconds; what was found valid is not tried again by the same
code, Python and torch.
"""

import contextlib
import hashlib
import platform
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from lambdanet import caches, params, yaml12

MOST_FILES = 64  # empty ones, named by what was found valid; those that were made first go


def check(path: Path) -> str:
    """Check a params.yaml; returns what is to be said of a valid one.

    Raises:
        ValueError: it is not valid; what is wrong, and where.
    """
    loaded = params.load(path)
    _has_what_is_run(path)
    found_valid = _mark(path.read_bytes())
    if not _stands(found_valid):
        _make_all(loaded)
        built_in = _has_built_in_images(loaded)  # a folder may change
        # Only if neither params.yaml nor the code was saved anew since it was read.
        if built_in and _mark(path.read_bytes()) == found_valid and params.load(path) == loaded:
            _set(found_valid)
    cells = len(loaded.cells(loaded.profile))
    return f"params.yaml is valid; profile {loaded.profile} has {cells} trainings"


def _has_what_is_run(path: Path) -> None:
    """Refuse a params.yaml without what the dvc.yaml beside it refers to."""
    pipeline = path.with_name("dvc.yaml")
    if not pipeline.is_file():
        return
    raw, text = yaml12.read(path), pipeline.read_text(encoding="utf-8-sig")
    whole = set(re.findall(r"\$\{([\w.-]+)\}", text)) | set(
        re.findall(r"- ([\w-]+(?:\.[\w-]+)+)$", text, re.M)
    )
    for name in sorted(whole):
        key, *rest = name.split(".")
        if key in ("item", "key") or (rest and key not in raw) or "/" in name:
            continue  # of DVC's own, or a file's name
        found = raw
        for part in (key, *rest):
            if not isinstance(found, dict) or part not in found:
                raise ValueError(f"{path}: {name} is missing; {pipeline} refers to it")
            found = found[part]


def _make_all(loaded: params.Params) -> None:
    from lambdanet.models import check_hyperparameters
    from lambdanet.noise import create_noise

    noises = {f"noises.{name}": config for name, config in loaded.noises.items()}
    noises |= {f"sets.{name}": config for name, config in loaded.sets.items()}
    noises |= {f"own.{v.set}.{name}.noise": v.noise for name, v in loaded.variations.items() if v.noise}
    for where, config in noises.items():
        with _within(where):
            create_noise(**config)
    for profile in loaded.trainings:
        places = {name: f"models.{name}" for name in loaded.models}
        places |= {name: f"the variation {name}" for name in loaded.variations}
        for name, where in places.items():
            with _within(f"{where} under profile {profile}"):
                check_hyperparameters(**loaded.model(profile, name))


def _has_built_in_images(loaded: params.Params) -> bool:
    from lambdanet.datasets import DATASETS, folder

    dataset = loaded.downloads[loaded.profile].dataset
    if dataset in DATASETS:
        return True
    with _within(f"profiles.{loaded.profile}.download"):
        folder.locate(dataset)
    return False


def _mark(text: bytes) -> Path | None:
    """The file that stands where this text was found valid by this code; None where that cannot be noted.

    As for a user without a home, or while an editor keeps a file's lock beside it.
    """
    digest = hashlib.sha256(text)
    package = Path(__file__).parent
    try:
        for file in sorted(package.rglob("*.py")):
            digest.update(b"\0" + str(file.relative_to(package)).encode() + b"\0" + file.read_bytes())
        digest.update(f"{platform.python_version()} {metadata.version('torch')}".encode())
        return caches.folder("valid") / digest.hexdigest()
    except (OSError, RuntimeError):
        return None


def _stands(mark: Path | None) -> bool:
    try:
        return mark is not None and mark.is_file()
    except OSError:
        return False


def _set(mark: Path | None) -> None:
    """Note it, where that is possible."""
    if mark is None:
        return
    with contextlib.suppress(OSError):
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.touch()
        caches.keep_newest(mark.parent, "*", MOST_FILES)


@contextlib.contextmanager
def _within(where: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"params.yaml: {where}: {error}") from None
