"""Whether this clone and the servers that it uses can work; a part of `lambdanet doctor`.

    python -m pipelines.health [--fix]

Prints a line for each finding: level, what was found and what to do, with tabs between.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import requests
from packaging.requirements import Requirement

from lambdanet import yaml12
from pipelines import graph, workspace

OK, NOTE, BAD = "ok", "note", "BAD"
SECONDS = 10
OLD_SECONDS = 86400
# With Python they decide a result's bytes, or what DVC and Prefect make of it.
DECIDING = (
    "torch", "torchvision", "llvmlite", "numpy", "scipy", "scikit-image", "pandas", "safetensors", "pillow",
    "dvc", "prefect", "mlflow",
)  # fmt: skip
POOLS = ("lambdanet", "lambdanet-flows")
Line = tuple[str, str, str]


def installed() -> dict[str, str]:
    """The versions of this environment's Python and deciding packages, as far as they are installed."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in DECIDING:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


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
        if found.get(name) != version
    )


def clone(fix: bool) -> Iterator[Line]:
    """Look at git, at DVC's files and cache, and at the data.

    Args:
        fix: mend what is safe to mend.
    """
    here = Path()
    try:
        head = workspace.git(here, "rev-parse", "--short=12", "HEAD")
        changed = workspace.git(here, "status", "--porcelain", "--", ".", *workspace.RESULTS).splitlines()
        yield OK, f"commit {head}{f', {len(changed)} files changed' if changed else ''}", ""
    except workspace.WorkspaceError as error:
        yield BAD, str(error), "is this a clone of the project?"
    lock = Path("requirements.lock")
    if lock.is_file() and (other := differences(locked(lock))):
        advice = "results may differ in their last digits; pip install --require-hashes -r requirements.lock"
        yield NOTE, other, advice
    yield from _lock_files(fix)
    yield from _leftovers(fix)
    yield from _data()
    yield _remote()


def servers() -> Iterator[Line]:
    """Look at the servers that the environment names, and at what they know of workers."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith("http"):
        yield _answers("MLflow", f"{uri.rstrip('/')}/health", "start it, or unset MLFLOW_TRACKING_URI")
    api = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    if not api:
        yield OK, "no cluster is named", ""
        return
    found = _answers("Prefect", f"{api}/health", "start it, or unset PREFECT_API_URL")
    yield found
    if found[0] == OK:
        try:
            yield from _prefect(api)
        except (requests.RequestException, ValueError, KeyError) as error:
            yield BAD, f"Prefect's answer is not understood ({type(error).__name__})", "is it of version 3.8?"


def _lock_files(fix: bool) -> Iterator[Line]:
    damaged = workspace.damaged(Path())
    for path in [one for one in damaged if workspace.in_conflict(one)]:
        damaged.remove(path)
        advice = (
            f"choose a side (`git checkout --ours {path}` or `--theirs`) or edit it, `git add {path}`, "
            "then `dvc repro` restores the rest"
        )
        yield BAD, f"{path} is in a merge conflict and was left as it is", advice
    if damaged and fix:
        yield OK, "; ".join(workspace.mend(Path())), ""
    for path in damaged if not fix else []:
        what = f"{path} was cut off by something that was killed"
        yield BAD, what, "`lambdanet doctor --fix`, while no dvc runs"


def _leftovers(fix: bool) -> Iterator[Line]:
    old = time.time() - OLD_SECONDS
    patterns = (".dvc/cache/**/*.tmp", "*/**/.*.part")
    found = [path for pattern in patterns for path in Path().glob(pattern) if path.lstat().st_mtime < old]
    found = [path for path in found if path.is_file() and ".venv" not in path.parts]
    if not found:
        return
    size = sum(path.stat().st_size for path in found) / 1e6
    what = f"{len(found)} half-written files of more than a day ago, {size:.0f} MB"
    if fix:
        for path in found:
            path.unlink(missing_ok=True)
    yield (OK, what, "removed") if fix else (NOTE, what, "`lambdanet doctor --fix` removes them")


def _data() -> Iterator[Line]:
    """Compare the bytes of outputs and of DVC's cache with the digests in each dvc.lock."""
    cache = graph.cache(Path()) / "files/md5"
    intact, seen = 0, set()
    for path, md5 in _outputs(cache):
        stored = cache / md5[:2] / md5[2:]
        for file in (stored, path):
            if not file.is_file() or (key := (file.stat().st_ino, md5)) in seen:
                continue  # not here, or a link to what was looked at
            seen.add(key)
            intact += 1
            with file.open("rb") as opened:
                if hashlib.file_digest(opened, "md5").hexdigest() == md5:
                    continue
            intact -= 1
            where = f"{file} is damaged" if file == path else f"{file}, DVC's cache of {path}, is damaged"
            yield BAD, where, f"rm -f {path} {stored}; dvc repro (or dvc pull)"
    if intact:
        yield OK, f"{intact} files of outputs and of DVC's cache are intact", ""


