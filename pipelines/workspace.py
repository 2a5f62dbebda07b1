"""A commit as a folder on this machine, that uses the DVC cache of the machine's clone."""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from pathlib import Path

import filelock

from pipelines import graph

KEPT_DAYS = 14
FETCH_WAITS = (1, 3, 10, 30)
# What git says of a network that may come back; everything else, a wrong address or password, stays.
_NETWORK = re.compile(
    "timed out|Could not resolve|Connection (reset|refused|closed)|Temporary failure|early EOF|hung up|"
    "unable to access.*(50[0-9]|Failed to connect)|Network is unreachable|cannot lock ref"
)
# What a run writes itself.
RESULTS = (":!dvc.lock", ":!*/dvc.lock", ":!results", ":!weights")


class WorkspaceError(ValueError):
    """A clone is not as it must be; the text says what to do."""


def base() -> Path:
    """This machine's clone: LAMBDANET_CLONE, or the current folder.

    Raises:
        WorkspaceError: it is no DVC project.
    """
    folder = Path(os.environ.get("LAMBDANET_CLONE") or Path.cwd()).resolve()
    if not (folder / ".dvc").is_dir():
        raise WorkspaceError(f"{folder} is no DVC project; set LAMBDANET_CLONE to the machine's clone")
    return folder


def temporary(folder: Path) -> Path:
    """A folder for locks and workspaces, that git and DVC ignore."""
    if not (folder / ".dvc").is_dir():
        raise WorkspaceError(f"{folder.resolve()} is no DVC project; run this in the project's folder")
    found = folder / ".dvc/tmp/lambdanet"
    found.mkdir(parents=True, exist_ok=True)
    return found


