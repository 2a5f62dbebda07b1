"""The graph of one dvc.yaml: its stages, what they need, what is out of date. Only this file imports dvc."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lambdanet import yaml12

ROOT = Path(__file__).resolve().parent.parent
DVC_FILE = "dvc.yaml"
UP_TO_DATE = "Data and pipelines are up to date."
BUSY_SECONDS = 600  # another `dvc` holds the lock while it commits outputs


@dataclass(frozen=True)
class Graph:
    """Stages by address, in an order in which they can run.

    Attributes:
        needs: stage to the stages whose outputs it reads, among the wanted ones.
        reasons: the stages that are out of date by themselves, and why.
        local: the stages whose outputs DVC does not exchange between machines.
    """

    needs: dict[str, frozenset[str]]
    reasons: dict[str, str]
    local: frozenset[str] = frozenset()

    def to_run(self) -> dict[str, frozenset[str]]:
        """The stages that are, or may become, out of date, with their needs among these."""
        found: dict[str, frozenset[str]] = {}
        for name, needs in self.needs.items():
            if name in self.reasons or needs & found.keys():
                found[name] = needs & found.keys()
        return found

    def why(self, name: str) -> str:
        """Why a stage of `to_run` is there."""
        return self.reasons.get(name) or f"after {', '.join(sorted(self.needs[name] & self.to_run().keys()))}"

    def plan(self) -> list[str]:
        """What would be run, and why, a line each."""
        return [f"{name}: {self.why(name)}" for name in self.to_run()] or [UP_TO_DATE]


def dvc_file(profile: str, folder: Path = Path()) -> str:
    """The dvc.yaml of a profile of a project; the root's for "".

    Raises:
        ValueError: there is no such profile.
    """
    if not _has_graph(folder):
        raise ValueError(f"{folder.resolve()} has no dvc.yaml; run this in the project's folder")
    if not profile or profile == root_profile(folder):
        return DVC_FILE
    if profile in profiles(folder):
        return f"{profile}/{DVC_FILE}"
    raise ValueError(f"unknown profile {profile!r}; there are {', '.join(profiles(folder))}")


def root_profile(folder: Path) -> str:
    """The name of the profile that a folder's own dvc.yaml runs, `paper` where none stands there."""
    path = folder / "profile.yaml"
    found = _yaml(path).get("profile") if path.is_file() else None
    return found if isinstance(found, str) else "paper"


def profiles(folder: Path) -> list[str]:
    """The profiles of a project: its root's, and each folder with a dvc.yaml and a profile.yaml."""
    below = sorted(path.parent.name for path in folder.glob("*/profile.yaml") if _has_graph(path.parent))
    return [root_profile(folder), *below]


def names(section: str) -> list[str]:
    """The names in a section of this project's params.yaml."""
    path = ROOT / "params.yaml"
    return list(_yaml(path).get(section) or {}) if path.is_file() else []


def load(file: str = DVC_FILE, targets: list[str] | tuple[str, ...] = ()) -> Graph:
    """Read the graph and the state of the stages of one dvc.yaml.

    Args:
        file: path of the dvc.yaml.
        targets: stages, with what they depend on; none: all. `train` stands for all of `train@...`.

    Raises:
        ValueError: there is no such stage, or dvc.yaml or params.yaml cannot be resolved.
    """
    import networkx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.index import Index

    try:
        with Repo() as repo:
            whole = Index.from_file(repo, file).graph
            wanted = _wanted(whole, file, targets)
            below = {one for stage in wanted for one in networkx.descendants(whole, stage)}
            graph = whole.subgraph(wanted | below)
            # From what is depended on to what depends; DVC's edges point the other way.
            order = list(networkx.lexicographical_topological_sort(graph.reverse(), key=_address))
            needs = {_address(one): frozenset(map(_address, graph.successors(one))) for one in order}
            reasons = _reasons(repo, order)
            local = frozenset(_address(one) for one in graph if not _exchanged(one))
    except (DvcException, yaml.YAMLError) as error:
        raise ValueError(f"DVC: {' '.join(str(error).split())}") from None
    return Graph(needs, reasons, local)


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


def cache(folder: Path) -> Path:
    """The folder of a project's DVC cache."""
    from dvc.repo import Repo

    with Repo(folder) as repo:
        path = Path(repo.cache.local.path)
        return path.parent.parent if path.parts[-2:] == ("files", "md5") else path


def stages(folder: Path, file: str = DVC_FILE) -> list[str]:
    """The addresses of the stages of a project's dvc.yaml, without a look at their state.

    Raises:
        ValueError: dvc.yaml or params.yaml cannot be resolved.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.index import Index

    try:
        with Repo(folder) as repo:
            own = "" if file == DVC_FILE else f"{file}:"
            return [f"{own}{one.name}" for one in Index.from_file(repo, str(folder / file)).stages]
    except (DvcException, yaml.YAMLError) as error:
        raise ValueError(f"DVC: {' '.join(str(error).split())}") from None


def training(folder: Path, file: str, noise: str, model: str, seed: int) -> tuple[str, list[str]]:
    """The stage that trains a model on a noise with a seed, and the parameters to set for another seed.

    Raises:
        ValueError: no stage trains this model on this noise.
    """
    pattern = re.compile(r"((?:.*:)?train[\w-]*@(.+)-)(\d+)")
    known = [match for name in stages(folder, file) if (match := pattern.fullmatch(name))]
    found = {match[3]: match[1] for match in known if match[2] == f"{noise}-{model}"}
    if not found:
        there = ", ".join(dict.fromkeys(match[2] for match in known))
        raise ValueError(f"{file} has no training of {model!r} on {noise!r}; there are {there or 'none'}")
    if str(seed) in found:
        return f"{found[str(seed)]}{seed}", []
    own = (Path(file).parent / "profile.yaml").as_posix()
    has_seeds = (folder / own).is_file() and "seeds" in _yaml(folder / own)
    return f"{next(iter(found.values()))}{seed}", [
        f"{own}:seeds=[{seed}]" if has_seeds else f"seeds=[{seed}]"
    ]


def _wanted(graph: Any, file: str, targets: list[str] | tuple[str, ...]) -> set:
    if not targets:
        return set(graph)
    found = set()
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
                found = {_address(one): one.status(check_updates=True).get(_address(one)) for one in stages}
            return {name: _reason(said) for name, said in found.items() if said}
        except LockError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def _reason(said: list) -> str:
    """DVC's status of a stage in one line: [{"changed deps": {"a.py": "modified"}}, "changed checksum"]."""
    parts = []
    for one in said:
        if isinstance(one, dict):
            for kind, entries in one.items():
                paths = [f"{path} {how}" if isinstance(how, str) else path for path, how in entries.items()]
                more = f" and {len(paths) - 2} more" if len(paths) > 2 else ""
                parts.append(f"{kind}: {', '.join(paths[:2])}{more}")
        else:
            parts.append("changed command" if one == "changed checksum" else one)
    return "; ".join(parts)


def _exchanged(stage: Any) -> bool:
    """Whether DVC's run-cache and remote take this stage: see "Run cache" in DVC's documentation."""
    outs = stage.outs
    cached = bool(outs) and all(one.use_cache and not one.persist for one in outs)
    return bool(stage.deps) and cached and not stage.always_changed


def _address(stage: Any) -> str:
    return stage.addressing


def _has_graph(folder: Path) -> bool:
    return (folder / DVC_FILE).is_file()


def _yaml(path: Path) -> dict:
    found = yaml12.read(path)
    return found if isinstance(found, dict) else {}
