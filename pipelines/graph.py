"""The graph of one dvc.yaml: its stages, what they need, what is out of date. Only this file imports dvc."""

import contextlib
import functools
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml

from lambdanet import config, yaml12

ROOT = Path(__file__).resolve().parent.parent
DVC_FILE = "dvc.yaml"
UP_TO_DATE = "Data and pipelines are up to date."
BUSY_SECONDS = 600  # another `dvc` holds the lock while it commits outputs
# The stage of a training: its address without the seed, the run, the seed.
TRAINING = re.compile(r"((?:.*:)?train[\w-]*@(.+)-)(\d+)")


@dataclass(frozen=True)
class Graph:
    """Stages by address, in an order in which they can run."""

    needs: dict[str, frozenset[str]]  # stage to the stages whose outputs it reads, among the wanted ones
    reasons: dict[str, str]  # the stages that are out of date by themselves, and why
    local: frozenset[str] = frozenset()  # those whose outputs DVC does not exchange between machines

    def to_run(self) -> dict[str, frozenset[str]]:
        """The stages that are, or may become, out of date, with their needs among these."""
        found: dict[str, frozenset[str]] = {}
        for name, needs in self.needs.items():
            if name in self.reasons or needs & found.keys():
                found[name] = needs & found.keys()
        return found

    def why(self, name: str) -> str:
        """Why a stage of `to_run` is there."""
        return self.reasons.get(name) or f"after {', '.join(sorted(self.to_run()[name]))}"


def dvc_file(profile: str, folder: Path = Path()) -> str:
    """The dvc.yaml of a profile of a project.

    Raises:
        ValueError: there is no such profile.
    """
    if not (folder / DVC_FILE).is_file():
        raise ValueError(f"{folder.resolve()} has no dvc.yaml; run this in the project's folder")
    found = profiles(folder)
    if profile not in found:
        raise ValueError(f"unknown profile {profile!r}; there are {', '.join(found)}")
    return found[profile]


def profiles(folder: Path) -> dict[str, str]:
    """The dvc.yaml of each profile of a project: that of the root first, then those of folders."""
    found = config.profiles(folder)
    if not (folder / config.PROFILE).is_file():  # another pipeline, of which only dvc.yaml is needed
        found = {"paper": Path(config.PROFILE)} | found
    return {name: (file.parent / DVC_FILE).as_posix() for name, file in found.items()}


@functools.cache
def names(section: str) -> list[str]:
    """The names in a section of this project's params.yaml."""
    found = yaml12.read(ROOT / config.PARAMS)
    return list(found.get(section) or {}) if isinstance(found, dict) else []  # `config.load` refuses it


def load(file: str = DVC_FILE, targets: list[str] | tuple[str, ...] = ()) -> Graph:
    """Read the graph and the state of the stages of one dvc.yaml.

    Args:
        file: path of the dvc.yaml.
        targets: stages, with what they depend on; none: all. `train` stands for all of `train@...`.

    Raises:
        ValueError: there is no such stage, or dvc.yaml or params.yaml cannot be resolved.
    """
    import networkx

    with _opened(Path(), file) as (repo, index):
        whole = index.graph
        wanted = _wanted(whole, file, targets)
        below = {one for stage in wanted for one in networkx.descendants(whole, stage)}
        graph = whole.subgraph(wanted | below)
        # From what is depended on to what depends; DVC's edges point the other way.
        address = attrgetter("addressing")
        order = list(networkx.lexicographical_topological_sort(graph.reverse(), key=address))
        needs = {one.addressing: frozenset(map(address, graph.successors(one))) for one in order}
        local = frozenset(one.addressing for one in graph if not _exchanged(one))
        return Graph(needs, _reasons(repo, order), local)


def remote(folder: Path) -> tuple[Any, str] | None:
    """The file system and path of the default DVC remote of a project; None without one."""
    from dvc.config import ConfigError
    from dvc.repo import Repo

    with Repo(folder) as repo:
        try:
            found = repo.cloud.get_remote()
        except ConfigError:
            return None
        return found.fs, found.path.rstrip("/")


