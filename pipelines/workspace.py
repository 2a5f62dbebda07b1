"""A commit as a folder on this machine, that uses the DVC cache of the machine's clone."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import filelock

KEPT_DAYS = 14
FETCH_WAITS = (1, 3, 10, 30)
# What git says of a network that may come back; everything else, a wrong address or password, stays.
_NETWORK = re.compile(
    "timed out|Could not resolve|Connection (reset|refused|closed)|Temporary failure|early EOF|hung up|"
    "unable to access.*(50[0-9]|Failed to connect)|Network is unreachable|No route to host|cannot lock ref"
)
# What a run writes itself.
RESULTS = (":!dvc.lock", ":!*/dvc.lock", ":!results", ":!weights")


class AwayError(ValueError):
    """The network or git's origin is away; both may come back."""


def base() -> Path:
    """This machine's clone: LAMBDANET_CLONE, or the current folder."""
    return Path(os.environ.get("LAMBDANET_CLONE") or Path.cwd()).resolve()


def temporary(folder: Path) -> Path:
    """A folder for locks and workspaces, that git and DVC ignore.

    Raises:
        ValueError: `folder` is no DVC project.
    """
    if not (folder / ".dvc").is_dir():
        raise ValueError(f"{folder.resolve()} is no DVC project; run this in the project's folder")
    found = folder / ".dvc/tmp/lambdanet"
    found.mkdir(parents=True, exist_ok=True)
    return found


def resolve(folder: Path, revision: str) -> str:
    """The full commit of a branch, tag or commit, for which `origin` is asked; of "" what is checked out.

    Raises:
        AwayError: origin does not answer.
        ValueError: there is no such revision, or origin refuses.
    """
    if revision.startswith("-") or not re.fullmatch(r"[\w./-]{0,200}", revision):
        raise ValueError(f"{revision!r} is no revision of git")
    commit = revision if re.fullmatch("[0-9a-f]{40}", revision) else ""
    if commit or not revision:
        with contextlib.suppress(ValueError):
            return _commit(folder, commit or "HEAD")
    if "origin" in git(folder, "remote").split():
        fetch(folder, commit)
    for name in (f"refs/remotes/origin/{revision}", revision):
        with contextlib.suppress(ValueError):
            return _commit(folder, name)
    raise ValueError(f"there is no revision {revision!r} here or at origin; push it, or name another")


