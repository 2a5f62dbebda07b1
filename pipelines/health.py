"""Whether this clone and the cluster that it uses can work; a part of `lambdanet doctor`.

    python -m pipelines.health [--fix]

Prints a line for each finding: level, what was found and what to do, with tabs between.
"""

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import requests
import yaml

from pipelines import cluster, profiles, versions
from pipelines.clone import CloneError, git, mend

OK, NOTE, BAD = "ok", "note", "BAD"
SECONDS = 10
OLD_SECONDS = 86400
Line = tuple[str, str, str]


def clone(fix: bool) -> Iterator[Line]:
    """Look at git, at DVC's files and cache, and at the data.

    Args:
        fix: mend what is safe to mend.
    """
    try:
        head = git("rev-parse", "--short=12", "HEAD").strip()
        changed = git("status", "--porcelain", "--", ".", ":!dvc.lock", ":!results", ":!weights").splitlines()
        yield OK, f"commit {head}{f', {len(changed)} files changed' if changed else ''}", ""
    except CloneError as error:
        yield BAD, f"git: {error}", "is this a clone of the project?"
    if Path("requirements.lock").is_file() and (other := versions.differences(Path("requirements.lock"))):
        advice = "results may differ in their last digits; pip install --require-hashes -r requirements.lock"
        yield NOTE, other, advice
    yield from _lock_files(fix)
    yield from _leftovers(fix)
    active = profiles.active()
    with contextlib.suppress(ValueError):
        if others := [name for name in profiles.recorded_profiles() if name != active]:
            yield (
                NOTE,
                f"profile {active} is active; dvc.lock also has {', '.join(others)}",
                "`dvc push` and `dvc gc -w` do not see these: `make push`, and no `dvc gc -w`",
            )
    yield from _data(active)
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
    if found[0] != OK:
        return
    with requests.Session() as session:
        try:
            yield from _prefect(session, api)
        except (requests.RequestException, ValueError, KeyError) as error:
            yield BAD, f"Prefect's answer is not understood ({type(error).__name__})", "is it of version 3.8?"


def _lock_files(fix: bool) -> Iterator[Line]:
    for path, parse in ((Path(".dvc/tmp/rwlock"), json.loads), (profiles.LOCK, profiles.read_lock)):
        if not path.is_file():
            continue
        text = path.read_text(errors="replace")
        try:
            parse(text)
            yield OK, f"{path} is whole", ""
        except ValueError:
            if profiles.in_conflict(text):
                yield BAD, f"{path} is in a merge conflict and was left as it is", profiles.CONFLICT_ADVICE
                continue
            advice = "; ".join(mend()) if fix else "`lambdanet doctor --fix`, while no dvc runs"
            yield (OK if fix else BAD), f"{path} was cut off by something that was killed", advice


def _leftovers(fix: bool) -> Iterator[Line]:
    old = time.time() - OLD_SECONDS
    patterns = (
        ".dvc.lock.*.part",
        ".dvc/cache/**/*.tmp",
        "data/**/.*.part",
        "models/**/.*.part",
        "scores/**/.*.part",
    )
    found = [path for pattern in patterns for path in Path().glob(pattern) if path.lstat().st_mtime < old]
    if not found:
        return
    size = sum(path.stat().st_size for path in found if path.is_file()) / 1e6
    what = f"{len(found)} half-written files of more than a day ago, {size:.0f} MB"
    if fix:
        for path in found:
            with contextlib.suppress(OSError):
                path.unlink()
        yield OK, what, "removed"
    else:
        yield NOTE, what, "`lambdanet doctor --fix` removes them"


def _data(profile: str) -> Iterator[Line]:
    """Compare the data's bytes with the digests in dvc.lock; the links to DVC's cache share them."""
    if not profiles.LOCK.is_file():
        yield NOTE, "nothing was run here yet (no dvc.lock)", "make repro"
        return
    with contextlib.suppress(ValueError):
        stages = profiles.read_lock(profiles.LOCK.read_text())
        for name, entry in stages.items():
            for out in entry.get("outs", []):
                if name.startswith((f"download@{profile}", f"corrupt@{profile}")):
                    yield _folder(Path(out["path"]), out["md5"])


