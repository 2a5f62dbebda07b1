"""Whether this clone and the servers that it uses can work; a part of `lambdanet doctor`."""

import contextlib
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from lambdanet import run_log, yaml12
from lambdanet.doctor import BAD, LOCKED, NOTE, OK, Finding
from pipelines import cluster, graph, workspace

# With Python they decide a result's bytes, or what DVC and Prefect make of it.
DECIDING = (*run_log.PACKAGES, "scipy", "pandas", "safetensors", "pillow")


def installed() -> dict[str, str]:
    """The versions of this environment's Python and deciding packages; "none" where one is missing."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python} | dict.fromkeys(DECIDING, "none") | run_log.versions(DECIDING)


def locked(path: Path) -> dict[str, str]:
    """The versions of the deciding packages in a lock file, for this machine."""
    lines = re.findall(r"^[\w.-]+(?:\[[^]]*\])?==[^\\\n]+", path.read_text(), re.MULTILINE)
    pins = [one for one in map(Requirement, lines) if not one.marker or one.marker.evaluate()]
    return {one.name: str(one.specifier).removeprefix("==") for one in pins if one.name in DECIDING}


def differences(wanted: dict[str, str]) -> str:
    """Where this environment has other versions than wanted ones; empty where it has the same."""
    found = installed()
    return ", ".join(
        f"{name} {found.get(name, 'none')}, wanted {version}"
        for name, version in wanted.items()
        if found.get(name, "none") != version
    )


def look(fix: bool) -> Iterator[Finding]:
    """Look at git, at DVC's files and remote, and at the servers that the environment names.

    Args:
        fix: mend what is safe to mend, while no `dvc` runs here.
    """
    workspace.temporary(Path())  # this is a project's folder
    head = workspace.git(Path(), "rev-parse", "--short=12", "HEAD")
    changed = len(workspace.changes(Path()))
    yield Finding(OK, f"commit {head}{f', {changed} files changed' * bool(changed)}")
    lock = Path("requirements.lock")
    if lock.is_file() and (other := differences(locked(lock))):
        yield Finding(NOTE, other, f"results may differ in their last digits; {LOCKED}")
    for path in (Path(".dvc/tmp/rwlock"), *Path().glob("dvc.lock"), *Path().glob("*/dvc.lock")):
        if path.is_file() and not is_whole(path.read_text(errors="replace")):
            yield _mended(path) if fix else Finding(BAD, f"{path} is damaged", "`lambdanet doctor --fix`")
    parts = [one for one in Path(".dvc/cache").rglob("*.tmp") if time.time() - one.stat().st_mtime > 86400]
    if parts:
        megabytes = sum(path.stat().st_size for path in parts) / 1e6
        for path in parts if fix else []:
            path.unlink()
        what = f"{len(parts)} half-written files in DVC's cache, {megabytes:.0f} MB"
        advice = "removed" if fix else "`lambdanet doctor --fix` removes them"
        yield Finding(OK if fix else NOTE, what, advice)
    yield _remote()
    yield from _server("MLFLOW_TRACKING_URI", "MLflow")
    yield from _server("PREFECT_API_URL", "Prefect")


def is_whole(text: str) -> bool:
    """Whether a file that DVC writes in place was written to its end, and git left no conflict in it."""
    try:
        found = yaml12.load(text)  # JSON is YAML
    except ValueError:
        return False
    # A dvc.lock that was cut off may well be YAML; its last stage lacks something then.
    stages = found.get("stages") or {} if isinstance(found, dict) else None
    return isinstance(stages, dict) and all(isinstance(one, dict) and "cmd" in one for one in stages.values())


def _mended(path: Path) -> Finding:
    """Take the committed file for a damaged one, of which a copy is kept; a conflict is left to git."""
    if workspace.git(Path(), "ls-files", "--unmerged", str(path)):
        advice = f"git checkout --ours {path}; git add {path}; dvc repro"
        return Finding(BAD, f"{path} is in a merge conflict", advice)
    kept = workspace.temporary(Path()) / f"{str(path).replace('/', '-')}.damaged"
    os.replace(path, kept)
    with contextlib.suppress(ValueError):
        workspace.git(Path(), "checkout", "--quiet", "HEAD", "--", str(path))
    what = "as committed again" if path.exists() else "removed, as none is committed"
    return Finding(OK, f"{path} was damaged: {what}, and kept in {kept}", "`dvc repro` restores the rest")


def _remote() -> Finding:
    try:
        if not (found := graph.remote(Path())):
            return Finding(OK, "no DVC remote: outputs stay on this machine")
        file_system, path = found
        file_system.exists(path)
    except Exception as error:  # each file system has its own
        said = f"{type(error).__name__}: {str(error)[:100]}"
        return Finding(BAD, f"the DVC remote does not answer ({said})", "dvc remote list")
    return Finding(OK, "the DVC remote answers")


def _server(variable: str, name: str) -> Iterator[Finding]:
    url = os.environ.get(variable, "")
    if url.startswith("http"):
        if cluster.answers(url):
            yield Finding(OK, f"{name} answers at {url}")
        else:
            yield Finding(BAD, f"{name} at {url} does not answer", f"start it, or unset {variable}")
