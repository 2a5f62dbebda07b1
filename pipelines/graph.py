"""DVC's graph of stages, as DVC resolves it; nothing here knows what the stages are."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Graph:
    """Stages by name, in an order in which they can run, each after those that it depends on.

    Attributes:
        needs: stage to the stages whose outputs it reads, among the wanted ones.
        changed: the stages that are out of date by themselves; what depends on them may follow.
        staying: the stages whose outputs DVC does not move between machines, nor remembers having
            made: they have to run in the folder where they are wanted.
    """

    needs: dict[str, frozenset[str]]
    changed: frozenset[str]
    staying: frozenset[str] = frozenset()

    def to_run(self) -> dict[str, frozenset[str]]:
        """The stages that are, or may turn out to be, out of date, with their needs among these."""
        found: dict[str, frozenset[str]] = {}
        for name, needs in self.needs.items():
            if name in self.changed or needs & found.keys():
                found[name] = needs & found.keys()
        return found


def load(targets: list[str]) -> Graph:
    """Read the graph and the state of these stages, and of all that they depend on.

    Args:
        targets: stages, as `dvc repro` takes them; none: all.

    Raises:
        ValueError: there is no such stage, or dvc.yaml or params.yaml cannot be resolved.
    """
    import networkx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            whole = repo.index.graph
            wanted = [stage for target in targets for stage in repo.stage.collect(target)]
            below = {one for stage in wanted for one in networkx.descendants(whole, stage)}
            graph = whole.subgraph({*wanted, *below}) if targets else whole
            # From what is depended on to what depends; DVC's edges point the other way.
            order = networkx.lexicographical_topological_sort(graph.reverse(), key=_name)
            needs = {_name(one): frozenset(map(_name, graph.successors(one))) for one in order}
            changed = repo.status(targets=targets or None, with_deps=bool(targets))
            staying = frozenset(_name(one) for one in graph if not _moves(one))
    except DvcException as error:
        raise ValueError(f"DVC: {' '.join(str(error).split())}") from None
    return Graph(needs, frozenset(changed) & needs.keys(), staying)


def _moves(stage: object) -> bool:
    # As in dvc/stage/cache.py, `_can_hash`.
    return (
        bool(stage.deps)
        and bool(stage.outs)
        and all(one.use_cache and not one.persist for one in stage.outs)
        and not stage.always_changed
    )


def _name(stage: object) -> str:
    return stage.addressing
