"""The flow `reproduce` on this machine, as `lambdanet run` runs it."""

import http.server
import logging
import os
import re
import signal
import socketserver
import sqlite3

import pytest
import scratch
from helpers import python, serving

from pipelines import cluster, terminal

BUSY = "test -e go || { echo $$ > pid; exec sleep 1234; }"
DIES_ONCE = "test -e tried || { touch tried; kill -9 $$; }"
BREAKS = "echo 'error: c is broken' >&2; test -e mended"


def last_flow(folder):
    """The state of the newest flow run in the project's Prefect database, and its tasks' names and states."""
    with sqlite3.connect(folder.parent / "prefect/prefect.db") as database:
        newest = "SELECT id, state_type FROM flow_run ORDER BY created DESC LIMIT 1"
        flow, state = database.execute(newest).fetchone()
        tasks = database.execute("SELECT name, state_name FROM task_run WHERE flow_run_id = ?", (flow,))
        return state, dict(tasks.fetchall())


def test_it_stops_resumes_goes_on_past_a_failure_and_ends_as_dvc_repro_does(tmp_path):
    stages = scratch.DIAMOND | {"c": (["a"], BREAKS), "e": ([], f"{BUSY}; {DIES_ONCE}")}
    project = scratch.project(tmp_path / "project", **stages)

    # Ctrl-C stops everything.
    process = scratch.start(project, "reproduce", "--jobs", "2")
    pid = scratch.number(project / "pid")
    log = scratch.wait_until(lambda: next(project.glob("runs/*/reproduce.log"), None))
    scratch.wait_until(lambda: " b: done in " in log.read_text())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=scratch.SECONDS)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "error: stopped; run the same command again"
    assert not scratch.lives(pid)

    # The next call resumes: e is killed and tried again, c fails, and what needs c is not run.
    (project / "go").touch()
    status, _, err = scratch.run(project, "reproduce", "--jobs", "2")
    assert status == 1
    look = "c failed: error: c is broken; look at it with `dvc repro --single-item c`"
    assert look in err.splitlines()
    assert err.splitlines()[-1] == f"error: 2 of 3 stages did not end well. {look}"
    assert not re.search("Traceback|WARNING", err)
    assert [(project / name).exists() for name in "abcde"] == [True, True, False, False, True]
    state, tasks = last_flow(project)
    assert state == "FAILED"
    assert {name: how for name, how in tasks.items() if name != "d"} == {"c": "Failed", "e": "Completed"}
    assert "d was not run, as what it needs failed" in log.read_text()
    assert " e: Running stage 'e':" in log.read_text()

    (project / "mended").touch()
    status, _, err = scratch.run(project, "reproduce", "--jobs", "2")
    assert status == 0, err
    assert re.findall(r"^(\w): 1 of 1 done; \d of 2 stages ended, 0:", err, re.MULTILINE) == ["c", "d"]
    assert last_flow(project)[0] == "COMPLETED"
    before = (project / "dvc.lock").read_bytes()
    status, out, err = scratch.run(project, "reproduce", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert (status, out, err) == (0, "Data and pipelines are up to date.\n", "")  # no server is asked
    assert (project / "dvc.lock").read_bytes() == before

    other = scratch.project(tmp_path / "other", **stages)
    for name in ("go", "tried", "mended"):
        (other / name).touch()
    scratch.repro(other)
    assert scratch.lock(other) == scratch.lock(project)


def test_a_second_one_waits_and_goes_on_when_the_first_is_killed_and_profiles_are_apart(project):
    scratch.profiles(project)
    # As a real training does, this ends when `dvc`, the parent of its parent, is gone.
    waits = "while ! test -e go; do kill -0 $dvc 2> /dev/null || exit 1; sleep 0.1; done"
    (project / "train.sh").write_text(f"dvc=$(ps -o ppid= $PPID); echo $$ >> ran; {waits}\n")
    first = scratch.start(project, "reproduce", "--profile", "small", "--jobs", "1")
    scratch.wait_until((project / "ran").exists)
    second = scratch.start(project, "reproduce", "--profile", "small", "--jobs", "1")
    assert "another `reproduce` of small/dvc.yaml runs here" in second.stderr.readline()
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    scratch.wait_until(lambda: len((project / "ran").read_text().split()) == 2)
    (project / "go").touch()
    said = second.communicate(timeout=scratch.SECONDS)
    assert second.returncode == 0, said
    assert len((project / "ran").read_text().split()) == 5  # the first one twice
    assert not (project / "dvc.lock").exists()
    pairs = ("gaussian-01-cnn", "gaussian-01-deep-cnn", "speckle-cnn", "speckle-deep-cnn")
    assert sorted(scratch.lock(project / "small")["stages"]) == [f"train@{pair}-0" for pair in pairs]
    status, out, _ = scratch.run(project, "reproduce", "train@speckle-cnn-1", "--dry-run")
    assert status == 0
    assert out.startswith("train@speckle-cnn-1: changed deps: source modified, params.yaml new; ")
    assert out.endswith("(no estimate)\n1 stages, no estimate\n")
    status, out, _ = scratch.run(project, "reproduce", "--profile", "small", "--dry-run")
    assert (status, out) == (0, "Data and pipelines are up to date.\n")


def test_a_server_that_is_needed_or_dead_is_one_line(project):
    scratch.profiles(project)
    said = "error: this needs a Prefect server: set PREFECT_API_URL, or `make up` starts one here\n"
    assert scratch.run(project, "reproduce", "--where", "dask:10.0.0.1:8786") == (1, "", said)
    url = "http://127.0.0.1:9/api"
    said = f"error: Prefect's server {url} does not answer; start it, or unset PREFECT_API_URL\n"
    for words in (["reproduce"], ["train", "speckle", "cnn"]):
        assert scratch.run(project, *words, PREFECT_API_URL=url) == (1, "", said)


@pytest.mark.parametrize("url", ["127.0.0.1", "http://[::1/api", "http://a b/api", "http://a..b/api"])
def test_what_is_no_address_does_not_answer(url):
    assert not cluster.answers(url)


def test_a_server_of_another_kind_does_not_answer():
    class OfSsh(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(b"SSH-2.0-OpenSSH\r\n")

    with serving(socketserver.TCPServer, OfSsh) as port:
        assert not cluster.answers(f"http://127.0.0.1:{port}/api")


class Locked(http.server.BaseHTTPRequestHandler):
    """A Prefect server that is well and asks for a password."""

    def do_GET(self):
        self.send_response(200 if self.path == "/api/health" else 401)
        self.end_headers()

    do_POST = do_GET  # noqa: N815


@pytest.mark.parametrize("words", [["reproduce"], ["train", "speckle", "cnn"], ["init"]])
def test_a_server_whose_password_is_missing_is_one_line(project, words):
    scratch.profiles(project)
    with serving(http.server.ThreadingHTTPServer, Locked) as port:
        url = f"http://127.0.0.1:{port}/api"
        status, _, said = scratch.run(project, *words, PREFECT_API_URL=url)
    password = "it asks for a password: set PREFECT_API_AUTH_STRING"
    assert (status, said) == (1, f"error: Prefect's server {url} cannot be used: {password}\n")


@pytest.mark.parametrize("words", [["reproduce"], ["train", "speckle", "cnn"]])
def test_a_damaged_profile_is_one_line(project, words):
    (project / "profile.yaml").write_text("profile: [\n")
    status, out, err = scratch.run(project, *words, "--profile", "small")
    assert (status, out, err.count("\n")) == (1, "", 1)
    place = "" if words[0] == "reproduce" else f"{project}/"
    assert err.startswith(f"error: {place}profile.yaml is not valid YAML: ")


@pytest.mark.parametrize("package", ["dvc", "prefect", "mlflow"])
def test_a_package_that_is_not_installed_is_one_line(project, package):
    words = ["models", "list"] if package == "mlflow" else ["run"]
    (project / "mlflow.db").touch()
    lacks = f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv[1:] = {words}"
    code = f"{lacks}; runpy.run_module('lambdanet', run_name='__main__')"
    environment = scratch.environment(project, MLFLOW_TRACKING_URI="")
    done = python("-c", code, cwd=project, env=environment)
    said = f"error: the package {package} is not installed; in a clone `make setup` installs all\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_the_terminal_shows_a_line_a_kind_and_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = [*(f"train@{number}" for number in range(50)), "sample/dvc.yaml:plot"]
    here = [name for name in names if name != "train@49"]  # whose lines a Dask worker keeps
    with terminal.Terminal(names, "sample") as shown:
        for name in here:
            shown.handle(logging.makeLogRecord({"task_run_name": name, "msg": "net: epoch 1/2"}))
        for name in names[1:50]:
            shown.end(name, "done")
        shown.end(names[0], "train@0 failed: x")
        shown.end(names[50], "sample/dvc.yaml:plot was not run, as what it needs failed")
    assert capsys.readouterr().err.splitlines() == [
        "51 stages to run; their output: runs/sample/reproduce.log",
        "train@0 failed: x",
        "train: 49 of 50 done; 50 of 51 stages ended, 0:00:00",
        "plot: 0 of 1 done; 51 of 51 stages ended, 0:00:00",
    ]
    lines = (tmp_path / "runs/sample/reproduce.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines[:50]] == [f"{name}: net: epoch 1/2" for name in here]
    assert lines[99].endswith(" train@0: train@0 failed: x")
    assert terminal.seconds("sample") == dict.fromkeys(names[1:49], 0)