def kind(name: str) -> str:
    """The kind of a stage: `train` of sample/dvc.yaml:train@speckle-dncnn-0."""
    return name.rpartition(":")[2].partition("@")[0]


def training(
    folder: Path, file: str, noise: str, model: str, seed: int, overrides: list[str]
) -> tuple[str, list[str]]:
    """The stage that trains a model on a noise with a seed, and the parameters to set for it.

    Those are the overrides, KEY=VALUE or FILE:KEY=VALUE, and for another seed than the profile's the seed.

    Raises:
        ValueError: no stage trains this model on this noise, dvc.yaml or params.yaml cannot be resolved, or
            an override is of a file that the stages do not read.
    """
    profile = (Path(file).parent / config.PROFILE).as_posix()
    for override in overrides:
        changed = override.partition("=")[0].rpartition(":")[0]
        if changed not in ("", config.PARAMS, profile):
            raise ValueError(f"{override}: {file} reads {config.PARAMS} and {profile}, not {changed}")
    with _opened(folder, file) as (_repo, index):
        addresses = [one.name if file == DVC_FILE else f"{file}:{one.name}" for one in index.stages]
    known = [match for address in addresses if (match := TRAINING.fullmatch(address))]
    found = {match[3]: match[1] for match in known if match[2] == f"{noise}-{model}"}
    if not found:
        there = ", ".join(dict.fromkeys(match[2] for match in known))
        raise ValueError(f"{file} has no training of {model!r} on {noise!r}; there are {there or 'none'}")
    if str(seed) in found:
        return f"{found[str(seed)]}{seed}", list(overrides)
    return f"{next(iter(found.values()))}{seed}", [f"{profile}:seeds=[{seed}]", *overrides]


@contextlib.contextmanager
def _opened(folder: Path, file: str) -> Iterator[tuple[Any, Any]]:
    """A project's `dvc.repo.Repo`, and the index of one of its dvc.yaml; DVC's errors become ValueErrors."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.index import Index

    logger = logging.getLogger("dvc")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of each lock that a killed `dvc` left, and removes it
    try:
        with Repo(folder) as repo:
            yield repo, Index.from_file(repo, str(folder / file))
    except (DvcException, yaml.YAMLError) as error:
        raise ValueError(f"DVC: {' '.join(str(error).split())}") from None
    finally:
        logger.setLevel(level)


def _wanted(graph: Any, file: str, targets: list[str] | tuple[str, ...]) -> set:
    found = set() if targets else set(graph)
    for target in targets:
        name = target.removeprefix(f"{file}:")
        chosen = {one for one in graph if name in (one.name, one.name.partition("@")[0])}
        if not chosen:
            raise ValueError(f"{file} has no stage {name!r}: `dvc stage list {file}`")
        found |= chosen
    return found


def _reasons(repo: Any, stages: list) -> dict[str, str]:
    from dvc.lock import LockError

    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            with repo.lock:
                found = {one.addressing: one.status(check_updates=True) for one in stages}
            return {name: _reason(said[name]) for name, said in found.items() if said.get(name)}
        except LockError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def _reason(said: list) -> str:
    """DVC's status of a stage in one line: [{"changed deps": {"a.py": "modified"}}, "changed checksum"]."""
    parts = []
    for one in said:
        for kind, entries in one.items() if isinstance(one, dict) else ():
            paths = [f"{path} {how}" if isinstance(how, str) else path for path, how in entries.items()]
            more = f" and {len(paths) - 2} more" if len(paths) > 2 else ""
            parts.append(f"{kind}: {', '.join(paths[:2])}{more}")
        if isinstance(one, str):
            parts.append("changed command" if one == "changed checksum" else one)
    return "; ".join(parts)


def _exchanged(stage: Any) -> bool:
    """Whether DVC's run-cache and remote take this stage: see "Run cache" in DVC's documentation."""
    cached = bool(stage.outs) and all(one.use_cache and not one.persist for one in stage.outs)
    return bool(stage.deps) and cached and not stage.always_changed
