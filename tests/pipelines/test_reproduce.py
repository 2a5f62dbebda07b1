"""The grid run several stages at once: on a little DVC project with stages that take no time."""

import concurrent.futures
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import helpers
import pytest
import yaml
from dvc_helpers import DVC, make_project, write_stages

from pipelines import graph, reproduce, stage

ROOT = Path(__file__).resolve().parents[2]
# DVC's own use of pygtrie.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = make_project(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def start(project, *words, **environment):
    """`python -m pipelines.reproduce` with a Prefect database of its own."""
    own = {"PREFECT_HOME": str(project.parent / "prefect"), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.reproduce", *words],
        cwd=project,
        env=os.environ | own | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(project, *words, **environment):
    process = start(project, *words, **environment)
    out, err = process.communicate(timeout=180)
    return process.returncode, out, err


DIAMOND = {
    "a": ([], "true"),
    "b": (["a"], "true"),
    "c": (["a"], "true"),
    "d": (["b", "c"], "true"),
    "e": ([], "true"),
}


def test_graph_is_that_of_dvc(project):
    write_stages(project, **DIAMOND)
    found = graph.load([])
    assert {name: set(needs) for name, needs in found.needs.items()} == {
        "a": set(), "b": {"a"}, "c": {"a"}, "d": {"b", "c"}, "e": set(),
    }  # fmt: skip
    order = list(found.needs)
    assert all(order.index(need) < order.index(name) for name, needs in found.needs.items() for need in needs)
    assert found.changed == set(DIAMOND)
    assert set(graph.load(["b"]).needs) == {"a", "b"}
    subprocess.run([*DVC, "repro", "-q"], cwd=project, check=True, capture_output=True)
    assert graph.load([]).to_run() == {}
    (project / "b").unlink()
    assert graph.load([]).to_run() == {"b": frozenset(), "d": {"b"}}
    assert graph.load(["c", "e"]).to_run() == {}


def test_what_dvc_does_not_move_between_machines_stays(project):
    outs = {"kept": ["kept"], "shown": [{"shown": {"cache": False}}], "old": [{"old": {"persist": True}}]}
    stages = {name: {"cmd": f"touch {name}", "deps": ["x"], "outs": out} for name, out in outs.items()}
    stages["lonely"] = {"cmd": "touch lonely", "outs": ["lonely"]}
    stages["always"] = stages["kept"] | {"cmd": "touch always", "outs": ["always"], "always_changed": True}
    (project / "x").touch()
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    assert graph.load([]).staying == {"shown", "old", "lonely", "always"}


def test_of_this_project_only_the_report_and_the_registry_stay(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = graph.load([])
    assert {name.partition("@")[0] for name in found.staying} == {"plot", "register"}


def test_an_unknown_target_is_one_line(project):
    write_stages(project, **DIAMOND)
    with pytest.raises(ValueError, match="nothing") as caught:
        graph.load(["nothing"])
    assert "\n" not in str(caught.value)


def test_a_stage_is_run_once(project):
    write_stages(project, a=([], "echo one; echo two"))
    lines = []
    assert stage.run("a", lines.append) == "run"
    assert lines[lines.index("one") + 1] == "two"
    assert (project / "a").read_text() == "a\n"
    assert stage.run("a", lines.append) == "unchanged"


def test_a_stage_that_prints_much_was_run_too(project):
    write_stages(project, a=([], "seq 1000"))
    assert stage.run("a", lambda line: None) == "run"
    (project / "a").unlink()
    assert stage.run("a", lambda line: None) == "run"  # brought from the cache
    assert (project / "a").read_text() == "a\n"


@pytest.mark.parametrize(
    ("command", "kind", "said"),
    [
        ("echo 'error: x is 3, must be 4' >&2; exit 1", stage.StageError, "error: x is 3, must be 4"),
        ("kill -9 $$", stage.PassingError, "killed"),
        ("sh -c 'kill -9 $$'; exit 137", stage.PassingError, "killed"),
        ("echo 'torch.OutOfMemoryError: CUDA out of memory' >&2; exit 1", stage.StageError, "out of memory"),
        ("exit 3", stage.StageError, "dvc repro --single-item a"),
    ],
)
def test_a_failure_says_what_it_was(project, command, kind, said):
    write_stages(project, a=([], command))
    with pytest.raises(kind, match=re.escape(said)) as caught:
        stage.run("a", lambda line: None)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_a_stage_has_a_limit_and_leaves_nothing_behind(project):
    write_stages(project, a=([], "sleep 1234 & echo $! > pid; wait"))
    with pytest.raises(stage.StageError, match="longer than its limit of 5 s"):
        stage.run("a", lambda line: None, limit=5)
    assert not helpers.lives(int((project / "pid").read_text()))


def test_a_stage_that_is_asked_to_stop_may_finish_what_it_writes(project):
    script = "trap 'sleep 1; echo saved > checkpoint; exit 143' TERM; echo ready; while :; do sleep 0.1; done"
    write_stages(project, a=([], f'sh -c "{script}"'))
    stopping = threading.Event()
    with pytest.raises(stage.StageError, match="a was stopped") as caught:
        stage.run("a", lambda line: stopping.set() if line == "ready" else None, stopping=stopping)
    assert type(caught.value) is stage.StageError  # not one that is tried again
    assert (project / "checkpoint").read_text() == "saved\n"


def test_a_stage_that_dies_of_being_stopped_is_not_tried_again(project):
    write_stages(project, a=([], "echo ready; exec sleep 1234"))
    stopping = threading.Event()
    with pytest.raises(stage.StageError, match="a was stopped") as caught:
        stage.run("a", lambda line: stopping.set() if line == "ready" else None, stopping=stopping)
    assert type(caught.value) is stage.StageError


class Recorder:
    """A console that remembers, and stages that take as long as they are told to."""

    def __init__(self, results=None):
        self.results, self.pool = results or {}, concurrent.futures.ThreadPoolExecutor(8)
        self.lock, self.now, self.most, self.order = threading.Lock(), set(), 0, []
        self.finished = queue.SimpleQueue()

    def submit(self, name):
        self.pool.submit(self._run, name).add_done_callback(lambda _: self.finished.put(name))

    def wait(self):
        name = self.finished.get(timeout=10)
        return name, self.results.get(name, "run")

    def _run(self, name):
        with self.lock:
            self.now.add(name)
            self.most = max(self.most, len(self.now))
        time.sleep(0.02)
        with self.lock:
            self.now.discard(name)
            self.order.append(name)

    def end(self, name, how):
        pass


NEEDS = {name: frozenset(needs) for name, (needs, _) in DIAMOND.items()}


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_stages_wait_for_what_they_need_and_for_a_place(jobs):
    recorder = Recorder()
    ended = reproduce.work_off(NEEDS, jobs, recorder.submit, recorder.wait, recorder)
    assert ended == dict.fromkeys(NEEDS, "run")
    for name, needs in NEEDS.items():
        assert all(recorder.order.index(need) < recorder.order.index(name) for need in needs)
    assert recorder.most <= jobs
    assert recorder.most >= min(jobs, 2)


def test_a_failure_stops_what_depends_on_it_only():
    recorder = Recorder({"b": "b failed"})
    ended = reproduce.work_off(NEEDS, 2, recorder.submit, recorder.wait, recorder)
    assert ended == {
        "a": "run", "b": "b failed", "c": "run", "d": "d was not run, as it needs b", "e": "run",
    }  # fmt: skip


def test_the_flow_is_stopped_goes_on_meets_a_failure_and_ends_with_nothing_to_do(project):
    waits = "test -e go || { echo $$ > pid; exec sleep 1234; }"
    dies_once = "test -e tried || { touch tried; kill -9 $$; }"
    breaks = "echo 'error: c is broken' >&2; test -e mended"
    write_stages(project, **DIAMOND | {"c": (["a"], breaks), "e": ([], f"{waits}; {dies_once}")})

    # Ctrl-C stops everything; before that a second call is refused.
    process = start(project, "--jobs", "2")
    helpers.wait_until(lambda: (project / "pid").exists() and (project / "b").exists(), 120)
    helpers.wait_until(lambda: (project / "pid").read_text().strip(), 10)
    status, _, err = run(project)
    assert (status, err) == (
        1,
        f"error: process {process.pid} reproduces here already; wait for it or stop it\n",
    )
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=180)
    assert process.returncode != 0
    assert "goes on" in err
    assert not helpers.lives(int((project / "pid").read_text()))

    # The next call goes on: e is killed and tried again, c fails, and what needs c is not run.
    (project / "go").touch()
    status, _, err = run(project, "--jobs", "2")
    assert status == 1
    assert "error: c is broken" in err
    assert "d was not run, as it needs c" in err
    assert "Traceback" not in err
    assert [(project / name).exists() for name in "abcde"] == [True, True, False, False, True]
    assert (project / "tried").exists()
    assert (project / "e").read_text() == "e\n"
    assert re.findall(r"\] done (\w)", err) == ["e"]  # not a and b again

    (project / "mended").touch()
    status, out, err = run(project, "--jobs", "2")
    assert status == 0, err
    assert re.findall(r"\[\d/2\] done (\w)", err) == ["c", "d"]
    assert (project / "d").read_text() == "a\na\n"
    before = (project / "dvc.lock").read_bytes()
    status, out, err = run(project, PREFECT_API_URL="http://127.0.0.1:9/api")  # is not even asked
    assert (status, out, err) == (0, "Data and pipelines are up to date.\n", "")
    assert (project / "dvc.lock").read_bytes() == before


def test_outside_of_a_project_it_says_so(tmp_path):
    status, out, err = run(tmp_path)
    assert (status, out) == (1, "")
    assert err == "error: this is no DVC project; run this in the project's folder\n"
