"""The commands of `lambdanet` that run the pipeline: `run`, `status`, and `cluster` with one training."""

import contextlib
import logging
import os
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from lambdanet import checking, cli, config, yaml12
from pipelines import graph, placement, terminal, workspace
from pipelines.cluster import FOLDER, URL, answers, reaching
from pipelines.cluster import main as cluster

HOURS = click.option(
    "--limit-hours", default=24.0, show_default=True, type=click.FloatRange(0, min_open=True),
    callback=cli.no_nan, help="Longest time that one stage may take.",
)  # fmt: skip


@click.command()
@click.argument("stages", metavar="[STAGE...]", nargs=-1)
@cli.PROFILE
@click.option("--jobs", type=click.IntRange(1), help="Stages at once; default: one a GPU, else one a core.")
@click.option("--where", default=placement.LOCAL, show_default=True, help=f"{placement.WHERE}.")
@click.option("--dry-run", is_flag=True, help="Only list what would be run, why, and how long it may take.")
@HOURS
def run(
    stages: tuple[str, ...], profile: str, jobs: int | None, where: str, dry_run: bool, limit_hours: float
) -> None:
    """Run the pipeline, or what is out of date of it.

    STAGES are stages of dvc.yaml or kinds of stages such as `train`; default: all. Stopped by Ctrl-C, the
    same command resumes.
    """
    file = graph.dvc_file(profile)
    _check(profile, stages, where)
    # Before the graph is read: DVC would wait for the other's stages without a word.
    with contextlib.nullcontext() if dry_run else workspace.alone(file):
        wanted = graph.load(file, stages)
    if wanted.to_run() and _has_networks():
        checking.check([profile])  # each network and noise, which loads torch
    if not wanted.to_run():
        click.echo(graph.UP_TO_DATE)
    elif dry_run:
        click.echo("\n".join(_plan(wanted, profile)))
    else:
        _prepare_prefect(needs_server=where != placement.LOCAL)
        from pipelines import flows

        _finish(flows.reproduce, profile, list(stages), jobs, where, limit_hours)
    if not dry_run and Path("results", profile, "table2.csv").is_file():
        click.echo()
        cli.show_table(profile)


@click.command()
@cli.PROFILE
def status(profile: str) -> None:
    """Say what is trained and scored, and what is out of date."""
    loaded = config.load(config.find(profile))
    for title, runs in (("Table 2", loaded.table_runs), ("ablations", loaded.ablation_runs)):
        trained = sum(one.weights.exists() for one in runs)
        scored = sum(one.scores.exists() for one in runs)
        click.echo(f"{title}: {trained} of {len(runs)} runs are trained here, {scored} scored")
    kinds = Counter(graph.kind(name) for name in graph.load(graph.dvc_file(profile)).to_run())
    if kinds:
        click.echo(f"out of date: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}")
        click.echo(f"why: {cli.command_name()} run --profile {profile} --dry-run")
    else:
        click.echo(graph.UP_TO_DATE)
    if (page := Path("results", profile, "report.html")).is_file():
        click.echo(f"report: {page}")


@cluster.command()
@click.argument("noise")
@click.argument("model")
@cli.PROFILE
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, config.LARGEST_SEED))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As `dvc exp run --set-param`.")
@click.option("--revision", default="", help="Branch, tag or commit; default: what is checked out here.")
@HOURS
def train(
    noise: str, model: str, profile: str, seed: int, overrides: tuple[str, ...], revision: str,
    limit_hours: float,
) -> None:  # fmt: skip
    """Train MODEL on NOISE in a workspace of the commit.

    What is edited here does not matter. Another seed than the profile's, or --set, makes a DVC experiment.
    On a worker: `prefect deployment run train/train -p noise=NOISE -p model=MODEL -p profile=PROFILE`.
    """
    clone = workspace.base()
    file = graph.dvc_file(profile, clone)
    if revision:  # its graph is known in its workspace only
        workspace.resolve(clone, revision)
    else:
        graph.training(clone, file, noise, model, seed, list(overrides))
    _prepare_prefect(lines=True)
    from pipelines import flows

    _finish(flows.train, noise, model, profile, seed, list(overrides), revision, limit_hours)


def _check(profile: str, stages: tuple[str, ...], where: str) -> None:
    """Refuse what cannot be run, before dvc and prefect are loaded."""
    placement.check(where)
    known = list(yaml12.read(Path(graph.DVC_FILE)).get("stages") or {})
    for name in stages:
        if graph.kind(name) not in known:
            raise ValueError(f"unknown stage {name!r}; dvc.yaml has {', '.join(known)}")
    if _has_networks():
        config.load(config.find(profile))


def _has_networks() -> bool:
    return Path("stages/entry.py").is_file()  # else this is another pipeline, with other parameters


def _plan(wanted: graph.Graph, profile: str) -> list[str]:
    """What would be run, why, and how long it took when it was last run."""
    took, stages = terminal.seconds(profile), wanted.to_run()
    about = {name: f"about {timedelta(seconds=took[name])}" for name in stages if name in took}
    lines = [f"{name}: {wanted.why(name)} ({about.get(name, 'no estimate')})" for name in stages]
    total = f"at least {timedelta(seconds=sum(took[name] for name in about))} one after the other"
    return [*lines, f"{len(stages)} stages, {total if about else 'no estimate'}"]


def _finish(flow: Any, *words: Any) -> None:
    """Run a flow; an error if it does not end well."""
    with reaching():
        state = flow(*words, return_state=True)
    if not state.is_completed():
        raise ValueError(state.message)


def _prepare_prefect(needs_server: bool = False, lines: bool = False) -> None:
    """Set what Prefect reads when it is loaded; a server that is named must answer."""
    if "PREFECT_API_URL" not in os.environ and URL.is_file() and answers(found := URL.read_text().strip()):
        os.environ["PREFECT_API_URL"] = found  # of `lambdanet cluster up`
    url = os.environ.get("PREFECT_API_URL", "")
    if url and not answers(url):
        raise ValueError(f"Prefect's server {url} does not answer; start it, or unset PREFECT_API_URL")
    if needs_server and not url:
        raise ValueError("this needs a Prefect server: set PREFECT_API_URL, or `make up` starts one here")
    if not url and not (Path.home() / ".prefect/profiles.toml").is_file():
        home = (FOLDER / "prefect").resolve()  # Prefect makes no folder's parents
        home.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("PREFECT_HOME", str(home))
    logging.getLogger().handlers.clear()  # Prefect has handlers, which the next settings are about
    for name, value in {
        # For the user the stages' progress, not the engine's log; a server's pages have both.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO" if lines else "CRITICAL",
        "PREFECT_LOGGING_TO_API_ENABLED": "true" if url else "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",  # Prefect's client sends statistics too
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    }.items():
        os.environ.setdefault(name, value)
