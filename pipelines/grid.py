"""The flow `reproduce` on workers: every stage that is out of date is asked for from a work pool.

The graph is DVC's. A stage runs as the deployment `stage` (`pipelines/worker.py`) on whichever worker
is free; here only those run whose outputs DVC does not move: the report and the registry. A run that
crashes with its worker is asked for again, and goes on from its last copied checkpoint.
"""

import contextlib
import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.states import Cancelled, Cancelling, Crashed, Failed

from pipelines import choices, clone, graph, showing, versions, worker
from pipelines import stage as stages
from pipelines.console import Console
from pipelines.copies import LOGS, Copies
from pipelines.reproduce import GOOD, alone, work_off

DEPLOYMENT = "stage/worker"
POLL_SECONDS = 2.0
PAGE = 200
# So many of a flow's runs wait in the pool's queue at once; it need not hold a whole large grid.
OUTSTANDING = 200
ATTEMPTS = 5
BACK_OFF = (0, 5, 20, 60)
# A worker that dies between taking a run and starting it sends no heartbeat that could be missed.
PENDING_SECONDS = 100
QUIET_SECONDS = 30


@flow(name="reproduce", flow_run_name="{profile} of {revision}", persist_result=False)
def reproduce(
    profile: choices.Profile,
    targets: list[str] = [],  # noqa: B006, Prefect shows it in its form
    revision: str = "main",
    limit_hours: float = 24.0,
) -> State | dict[str, str]:
    """Regenerate whatever of the paper is out of date, on the workers; ends with its table.

    Args:
        profile: Scale, as in params.yaml.
        targets: Stages as `dvc repro` takes them; none: the whole grid.
        revision: Branch, tag or commit of git origin.
        limit_hours: Longest time that one stage may take.
    """
    return in_own_workspace(profile, targets, revision, limit_hours)


def in_own_workspace(profile: str, targets: list[str], revision: str, limit_hours: float) -> State | dict:
    """What `reproduce` does, in a folder of this worker's clone that is for that alone."""
    try:
        commit = clone.resolve(revision)
        os.chdir(clone.workspace(Path.cwd(), commit, profile, f"{worker.worker()}-reproduce"))
        with alone():
            ended = coordinate(
                graph.load(targets), profile, commit, limit_hours, Console(0, get_run_logger().info)
            )
    except ValueError as error:
        return Failed(message=str(error))
    return outcome(ended)


def from_here(targets: list[str], profile: str, commit: str, limit_hours: float) -> dict[str, str]:
    """What `reproduce` does, in the current folder, as a flow that a person started by hand."""

    @flow(name="reproduce-here", flow_run_name=f"{profile} of {commit[:12]}", persist_result=False)
    def here(profile: str, targets: list[str], commit: str) -> dict[str, str]:
        return coordinate(graph.load(targets), profile, commit, limit_hours, Console(0))

    return here(profile, targets, commit)


def outcome(ended: dict[str, str]) -> State | dict[str, str]:
    """A flow's last state, for how its stages ended."""
    lacking = [how for how in ended.values() if how not in GOOD]
    return Failed(message=f"{len(lacking)} of {len(ended)} stages: {lacking[0]}") if lacking else ended


def coordinate(
    wanted: graph.Graph, profile: str, commit: str, limit_hours: float, console: Console
) -> dict[str, str]:
    """Have workers run what is out of date in the current folder, and bring the results here.

    Must be called within a flow. Returns stage to "run", "unchanged", or why it failed.
    """
    stages_to_run = wanted.to_run()
    console.total = len(stages_to_run)
    elsewhere = {name: needs for name, needs in stages_to_run.items() if name not in wanted.staying}
    with Copies():  # without a remote nothing would come back
        pass
    with get_client(sync_client=True) as client, console:
        parameters = {"profile": profile, "commit": commit, "limit_hours": limit_hours}
        asked = Runs(client, DEPLOYMENT, parameters, console)
        try:
            ended = work_off(elsewhere, OUTSTANDING, asked.submit, asked.wait, console)
        except KeyboardInterrupt:
            asked.cancel()
            raise
        good = [name for name, how in ended.items() if how in GOOD]
        staying = {name: needs for name, needs in stages_to_run.items() if name in wanted.staying}
        ended |= collect(good, staying, ended, console)
    table = Path("results") / profile / "table2.md"
    if any(str(table.parent) in word for word in _words(staying)) and table.is_file():
        with contextlib.suppress(Exception):
            create_markdown_artifact(
                table.read_text(), key=showing.key("table2", profile), description=f"Table 2, {profile}"
            )
    return ended


