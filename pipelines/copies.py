"""What a stage keeps beside its outputs, its checkpoints and its log, copied beside the DVC remote.

DVC moves outputs between machines when a stage has ended. A stage that goes on elsewhere before
that needs its newest checkpoint; and whoever tells of it, its log. Both lie in folders that git and
DVC ignore, and the stage's command names them.
"""

import contextlib
import shlex
import uuid
from collections.abc import Iterator
from pathlib import Path

CHECKPOINTS, LOGS = "checkpoints", "logs"


class Copies:
    """Those of the stages of the DVC project in the current folder.

    They lie at <remote>-state/<stage>/<path>, through DVC's own file systems and credentials.
    """

    def __init__(self, whole: bool = False) -> None:
        """Open the project's default remote.

        Args:
            whole: this folder has one stage's, or experiment's, files only: all of them are its.

        Raises:
            ValueError: there is no default remote.
        """
        self.whole = whole
        self._open()

    def _open(self) -> None:
        from dvc.config import ConfigError
        from dvc.repo import Repo

        self.repo = Repo()
        try:
            remote = self.repo.cloud.get_remote()
        except ConfigError:
            raise ValueError(
                "there is no default DVC remote, through which machines exchange outputs: "
                "dvc remote add --local --default NAME URL"
            ) from None
        self.fs, self.remote = remote.fs, remote.path.rstrip("/")
        self.folder = f"{self.remote}-state"

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Where something fails, the next call connects anew: fsspec keeps a dead connection for ever."""
        try:
            yield
        except Exception:
            with contextlib.suppress(Exception):
                self.fs.fs.clear_instance_cache()
            self.repo.close()
            self._open()
            raise

    def __enter__(self) -> "Copies":
        return self

    def __exit__(self, *_error: object) -> None:
        self.repo.close()

    def reach(self) -> None:
        """Ask the remote something; raises what its file system does where it does not answer."""
        with self._connected():
            self.fs.exists(self.remote)

    def paths(self, stage: str) -> list[str]:
        """The files and folders of this stage that are copied, as its command names them."""
        if self.whole:
            return [CHECKPOINTS, LOGS]
        found = [word for one in self.repo.stage.collect(stage) for word in shlex.split(one.cmd or "")]
        return [word for word in found if word.split("/")[0] in (CHECKPOINTS, LOGS)]

    def fetch(self, stage: str, kind: str = "") -> int:
        """Bring what others copied and is not here; of a log the longer one counts.

        Args:
            stage: whose.
            kind: "checkpoints" or "logs"; empty: both.

        Returns:
            The number of files brought.
        """
        with self._connected():
            return self._fetch(stage, kind)

    def push(self, stage: str) -> int:
        """Copy what is new here, and take away there what is no longer here.

        Returns:
            The number of files copied.
        """
        with self._connected():
            return self._push(stage)

    def _fetch(self, stage: str, kind: str) -> int:
        brought = 0
        for path in self.paths(stage):
            at = self._at(stage, path)
            if not path.startswith(kind) or not self.fs.exists(at):
                continue
            for source in self.fs.find(at) if self.fs.isdir(at) else [at]:
                target = Path(path + source[len(at) :])
                if _is_passing(target.name):
                    continue
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

    def _push(self, stage: str) -> int:
        copied = 0
        for path in self.paths(stage):
            at = self._at(stage, path)
            here = [file for file in _files(Path(path)) if not _is_passing(file.name)]
            there = set(self.fs.find(at)) if self.fs.exists(at) and self.fs.isdir(at) else set()
            wanted = {f"{at}{str(file)[len(path) :]}": file for file in here}
            for target, file in wanted.items():
                # A checkpoint's name says how far it is, so one that is there is the same.
                if target in there:
                    continue
                self.fs.makedirs(self.fs.parent(target), exist_ok=True)
                part = f"{target}.{uuid.uuid4().hex[:8]}.part"
                try:
                    self.fs.put_file(str(file), part)
                    with contextlib.suppress(FileNotFoundError, OSError):
                        self.fs.rm_file(target)
                    self.fs.move(part, target)
                except BaseException:
                    with contextlib.suppress(Exception):
                        self.fs.rm_file(part)
                    raise
                copied += 1
            for old in there - wanted.keys():
                with contextlib.suppress(FileNotFoundError):
                    self.fs.rm_file(old)
        return copied

    def _at(self, stage: str, path: str) -> str:
        return f"{self.folder}/{stage}/{path}"


def _is_passing(name: str) -> bool:
    """Whether a file means something only to the process that wrote it."""
    return name.endswith(".part") or name.startswith("lock")


def _files(path: Path) -> list[Path]:
    return (
        sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path] * path.is_file()
    )
