"""The flows `reproduce` and `train`: Prefect tasks that are DVC stages."""

import contextlib
import os
import re
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger, task
from prefect.futures import PrefectFuture
from prefect.states import Failed, State
from prefect.task_runners import TaskRunner
from pydantic import Field

from pipelines import artifacts, exchange, graph, health, placement, stage, workspace
from pipelines.terminal import GOOD, Terminal

RETRY_SECONDS = [2, 10, 30, 60]


def _choice(values: list[str]) -> Any:
    return Field(json_schema_extra={"enum": values})  # a list to choose from in Prefect's form


Profile = Annotated[str, _choice(["", *graph.profiles(graph.ROOT)])]
Noise = Annotated[str, _choice(graph.names("noises"))]
Model = Annotated[str, _choice(graph.names("models"))]
Positive = Annotated[float, Field(gt=0)]


@dataclass
class Session:
    """What the tasks of a flow share when they are threads of its process."""

    terminal: Terminal | None = None
    turn: threading.Semaphore = field(default_factory=threading.Semaphore)
    stopping: threading.Event = field(default_factory=threading.Event)

    def ended(self, name: str, how: str) -> None:
        """A stage has ended: "done", "unchanged", or why it failed."""
        if self.terminal:
            self.terminal.end(name, how)


_session: ContextVar[Session | None] = ContextVar("session", default=None)


@contextlib.contextmanager
def _running(session: Session) -> Iterator[None]:
    """Make a session the tasks' one; Ctrl-C, SIGTERM and errors stop its stages, which write a checkpoint."""
    before: dict[int, Any] = {}

    def stop(number: int, frame: Any) -> None:
        session.stopping.set()
        if callable(before[number]):
            before[number](number, frame)
        else:
            sys.exit(128 + number)

    token = _session.set(session)
    if threading.current_thread() is threading.main_thread():
        before |= {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, stop)
    try:
        with session.terminal or contextlib.nullcontext():
            yield
    except BaseException:
        session.stopping.set()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _session.reset(token)


@dataclass(frozen=True)
class Order:
    """How a stage is to be run; goes to workers of other machines.

    Attributes:
        folder: where; of the project at who asks.
        limit: seconds.
        jobs: places on this machine, see `placement.places`; None: as many as it has.
        places: the folder of their locks; None: a Dask worker is a place itself.
        seen: a file in `folder` that only a machine with the same file system has; empty: this one.
        commit: what a worker without the same file system checks out.
        packages: versions that a worker must have.
        words: DVC's command, see `stage.run`.
        environment: variables for it.
    """

    folder: Path
    limit: float
    jobs: int | None = None
    places: Path | None = None
    seen: str = ""
    commit: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ("repro", "--single-item")
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def shared(self) -> bool:
        """Whether this process sees the folder of who asks."""
        return not self.seen or (self.folder / self.seen).is_file()


def _may_pass(_task: object, _run: object, state: State) -> bool:
    """Whether another attempt may succeed: the stage was killed, or DVC was busy."""
    return isinstance(state.result(raise_on_failure=False), stage.KilledError | stage.BusyError)


@task(
    name="stage",
    task_run_name="{name}",
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=_may_pass,
    persist_result=False,
)
def run_stage(name: str, order: Order) -> str:
    """One stage of DVC's graph; "done" or "unchanged"."""
    return _run_stage(name, order)  # what Dask sends by value must not name the context variable


def _run_stage(name: str, order: Order) -> str:
    session = _session.get() or Session()
    say, progress = get_run_logger().info, artifacts.Progress(name)

    def on_line(line: str) -> None:
        say(line)
        progress.line(line)
        if session.terminal:
            session.terminal.line(name, line)

    def run_in(folder: Path, environment: dict[str, str] = {}) -> str:  # noqa: B006, not changed
        if session.terminal:
            session.terminal.start(name)
        return stage.run(
            name, on_line, words=order.words, folder=folder, environment=order.environment | environment,
            limit=order.limit, stopping=session.stopping,
        )  # fmt: skip

    if order.packages and (other := health.differences(order.packages)):
        raise stage.StageError(f"{name} was not run: worker {_worker()} has other versions: {other}")
    if not order.shared:
        return _run_far(name, order, run_in, say)
    if order.places is None:
        return run_in(order.folder)
    with session.turn, placement.place(order.places, order.jobs, session.stopping) as environment:
        return run_in(order.folder, environment)


def _run_far(name: str, order: Order, run_in: Callable[[Path], str], say: Callable[[str], None]) -> str:
    """A stage on a worker without the file system of who asks: from git and the DVC remote, and back."""
    try:
        clone = workspace.base()
        commit = workspace.resolve(clone, order.commit)
        owner = re.sub(r"[^A-Za-z0-9-]+", "-", f"{_worker()}-{commit[:12]}")
        with workspace.opened(clone, commit, owner, say) as folder:
            pushed = ("push", "--run-cache", "--with-deps", name)
            key = _checkpoints(commit, name)
            return exchange.run(name, folder, key, lambda: run_in(folder), say, (pushed,))
    except ValueError as error:
        raise stage.StageError(f"{name} was not run on {_worker()}: {error}") from None


