"""Results of a worker without the project's file system: through DVC's remote, with its checkpoints.

Outputs and the run-cache are DVC's. Checkpoints and logs, which DVC does not know, lie at
`<remote>/lambdanet-state/<key>/`, where the key names the commit and the stage: two commits do not touch
each other's. `dvc gc --cloud` leaves them alone: it removes `files/md5/XX/...`, and `XX/...` of DVC 2.
"""

import contextlib
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines import artifacts, graph, stage

COPY_SECONDS = 120
PATIENCE_SECONDS = 3600
WAITS = (2, 5, 10, 20, 40, 60)
CHECKPOINTS, LOGS = "checkpoints", "logs"  # names of folders, in the project's or in runs/PROFILE
_PERMANENT = re.compile(
    "[Aa]uthenticat|Permission denied|not authorized|[Cc]redential|[Ff]orbidden|NoSuchBucket|ConfigError"
)


class Beside:
    """The checkpoints and logs of one key, in the DVC remote of a project's folder."""

    def __init__(self, folder: Path, key: str) -> None:
        """Open the default remote.

        Raises:
            ValueError: there is none.
        """
        self.folder, self.key = folder, key
        self.began = time.time() - 2  # file systems' clocks are coarse
        self.connect()

    def connect(self) -> None:
        """Connect, anew where a connection was lost: fsspec keeps a dead one."""
        found = graph.remote(self.folder)
        if found is None:
            what = "machines without a shared file system exchange outputs through a default DVC remote"
            raise ValueError(f"{what}: dvc remote add --local --default NAME URL")
        self.fs, path = found
        self.at = f"{path}/lambdanet-state/{self.key}"

    def answers(self) -> bool:
        """Whether the remote can be reached."""
        try:
            self.connect()
            self.fs.exists(self.at)
        except Exception:  # each file system has its own
            return False
        return True

    def fetch(self, *kinds: str) -> int:
        """Bring what is not here, or is longer there; returns the number of files."""
        brought = 0
        for path, source in self._there(*kinds).items():
            target = self.folder / path
            if target.exists() and target.stat().st_size >= self.fs.size(source):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
            try:
                self.fs.get_file(source, str(part))
                part.rename(target)
            finally:
                part.unlink(missing_ok=True)
            brought += 1
        return brought

    def push(self) -> int:
        """Copy what this stage has written, and remove there what is no longer here.

        Returns:
            The number of files copied.
        """
        here, there, copied = self._here(), self._there(CHECKPOINTS, LOGS), 0
        for path, file in here.items():
            # A checkpoint's name says how far it is; a log grows.
            if path not in there or self.fs.size(there[path]) != file.stat().st_size:
                self._put(file, f"{self.at}/{path}")
                copied += 1
        for path in there.keys() - here.keys():
            if not (self.folder / path).exists():
                self.fs.rm_file(there[path])
        return copied

    def drop_checkpoints(self) -> None:
        """Remove the checkpoints there; the stage has ended."""
        for source in self._there(CHECKPOINTS).values():
            self.fs.rm_file(source)

    def _put(self, file: Path, target: str) -> None:
        self.fs.makedirs(self.fs.parent(target), exist_ok=True)
        part = f"{target}.{uuid.uuid4().hex[:8]}.part"
        try:
            self.fs.put_file(str(file), part)
            if self.fs.exists(target):
                self.fs.rm_file(target)
            self.fs.move(part, target)
        finally:
            if self.fs.exists(part):
                self.fs.rm_file(part)

    def _there(self, *kinds: str) -> dict[str, str]:
        if not self.fs.exists(self.at):
            return {}
        found = {source[len(self.at) + 1 :]: source for source in self.fs.find(self.at)}
        return {path: source for path, source in found.items() if _is_of(path, kinds)}

    def _here(self) -> dict[str, Path]:
        """This stage's files: those written since it began here; only one stage runs in a workspace."""
        folders = [found for kind in (CHECKPOINTS, LOGS) for pattern in (kind, f"runs/*/{kind}")
                   for found in self.folder.glob(pattern)]  # fmt: skip
        files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
        named = {
            str(file.relative_to(self.folder)): file for file in files if file.stat().st_mtime >= self.began
        }
        return {path: file for path, file in named.items() if _is_of(path, (CHECKPOINTS, LOGS))}


def _is_of(path: str, kinds: tuple[str, ...]) -> bool:
    name = path.rpartition("/")[2]
    # Half-written files and locks mean something only to the process that wrote them.
    return any(kind in path.split("/")[:-1] for kind in kinds) and not (
        name.endswith(".part") or name.startswith("lock")
    )


def run(
    name: str, folder: Path, key: str, run_stage: Callable[[], str], say: Callable[[str], None],
    deliveries: tuple[tuple[str, ...], ...],
) -> str:  # fmt: skip
    """Run a stage in a workspace and deliver what it made.

    Args:
        name: of the stage.
        folder: the workspace.
        key: of its checkpoints.
        run_stage: runs it; returns what `stage.run` returns.
        say: told what happens.
        deliveries: DVC's commands that bring the outputs to the remote, each with its last word.

    Raises:
        StageError: see `stage.run`; BusyError also where the remote is away for an hour.
        ValueError: there is no remote.
    """
    beside = Beside(folder, key)
    if brought := patiently(lambda: beside.fetch(CHECKPOINTS, LOGS), "fetching checkpoints", say):
        say(f"resumes from {brought} files that another worker copied")
    beside.began = beside.began if not brought else 0.0
    try:
        with artifacts.every(COPY_SECONDS, beside.push):
            ended = _until_the_remote_answers(run_stage, beside, say)
    except BaseException:  # SIGTERM too: the last checkpoint is not to be lost
        with contextlib.suppress(Exception):  # what stopped it says more
            patiently(beside.push, "copying checkpoints", say, seconds=10)
        raise
    for words in deliveries:
        patiently(
            lambda words=words: stage.run(words[-1], say, words=words[:-1], folder=folder), "pushing", say
        )
    patiently(beside.push, "copying the log", say)
    patiently(beside.drop_checkpoints, "removing checkpoints", say)
    return ended


def _until_the_remote_answers(
    run_stage: Callable[[], str], beside: Beside, say: Callable[[str], None]
) -> str:
    while True:
        try:
            return run_stage()
        except stage.StoppedError:
            raise
        except stage.StageError:
            if beside.answers():
                raise
            patiently(beside.connect, "reaching the remote", say)


def patiently(
    call: Callable[[], Any], what: str, say: Callable[[str], None], seconds: float = PATIENCE_SECONDS
) -> Any:
    """Call something that needs the remote until it works; what waiting does not mend is raised at once.

    Raises:
        BusyError: it did not work for so long.
        StageError: it cannot work: a wrong password, say.
    """
    began, tries = time.monotonic(), 0
    while True:
        try:
            return call()
        except stage.StoppedError:
            raise
        except Exception as error:
            # Each file system has errors of its own; Python's, but for the system's, are mistakes in code.
            if type(error).__module__ == "builtins" and not isinstance(error, OSError):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            if _PERMANENT.search(reason):
                raise stage.StageError(f"{what} failed: {reason}") from None
            wait = WAITS[min(tries, len(WAITS) - 1)]
            if time.monotonic() - began + wait > seconds:
                raise stage.BusyError(f"{what} failed for {seconds:.0f} s ({reason})") from None
            say(f"{what} failed ({reason}); again in {wait} s")
            time.sleep(wait)
            tries += 1
