"""Run whatever is out of date, several stages at once, as a Prefect flow on this machine.

    python -m pipelines.reproduce                        # the active profile, all of it
    python -m pipelines.reproduce --profile quick --jobs 2
    python -m pipelines.reproduce train@sample-speckle-dncnn-0

The graph is DVC's; each stage is `dvc --wait-for-lock repro --single-item STAGE` in this folder, as
soon as what it depends on is done. A stage that fails stops only what depends on it. The flow is
recorded at the Prefect server of PREFECT_API_URL, or by Prefect itself where that is not set.
"""

import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import filelock

from pipelines import clone, graph, profiles, stage
from pipelines.console import Console
from pipelines.cores import available, gpus, share

if TYPE_CHECKING:  # loading Prefect takes longer than finding out that nothing has to be done
    from prefect.client.schemas.objects import State

RETRY_SECONDS = [2, 10, 60]
HEARTBEAT = "30"  # seconds; a third of what `pipelines.cluster` takes for a lost run
TEMPORARY = Path(".dvc/tmp")
GOOD = ("run", "unchanged")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("targets", nargs=-1)
@click.option("--profile", help="Instead of the active one of params.yaml, for the time of this command.")
@click.option("--jobs", type=click.IntRange(1), help="Stages at once; default: one a GPU, else one a core.")
@click.option("--on-workers", is_flag=True, help="On the workers of PREFECT_API_URL; see docs/cluster.md.")
@click.option(
    "--limit-hours",
    default=24.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Longest time that one stage may take.",
)
def main(
    targets: tuple[str, ...], profile: str | None, jobs: int | None, on_workers: bool, limit_hours: float
) -> None:
    """Run the stages that are out of date; TARGETS are stages as `dvc repro` takes them, default all."""
    try:
        with alone():
            # What workers run is the commit, so what differs from it is refused before the word is changed.
            commit = clone.pushed_commit() if on_workers else ""
            with profiles.active_profile(profile) if profile else contextlib.nullcontext():
                stages = graph.load(list(targets)).to_run()
                if not stages:
                    click.echo("Data and pipelines are up to date.")
                    return
                _quiet_prefect()
                if on_workers:
                    ended = _on_workers(list(targets), commit, limit_hours)
                else:
                    ended = run(stages, Slots(jobs), 3600 * limit_hours)
    except ValueError as error:
        sys.exit(f"error: {error}")
    sys.exit(any(how not in GOOD for how in ended.values()))


class Slots:
    """Places for stages that run at once, each with its share of the machine.

    One a GPU, or on a CPU one a core: the networks are small, and two of them on a core each get
    further than one on two. A result depends on the number of threads, not on the number of slots.
    """

    def __init__(self, jobs: int | None = None) -> None:
        cards = gpus()
        self.jobs = jobs or len(cards) or available()
        self.free: queue.SimpleQueue = queue.SimpleQueue()
        shared = {} if os.environ.get("OMP_NUM_THREADS") else share(self.jobs)
        for number in range(self.jobs):
            own = {"CUDA_VISIBLE_DEVICES": cards[number % len(cards)]} if cards else {}
            self.free.put(shared | own)

    @contextlib.contextmanager
    def one(self) -> Iterator[dict[str, str]]:
        """A free slot's environment, which is taken for the time of the block."""
        environment = self.free.get_nowait()
        try:
            yield environment
        finally:
            self.free.put(environment)


