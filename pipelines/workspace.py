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

from lambdanet import files, yaml12
from pipelines import graph

KEPT_DAYS = 14
FETCH_SECONDS = 600
WAITS = (1, 3, 10, 30)
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
    if not revision:
        return git(folder, "rev-parse", "--verify", "HEAD^{commit}")
    if not re.fullmatch(r"[\w./-]{1,200}", revision) or revision.startswith("-"):
        raise WorkspaceError(f"{revision!r} is no revision of git")
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        with contextlib.suppress(WorkspaceError):
            return git(folder, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if git(folder, "remote"):
        fetch(folder)
    for name in (f"refs/remotes/origin/{revision}", revision):
        with contextlib.suppress(WorkspaceError):
            return git(folder, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    raise WorkspaceError(f"there is no revision {revision!r} here or at origin; push it, or name another")


def fetch(folder: Path) -> None:
    """Fetch from `origin`, one process of this machine at a time; a network that is away is waited for.

    Raises:
        WorkspaceError: origin refuses, or does not answer after several attempts.
    """
    asked = time.time()
    with filelock.FileLock(temporary(folder) / "fetch.lock", timeout=FETCH_SECONDS):
        stamp = temporary(folder) / "fetched"
        if stamp.exists() and stamp.stat().st_mtime >= asked:
            return  # another process fetched while this one waited
        for wait in (*WAITS, None):
            try:
                git(folder, "fetch", "--quiet", "origin")
            except WorkspaceError as error:
                if wait is None or not _NETWORK.search(str(error)):
                    raise WorkspaceError(f"git origin cannot be reached: {error}") from None
                time.sleep(wait)
            else:
                stamp.touch()
                return


def pushed_commit(folder: Path) -> str:
    """The commit that is checked out, once it is sure that a worker can run exactly that.

    Raises:
        WorkspaceError: code or parameters differ from it, or `origin` does not have it.
    """
    changed = [line[3:] for line in git(folder, "status", "--porcelain", "--", ".", *RESULTS).splitlines()]
    if changed:
        more = " and others" * (len(changed) > 5)
        raise WorkspaceError(
            f"uncommitted changes in {', '.join(changed[:5])}{more}: workers run what is committed and "
            "pushed, so commit and push these, or stash them"
        )
    head = resolve(folder, "")
    fetch(folder)
    if not git(folder, "branch", "--remotes", "--contains", head):
        raise WorkspaceError(f"origin does not have commit {head[:12]}, and workers get it there: git push")
    return head


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
    folders = temporary(clone) / "workspaces"
    folders.mkdir(exist_ok=True)
    folder, lock = folders / name, filelock.FileLock(folders / f"{name}.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"workspace {name} is in use by another run of the same; waiting for it")
        lock.acquire()
    try:
        if not (folder / ".dvc").is_dir():
            _forget_old(folders)
            _make(clone, commit, folder)
        os.utime(folder)
        mend(folder)
        yield folder
    finally:
        lock.release()


def _make(clone: Path, commit: str, folder: Path) -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    git(clone, "clone", "--quiet", "--no-checkout", str(clone), str(part))
    git(part, "checkout", "--quiet", "--detach", commit)
    git(part, "remote", "rename", "origin", "clone")
    if "origin" in git(clone, "remote").split():
        url = git(clone, "remote", "get-url", "origin")
        # A password is not copied; git asks its credential helper.
        git(part, "remote", "add", "origin", re.sub("^(https?://)[^/]*@", r"\1", url))
    shutil.rmtree(part / ".dvc/cache", ignore_errors=True)
    cache = graph.cache(clone)
    cache.mkdir(parents=True, exist_ok=True)
    (part / ".dvc/cache").symlink_to(cache)
    if (local := clone / ".dvc/config.local").is_file():
        _refuse_relative(local)
        (part / ".dvc/config.local").symlink_to(local)  # a link: passwords in it are not copied
    if (clone / "downloads").is_dir() and not (part / "downloads").exists():
        (part / "downloads").symlink_to(clone / "downloads")
    part.rename(folder)


def _refuse_relative(config: Path) -> None:
    parser = ConfigParser(interpolation=None)
    parser.read(config)
    for section in parser.sections():
        url = parser.get(section, "url", fallback="/")
        if "://" not in url and not Path(url).is_absolute():
            raise WorkspaceError(f"{config}: url {url} is relative; write it as an absolute path")


@contextlib.contextmanager
def alone(file: str) -> Iterator[None]:
    """Hold a profile of this folder for one `reproduce`; a second one waits for the first."""
    path = temporary(Path.cwd()) / f"reproduce-{file.replace('/', '-')}.lock"
    lock = filelock.FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"another `reproduce` of {file} runs here; waiting for it", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def damaged(folder: Path) -> list[Path]:
    """The files that DVC writes in place, and that a killed `dvc` or a merge left half-written."""
    found = [folder / ".dvc/tmp/rwlock", *folder.glob("dvc.lock"), *folder.glob("*/dvc.lock")]
    return [path for path in found if path.is_file() and not _is_whole(path.read_text(errors="replace"))]


def mend(folder: Path) -> list[str]:
    """Put them in order, while no `dvc` runs here; those in a merge conflict are not touched.

    A copy of a damaged file is kept, and its replacement is complete before it takes the name.

    Returns:
        What was mended.
    """
    mended = []
    for path in damaged(folder):
        if in_conflict(path):
            continue
        name = path.relative_to(folder)
        kept = temporary(folder) / f"{str(name).replace('/', '-')}.damaged"
        shutil.copyfile(path, kept)
        if committed := _committed(folder, name):
            files.write_text(path, committed)
            what = "as committed again"
        else:
            os.replace(path, kept)
            what = "moved away, as no whole one is committed"
        mended.append(f"{name} was damaged: {what}, and kept in {kept}; `dvc repro` restores the rest")
    return mended


def in_conflict(path: Path) -> bool:
    """Whether git left the marks of a merge conflict in a file."""
    return bool(re.search("^(<{7}|>{7})( |$)", path.read_text(errors="replace"), re.MULTILINE))


def _committed(folder: Path, name: Path) -> str:
    """What git's index or last commit has of a file, if that is whole; else empty."""
    for revision in ("", "HEAD"):
        with contextlib.suppress(WorkspaceError):
            text = git(folder, "show", f"{revision}:./{name}") + "\n"
            if _is_whole(text):
                return text
    return ""


def _is_whole(text: str) -> bool:
    try:
        found = yaml12.load(text)  # JSON is YAML
    except ValueError:
        return False
    # A dvc.lock that was cut off may well be YAML; its last stage lacks something then.
    stages = found.get("stages") or {} if isinstance(found, dict) else None
    return isinstance(stages, dict) and all(isinstance(one, dict) and "cmd" in one for one in stages.values())


def experiments(folder: Path) -> dict[str, str]:
    """The DVC experiments that a clone has: name to git reference."""
    refs = git(folder, "for-each-ref", "--format=%(refname)", "refs/exps")
    return {ref.rpartition("/")[2]: ref for ref in refs.split() if re.match(r"refs/exps/\w{2}/\w{38}/", ref)}


def _forget_old(folders: Path) -> None:
    for folder in folders.iterdir():
        if folder.is_dir() and time.time() - folder.stat().st_mtime > KEPT_DAYS * 86400:
            lock = filelock.FileLock(folders / f"{folder.name}.lock", timeout=0)
            with contextlib.suppress(filelock.Timeout), lock:
                shutil.rmtree(folder, ignore_errors=True)


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
