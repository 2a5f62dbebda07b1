"""The flow `stage`: one stage of DVC's graph on a worker, in a folder with just the commit asked for.

What others made comes from the DVC remote instead of being made again; what is made here goes there.
Between its start and its end a stage's checkpoints and log are copied beside the remote, so that
another worker goes on where this one was lost. It is asked for by `pipelines/grid.py`.
"""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.states import Crashed, Failed, State

from pipelines import clone, showing, versions
from pipelines import stage as stages
from pipelines.copies import Copies

COPY_SECONDS = float(os.environ.get("LAMBDANET_COPY_SECONDS", "120"))
# How long a worker keeps a result that it cannot deliver, and how often it tries.
PATIENCE_SECONDS = 3600
WAITS = (2, 5, 10, 20, 40, 60)


@flow(name="stage", flow_run_name="{name}", persist_result=False)
def stage(
    name: str,
    profile: str,
    commit: str,
    packages: str = "",
    limit_hours: float = 24.0,
) -> State | str:
    """Run one stage in this worker's clone and bring its outputs to the DVC remote.

    Args:
        name: A stage of dvc.yaml, as `dvc stage list` calls it.
        profile: The profile that is active meanwhile.
        commit: The commit to run, in full; git origin has it.
        packages: Versions that it must run under; empty: any.
        limit_hours: Longest time that it may take.
    """
    order = Order(name, profile, commit, 3600 * limit_hours)
    return _carry_out(order, packages)


@flow(name="experiment", flow_run_name="{name}", persist_result=False)
def experiment(
    name: str,
    target: str,
    overrides: list[str],
    profile: str,
    commit: str,
    packages: str = "",
    limit_hours: float = 24.0,
) -> State | str:
    """Run a DVC experiment in this worker's clone; push it to git and its outputs to the remote.

    Args:
        name: The experiment's name in DVC.
        target: The stage to run, with what it depends on.
        overrides: What `dvc exp run --set-param` takes.
        profile: The profile that is active meanwhile.
        commit: The commit that it departs from; git origin has it.
        packages: Versions that it must run under; empty: any.
        limit_hours: Longest time that it may take.
    """
    order = Order(target, profile, commit, 3600 * limit_hours, name, tuple(overrides))
    return _carry_out(order, packages)


@dataclass(frozen=True)
class Order:
    """What a worker is asked for: a stage, or an experiment on it."""

    stage: str
    profile: str
    commit: str
    limit: float
    experiment: str = ""
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called, and its copies are kept under."""
        return self.experiment or self.stage

    @property
    def words(self) -> tuple[str, ...]:
        """DVC's command that does it, without the stage."""
        if not self.experiment:
            return ("repro", "--pull")
        settings = [word for override in self.overrides for word in ("--set-param", override)]
        return ("exp", "run", "--pull", "--name", self.experiment, *settings)

    @property
    def deliveries(self) -> list[tuple[str, ...]]:
        """DVC's commands that bring the result to where others find it, with their last word."""
        if not self.experiment:
            return [("push", "--run-cache", "--with-deps", self.stage)]
        return [("exp", "push", "--force", "origin", self.experiment)]


def _carry_out(order: Order, packages: str) -> State | str:
    if packages and packages != versions.queue():
        return Failed(message=f"worker {worker()} has {versions.queue()}, asked for was {packages}")
    try:
        owner = f"{worker()}-{order.experiment}" if order.experiment else worker()
        os.chdir(clone.workspace(Path.cwd(), order.commit, order.profile, owner))
        return run(order, get_run_logger().info)
    except stages.PassingError as error:
        return Crashed(message=str(error))
    except (stages.StageError, ValueError) as error:
        return Failed(message=str(error))


def run(order: Order, say: Callable[[str], None]) -> str:
    """Carry out an order in the current folder, a workspace, and bring what it made to the remote.

    Returns:
        "run", or "unchanged" where the outputs came from the remote.

    Raises:
        StageError: see `pipelines.stage.run`; PassingError also where the remote is away for long.
    """
    name = order.name
    say(f"{name} of {order.commit[:12]} on {worker()} in {Path.cwd()}")
    with Copies(whole=bool(order.experiment)) as copies:
        if brought := patiently(lambda: copies.fetch(name), "fetching checkpoints", say):
            say(f"goes on from {brought} files that another worker copied")
        try:
            with (
                showing.progress_artifact(name) as note,
                showing.every(COPY_SECONDS, lambda: copies.push(name)),
            ):

                def on_line(line: str) -> None:
                    say(line)
                    note(line)

                how = _made(order, on_line, copies, say)
        except BaseException:  # SIGTERM too: what it wrote at the last moment is not to be lost
            copies.push(name)
            raise
        for words in order.deliveries:
            patiently(lambda words=words: stages.run(words[-1], say, words=words[:-1]), "pushing it", say)
        patiently(lambda: copies.push(name), "copying the log", say)
    showing.result_artifacts(order.stage, order.profile, say)
    return how


def worker() -> str:
    """The name of the worker that runs this."""
    return os.environ.get("LAMBDANET_WORKER") or f"{socket.gethostname()}-{os.getppid()}"


def patiently(call: Callable[[], object], what: str, say: Callable[[str], None]) -> object:
    """Call something that needs the remote until it works.

    Raises:
        PassingError: it did not for an hour.
    """
    began, tries = time.monotonic(), 0
    while True:
        try:
            return call()
        except Exception as error:  # each file system has its own
            wait = WAITS[min(tries, len(WAITS) - 1)]
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise stages.PassingError(f"{what} failed for an hour ({reason})") from None
            say(f"{what} failed ({reason}); again in {wait} s")
            time.sleep(wait)
            tries += 1


def _made(order: Order, on_line: Callable[[str], None], copies: Copies, say: Callable[[str], None]) -> str:
    """Have DVC make or pull the outputs; waits for a remote that is away."""
    # One name for all workers, so that a training that moves stays one run in MLflow.
    environment = {"LAMBDANET_WORKSPACE": f"grid:{order.profile}:{order.commit}:{order.experiment}"}
    while True:
        if order.experiment and order.experiment in clone.experiments():
            return "unchanged"  # it ended here before, and was not delivered
        try:
            return stages.run(
                order.stage, on_line, words=order.words, environment=environment, limit=order.limit
            )
        except stages.StageError:
            if _answers(copies):
                raise
            patiently(copies.reach, "reaching the remote", say)


def _answers(copies: Copies) -> bool:
    try:
        copies.reach()
    except Exception:  # each file system has its own
        return False
    return True
