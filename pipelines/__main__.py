"""`python -m pipelines`: run the pipeline, or one training.

python -m pipelines reproduce                       # everything of the root's dvc.yaml that is out of date
python -m pipelines reproduce --profile sample train --jobs 2
python -m pipelines train speckle dncnn --profile quick --seed 3
"""

import contextlib
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

import click

from pipelines import graph, placement, workspace

PAGES = Path(".cluster")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Run the pipeline with Prefect: `dvc repro`, several stages at once, here or on a cluster."""


_profile = click.option("--profile", default="", help="A folder with a profile; default: the root's.")
_hours = click.option(
    "--limit-hours", default=24.0, show_default=True, type=click.FloatRange(0, min_open=True),
    help="Longest time that one stage may take.",
)  # fmt: skip


@main.command()
@click.argument("targets", nargs=-1)
@_profile
@click.option("--jobs", type=click.IntRange(1), help="Stages at once; default: one a GPU, else one a core.")
@click.option("--where", default=placement.LOCAL, show_default=True, help=f"{placement.WHERE}.")
@click.option("--dry-run", is_flag=True, help="Only list what would be run, and why.")
@_hours
def reproduce(
    targets: tuple[str, ...], profile: str, jobs: int | None, where: str, dry_run: bool, limit_hours: float
) -> None:
    """Run what is out of date; TARGETS are stages, or kinds of stages such as `train`; default: all."""
    try:
        file = graph.dvc_file(profile)
        # Before the graph is read: DVC would wait for the other's stages without a word.
        with contextlib.nullcontext() if dry_run else workspace.alone(file):
            wanted = graph.load(file, targets)
            if dry_run or not wanted.to_run():
                click.echo("\n".join(wanted.plan()))
                return
            _prepare_prefect(needs_server=where != placement.LOCAL)
            from pipelines import flows

            flows.known.set(wanted)
            _finish(flows.reproduce, profile, list(targets), jobs, where, False, limit_hours)
    except ValueError as error:
        sys.exit(f"error: {error}")


@main.command()
@click.argument("noise")
@click.argument("model")
@_profile
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As `dvc exp run --set-param`.")
@click.option("--revision", default="", help="Branch, tag or commit; default: what is checked out here.")
@click.option("--queue", is_flag=True, help="Leave it to a worker of the Prefect server and return.")
@_hours
def train(
    noise: str, model: str, profile: str, seed: int, overrides: tuple[str, ...], revision: str, queue: bool,
    limit_hours: float,
) -> None:  # fmt: skip
    """Train MODEL on NOISE, in a workspace of its own: the commit, not what is edited here."""
    try:
        clone = workspace.base()
        file = graph.dvc_file(profile, clone)
        if not revision:  # another commit's graph is known in its workspace only
            graph.training(clone, file, noise, model, seed)
    except ValueError as error:
        sys.exit(f"error: {error}")
    _prepare_prefect(needs_server=queue, lines=True)
    words = {"noise": noise, "model": model, "profile": profile, "seed": seed, "overrides": list(overrides),
             "revision": revision, "limit_hours": limit_hours}  # fmt: skip
    if queue:
        from prefect.deployments import run_deployment
        from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

        try:
            run = run_deployment("train/train", parameters=words, timeout=0, as_subflow=False)
        except (ObjectNotFound, PrefectHTTPStatusError) as error:
            sys.exit(f"error: Prefect refuses it: {' '.join(str(error).split())[:400]}")
        click.echo(f"{run.name}: {run.id}")
        return
    from pipelines import flows

    _finish(flows.train, **words)


def _finish(flow: Any, *words: Any, **named: Any) -> None:
    """Run a flow and end with its state's exit status and message."""
    try:
        state = flow(*words, return_state=True, **named)
    except KeyboardInterrupt:
        click.echo("stopped; the same command resumes", err=True)
        sys.exit(130)
    if not state.is_completed():
        sys.exit(f"error: {state.message}")


def _prepare_prefect(needs_server: bool, lines: bool = False) -> None:
    """Set what Prefect reads when it is loaded; a server that is named must answer."""
    running = PAGES / "prefect.url"  # of `pipelines.cluster up`
    if "PREFECT_API_URL" not in os.environ and running.is_file() and _answers(running.read_text().strip()):
        os.environ["PREFECT_API_URL"] = running.read_text().strip()
    url = os.environ.get("PREFECT_API_URL", "")
    if url and not _answers(url):
        sys.exit(f"error: Prefect's server {url} does not answer; start it, or unset PREFECT_API_URL")
    if needs_server and not url:
        sys.exit("error: this needs a Prefect server: set PREFECT_API_URL, or `make up` starts one here")
    if not url and not (Path.home() / ".prefect/profiles.toml").is_file():
        home = (PAGES / "prefect").resolve()  # Prefect makes no folder's parents
        home.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("PREFECT_HOME", str(home))
    for name, value in {
        # For the user the stages' progress, not the engine's log; a server's pages have both.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO" if lines else "CRITICAL",
        "PREFECT_LOGGING_TO_API_ENABLED": "true" if url else "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    }.items():
        os.environ.setdefault(name, value)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=10).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    try:
        main(prog_name="python -m pipelines")
    except ModuleNotFoundError as missing:
        name = missing.name.partition(".")[0]
        sys.exit(f"error: the package {name} is not installed; `make setup` installs all in .venv")