def run(stages: dict[str, frozenset[str]], slots: Slots, limit: float) -> dict[str, str]:
    """Run stages as a Prefect flow, each when those that it needs have ended well.

    Args:
        stages: of `Graph.to_run`.
        slots: how many at once.
        limit: seconds that one may take.

    Returns:
        Stage to "run", "unchanged", or why it failed or was not run.
    """
    from prefect import flow, task
    from prefect.task_runners import ThreadPoolTaskRunner

    stopping = threading.Event()
    with Console(len(stages)) as console:

        @task(
            name="stage",
            task_run_name="{name}",
            retries=len(RETRY_SECONDS),
            retry_delay_seconds=RETRY_SECONDS,
            retry_condition_fn=_may_pass,
            persist_result=False,
        )
        def run_stage(name: str) -> str:
            if stopping.is_set():
                raise stage.StageError(f"{name} was stopped")
            with slots.one() as environment:
                console.start(name)
                return stage.run(
                    name,
                    lambda line: console.line(name, line),
                    environment=environment,
                    limit=limit,
                    stopping=stopping,
                )

        @flow(
            name="reproduce",
            task_runner=ThreadPoolTaskRunner(max_workers=slots.jobs),
            persist_result=False,
            validate_parameters=False,
        )
        def reproduce(targets: list[str]) -> dict[str, str]:
            finished: queue.SimpleQueue = queue.SimpleQueue()

            def submit(name: str) -> None:
                run_stage.submit(name).add_done_callback(lambda future: finished.put((name, future)))

            def wait() -> tuple[str, str]:
                name, future = finished.get()
                return name, str(future.result(raise_on_failure=False))

            def interrupted(number: int, frame: object) -> None:
                stopping.set()  # at once: what Prefect does at that moment may swallow the exception
                signal.default_int_handler(number, frame)

            signal.signal(signal.SIGINT, interrupted)
            try:
                return work_off(stages, slots.jobs, submit, wait, console)
            finally:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                if stopping.is_set() or sys.exc_info()[0]:
                    stopping.set()  # before the task runner waits for its threads, and so for the stages
                    console.say("stopping: what runs writes a checkpoint, and the same command goes on")

        return reproduce(sorted(stages))


def work_off(
    stages: dict[str, frozenset[str]],
    jobs: int,
    submit: Callable[[str], None],
    wait: Callable[[], tuple[str, str]],
    console: Console,
) -> dict[str, str]:
    """Run stages as those that they need end well, never more than `jobs` at once.

    Args:
        stages: each with the stages that it needs among them.
        jobs: as many are submitted and not ended at a time.
        submit: begins a stage.
        wait: waits for one of those that were submitted to end: its name, and how it ended.
        console: told of each end.

    Returns:
        Stage to "run", "unchanged", or why it failed or was not run.
    """
    waiting, ended = dict(stages), {}
    running: set[str] = set()
    while waiting or running:
        ready = [name for name, needs in waiting.items() if all(ended.get(n) in GOOD for n in needs)]
        for name in ready[: jobs - len(running)]:
            del waiting[name]
            running.add(name)
            submit(name)
        if not running:
            break  # what waits needs something that failed
        name, ended[name] = wait()
        running.remove(name)
        console.end(name, ended[name])
    for name, needs in waiting.items():
        lacking = [need for need in needs if ended.get(need) not in GOOD]
        ended[name] = f"{name} was not run, as it needs {', '.join(sorted(lacking))}"
        console.end(name, ended[name])
    return ended


def _on_workers(targets: list[str], commit: str, limit_hours: float) -> dict[str, str]:
    if not os.environ.get("PREFECT_API_URL"):
        raise ValueError("PREFECT_API_URL does not say where the Prefect server is; see docs/cluster.md")
    from pipelines import grid

    return grid.from_here(targets, profiles.active(), commit, limit_hours)


def _quiet_prefect() -> None:
    """Set what Prefect reads when it is loaded: for a person, the stages' lines, not the engine's."""
    for name, value in {
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": HEARTBEAT,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold this folder for one `reproduce`; two would each start what the other runs.

    Raises:
        ValueError: this is no DVC project, or another one runs here.
    """
    if not TEMPORARY.parent.is_dir():
        raise ValueError("this is no DVC project; run this in the project's folder")
    TEMPORARY.mkdir(exist_ok=True)
    lock, holder = TEMPORARY / "reproduce.lock", TEMPORARY / "reproduce.pid"
    try:
        with filelock.FileLock(lock, timeout=0):
            holder.write_text(f"{os.getpid()}\n")
            yield
    except filelock.Timeout:
        pid = holder.read_text().strip() if holder.exists() else "unknown"
        raise ValueError(f"process {pid} reproduces here already; wait for it or stop it") from None


def _may_pass(_task: object, _run: object, state: "State") -> bool:
    """Whether a stage that failed is worth another try: it was killed, or DVC was busy."""
    return isinstance(state.result(raise_on_failure=False), stage.PassingError)


if __name__ == "__main__":
    main()