def _one_run(profile: str, commit: str) -> dict[str, str]:
    # A training that moves to another worker stays one run in MLflow.
    return {"LAMBDANET_WORKSPACE": f"reproduce:{profile}:{commit}"}


def _checkpoints(commit: str, name: str) -> str:
    return f"{commit[:12]}/{re.sub(r'[^A-Za-z0-9@.-]+', '-', name)}"


def _worker() -> str:
    from distributed import get_worker

    return f"{socket.gethostname()}-{get_worker().name}"


@task(name="look for a shared file system", persist_result=False)
def is_shared(order: Order) -> bool:
    """Whether a worker sees the folder of who asks."""
    return order.shared


@flow(name="reproduce", flow_run_name="{profile}", persist_result=False)
def reproduce(
    profile: Profile = "",
    targets: list[str] = [],  # noqa: B006, Prefect shows it in its form
    jobs: Annotated[int, Field(ge=1)] | None = None,
    where: str = placement.LOCAL,
    dry_run: bool = False,
    limit_hours: Positive = 24.0,
) -> State | dict[str, str]:
    """Run every stage of a profile that is out of date; ends Failed when a stage failed.

    Args:
        profile: Scale of the pipeline, a folder of the project; empty: the root's.
        targets: Stages as `dvc repro` takes them, or kinds such as `train`; none: all.
        jobs: Stages at once; empty: one a GPU, else one a core.
        where: local, dask:ADDRESS, slurm[:QUEUE], ssh:HOST,HOST or cuda.
        dry_run: Only list what would be run, and why.
        limit_hours: Longest time that one stage may take.
    """
    try:
        file = graph.dvc_file(profile)
        with workspace.alone(file):
            wanted = graph.load(file, targets)
            if dry_run or not wanted.to_run():
                for line in wanted.plan():
                    get_run_logger().info(line)
                return {}
            ended = _reproduce(wanted, profile or graph.root_profile(Path()), jobs, where, 3600 * limit_hours)
    except ValueError as error:
        return Failed(message=str(error))
    bad = [how for how in ended.values() if how not in GOOD]
    return Failed(message=f"{len(bad)} of {len(ended)} stages did not end well. {bad[0]}") if bad else ended


def _reproduce(
    wanted: graph.Graph, profile: str, jobs: int | None, where: str, limit: float
) -> dict[str, str]:
    stages, here = wanted.to_run(), Path.cwd()
    places = workspace.temporary(here) / "places"
    order = local = Order(here, limit, jobs, places)
    if where != placement.LOCAL:
        commit = workspace.resolve(here, "")
        order = Order(here, limit, seen=_sign(here), commit=commit, packages=health.installed())
    session = Session(
        Terminal(list(stages), Path("runs", profile, "reproduce.log")),
        threading.Semaphore(len(placement.places(jobs)) if order is local else len(stages)),
    )
    with placement.task_runner(where, jobs, len(stages)) as runner, _running(session):
        shared = order is local or runner.submit(is_shared, {"order": order}).result()
        if not shared:
            workspace.pushed_commit(here)
            exchange.Beside(here, "")
            order = replace(order, words=("repro", "--pull"), environment=_one_run(profile, commit))
        there = {name: needs for name, needs in stages.items() if shared or name not in wanted.local}
        ended = _run_there(runner, there, order, session)
        if not shared:
            ended |= _collect(
                ended, {name: stages[name] for name in stages.keys() - there.keys()}, order, local
            )
    artifacts.results(ended, profile)
    return ended


def _run_there(
    runner: TaskRunner, stages: dict[str, frozenset[str]], order: Order, session: Session
) -> dict[str, str]:
    """Submit stages to a task runner, each when what it needs has ended well; how they ended."""
    futures: dict[str, PrefectFuture] = {}
    for name, needs in stages.items():
        tagged = run_stage.with_options(tags=tags(name))
        futures[name] = runner.submit(
            tagged, {"name": name, "order": order}, wait_for=[futures[need] for need in sorted(needs)]
        )
        futures[name].add_done_callback(lambda future, name=name: session.ended(name, _ending(name, future)))
    for future in futures.values():
        future.wait()
    return {name: _ending(name, future) for name, future in futures.items()}


def _ending(name: str, future: PrefectFuture) -> str:
    """Wait for a stage: "done", "unchanged", or why it failed or was not run."""
    future.wait()
    if future.state.name == "NotReady":
        return f"{name} was not run, as what it needs failed"
    try:
        return str(future.result(raise_on_failure=False))
    except Exception as error:  # Dask's own, of a worker that was lost too often
        return f"{name} failed: {' '.join(str(error).split())[:300]}"


