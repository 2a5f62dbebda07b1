"""Results of a worker without the project's file system: through DVC's remote, with its checkpoints.

Outputs and the run-cache are DVC's. Checkpoints and logs, which DVC does not know, lie in one archive at
`<remote>/lambdanet-state/<key>.tar`, where the key names the commit and the stage: two commits do not touch
each other's. `dvc gc --cloud` leaves it alone: it removes `files/md5/XX/...`, and `XX/...` of DVC 2.
"""

import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lambdanet import files
from pipelines import graph, stage

COPY_SECONDS = 120
_STATE = re.compile(r"runs/[^/.]+/(checkpoints|logs)/(?!.*\.\./).+")
# What waiting does not mend.
_PERMANENT = re.compile(
    "[Aa]uthenticat|Permission denied|not authorized|[Cc]redential|[Ff]orbidden|NoSuchBucket|ConfigError|"
    "No space left|[Qq]uota"
)


class Archive:
    """The checkpoints and logs of one key, in the DVC remote of a project's folder, by a new connection."""

    def __init__(self, folder: Path, key: str) -> None:
        """Connect to the default remote.

        Raises:
            ValueError: there is none.
        """
        if not (found := graph.remote(folder)):
            what = "machines without a shared file system exchange outputs through a default DVC remote"
            raise ValueError(f"{what}: dvc remote add --local --default NAME URL")
        self.folder, (self.fs, path) = folder, found
        self.at = f"{path}/lambdanet-state/{re.sub('[^A-Za-z0-9@./-]+', '-', key)}.tar"
        # Of a push that ended between removing the old one and renaming the new one, the new one is left.
        self.there = next((one for one in (self.at, f"{self.at}.part") if self.fs.exists(one)), "")

    def fetch(self) -> int:
        """Bring what is not here, or is longer there; returns the number of files."""
        if not self.there:
            return 0
        with tempfile.NamedTemporaryFile() as copy:
            self.fs.get_file(self.there, copy.name)
            try:
                with tarfile.open(copy.name) as archive:
                    wanted = [one for one in archive if _STATE.fullmatch(one.name) and self._lacks(one)]
                    for one in wanted:  # not with their old times: they count as written here
                        files.write_bytes(self.folder / one.name, archive.extractfile(one).read())
            except tarfile.ReadError:
                if self.there == self.at:
                    raise
                return 0  # the first push ended in its middle
        return len(wanted)

    def _lacks(self, member: tarfile.TarInfo) -> bool:
        here = self.folder / member.name
        return member.isfile() and (not here.exists() or here.stat().st_size < member.size)

    def push(self, since: float, *kinds: str) -> None:
        """Replace what is there by the files of runs/PROFILE/KIND that were written here since a moment."""
        self.fs.makedirs(self.fs.parent(self.at), exist_ok=True)
        with tempfile.NamedTemporaryFile() as copy:
            with tarfile.open(copy.name, "w") as archive:
                for path in (one for kind in kinds for one in self.folder.glob(f"runs/*/{kind}/**/*")):
                    if path.suffix != ".part" and path.is_file() and path.stat().st_mtime >= since:
                        archive.add(path, path.relative_to(self.folder))
            self.fs.put_file(copy.name, f"{self.at}.part")
        if self.fs.exists(self.at):
            self.fs.rm_file(self.at)
        self.fs.move(f"{self.at}.part", self.at)


@contextmanager
def reaching(what: str) -> Iterator[None]:
    """Errors of a remote in the block become a StageError, to be retried where waiting may help."""
    try:
        yield
    except Exception as error:
        # Each file system has errors of its kind; Python's, but for the system's, are mistakes in code.
        bug = type(error).__module__ == "builtins" and not isinstance(error, OSError)
        if bug or stage.stopping.is_set() or getattr(error, "retries", 0):
            raise
        text = f"{type(error).__name__}: {error}"
        permanent = _PERMANENT.search(text)  # in the whole of it: DVC's paths are long
        why, retries = (f"{permanent[0]}: ", 0) if permanent else ("", stage.AWAY_RETRIES)
        raise stage.StageError(f"{what} failed: {why}{stage.shortened(text)}", retries) from None


def run(name: str, folder: Path, key: str, run_stage: Callable[[], str], say: Callable[[str], None]) -> str:
    """Run a stage in a workspace, where one runs at a time, and push what it made.

    Raises:
        StageError: see `stage.run`, and where the remote is away.
        ValueError: there is no remote.
    """
    began = folder / ".dvc/tmp" / f"began-{key.replace('/', '-')}"
    began.parent.mkdir(exist_ok=True)  # a workspace that DVC has not used yet lacks it
    if not began.exists():
        began.touch()
    since = began.stat().st_mtime - 2  # file systems' clocks are coarse

    def copy() -> None:
        with suppress(Exception):  # of a remote that is away; what stops a stage says more
            Archive(folder, key).push(since, "checkpoints", "logs")

    with reaching("fetching checkpoints"):
        if brought := Archive(folder, key).fetch():
            say(f"resumes from {brought} files that another worker copied")
    try:
        with stage.repeating(copy, COPY_SECONDS):
            ended = run_stage()
    except BaseException as error:  # SIGTERM too: the last checkpoint is not to be lost
        copy()
        if isinstance(error, stage.StageError) and not error.retries and not stage.stopping.is_set():
            with reaching("reaching the remote"):  # DVC's reason may have been that it is away
                Archive(folder, key)
        raise
    with reaching("pushing"):
        # Not by `dvc exp push`: DVC reads a commit's files from git, where a profile's links are text.
        stage.run(name, say, words=("push", "--run-cache", "--with-deps"), folder=folder)
        Archive(folder, key).push(since, "logs")
    return ended
