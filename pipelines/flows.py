"""The flows `reproduce` and `train`: Prefect tasks that are DVC stages."""

import contextlib
import hashlib
import os
import queue
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from prefect import Task, flow, get_run_logger, task
from prefect.client.schemas.objects import TaskRun
from prefect.futures import PrefectFuture
from prefect.states import Failed, State
from prefect.task_runners import TaskRunner
from pydantic import Field

from pipelines import artifacts, exchange, graph, health, placement, stage, workspace
from pipelines.terminal import Terminal


def _choice(values: list[str]) -> Any:
    return Field(json_schema_extra={"enum": values})  # a list to choose from in Prefect's form


PROFILES = list(graph.profiles(graph.ROOT))
Profile = Annotated[str, _choice(PROFILES)]
Noise = Annotated[str, _choice(graph.names("noises"))]
Model = Annotated[str, _choice(graph.names("models"))]
Positive = Annotated[float, Field(gt=0)]
Ended = Callable[[str, str], None]  # gets a stage, and "done", "unchanged" or why it failed


@contextlib.contextmanager
def _stopping_stages() -> Iterator[None]:
    """Ctrl-C, SIGTERM and errors of the block stop the stages of this process, which write a checkpoint."""
    stage.stopping.clear()  # an earlier flow of this process may have set it
    try:
        yield
    except BaseException:  # Prefect raises one for SIGTERM
        stage.stopping.set()
        raise


@dataclass(frozen=True)
class Order:
    """How a stage is to be run; goes to workers of other machines."""

    folder: Path  # where; the coordinator's project
    limit: float  # seconds
    jobs: int | None = None  # slots of this machine; None: as many as it has
    sign: str = ""  # a file that only a machine with the coordinator's file system has; empty: this has it
    commit: str = ""  # what a worker without that file system checks out; empty: this process is no worker
    packages: dict[str, str] = field(default_factory=dict)  # versions that a worker must have
    words: tuple[str, ...] = ("repro", "--single-item")  # DVC's command
    experiment: str = ""  # name of the one that `words` make
    key: str = ""  # of the checkpoints there; empty: nothing is exchanged
    environment: dict[str, str] = field(default_factory=dict)  # variables of the command


def _may_pass(_task: object, run: TaskRun, state: State) -> bool:
    """Whether another attempt may succeed: the stage was killed, or DVC was busy, or its remote away."""
    return run.run_count <= getattr(state.result(raise_on_failure=False), "retries", 0)


_retrying = partial(
    task,
    task_run_name="{name}",
    retries=stage.AWAY_RETRIES,
    retry_delay_seconds=[2, 10, 30, 60],  # the last one again and again
    retry_condition_fn=_may_pass,
    persist_result=False,
)


@_retrying(name="stage")
def run_stage(name: str, order: Order) -> str:
    """One stage of DVC's graph; "done" or "unchanged"."""
    return _run_stage(name, order)  # Dask sends a task's function by value, this one by its name


def _run_stage(name: str, order: Order) -> str:
    say, host = get_run_logger().info, socket.gethostname()
    if other := health.differences(order.packages):
        what = f"{host} has other versions: {other}; install requirements.lock on all machines"
        raise stage.StageError(f"{name} was not run: {what}")
    shared = not order.sign or Path(order.sign).is_file()
    if not shared and not order.key:  # its outputs would stay there
        what = f"{host} does not see {order.folder}, as the first worker does"
        raise stage.StageError(f"{name} was not run: {what}")
    clone = order.folder if order.commit and shared else workspace.base()
    try:
        with contextlib.ExitStack() as held:
            if order.commit:
                held.enter_context(placement.while_wanted())
            slot, card = held.enter_context(placement.slot(clone, order.jobs))
            folder = order.folder
            if not shared:
                with exchange.reaching("fetching the commit"):
                    commit = workspace.resolve(clone, order.commit)
                folder = held.enter_context(workspace.opened(clone, commit, f"{slot}-{commit[:12]}", say))
            run_here = partial(
                stage.run, name, artifacts.Progress(name, say).line, words=order.words, folder=folder,
                environment=order.environment | card, limit=order.limit,
            )  # fmt: skip
            if order.experiment:  # of an attempt that was not delivered; the run-cache has what it trained
                workspace.remove_experiment(folder, order.experiment)
            if not order.key:
                return run_here()
            return exchange.run(name, folder, f"{order.key}/{name}", run_here, say)
    except ValueError as error:
        raise stage.StageError(f"{name} on {host}: {error}") from error


@task(name="look for a shared file system", persist_result=False)
def is_shared(sign: str) -> bool:
    """Whether a worker sees the coordinator's folder."""
    return Path(sign).is_file()