def _collect(
    ended: dict[str, str], left: dict[str, frozenset[str]], order: Order, local: Order
) -> dict[str, str]:
    """Bring outputs and logs here, and run the stages whose outputs DVC does not exchange."""
    session = _session.get()
    say = session.terminal.say
    good = [name for name, how in ended.items() if how in GOOD]
    for name in good:
        beside = exchange.Beside(local.folder, _checkpoints(order.commit, name))
        exchange.patiently(lambda beside=beside: beside.fetch(exchange.LOGS), "fetching logs", say)
    if good:
        words = ("repro", "--pull", *good[:-1])
        exchange.patiently(
            lambda: stage.run(good[-1], words=words, stopping=session.stopping), "pulling outputs", say
        )
    found: dict[str, str] = {}
    for name, needs in left.items():
        lacking = sorted(need for need in needs if (ended | found).get(need) not in GOOD)
        if lacking:
            found[name] = f"{name} was not run, as {lacking[0]} failed"
        else:
            state = run_stage.with_options(tags=tags(name))(name, local, return_state=True)
            found[name] = str(state.result(raise_on_failure=False))
        session.ended(name, found[name])
    return found


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
    profile: Profile = "",
    seed: Annotated[int, Field(ge=0)] = 0,
    overrides: list[str] = [],  # noqa: B006, Prefect shows it in its form
    revision: str = "",
    limit_hours: Positive = 24.0,
) -> State | dict[str, str]:
    """Train one model on one noise, in a workspace of its own; what exists already is not trained again.

    Args:
        noise: Noise that the model learns to remove.
        model: Network.
        profile: Scale of the pipeline, a folder of the project; empty: the root's.
        seed: Of the training; one besides the profile's makes it a DVC experiment.
        overrides: KEY=VALUE or FILE:KEY=VALUE, as `dvc exp run --set-param` takes them; an experiment too.
        revision: Branch, tag or commit; empty: what the worker has checked out.
        limit_hours: Longest time that the training may take.
    """
    say = get_run_logger().info
    try:
        clone = workspace.base()
        commit = workspace.resolve(clone, revision)
        key = workspace.key(commit, profile, noise, model, seed, overrides)
        with workspace.opened(clone, commit, key, say) as folder, _running(Session()):
            file = graph.dvc_file(profile, folder)
            name, settings = graph.training(folder, file, noise, model, seed)
            experiment = f"{noise}-{model}-{seed}-{key}" if settings or overrides else ""
            order = _training_order(
                clone, folder, key, experiment, [*settings, *overrides], 3600 * limit_hours
            )
            return {name: _train(name, order, clone, key, experiment)}
    except (ValueError, stage.StageError) as error:
        return Failed(message=str(error))


def _training_order(
    clone: Path, folder: Path, key: str, experiment: str, settings: list[str], limit: float
) -> Order:
    words = ("repro",)
    if experiment:
        words = ("exp", "run", "--name", experiment, *(f"--set-param={one}" for one in settings))
    if graph.remote(folder):
        words = (*words, "--pull")
    environment = {"LAMBDANET_WORKSPACE": f"train:{key}"}  # one run in MLflow, on whatever worker
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{clone / 'mlflow.db'}"
    places = workspace.temporary(clone) / "places"
    return Order(folder, limit, places=places, words=words, environment=environment)


def _train(name: str, order: Order, clone: Path, key: str, experiment: str) -> str:
    """Train in a workspace; what was made is then in the clone's cache, and at the remote if there is one."""
    if experiment and experiment in workspace.experiments(order.folder):
        ended = "unchanged"
    else:
        ended = _delivered(name, order, key, experiment)
    if experiment:
        workspace.git(
            order.folder, "push", "--quiet", "clone", workspace.experiments(order.folder)[experiment]
        )
        get_run_logger().info(f"experiment {experiment}: `dvc exp show`, `dvc exp apply {experiment}`")
    artifacts.mlflow_link(name)
    return ended


def _delivered(name: str, order: Order, key: str, experiment: str) -> str:
    tagged, say = run_stage.with_options(tags=tags(name)), get_run_logger().info
    if not graph.remote(order.folder):
        return tagged(name, order)
    delivery = ("push", "--run-cache", "--with-deps", name)
    if experiment:
        delivery = ("exp", "push", "--force", "origin", experiment)
    return exchange.run(name, order.folder, key, lambda: tagged(name, order), say, (delivery,))


def _sign(folder: Path) -> str:
    """The path of a file in this project that no other machine has, unless it has the same file system."""
    signs = list(workspace.temporary(folder).glob("sign-*"))
    if not signs:
        signs = [workspace.temporary(folder) / f"sign-{uuid.uuid4()}"]
        signs[0].touch()
    return str(signs[0].relative_to(folder))
