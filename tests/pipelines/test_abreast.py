"""Several stages' commands at once in one DVC: on a little project with stages that take no time."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from dvc_helpers import DVC, make_project, write_stages

from pipelines import cores, warm

ROOT = Path(__file__).resolve().parents[2]
# Each of two waits until the other has begun: one after the other they would never end.
MEET = (
    "touch {}-began && for i in $(seq 300); do test -e {}-began && break; sleep 0.1; done && test -e {}-began"
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = make_project(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def start(project, jobs, *words):
    command = ["-m", "pipelines.lockfile", "--jobs", str(jobs), "dvc", "--wait-for-lock", "repro", *words]
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def repro(project, jobs, *words):
    process = start(project, jobs, *words)
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def locked(project):
    return yaml.safe_load((project / "dvc.lock").read_text())["stages"]


def test_stages_run_side_by_side_and_leave_what_dvc_leaves(project):
    write_stages(
        project,
        a=((), MEET.format("a", "b", "b")),
        b=((), MEET.format("b", "a", "a")),
        c=(("a",), "test -e a"),
        d=(("c", "b"), "test -e c"),
    )
    status, said = repro(project, 2)
    assert status == 0, said
    found, text = locked(project), (project / "d").read_text()
    assert text == "a\nb\n"
    assert sorted(found) == ["a", "b", "c", "d"]
    # Again, from nothing, by DVC itself: the files that a and b waited for are there.
    for name in ("a", "b", "c", "d", "dvc.lock"):
        (project / name).unlink()
    subprocess.run([*DVC, "repro", "-q", "--no-run-cache"], cwd=project, check=True)
    assert locked(project) == found
    assert (project / "d").read_text() == text
    status, said = repro(project, 2)
    assert (status, "Running" in said) == (0, False)
    assert "up to date" in said
    (project / "source").write_text("changed\n")
    status, said = repro(project, 2, "c")  # a target, and what it needs
    assert (status, said.count("Running stage")) == (0, 1)  # c: what a made is the same again


def test_a_failure_ends_it_once_what_runs_beside_it_is_recorded(project):
    write_stages(
        project,
        a=((), "sleep 0.5 && false"),
        b=((), "sleep 3"),
        c=(("a",), "true"),
        e=((), "true"),
    )
    status, said = repro(project, 2)
    assert status
    assert "failed to reproduce 'a'" in said
    assert "a failed; waiting for b" in said
    assert {"b"} <= set(locked(project)) <= {"b", "e"}
    assert not (project / "c").exists()
    write_stages(project, a=((), "true"), b=((), "sleep 3"), c=(("a",), "true"), e=((), "true"))
    status, said = repro(project, 2)
    assert (status, "Running stage 'b'" in said) == (0, False), said
    assert sorted(locked(project)) == ["a", "b", "c", "e"]


def test_ctrl_c_reaches_the_stages_and_no_other_begins(project):
    wait = "trap 'touch {0}-stopped; exit 130' INT; touch {0}-began; while true; do sleep 0.1; done"
    write_stages(project, a=((), wait.format("a")), b=((), wait.format("b")), c=((), "touch c-began"))
    process = start(project, 2)
    for name in ("a", "b"):
        while not (project / f"{name}-began").exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
    # As a terminal does: all processes below it get the signal.
    for child in _below(process.pid):
        with contextlib.suppress(ProcessLookupError):  # a `sleep` that has ended
            os.kill(child, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode, said
    assert (project / "a-stopped").exists()
    assert (project / "b-stopped").exists()
    assert not (project / "c-began").exists()


def _below(pid):
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def test_as_many_as_fit(monkeypatch):
    monkeypatch.setattr("pipelines.cores.gpus", lambda: ["0"])
    assert cores.usual_jobs() == 1
    monkeypatch.setattr("pipelines.cores.gpus", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    memory = cores.psutil.virtual_memory()
    for gib, jobs in ((1, 1), (9, 4), (1000, 64)):
        free = memory._replace(available=gib * 2**30)
        monkeypatch.setattr(cores.psutil, "virtual_memory", lambda free=free: free)
        assert cores.usual_jobs() == jobs
    monkeypatch.setattr(cores, "available", lambda: 8)
    assert cores.environment(1) == {}
    assert cores.environment(4) == {
        "OMP_NUM_THREADS": "2", "LAMBDANET_CORES": "8", "LAMBDANET_PROGRESS": "lines"
    }  # fmt: skip
    assert cores.environment(16)["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    "words", [["--jobs", "0", "dvc", "repro"], ["--jobs", "two", "dvc"], ["--jobs", "2", "ls"]]
)
def test_wrong_words_get_the_usage(words):
    command = [sys.executable, "-m", "pipelines.warm", *words]
    process = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert process.returncode
    assert process.stderr.startswith("usage: python -m pipelines.warm")


def test_threads_are_shared_out_unless_they_are_set(monkeypatch):
    ran = []

    class Process:
        returncode = 0

        def __init__(self, command, env, **_):
            ran.append((command, env))

        def wait(self):
            return 0

        def terminate(self):
            pass

    monkeypatch.setattr(warm.subprocess, "Popen", Process)
    monkeypatch.setattr(cores, "available", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    warm.main(["dvc", "repro"], 2)
    assert [env["OMP_NUM_THREADS"] for _, env in ran] == ["2", "2"]
    assert ran[1][0][-4:] == ["--jobs", "2", "dvc", "repro"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    warm.main(["dvc", "repro"], 2)
    assert ran[-1][1]["OMP_NUM_THREADS"] == "3"
