"""A clone of this project as git sees it: its commit, its changes, and workspaces made from it."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from lambdanet import files
from pipelines import profiles

# What a run writes itself.
_RESULTS = (":!dvc.lock", ":!results", ":!weights")
KEPT_DAYS = 14
DAMAGED = Path(".dvc/tmp/dvc.lock.damaged")


class CloneError(ValueError):
    """A clone is not as it must be; the text says what to do."""


def pushed_commit() -> str:
    """The commit that is checked out here, once it is sure that a worker can run just that.

    Raises:
        CloneError: code or parameters differ from it, or `origin` does not have it.
    """
    changed = [line[3:] for line in git("status", "--porcelain", "--", ".", *_RESULTS).splitlines()]
    if "params.yaml" in changed and _only_profile_changed():
        changed.remove("params.yaml")
    if changed:
        raise CloneError(
            f"uncommitted changes in {', '.join(changed[:5])}{' and others' * (len(changed) > 5)}: workers "
            "run what is committed and pushed, so commit and push these, or stash them"
        )
    head = git("rev-parse", "HEAD").strip()
    _fetch()
    if not git("branch", "--remotes", "--contains", head).strip():
        raise CloneError(f"origin does not have commit {head[:12]}, and workers get it from there: git push")
    return head


def resolve(revision: str) -> str:
    """The commit that a branch, tag or commit of `origin` stands for; fetches first.

    Raises:
        CloneError: origin has no such revision, or does not answer.
    """
    if not re.fullmatch(r"[\w./-]{1,200}", revision) or revision.startswith("-"):
        raise CloneError(f"{revision!r} is no revision of git")
    _fetch()
    for name in (f"refs/remotes/origin/{revision}", revision):
        with contextlib.suppress(CloneError):
            return git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
    raise CloneError(f"origin has no revision {revision!r}; push it, or name another")


def workspace(base: Path, commit: str, profile: str, owner: str) -> Path:
    """A folder with `commit` checked out, that uses the DVC cache of `base`; made where it is missing.

    Workers of one machine share a cache, and each has folders of its own: DVC locks a folder for
    the time that it reads its data.

    Args:
        base: the machine's clone.
        commit: full digest, which `base` has or can fetch.
        profile: to be made the active one there.
        owner: the worker; only one process works in a folder at a time.

    Raises:
        CloneError: origin does not have the commit.
    """
    folders = base / ".dvc/tmp/workspaces"
    folder = folders / f"{re.sub(r'[^A-Za-z0-9-]', '-', owner)}-{profile}-{commit[:12]}"
    if not folder.is_dir():
        _forget_old(folders)
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        with contextlib.chdir(base):
            resolve(commit)
            origin = git("remote", "get-url", "origin").strip()
            cache = _run(sys.executable, "-m", "dvc", "cache", "dir").strip()
        _run("git", "clone", "--quiet", "--no-checkout", str(base), str(part))
        with contextlib.chdir(part):
            git("remote", "set-url", "origin", origin)
            git("checkout", "--quiet", "--detach", commit)
            if (local := base / ".dvc/config.local").is_file():
                shutil.copy(local, ".dvc/config.local")
            _run(sys.executable, "-m", "dvc", "config", "--local", "cache.dir", cache)
            profiles.make_active(profile)
        part.rename(folder)
    os.utime(folder)
    with contextlib.chdir(folder):
        mend()
    return folder


def mend() -> list[str]:
    """Put in order what a `dvc` that was killed left half-written here, while no other one runs.

    DVC writes both files in place, and no command of it works on half of one. Of a damaged dvc.lock a copy is
    kept, and its replacement is complete before it takes the name; one in a merge conflict is the user's.

    Returns:
        What was mended.
    """
    mended = []
    locks = Path(".dvc/tmp/rwlock")
    if locks.is_file() and not _parses(json.loads, locks):
        locks.unlink()  # DVC's list of files in use; without a running dvc it is empty
        mended.append(f"{locks} was damaged: removed")
    lock = profiles.LOCK
    whole = not lock.is_file() or _parses(profiles.read_lock, lock)
    if not whole and not profiles.in_conflict(lock.read_text(errors="replace")):
        DAMAGED.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(lock, DAMAGED)
        if committed := _committed(lock):
            files.write_text(lock, committed)
            what = "as committed again"
        else:
            os.replace(lock, DAMAGED)
            what = "no whole one is committed, moved away"
        mended.append(f"{lock} was damaged: {what}; {DAMAGED} has the damaged one; `dvc repro` adds the rest")
    return mended


def _committed(lock: Path) -> str:
    """The dvc.lock that git's index or last commit has, if it is whole; else empty."""
    for revision in ("", "HEAD"):
        with contextlib.suppress(CloneError, ValueError):
            text = git("show", f"{revision}:./{lock}")
            profiles.read_lock(text)
            return text
    return ""


def _parses(parse: Callable[[str], object], path: Path) -> bool:
    try:
        parse(path.read_text())
    except ValueError:
        return False
    return True


def experiments() -> list[str]:
    """The names of the DVC experiments that this clone has."""
    return re.findall(r"^\w+ refs/exps/\w+/\w+/(\S+)$", git("show-ref"), re.MULTILINE)


def _forget_old(folders: Path) -> None:
    for folder in folders.glob("*"):
        if time.time() - folder.stat().st_mtime > KEPT_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)


def _only_profile_changed() -> bool:
    before, now = git("show", "HEAD:params.yaml"), profiles.PARAMS.read_text()
    # Workers take the seeds of the commit, or those that its profile brings.
    there = (before, profiles.with_profile(before, profiles.active()))
    seeds = [yaml.safe_load(text)["seeds"] for text in (now, *there)]
    return seeds[0] in seeds[1:] and profiles.with_choice_of(now, before) == before


def _fetch() -> None:
    try:
        git("fetch", "--quiet", "origin")
    except CloneError as error:
        raise CloneError(f"git origin cannot be reached: {error}") from None


def git(*words: str) -> str:
    """Run git here; its output.

    Raises:
        CloneError: it failed.
    """
    return _run("git", *words)


def _run(*words: str) -> str:
    # Never a question at a prompt that nobody sees.
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0", "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise CloneError(f"{' '.join(words[:3])}: {' '.join(done.stderr.split())[-300:]}")
    return done.stdout
