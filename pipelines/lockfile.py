"""Run DVC with a dvc.lock of which only what changed is rewritten, and nothing that is known looked up again.

    python -m pipelines.lockfile dvc repro
    python -m pipelines.lockfile --jobs 2 dvc repro     # see abreast.py

DVC parses params.yaml once for every stage and dvc.lock twice, to find that nothing has changed; it looks a
parameter up by comparing all of them with its name, and writes four times into a file that it uses a
stage's files, each time within the last. After each stage it parses all of dvc.lock, comments and all, and
writes it anew, which takes longer than a short stage where it holds the results of several profiles; a kill
meanwhile leaves half a file.

Here the same text is parsed once, and of dvc.lock only the stages that DVC asks for; a parameter is found by
its keys, a stage's files are claimed once, the stage's lines are replaced by what DVC writes for it, and the
file is renamed into place. What does not look like a file of DVC's own is left to DVC.

`repro` reads dvc.yaml and makes its stages twice, and looks at a file again for every stage that needs it.
Here it does the first once, and the second until a stage runs.
"""

import contextlib
import pickle
import re
import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dpath
from dvc import cli, dvcfile
from dvc import rwlock as locks
from dvc.dependency import param
from dvc.output import Output
from dvc.repo import reproduce
from dvc.schema import COMPILED_LOCK_FILE_STAGE_SCHEMA, COMPILED_LOCKFILE_SCHEMA
from dvc.stage import Stage, loader
from dvc.utils import strictyaml
from dvc.utils.serialize import YAMLFileCorruptedError, _yaml, dumps_yaml, modify_yaml, parse_yaml
from voluptuous import Invalid

from lambdanet import files

SCHEMA, STAGES = "schema: '2.0'\n", "stages:\n"
KEPT = 8  # texts, of the files as they are and as they were
PATTERN = re.compile(r"[*?\[]")  # in a key that may stand for several


class Entries(MutableMapping):
    """The stages of a dvc.lock by name, each kept as its lines: parsed when read, written when set."""

    def __init__(self, text: str) -> None:
        """Take a dvc.lock apart.

        Raises:
            ValueError: it does not look like what DVC writes.
        """
        head, *parts = re.split(r"^(?=  \S)", text, flags=re.MULTILINE)
        if re.search(r"[&*]id\d", text):
            raise ValueError("an entry may stand for another's")
        found = [re.fullmatch(r"  ([\w@.-]+):\n(?:    .*\n)+", part) for part in parts]
        if head != SCHEMA + STAGES or not all(found):
            raise ValueError("not as DVC writes it")
        self._lines = {one[1]: one[0] for one in found}
        if len(self._lines) < len(found):
            raise ValueError("an entry stands twice")

    def __str__(self) -> str:
        """The file's text."""
        return "".join([SCHEMA, STAGES, *self._lines.values()])

    def __getitem__(self, name: str) -> dict:
        return parse_yaml(self._lines[name], "dvc.lock")[name]

    def __setitem__(self, name: str, entry: dict) -> None:
        text = dumps_yaml({"stages": {name: _unshared(entry)}})
        self._lines[name] = text.removeprefix(STAGES)

    def __delitem__(self, name: str) -> None:
        del self._lines[name]

    def __contains__(self, name: object) -> bool:
        return name in self._lines

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)


class Recorded(Entries):
    """The same for DVC to read: an entry is checked as DVC checks it, once, and each gets its own copy."""

    def __init__(self, text: str, path: str) -> None:
        super().__init__(text)
        self._path, self._checked = path, {}

    def __getitem__(self, name: str) -> dict:
        """Get an entry.

        Raises:
            DvcException: it is no YAML, or no entry of a dvc.lock; as DVC says it.
        """
        if name not in self._checked:
            try:
                entry = COMPILED_LOCK_FILE_STAGE_SCHEMA(super().__getitem__(name))
            except (Invalid, YAMLFileCorruptedError):
                self._refuse()
                raise
            self._checked[name] = pickle.dumps(entry)
        return pickle.loads(self._checked[name])

    def _refuse(self) -> None:
        """Say of the whole file what DVC says."""
        text, path = str(self), strictyaml.make_relpath(self._path)
        try:
            whole = parse_yaml(text, path)
        except YAMLFileCorruptedError as error:
            raise strictyaml.YAMLSyntaxError(path, text, error) from error.__cause__
        strictyaml.validate(whole, COMPILED_LOCKFILE_SCHEMA, text=text, path=path)


def _unshared(value: Any) -> Any:
    """A copy in which nothing stands twice: YAML's anchors are a file's, and entries are written singly."""
    if isinstance(value, dict):
        return {key: _unshared(content) for key, content in value.items()}
    return [_unshared(content) for content in value] if isinstance(value, list) else value


@contextlib.contextmanager
def modify_lock(path: str, fs: Any = None) -> Iterator[dict]:
    """What DVC's `modify_yaml` does: the content of a file, which is written back at the end of the block.

    Args:
        path: of a dvc.lock, whose stages are set as a whole; other files are left to DVC.
        fs: DVC's file system.
    """
    entries = None
    with contextlib.suppress(OSError, ValueError):
        entries = Entries(Path(path).read_text(encoding="utf-8"))
    if entries is None:
        with modify_yaml(path, fs=fs) as data:
            yield data
    else:
        yield {"schema": "2.0", "stages": entries}
        file = Path(path).resolve()
        mode = file.stat().st_mode
        files.write_text(file, str(entries))
        file.chmod(mode)