def _outputs(cache: Path) -> Iterator[tuple[Path, str]]:
    """The files of all outputs, with their digests."""
    damaged = workspace.damaged(Path())
    for file in (one for pattern in ("*/dvc.lock", "dvc.lock") for one in sorted(Path().glob(pattern))):
        if file in damaged:
            continue
        stages = (yaml12.read(file) or {}).get("stages") or {}
        for out in (out for entry in stages.values() for out in entry.get("outs", []) if "md5" in out):
            path, md5 = Path(out["path"]), out["md5"]
            listing = cache / md5[:2] / md5[2:]
            if not md5.endswith(".dir"):
                yield path, md5
            elif listing.is_file():
                yield from ((path / one["relpath"], one["md5"]) for one in json.loads(listing.read_text()))


def _remote() -> Line:
    found = graph.remote(Path())
    if found is None:
        return OK, "no DVC remote: outputs stay on this machine", ""
    try:
        found[0].exists(found[1])
    except Exception as error:  # each file system has its own
        said = f"{type(error).__name__}: {str(error)[:100]}"
        return BAD, f"DVC remote {found[1]} does not answer ({said})", "dvc remote list"
    return OK, f"DVC remote {found[1]} answers", ""


def _answers(name: str, url: str, advice: str) -> Line:
    try:
        requests.get(url, timeout=SECONDS).raise_for_status()
    except requests.RequestException as error:
        return BAD, f"{name} at {url} does not answer ({type(error).__name__})", advice
    return OK, f"{name} answers at {url}", ""


def _prefect(api: str) -> Iterator[Line]:
    user = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    login = (user[0], user[2]) if user[0] else None

    def ask(path: str, **body: object) -> list[dict]:
        answer = requests.post(f"{api}/{path}", json=body, timeout=SECONDS, auth=login)
        answer.raise_for_status()
        return answer.json()

    pools = {pool["name"] for pool in ask("work_pools/filter", limit=200)}
    deployed = {one["name"] for one in ask("deployments/filter", limit=200)}
    wanted = {one["name"] for one in yaml12.read(Path("prefect.yaml"))["deployments"]}
    lacking = [f"pool {name}" for name in POOLS if name not in pools]
    lacking += [f"deployment {name}" for name in sorted(wanted - deployed)]
    if lacking:
        yield BAD, f"Prefect lacks {', '.join(lacking)}", "lambdanet cluster init"
    else:
        yield OK, "pools and deployments are there", ""
    for pool in sorted(pools & set(POOLS)):
        workers = ask(f"work_pools/{pool}/workers/filter", limit=200)
        online = [one["name"] for one in workers if one["status"] == "ONLINE"]
        if online:
            yield OK, f"workers of pool {pool}: {', '.join(sorted(online))}", ""
        else:
            yield (
                BAD,
                f"no worker of pool {pool} is online",
                "lambdanet cluster workers; docs/cluster.md",
            )


def main() -> None:
    """Print all findings."""
    try:
        workspace.temporary(Path())
    except workspace.WorkspaceError as error:
        sys.exit(f"error: {error}")
    for level, what, advice in (*clone("--fix" in sys.argv[1:]), *servers()):
        print(level, what, advice, sep="\t", flush=True)


if __name__ == "__main__":
    main()