@flow(name="reproduce", flow_run_name="{profile}", persist_result=False)
def reproduce(
    profile: Profile = PROFILES[0],
    targets: list[str] = [],  # noqa: B006, Prefect shows it in its form
    jobs: Annotated[int, Field(ge=1)] | None = None,
    where: str = placement.LOCAL,
    limit_hours: Positive = 24.0,
) -> State | dict[str, str]:
    """Run every stage of a profile that is out of date; ends Failed when a stage failed.

    Args:
        profile: Scale of the pipeline.
        targets: Stages as `dvc repro` takes them, or kinds such as `train`; none: all.
        jobs: Stages at once; empty: one a GPU, else one a core.
        where: local, dask:ADDRESS, slurm[:QUEUE] or ssh:HOST,HOST.
        limit_hours: Longest time that one stage may take.
    """
    try:
        file = graph.dvc_file(profile)
        with workspace.alone(file):
            wanted = graph.load(file, targets)
            if not wanted.to_run():
                get_run_logger().info(graph.UP_TO_DATE)
                return {}
            ended = _reproduce(wanted, profile, jobs, where, 3600 * limit_hours)
    except ValueError as error:
        return Failed(message=str(error))
    artifacts.tables(profile)
    bad = [how for how in ended.values() if how not in stage.GOOD]
    return Failed(message=f"{len(bad)} of {len(ended)} stages did not end well. {bad[0]}") if bad else ended


def _reproduce(
    wanted: graph.Graph, profile: str, jobs: int | None, where: str, limit: float
) -> dict[str, str]:
    stages, order = wanted.to_run(), Order(Path.cwd(), limit, jobs)
    terminal = Terminal(list(stages), profile)
    with placement.task_runner(where, jobs, len(stages)) as runner, terminal, _stopping_stages():
        if where == placement.LOCAL:
            return run_all(runner, run_stage, stages, terminal.end, order=order)
        return _run_on_workers(runner, wanted, profile, order, terminal.end)


def _run_on_workers(
    runner: TaskRunner, wanted: graph.Graph, profile: str, local: Order, end: Ended
) -> dict[str, str]:
    stages, here = wanted.to_run(), local.folder
    commit = workspace.resolve(here, "")
    with tempfile.NamedTemporaryFile(dir=workspace.temporary(here)) as sign:
        order = Order(here, local.limit, sign=sign.name, commit=commit, packages=health.installed())
        if runner.submit(is_shared, {"sign": sign.name}).result():
            return run_all(runner, run_stage, stages, end, order=order)
        workspace.check_pushed(here, commit)
        exchange.Archive(here, "")  # there is a remote
        # A training that moves to another worker stays one run in MLflow.
        environment = {"LAMBDANET_WORKSPACE": f"reproduce:{profile}:{commit}"}
        order = replace(order, words=("repro", "--pull"), key=commit[:12], environment=environment)
        there = {name: needs for name, needs in stages.items() if name not in wanted.local}
        if stays := wanted.local & frozenset().union(*there.values()):
            what = "was not run, and DVC does not exchange its outputs, which workers need"
            raise ValueError(f"{min(stays)} {what}; run it here, commit dvc.lock and push its outputs")
        ended = run_all(runner, run_stage, there, end, order=order)
    bring([name for name, how in ended.items() if how in stage.GOOD], order)
    for name in (one for one in stages if one in wanted.local):
        ended[name] = f"{name} was not run, as what it needs failed"
        if all(ended[need] in stage.GOOD for need in stages[name]):
            state = run_stage.with_options(tags=tags(name))(name, local, return_state=True)
            ended[name] = str(state.result(raise_on_failure=False))
        end(name, ended[name])
    return ended


@_retrying(name="deliver the experiment", task_run_name="deliver {name}")
def deliver(name: str, folder: Path, everywhere: bool) -> None:
    """Push an experiment of a workspace to the machine's clone and, if `everywhere`, to git's origin."""
    with exchange.reaching("delivering the experiment"):
        workspace.deliver_experiment(folder, name, everywhere=everywhere)


@_retrying(name="bring results here", task_run_name="bring results here")
def bring(names: list[str], order: Order) -> None:
    """Pull the outputs and logs of stages that workers without this file system ran."""
    with exchange.reaching("bringing results here"):
        for name in names:
            exchange.Archive(order.folder, f"{order.key}/{name}").fetch()
        if names:
            stage.run(names[-1], words=("repro", "--pull", *names[:-1]))