def _folder(path: Path, digest: str) -> Line:
    listing = _cache() / "files/md5" / digest[:2] / digest[2:]
    if not path.is_dir():
        return NOTE, f"{path} is not here", "`dvc repro` makes it, or takes it from the cache"
    if not listing.is_file():
        return NOTE, f"{path}: the cache does not know what belongs in it", "`dvc repro`"
    for entry in json.loads(listing.read_text()):
        file = path / entry["relpath"]
        if not file.is_file() or hashlib.md5(file.read_bytes()).hexdigest() != entry["md5"]:
            linked = _cache() / "files/md5" / entry["md5"][:2] / entry["md5"][2:]
            return BAD, f"{file} is damaged", f"rm -rf {path} {linked}; dvc repro (or dvc pull)"
    return OK, f"{path} is intact", ""


def _cache() -> Path:
    from dvc.repo import Repo

    with Repo() as repo:
        return Path(repo.cache.local.path).parent.parent


def _remote() -> Line:
    from dvc.config import ConfigError
    from dvc.repo import Repo

    with Repo() as repo:
        try:
            remote = repo.cloud.get_remote(command="doctor")
        except ConfigError:
            return OK, "no DVC remote: outputs stay on this machine", ""
        where = f"DVC remote {remote.name or ''} ({remote.path})"
        try:
            remote.fs.exists(remote.path)
        except Exception as error:  # each file system has its own
            return (
                BAD,
                f"{where} does not answer ({type(error).__name__}: {str(error)[:100]})",
                "dvc remote list",
            )
        return OK, f"{where} answers", ""


def _answers(name: str, url: str, advice: str) -> Line:
    try:
        answer = requests.get(url, timeout=SECONDS)
        answer.raise_for_status()
    except requests.RequestException as error:
        return BAD, f"{name} at {url} does not answer ({type(error).__name__})", advice
    return OK, f"{name} answers at {url}", ""


def _prefect(session: requests.Session, api: str) -> Iterator[Line]:
    def ask(path: str, **body: object) -> list[dict]:
        answer = session.post(f"{api}/{path}", json=body, timeout=SECONDS)
        answer.raise_for_status()
        return answer.json()

    init = "python -m pipelines.cluster init"
    pools = {pool["name"] for pool in ask("work_pools/filter", limit=200)}
    deployed = {f"{one['name']}" for one in ask("deployments/filter", limit=200)}
    wanted = {one["name"] for one in yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]}
    automations = {one["name"] for one in ask("automations/filter") if one["enabled"]}
    lacking = [f"pool {name}" for name in (cluster.POOL, cluster.FLOWS_POOL) if name not in pools]
    lacking += [f"deployment {name}" for name in sorted(wanted - deployed)]
    lacking += [
        f"automation {name!r}" for name in (cluster.LOST, cluster.TAKEN_UP) if name not in automations
    ]
    if lacking:
        yield BAD, f"Prefect lacks {', '.join(lacking)}", init
    else:
        yield OK, "pools, deployments and automations are there", ""
    head = ""
    with contextlib.suppress(CloneError):
        head = git("rev-parse", "--short=8", "HEAD").strip()
    for pool in sorted({cluster.POOL, cluster.FLOWS_POOL} & pools):
        workers = [
            one for one in ask(f"work_pools/{pool}/workers/filter", limit=200) if one["status"] == "ONLINE"
        ]
        if not workers:
            yield (
                BAD,
                f"no worker of pool {pool} is online",
                "python -m pipelines.cluster workers; docs/cluster.md",
            )
        for one in workers:
            yield _worker(pool, one["name"], head)


def _worker(pool: str, name: str, head: str) -> Line:
    _, _, about = name.partition(" ")
    commit, _, packages = about.partition(" ")
    if packages != versions.queue():
        return (
            NOTE,
            f"worker {name} of {pool} has other versions than this clone, {versions.queue()}",
            ("it takes none of this clone's stages; install requirements.lock there"),
        )
    if commit != head:
        return (
            NOTE,
            f"worker {name} of {pool} was started from another commit than {head}",
            ("stages run the right one; for changed flows: git pull there, and start it again"),
        )
    return OK, f"worker {name} of {pool}", ""


def main() -> None:
    """Print all findings."""
    for level, what, advice in (*clone("--fix" in sys.argv[1:]), *servers()):
        print(level, what, advice, sep="\t", flush=True)


if __name__ == "__main__":
    main()
