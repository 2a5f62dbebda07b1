"""Results of a worker without the project's file system: through DVC's remote, with its checkpoints.

Outputs and the run-cache are DVC's. Checkpoints and logs, which DVC does not know, lie in one archive at
`<remote>/lambdanet-state/<key>.tar`, where the key names the commit and the stage: two commits do not touch
each other's. `dvc gc --cloud` leaves it alone: it removes `files/md5/XX/...`, and `XX/...` of DVC 2.
"""

import contextlib
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from lambdanet import files
from pipelines import artifacts, graph, stage

COPY_SECONDS = 120
LOGS = ("logs",)  # names of folders, in the project's or in runs/PROFILE
STATE = ("checkpoints", "logs")
# What waiting does not mend.
_PERMANENT = re.compile(
    "[Aa]uthenticat|Permission denied|not authorized|[Cc]redential|[Ff]orbidden|NoSuchBucket|ConfigError|"
    "No space left|[Qq]uota"
)


class Beside:
    """The checkpoints and logs of one key, in the DVC remote of a project's folder, by a new connection."""

    def __init__(self, folder: Path, key: str) -> None:
        """Connect to the default remote.

        Raises:
            ValueError: there is none.
        """
        found = graph.remote(folder)
        if found is None:
            what = "machines without a shared file system exchange outputs through a default DVC remote"
            raise ValueError(f"{what}: dvc remote add --local --default NAME URL")
        self.folder, (self.fs, path) = folder, found
        self.at = f"{path}/lambdanet-state/{key}.tar"
        self.there = self.fs.exists(self.at)

    def fetch(self, kinds: tuple[str, ...] = STATE) -> int:
        """Bring what is not here, or is longer there; returns the number of files."""
        if not self.there:
            return 0
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(temporary, "state.tar")
            self.fs.get_file(self.at, str(copy))
            with tarfile.open(copy) as archive:
                held = [one for one in archive if one.isfile() and _is_of(one.name, kinds)]
                wanted = [one for one in held if self._lacks(one)]
                for one in wanted:  # not with their old times: they count as written here
                    files.write_bytes(self.folder / one.name, archive.extractfile(one).read())
        return len(wanted)

    def push(self, since: float, kinds: tuple[str, ...] = STATE) -> None:
        """Replace what is there by what was written here since a moment; one stage runs here at a time."""
        self.fs.makedirs(self.fs.parent(self.at), exist_ok=True)
        part = f"{self.at}.part"
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(temporary, "state.tar")
            with tarfile.open(copy, "w") as archive:
                patterns = [f"{place}{kind}/**/*" for kind in kinds for place in ("", "runs/*/")]
                for found in (one for pattern in patterns for one in self.folder.glob(pattern)):
                    path = str(found.relative_to(self.folder))
                    if _is_of(path, kinds) and found.is_file() and found.stat().st_mtime >= since:
                        archive.add(found, path)
            self.fs.put_file(str(copy), part)
        if self.fs.exists(self.at):
            self.fs.rm_file(self.at)
        self.fs.move(part, self.at)

    def _lacks(self, member: tarfile.TarInfo) -> bool:
        here = self.folder / member.name
        return not here.exists() or here.stat().st_size < member.size


def _is_of(path: str, kinds: tuple[str, ...]) -> bool:
    """Whether a path is KIND/... or runs/PROFILE/KIND/..., and no half-written file or lock."""
    name = path.rpartition("/")[2]
    if ".." in path.split("/"):
        return False
    place = re.match(r"(?:runs/[^/]+/)?([^/]+)/", path)
    return bool(place) and place[1] in kinds and not name.endswith(".part") and not name.startswith("lock")


@contextlib.contextmanager
def reaching(what: str) -> Iterator[None]:
    """Errors of a remote in the block become AwayError, or StageError where waiting does not help."""
    try:
        yield
    except (stage.KilledError, stage.BusyError, stage.StoppedError):
        raise
    except Exception as error:
        # Each file system has errors of its kind; Python's, but for the system's, are mistakes in code.
        if type(error).__module__ == "builtins" and not isinstance(error, OSError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        kind = stage.StageError if _PERMANENT.search(reason) else stage.AwayError
        raise kind(f"{what} failed: {reason}") from None


def run(
    name: str,
    folder: Path,
    key: str,
    run_stage: Callable[[], str],
    say: Callable[[str], None],
    delivery: tuple[str, ...],
) -> str:
    """Run a stage in a workspace and deliver what it made.

    Args:
        name: of the stage.
        folder: the workspace.
        key: of its checkpoints.
        run_stage: runs it; returns what `stage.run` returns.
        say: told what happens.
        delivery: DVC's command that brings the outputs to the remote.

    Raises:
        StageError: see `stage.run`; AwayError where the remote is away.
        ValueError: there is no remote.
    """
    began = folder / ".dvc/tmp" / f"began-{key.replace('/', '-')}"
    began.parent.mkdir(exist_ok=True)  # a workspace that DVC has not used yet lacks it
    if not began.exists():
        began.touch()
    since = began.stat().st_mtime - 2  # file systems' clocks are coarse

    def copy() -> None:
        Beside(folder, key).push(since)

    with reaching("fetching checkpoints"):
        if brought := Beside(folder, key).fetch():
            say(f"resumes from {brought} files that another worker copied")
    try:
        with artifacts.every(COPY_SECONDS, copy):
            ended = run_stage()
    except BaseException as error:  # SIGTERM too: the last checkpoint is not to be lost
        with contextlib.suppress(Exception):  # what stopped it says more
            copy()
        if type(error) is stage.StageError:
            with reaching("reaching the remote"):  # DVC's reason may have been that it is away
                Beside(folder, key)
        raise
    with reaching("pushing"):
        stage.run(delivery[-1], say, words=delivery[:-1], folder=folder)
        Beside(folder, key).push(since, LOGS)
    return ended