def collect(
    good: list[str], staying: dict[str, frozenset[str]], ended: dict[str, str], console: Console
) -> dict[str, str]:
    """Bring the outputs and logs of these stages here, then run those that have to run here.

    Returns:
        The stages of `staying`, as `coordinate` does.
    """

    def note(line: str) -> None:
        if line.startswith("Running stage '"):
            console.say(f"{line.split(chr(39))[1]} was not at the remote, and is made here")

    with Copies() as copies:
        worker.patiently(lambda: [copies.fetch(name, LOGS) for name in good], "fetching logs", console.say)
        if good:
            pull = ("repro", "--pull", *good[:-1])
            worker.patiently(lambda: stages.run(good[-1], note, words=pull), "pulling outputs", console.say)
    found: dict[str, str] = {}
    for name, needs in staying.items():
        lacking = sorted(need for need in needs if (ended | found).get(need, "run") not in GOOD)
        console.start(name)
        try:
            if lacking:
                raise stages.StageError(f"{name} was not run, as it needs {', '.join(lacking)}")
            found[name] = stages.run(name, lambda line, name=name: console.line(name, line))
        except stages.StageError as error:
            found[name] = str(error)
        console.end(name, found[name])
    return found


@dataclass
class Asked:
    """Something that was asked for: its run of the moment, and how often it was tried."""

    name: str
    run: UUID | None = None
    ours: bool = False
    attempts: int = 0
    after: float = 0.0
    state: str = ""