def parsed_once(parse: Callable[..., Any]) -> Callable[..., Any]:
    """DVC's `parse_yaml`, which gives a copy of what it found before if the text is the same.

    Of a dvc.lock the stages are `Recorded`.
    """
    found: dict[str, bytes | Recorded] = {}

    def read(text: str, path: str) -> bytes | Recorded:
        if Path(path).name == "dvc.lock":
            with contextlib.suppress(ValueError):
                return Recorded(text, path)
        return pickle.dumps(parse(text, path))

    def parse_yaml(text: str, path: str, typ: str = "safe") -> Any:
        if typ != "safe":
            return parse(text, path, typ)
        if text not in found:
            content = read(text, path)
            if len(found) >= KEPT:
                found.clear()
            found[text] = content
        content = found[text]
        if isinstance(content, Recorded):
            return {"schema": "2.0", "stages": content}
        return pickle.loads(content)

    return parse_yaml


def checked(content: Any) -> Any:
    """What DVC checks a dvc.lock with, but for stages that are checked when they are read."""
    if isinstance(content, dict) and isinstance(content.get("stages"), Recorded):
        return content
    return COMPILED_LOCKFILE_SCHEMA(content)


def claimed_once(rwlock: Callable[..., Any]) -> Callable[..., Any]:
    """DVC's `rwlock`, which claims nothing that this thread holds already, as it does within a stage."""
    held_by = threading.local()  # each thread's stage claims its own; see abreast.py

    @contextlib.contextmanager
    def claim(tmp_dir: str, fs: Any, cmd: str, read: list[str], write: list[str], hardlink: bool) -> Iterator:
        held: list[tuple[str, set[str], set[str]]] = vars(held_by).setdefault("claims", [])
        for folder, readable, writable in held:
            if folder == tmp_dir and writable.issuperset(write) and (readable | writable).issuperset(read):
                yield
                return
        with rwlock(tmp_dir, fs, cmd, read, write, hardlink):
            held.append((tmp_dir, set(read), set(write)))
            try:
                yield
            finally:
                held.pop()

    return claim


def found_by_keys(content: Any, key: str, *rest: Any, separator: str = "/", **more: Any) -> Any:
    """`dpath.get`, which compares the path of every value with `key`, unless the keys lead there directly."""
    found = content
    for part in key.split(separator):
        if not isinstance(found, dict) or part not in found or PATTERN.search(part):
            return dpath.get(content, key, *rest, separator=separator, **more)
        found = found[part]
    return found


def loaded_once(load_file: Callable[..., Any]) -> Callable[..., Any]:
    """DVC's `load_file`, which gives the same object for the same dvc.yaml."""
    found: dict[tuple[int, str], Any] = {}

    def load(repo: Any, path: str, **options: Any) -> Any:
        if options or Path(path).name != "dvc.yaml":
            return load_file(repo, path, **options)
        if (id(repo), path) not in found:
            found[id(repo), path] = load_file(repo, path)
        return found[id(repo), path]

    return load


def made_once(get: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """DVC's way from a name to a stage of one dvc.yaml, which makes each once."""

    def found(self: Any, name: str) -> Any:
        stages = vars(self).setdefault("made", {})
        if name not in stages:
            stages[name] = get(self, name)
        return stages[name]

    return found


class Hashes:
    """Digests of files and folders, good until a stage runs, or its outputs are put back.

    Here or, where abreast.py lets go of the project's lock, by another DVC, which then writes dvc.lock.
    """

    def __init__(self) -> None:
        self._found: dict[tuple, Any] | None = {}
        self._lock: tuple[int, int] | None = None

    def once(self, get: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """DVC's `Output.get_hash`, which looks once at each place."""

        def get_hash(output: Any) -> Any:
            if self._found is None or output.fs.protocol != "local":
                return get(output)
            lock = _version(Path(output.repo.root_dir) / "dvc.lock")
            if lock != self._lock:
                self._found, self._lock = {}, lock
            key = output.fs_path, output.hash_name, output.use_cache
            if key not in self._found:
                self._found[key] = get(output)
            return self._found[key]

        return get_hash

    def until(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """What changes files, so that nothing is known any more from then on."""

        def acting(*words: Any, **options: Any) -> Any:
            self._found = None
            return act(*words, **options)

        return acting


def _version(file: Path) -> tuple[int, int] | None:
    """What changes whenever a file is replaced or written to; None without one."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino


def main(words: list[str], jobs: int = 1) -> int:
    """Run `dvc WORDS`, the commands of so many stages at once; returns its exit status."""
    dvcfile.modify_yaml = modify_lock
    dvcfile.Lockfile.SCHEMA = staticmethod(checked)
    strictyaml.parse_yaml = _yaml.parse_yaml = parsed_once(parse_yaml)
    locks.rwlock = claimed_once(locks.rwlock)
    param.dpath = SimpleNamespace(get=found_by_keys, search=dpath.search)
    if "repro" in words:
        hashes = Hashes()
        dvcfile.load_file = loaded_once(dvcfile.load_file)
        loader.StageLoader.__getitem__ = made_once(loader.StageLoader.__getitem__)
        Output.get_hash = hashes.once(Output.get_hash)
        Stage.run, Stage.checkout = hashes.until(Stage.run), hashes.until(Stage.checkout)
    if jobs > 1:
        from pipelines import abreast

        reproduce._reproduce = abreast.reproduce(jobs)
    return cli.main(words)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["dvc", *words]:
            sys.exit(main(words))
        case ["--jobs", number, "dvc", *words] if number.isdecimal():
            sys.exit(main(words, int(number)))
    sys.exit("usage: python -m pipelines.lockfile [--jobs N] dvc COMMAND...")