def _commit(folder: Path, revision: str) -> str:
    return git(folder, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")


def fetch(folder: Path, commit: str = "") -> None:
    """Fetch from `origin`, one process of this machine at a time; a network that is away is waited for.

    A commit that another process has fetched meanwhile is not fetched again.

    Raises:
        AwayError: origin does not answer after several attempts.
        ValueError: it refuses.
    """
    with filelock.FileLock(temporary(folder) / "fetch.lock"):
        if commit:
            with contextlib.suppress(ValueError):
                _commit(folder, commit)
                return
        _with_origin(folder, "fetch", "--quiet", "origin")


def _with_origin(folder: Path, *words: str) -> None:
    for wait in (*FETCH_WAITS, None):
        try:
            git(folder, *words)
            return
        except ValueError as error:
            away = _NETWORK.search(str(error))
            if wait is None or not away:
                kind = AwayError if away else ValueError
                raise kind(f"git origin cannot be reached: {error}") from None
        time.sleep(wait)


def check_pushed(folder: Path, commit: str) -> None:
    """Make sure that a worker can run exactly the commit that is checked out.

    Raises:
        ValueError: code or parameters differ from it, or `origin` does not have it.
    """
    if changed := changes(folder):
        more = " and others" * (len(changed) > 5)
        raise ValueError(
            f"uncommitted changes in {', '.join(changed[:5])}{more}: workers run what is committed and "
            "pushed, so commit and push these, or stash them"
        )
    fetch(folder)
    if not git(folder, "branch", "--remotes", "--contains", commit):
        raise ValueError(f"origin does not have commit {commit[:12]}, and workers get it there: git push")


def changes(folder: Path) -> list[str]:
    """The files that differ from the commit, besides those that a run writes."""
    return [line[3:] for line in git(folder, "status", "--porcelain", "--", ".", *RESULTS).splitlines()]


@contextlib.contextmanager
def opened(clone: Path, commit: str, name: str, say: Callable[[str], None]) -> Iterator[Path]:
    """A folder with a commit of a clone checked out, held for the time of the block.

    A second user of the name waits, which `say` is told; what an earlier one left there is used again.

    Raises:
        ValueError: git or DVC refuse.
    """
    folder = temporary(clone) / "workspaces" / name
    folder.parent.mkdir(exist_ok=True)
    waiting = f"workspace {name} is in use by another run of the same; waiting for it"
    with _held(folder.with_name(f"{name}.lock"), lambda: say(waiting)):
        if not (folder / ".dvc").is_dir():
            _forget_old(folder.parent)
            _make(clone, folder)
        os.utime(folder)
        # A `dvc` that was killed leaves these half-written; the run-cache restores what the commit lacks.
        git(folder, "checkout", "--quiet", "--force", "--detach", commit)
        (folder / ".dvc/tmp/rwlock").unlink(missing_ok=True)
        yield folder


def _make(clone: Path, folder: Path) -> None:
    local = clone / ".dvc/config.local"
    text = local.read_text() if local.is_file() else ""
    if relative := re.search(r"^\s*(?:url|dir)\s*=\s*(?![\s/]|\w+://)(.+)$", text, re.MULTILINE):
        raise ValueError(f"{local}: {relative[0].strip()} is relative; write it as an absolute path")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    git(clone, "clone", "--quiet", "--no-checkout", "--origin", "clone", str(clone), str(part))
    if "origin" in git(clone, "remote").split():
        url = git(clone, "remote", "get-url", "origin")
        # A password is not copied; git asks its credential helper.
        git(part, "remote", "add", "origin", re.sub("^(https?://)[^/]*@", r"\1", url))
    (clone / ".dvc/cache").mkdir(exist_ok=True)  # DVC's own, unless its configuration names another
    (part / ".dvc").mkdir()
    for name in (".dvc/cache", ".dvc/config.local", "downloads"):  # passwords in the second are not copied
        if (clone / name).exists():
            (part / name).symlink_to(clone / name)
    part.rename(folder)


def _forget_old(folders: Path) -> None:
    for folder in folders.iterdir():
        if folder.is_dir() and time.time() - folder.stat().st_mtime > KEPT_DAYS * 86400:
            with contextlib.suppress(filelock.Timeout), filelock.FileLock(f"{folder}.lock", timeout=0):
                shutil.rmtree(folder, ignore_errors=True)


def alone(file: str) -> AbstractContextManager[None]:
    """Hold a profile of this folder for one process's `reproduce`; that of a second one waits."""
    path = temporary(Path.cwd()) / f"reproduce-{file.replace('/', '-')}.lock"
    waiting = f"another `reproduce` of {file} runs here; waiting for it"
    return _held(path, lambda: print(waiting, file=sys.stderr, flush=True))


@contextlib.contextmanager
def _held(path: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Hold a lock for the time of the block; `wait` is called if another process holds it."""
    lock = filelock.FileLock(path, thread_local=False)
    try:
        held = lock.acquire(timeout=0)
    except filelock.Timeout:
        wait()
        held = lock.acquire()
    with held:
        yield


def experiment(folder: Path, name: str) -> str:
    """The git reference of a DVC experiment of a clone; empty where there is none."""
    return git(folder, "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}")


def remove_experiment(folder: Path, name: str) -> None:
    """Remove a DVC experiment from a clone, if it is there."""
    if reference := experiment(folder, name):
        git(folder, "update-ref", "-d", reference)


def deliver_experiment(folder: Path, name: str, *, everywhere: bool) -> None:
    """Push a DVC experiment of a workspace to the machine's clone, and before that `everywhere`: to origin.

    Raises:
        AwayError: origin does not answer after several attempts.
        ValueError: it refuses.
    """
    reference = experiment(folder, name)
    if everywhere and "origin" in git(folder, "remote").split():
        _with_origin(folder, "push", "--quiet", "--force", "origin", reference)
    git(folder, "push", "--quiet", "--force", "clone", reference)


def git(folder: Path, *words: str) -> str:
    """Run git; its output, stripped.

    Raises:
        ValueError: it failed.
    """
    # Never a question at a prompt that nobody sees; messages as `_NETWORK` has them.
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    done = subprocess.run(
        ["git", *words], cwd=folder, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise ValueError(f"git {words[0]}: {' '.join(done.stderr.split())[-300:]}")
    return done.stdout.rstrip("\n")