def key(*parts: object) -> str:
    """A short name for what decides a training; equal parts give equal names."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def resolve(folder: Path, revision: str) -> str:
    """The full commit of a revision, which `origin` is asked for unless the clone has it.

    Args:
        folder: a clone.
        revision: branch, tag or commit; empty: what is checked out.

    Raises:
        WorkspaceError: there is no such revision, or origin does not answer.
    """
    if revision.startswith("-") or not re.fullmatch(r"[\w./-]{0,200}", revision):
        raise WorkspaceError(f"{revision!r} is no revision of git")
    if not revision or re.fullmatch("[0-9a-f]{40}", revision):
        with contextlib.suppress(WorkspaceError):
            return _commit(folder, revision or "HEAD")
    if git(folder, "remote"):
        fetch(folder)
    for name in (f"refs/remotes/origin/{revision}", revision):
        with contextlib.suppress(WorkspaceError):
            return _commit(folder, name)
    raise WorkspaceError(f"there is no revision {revision!r} here or at origin; push it, or name another")


def _commit(folder: Path, revision: str) -> str:
    return git(folder, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")


def fetch(folder: Path) -> None:
    """Fetch from `origin`, one process of this machine at a time; a network that is away is waited for.

    Raises:
        WorkspaceError: origin refuses, or does not answer after several attempts.
    """
    asked, stamp = time.time(), temporary(folder) / "fetched"
    with filelock.FileLock(temporary(folder) / "fetch.lock"):
        if stamp.exists() and stamp.stat().st_mtime >= asked:
            return  # another process fetched while this one waited
        for wait in (*FETCH_WAITS, None):
            try:
                git(folder, "fetch", "--quiet", "origin")
            except WorkspaceError as error:
                if wait is None or not _NETWORK.search(str(error)):
                    raise WorkspaceError(f"git origin cannot be reached: {error}") from None
                time.sleep(wait)
            else:
                stamp.touch()
                return


def check_pushed(folder: Path, commit: str) -> None:
    """Make sure that a worker can run exactly the commit that is checked out.

    Raises:
        WorkspaceError: code or parameters differ from it, or `origin` does not have it.
    """
    if changed := changes(folder):
        more = " and others" * (len(changed) > 5)
        raise WorkspaceError(
            f"uncommitted changes in {', '.join(changed[:5])}{more}: workers run what is committed and "
            "pushed, so commit and push these, or stash them"
        )
    fetch(folder)
    if not git(folder, "branch", "--remotes", "--contains", commit):
        raise WorkspaceError(f"origin does not have commit {commit[:12]}, and workers get it there: git push")


def changes(folder: Path) -> list[str]:
    """The files that differ from the commit, besides those that a run writes."""
    return [line[3:] for line in git(folder, "status", "--porcelain", "--", ".", *RESULTS).splitlines()]


@contextlib.contextmanager
def opened(clone: Path, commit: str, name: str, say: Callable[[str], None]) -> Iterator[Path]:
    """A folder with a commit checked out, held for the time of the block; a second user waits for the first.

    Args:
        clone: the machine's clone.
        commit: full digest, which the clone has.
        name: of the workspace; what an earlier user left under this name is used again.
        say: called when this has to wait.

    Raises:
        WorkspaceError: git or DVC refuse.
    """
    folder = temporary(clone) / "workspaces" / name
    folder.parent.mkdir(exist_ok=True)
    with _held(
        filelock.FileLock(f"{folder}.lock", thread_local=False),
        f"workspace {name} is in use by another run of the same; waiting for it",
        say,
    ):
        if not (folder / ".dvc").is_dir():
            _forget_old(folder.parent)
            _make(clone, commit, folder)
        os.utime(folder)
        # A `dvc` that was killed leaves these half-written; the run-cache restores what the commit lacks.
        git(folder, "checkout", "--quiet", "--force", "--detach", commit)
        (folder / ".dvc/tmp/rwlock").unlink(missing_ok=True)
        yield folder


def _make(clone: Path, commit: str, folder: Path) -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    git(clone, "clone", "--quiet", "--no-checkout", "--origin", "clone", str(clone), str(part))
    if "origin" in git(clone, "remote").split():
        url = git(clone, "remote", "get-url", "origin")
        # A password is not copied; git asks its credential helper.
        git(part, "remote", "add", "origin", re.sub("^(https?://)[^/]*@", r"\1", url))
    cache = graph.cache(clone)
    cache.mkdir(parents=True, exist_ok=True)
    links = {".dvc/cache": cache}
    if (local := clone / ".dvc/config.local").is_file():
        _refuse_relative(local)
        links[".dvc/config.local"] = local  # passwords in it are not copied
    if (clone / "downloads").is_dir():
        links["downloads"] = clone / "downloads"
    (part / ".dvc").mkdir()
    for name, target in links.items():
        (part / name).symlink_to(target)
    part.rename(folder)


def _refuse_relative(config: Path) -> None:
    parser = ConfigParser(interpolation=None)
    parser.read(config)
    for section in parser.sections():
        url = parser.get(section, "url", fallback="/")
        if "://" not in url and not Path(url).is_absolute():
            raise WorkspaceError(f"{config}: url {url} is relative; write it as an absolute path")


def _forget_old(folders: Path) -> None:
    for folder in folders.iterdir():
        if folder.is_dir() and time.time() - folder.stat().st_mtime > KEPT_DAYS * 86400:
            with contextlib.suppress(filelock.Timeout), filelock.FileLock(f"{folder}.lock", timeout=0):
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def alone(file: str) -> Iterator[None]:
    """Hold a profile of this folder for one process's `reproduce`; that of a second one waits."""
    path = temporary(Path.cwd()) / f"reproduce-{file.replace('/', '-')}.lock"
    with _held(
        filelock.FileLock(path, thread_local=False),
        f"another `reproduce` of {file} runs here; waiting for it",
        lambda text: print(text, file=sys.stderr, flush=True),
    ):
        yield


@contextlib.contextmanager
def _held(lock: filelock.BaseFileLock, waiting: str, say: Callable[[str], None]) -> Iterator[None]:
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def experiments(folder: Path) -> dict[str, str]:
    """The DVC experiments that a clone has: name to git reference."""
    refs = git(folder, "for-each-ref", "--format=%(refname)", "refs/exps")
    return {ref.rpartition("/")[2]: ref for ref in refs.split() if re.match(r"refs/exps/\w{2}/\w{38}/", ref)}


def git(folder: Path, *words: str) -> str:
    """Run git; its output, stripped.

    Raises:
        WorkspaceError: it failed.
    """
    # Never a question at a prompt that nobody sees.
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(
        ["git", *words], cwd=folder, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise WorkspaceError(f"git {words[0]}: {' '.join(done.stderr.split())[-300:]}")
    return done.stdout.rstrip("\n")
