"""The coordinator: which runs it asks for, waits for and asks for again. Prefect is a stand-in here;
`test_cluster.py` has the real one.
"""

import uuid
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running, Scheduled

from pipelines import grid, versions

PARAMETERS = {"profile": "tiny", "commit": "c0ffee", "limit_hours": 1.0}


class Server:
    """Remembers the runs that it was asked for; tests set their states."""

    def __init__(self):
        self.runs, self.by_key, self.away = {}, {}, False
        self.workers = [f"gpu-0 c0ffee {versions.queue()}"]

    def run_deployment(self, name, *, idempotency_key, flow_run_name, parameters, tags, **_):
        if self.away:
            raise ConnectionError
        if idempotency_key not in self.by_key:
            run = SimpleNamespace(
                id=uuid.uuid4(), name=flow_run_name, state=Scheduled(), parameters=parameters, tags=tags,
                created=datetime.now(UTC), deployment=name,
            )  # fmt: skip
            self.by_key[idempotency_key] = self.runs[run.id] = run
        return self.by_key[idempotency_key]

    def read_flow_runs(self, flow_run_filter):
        if self.away:
            raise ConnectionError
        return [self.runs[one] for one in flow_run_filter.id.any_]

    def read_artifacts(self, artifact_filter, limit):
        wanted = artifact_filter.flow_run_id.any_
        texts = {one: f"{self.runs[one].name}: epoch 3/50: loss 0.1" for one in wanted}
        return [SimpleNamespace(flow_run_id=one, description=text) for one, text in texts.items()]

    def read_flow_run(self, one):
        return self.runs[one]

    def set_flow_run_state(self, one, state, force=False):
        self.runs[one].state = state

    def read_deployment_by_name(self, _name):
        return SimpleNamespace(work_pool_name="pool")

    def read_workers_for_work_pool(self, _pool, **_):
        online = SimpleNamespace(value="ONLINE")
        return [SimpleNamespace(name=name, status=online) for name in self.workers]

    def of(self, name):
        return [run for run in self.runs.values() if run.name == name]


class Console:
    def __init__(self):
        self.said, self.started, self.far = [], [], {}

    def progress(self, name, text):
        self.far[name] = text

    def say(self, text):
        self.said.append(text)

    def start(self, name):
        self.started.append(name)


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(grid, "run_deployment", server.run_deployment)
    monkeypatch.setattr(grid, "BACK_OFF", (0,))
    monkeypatch.setattr(grid, "POLL_SECONDS", 0.001)
    return server


@pytest.fixture
def runs(server):
    return grid.Runs(server, "stage/worker", PARAMETERS, Console())


def step(runs):
    runs._ask()
    runs._look()


def test_a_stage_is_asked_for_with_its_commit_versions_and_tags(runs, server):
    runs.submit("train@sample-salt-and-pepper-lambdanet-u4-m7-0")
    step(runs)
    (run,) = server.runs.values()
    assert run.deployment == "stage/worker"
    assert run.parameters == PARAMETERS | {"name": run.name, "packages": versions.queue()}
    assert run.tags == ["train", "salt-and-pepper", "lambdanet-u4-m7"]
    run.state = Running()
    step(runs)
    assert runs.console.started == [run.name]
    assert runs.console.far == {run.name: "epoch 3/50: loss 0.1"}
    run.state = Completed()
    assert runs.wait() == (run.name, "run")
    assert not runs.asked


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("download@sample", ["download"]),
        ("corrupt@quick-gaussian-02", ["corrupt", "gaussian-02"]),
        ("evaluate@paper-speckle-lambdanet-0", ["evaluate", "speckle", "lambdanet"]),
        ("first", ["first"]),
    ],
)
def test_tags_name_the_kind_the_noise_and_the_model(name, tags):
    assert grid._tags(name) == tags