@dataclass
class Runs:
    """The runs on workers that a flow waits for.

    Attributes:
        client: of the Prefect server.
        deployment: whose runs they are.
        parameters: of all of them; each has a name beside.
        console: told of what happens.
    """

    client: SyncPrefectClient
    deployment: str
    parameters: dict
    console: Console
    asked: dict[str, Asked] = field(default_factory=dict)
    ended: list[tuple[str, str]] = field(default_factory=list)
    told: dict[str, float] = field(default_factory=dict)

    def submit(self, name: str) -> None:
        """Ask for something."""
        self.asked[name] = Asked(name)

    def wait(self) -> tuple[str, str]:
        """Wait until one has ended; its name, and "run" or why it failed."""
        while not self.ended:
            try:
                self._ask()
                self._look()
            except Exception as error:  # the server is away; the workers go on
                self._tell(f"Prefect does not answer ({type(error).__name__}); the workers go on meanwhile")
            if not self.ended:
                time.sleep(POLL_SECONDS)
        name, how = self.ended.pop(0)
        del self.asked[name]
        return name, how

    def cancel(self) -> None:
        """Cancel what this flow asked for and nobody else waits for."""
        self.console.say("stopping: what runs copies its checkpoint, and the same command goes on")
        for one in self.asked.values():
            if one.run and one.ours:
                with contextlib.suppress(Exception):
                    running = self.client.read_flow_run(one.run).state.is_running()
                    self.client.set_flow_run_state(one.run, Cancelling() if running else Cancelled())

    def _ask(self) -> None:
        """Create the runs that are due; another flow's run of the same stage is shared."""
        now = time.monotonic()
        for one in self.asked.values():
            if one.run or one.after > now or one.name in dict(self.ended):
                continue
            # The key numbers the runs that this stage had: two flows that ask at once get one run.
            for number in range(one.attempts, 10_000):
                run = run_deployment(
                    self.deployment, timeout=0, flow_run_name=one.name, as_subflow=number == one.attempts,
                    tags=_tags(one.name), work_queue_name=versions.queue(),
                    idempotency_key=f"{one.name} {self.parameters['commit']} {number}",
                    parameters=self.parameters | {"name": one.name, "packages": versions.queue()},
                )  # fmt: skip
                if not run.state.is_final():
                    break
            one.run, one.attempts = run.id, number + 1
            one.ours = (datetime.now(UTC) - run.created).total_seconds() < 10
            one.state = ""

    def _look(self) -> None:
        runs = {one.run: one for one in self.asked.values() if one.run}
        for start in range(0, len(runs), PAGE):
            page = list(runs)[start : start + PAGE]
            found = self.client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=page)))
            for run in found:
                self._note(runs[run.id], run)
        running = {run: one for run, one in runs.items() if one.state == "Running"}
        if runs and not running:
            self._look_for_workers()
        elif time.monotonic() - self.told.get("progress", -1e9) > showing.UPDATE_SECONDS:
            self.told["progress"] = time.monotonic()
            self._look_at_progress(running)

    def _look_at_progress(self, running: dict[UUID, Asked]) -> None:
        """What the workers' progress artifacts say, for the person who waits here."""
        found = self.client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=list(running)[:PAGE]),
                type=ArtifactFilterType(any_=["progress"]),
            ),
            limit=PAGE,
        )
        for artifact in found:
            one = running.get(artifact.flow_run_id)
            if one and (text := (artifact.description or "").partition(": ")[2]):
                self.console.progress(one.name, text)

    def _note(self, one: Asked, run: FlowRun) -> None:
        state = run.state
        if state.type == StateType.PENDING and _age(state) > PENDING_SECONDS:
            state = Crashed(message="it was taken by a worker and never started")
            self.client.set_flow_run_state(run.id, state, force=True)
        if state.name != one.state:
            one.state = state.name
            if state.is_running():
                self.console.start(one.name)
        if state.is_completed():
            self.ended.append((one.name, "run"))
        elif state.is_crashed():
            self._again(one, state.message or "crashed")
        elif state.is_final():
            said = state.message or state.name
            self.ended.append((one.name, said if one.name in said else f"{one.name} failed: {said}"))

    def _again(self, one: Asked, said: str) -> None:
        tried = one.attempts
        if tried >= ATTEMPTS:
            self.ended.append((one.name, f"{one.name} crashed {tried} times; the last time: {said}"))
            return
        wait = BACK_OFF[min(tried - 1, len(BACK_OFF) - 1)]
        self.console.say(f"{one.name} crashed ({said}); it is asked for again{f' in {wait} s' * bool(wait)}")
        one.run, one.after = None, time.monotonic() + wait

    def _look_for_workers(self) -> None:
        queue = self.client.read_deployment_by_name(self.deployment)
        workers = self.client.read_workers_for_work_pool(queue.work_pool_name)
        online = [one.name for one in workers if one.status and one.status.value == "ONLINE"]
        if not online:
            self._tell(
                f"no worker of pool {queue.work_pool_name} is online: `make up`, or see docs/cluster.md"
            )
        elif not any(name.endswith(versions.queue()) for name in online):
            us = versions.queue()
            self._tell(f"no worker has this clone's versions, {us}; online are {', '.join(sorted(online))}")

    def _tell(self, text: str) -> None:
        """Say something that lasts, but not at each look."""
        if time.monotonic() - self.told.get(text, -1e9) > QUIET_SECONDS:
            self.told[text] = time.monotonic()
            self.console.say(text)


def _tags(name: str) -> list[str]:
    """What a run can be filtered by in Prefect's pages: its stage's kind, noise and model."""
    kind, _, rest = name.partition("@")
    noises, models = choices.names("noises"), choices.names("models")
    noise = next((one for one in noises if f"-{one}-" in f"-{rest}-"), None)
    model = next((one for one in sorted(models, key=len, reverse=True) if f"-{one}-" in f"-{rest}-"), None)
    return [tag for tag in (kind, noise, model) if tag]


def _words(staying: dict[str, frozenset[str]]) -> Iterator[str]:
    from dvc.repo import Repo

    with Repo() as repo:
        for name in staying:
            for one in repo.stage.collect(name):
                yield from shlex.split(one.cmd or "")


def _age(state: State) -> float:
    return (datetime.now(UTC) - state.timestamp).total_seconds()