def run_all(
    runner: TaskRunner, one: Task, stages: dict[str, frozenset[str]], end: Ended, **words: Any
) -> dict[str, str]:
    """Submit a task a stage, each when what it needs has ended; how they ended, which `end` is told too.

    The task `one` gets the stage as `name`, and `words`.
    """
    waiting, running, states = dict(stages), {}, {}
    finished: queue.SimpleQueue[str] = queue.SimpleQueue()
    ended: dict[str, str] = {}
    while len(ended) < len(stages):
        for name in [one for one, needs in waiting.items() if needs <= states.keys()]:
            needed = [states[need] for need in sorted(waiting.pop(name))]
            tagged = one.with_options(tags=tags(name))
            running[name] = runner.submit(tagged, {"name": name, **words}, wait_for=needed)
            running[name].add_done_callback(lambda _, name=name: finished.put(name))
        name = finished.get()
        # Of a stage that has ended, no future is kept: Dask would run it again if its worker were lost.
        states[name], ended[name] = _ending(name, running.pop(name))
        end(name, ended[name])
    return ended


def _ending(name: str, future: PrefectFuture) -> tuple[State, str]:
    """The state of a stage that has ended; and "done", "unchanged", or why it failed or was not run."""
    future.wait()
    state = future.state
    if state.name == "NotReady":
        return state, f"{name} was not run, as what it needs failed"
    try:
        return state, str(future.result(raise_on_failure=False))
    except Exception as error:  # Dask's own, of a worker that was lost too often
        said = f"{name} failed: {stage.shortened(error)}"
        return Failed(message=said), said


def tags(name: str) -> list[str]:
    """What a task run can be filtered by on Prefect's pages: the stage's kind, noise and model."""
    kind, _, rest = name.rpartition(":")[2].partition("@")
    found = [kind]
    for section in ("noises", "models"):
        matching = [one for one in graph.names(section) if f"-{one}-" in f"-{rest}-"]
        found += sorted(matching, key=len)[-1:]
    return found


@flow(name="train", flow_run_name="{noise} {model} {seed} {profile}", persist_result=False)
def train(
    noise: Noise,
    model: Model,
    profile: Profile = PROFILES[0],
    seed: Annotated[int, Field(ge=0)] = 0,
    overrides: list[str] = [],  # noqa: B006, Prefect shows it in its form
    revision: str = "",
    limit_hours: Positive = 24.0,
) -> State | dict[str, str]:
    """Train one model on one noise, in its own workspace; what exists already is not trained again.

    Args:
        noise: Noise that the model learns to remove.
        model: Network.
        profile: Scale of the pipeline.
        seed: Of the training; one besides the profile's makes it a DVC experiment.
        overrides: KEY=VALUE or FILE:KEY=VALUE, as `dvc exp run --set-param` takes them; an experiment too.
        revision: Branch, tag or commit; empty: what the worker has checked out.
        limit_hours: Longest time that the training may take.
    """
    say = get_run_logger().info
    try:
        clone = workspace.base()
        commit = workspace.resolve(clone, revision)
        deciding = repr((commit, profile, noise, model, seed, overrides))
        key = hashlib.sha256(deciding.encode()).hexdigest()[:12]
        with workspace.opened(clone, commit, key, say) as folder, _stopping_stages():
            file = graph.dvc_file(profile, folder)
            name, settings = graph.training(folder, file, noise, model, seed, overrides)
            experiment = f"{noise}-{model}-{seed}-{key}" if settings else ""
            ended = "unchanged"
            if not experiment or not workspace.experiment(clone, experiment):
                order = _training_order(clone, folder, key, experiment, settings, 3600 * limit_hours)
                ended = run_stage.with_options(tags=tags(name))(name, order)
                if experiment:
                    deliver(experiment, folder, everywhere=bool(order.key))
            if experiment:
                say(f"experiment {experiment}: `dvc exp show`, `dvc exp apply {experiment}`")
    except (ValueError, stage.StageError) as error:
        return Failed(message=str(error))
    return {name: ended}


def _training_order(
    clone: Path, folder: Path, key: str, experiment: str, settings: list[str], limit: float
) -> Order:
    """Train in a workspace; the result is then in the clone's cache, and at the remote if there is one."""
    store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{clone / 'mlflow.db'}"
    environment = {"MLFLOW_TRACKING_URI": store, "LAMBDANET_WORKSPACE": f"train:{key}"}  # one run in MLflow
    words = ("repro",)
    if experiment:
        words = ("exp", "run", "--name", experiment, *(f"--set-param={one}" for one in settings))
    order = Order(folder, limit, words=words, experiment=experiment, environment=environment)
    return replace(order, words=(*words, "--pull"), key=key) if graph.remote(folder) else order