def test_what_crashes_is_asked_for_again_until_it_is_enough(runs, server):
    runs.submit("a")
    for attempt in range(grid.ATTEMPTS):
        step(runs)
        assert len(server.of("a")) == attempt + 1
        server.of("a")[-1].state = Crashed(message="its worker is lost")
        runs._look()
    name, how = runs.wait()
    assert (name, how) == ("a", "a crashed 5 times; the last time: its worker is lost")
    assert sum("it is asked for again" in text for text in runs.console.said) == grid.ATTEMPTS - 1


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            Failed(message="plot@x failed: error: no such file"),
            "plot@x failed: error: no such",
        ),
        (
            Failed(message="Flow run encountered an exception"),
            "plot@x failed: Flow run encountered an exception",
        ),
        (Cancelled(), "plot@x failed: Cancelled"),
    ],
)
def test_a_bug_is_not_tried_again(runs, server, state, said):
    runs.submit("plot@x")
    step(runs)
    server.of("plot@x")[0].state = state
    assert runs.wait()[1].startswith(said)
    assert len(server.runs) == 1


def test_two_flows_share_a_run_and_only_its_owner_cancels_it(server):
    one, two = (grid.Runs(server, "stage/worker", PARAMETERS, Console()) for _ in range(2))
    for runs in (one, two):
        runs.submit("a")
    step(one)
    server.of("a")[0].created -= timedelta(seconds=60)
    step(two)
    assert len(server.runs) == 1
    server.of("a")[0].state = Running()
    two.cancel()
    assert server.of("a")[0].state.is_running()
    one.cancel()
    assert server.of("a")[0].state.type == StateType.CANCELLING
    server.of("a")[0].state = Completed()
    assert one.wait() == two.wait() == ("a", "run")


def test_a_flow_that_begins_again_takes_up_what_runs_and_asks_anew_for_what_ended(server):
    first = grid.Runs(server, "stage/worker", PARAMETERS, Console())
    first.submit("a")
    step(first)
    again = grid.Runs(server, "stage/worker", PARAMETERS, Console())
    again.submit("a")
    step(again)
    assert len(server.runs) == 1
    server.of("a")[0].state = Completed()
    later = grid.Runs(server, "stage/worker", PARAMETERS, Console())
    later.submit("a")
    step(later)
    assert len(server.runs) == 2
    other = grid.Runs(server, "stage/worker", PARAMETERS | {"commit": "beef"}, Console())
    other.submit("a")
    step(other)
    assert len(server.runs) == 3


def test_a_run_that_its_worker_took_and_never_started_is_crashed(runs, server):
    runs.submit("a")
    step(runs)
    (run,) = server.runs.values()
    run.state = Pending()
    step(runs)
    assert run.state.is_pending()
    run.state = Pending(timestamp=datetime.now(UTC) - timedelta(seconds=grid.PENDING_SECONDS + 1))
    step(runs)
    assert run.state.is_crashed()
    step(runs)
    assert len(server.runs) == 2


def test_a_server_that_is_away_is_waited_for(runs, server, monkeypatch):
    server.away = True
    runs.submit("a")
    sleeps = []

    def sleep(seconds):
        sleeps.append(seconds)
        server.away = len(sleeps) < 3
        for run in server.runs.values():
            run.state = Completed()

    monkeypatch.setattr(grid.time, "sleep", sleep)
    assert runs.wait() == ("a", "run")
    assert runs.console.said == ["Prefect does not answer (ConnectionError); the workers go on meanwhile"]


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ([], "no worker of pool pool is online"),
        (["odd c0ffee python3.9-torch1.0-00000000"], "no worker has this clone's versions"),
        (["odd c0ffee python3.9-torch1.0-00000000", f"even c0ffee {versions.queue()}"], None),
    ],
)
def test_it_says_why_nothing_runs(runs, server, workers, said):
    server.workers = workers
    runs.submit("a")
    step(runs)
    step(runs)
    assert [text.startswith(said or "") for text in runs.console.said] == ([True] if said else [])


def test_an_outcome_fails_where_anything_does():
    assert grid.outcome({"a": "run", "b": "unchanged"}) == {"a": "run", "b": "unchanged"}
    failed = grid.outcome({"a": "run", "b": "b failed: so", "c": "c was not run, as it needs b"})
    assert failed.is_failed()
    assert failed.message == "2 of 3 stages: b failed: so"
