"""The flow `train`: one cell of the grid, started or scheduled from Prefect's pages."""

import hashlib
import re

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.states import Failed, State

from pipelines import choices, clone, grid
from pipelines.console import Console

DEPLOYMENT = "experiment/experiment"
_OVERRIDE = re.compile(r"[\w.+~-]+=[^\s]+")


@flow(name="train", flow_run_name="{noise} {model} {profile}", persist_result=False)
def train(
    noise: choices.Noise,
    model: choices.Model,
    profile: choices.Profile,
    seed: int = 0,
    overrides: list[str] = [],  # noqa: B006, Prefect shows it in its form
    experiment: str = "",
    revision: str = "main",
    limit_hours: float = 24.0,
) -> State | dict[str, str]:
    """Train and score one network for one noise on a worker.

    Args:
        noise: Which noise it learns to take away.
        model: Which network.
        profile: Scale, as in params.yaml.
        seed: Of the training; another than those of `seeds` is an experiment.
        overrides: Other values of params.yaml, each KEY=VALUE, such as train.learning_rate=0.01.
        experiment: Name for one with overrides; empty: made from them.
        revision: Branch, tag or commit of git origin.
        limit_hours: Longest time that one stage may take.
    """
    target = f"evaluate@{profile}-{noise}-{model}-{seed}"
    if seed not in choices.seeds(profile):
        overrides = [f"seeds=[{seed}]", *overrides]
    if not overrides:
        return grid.in_own_workspace(profile, [target], revision, limit_hours)
    for override in overrides:
        if not _OVERRIDE.fullmatch(override):
            return Failed(message=f"{override!r} is no KEY=VALUE without spaces")
    try:
        commit = clone.resolve(revision)
    except ValueError as error:
        return Failed(message=str(error))
    digest = hashlib.sha256(repr((commit, target, overrides)).encode()).hexdigest()[:8]
    name = experiment or f"{noise}-{model}-{digest}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,80}", name):
        return Failed(message=f"{name!r}: an experiment's name has letters, digits and dashes only")
    log = get_run_logger()
    with get_client(sync_client=True) as client:
        parameters = {"target": target, "overrides": overrides, "profile": profile, "commit": commit}
        asked = grid.Runs(client, DEPLOYMENT, parameters | {"limit_hours": limit_hours}, Console(1, log.info))
        asked.submit(name)
        ended = dict([asked.wait()])
    log.info(f"look it up with `dvc exp pull origin {name}`, then `dvc exp apply {name}`")
    return grid.outcome(ended)
