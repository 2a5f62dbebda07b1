import contextlib
import csv
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys

import helpers
import mlflow_helpers
import numpy as np
import psutil
import pytest
import requests

from lambdanet import config, files
from lambdanet.config import RunKey
from lambdanet.tracking import live, mlflow_runs, sync
from lambdanet.tracking.mlflow_runs import EPOCH_METRICS

pytestmark = mlflow_helpers.WARNINGS

EPOCHS = 4
RUN_KEY = RunKey("tiny", "gaussian-01", "dncnn", 0)
LOG, TRAINED = "runs/tiny/logs/gaussian-01/dncnn-0.json", "runs/tiny/models/gaussian-01/dncnn-0"
WORDS = helpers.train_words("dncnn")
PROFILE = helpers.changed(helpers.PROFILE, ["train", "dncnn", "epochs"], EPOCHS)

# After the epoch GATE the training waits for a file, so that what happens in its middle does.
CODE = """
import os, pathlib, time
from lambdanet import live
from lambdanet.progress import Progress

live.WAIT_SECONDS = float(os.environ.get("WAIT", 60))  # here the machine may be busy with other tests
live.PATIENCE_SECONDS = float(os.environ.get("PATIENCE", live.PATIENCE_SECONDS))
end_epoch = Progress.epoch

def epoch(self, row):
    end_epoch(self, row)
    while str(row["epoch"]) == os.environ.get("GATE") and not pathlib.Path("go").exists():
        time.sleep(0.01)

Progress.epoch = epoch
"""
WITHOUT_MLFLOW = """
import importlib.machinery, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "mlflow" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
"""


@pytest.fixture
def project(tmp_path):
    """A project with an empty database, `mlflow.db`."""
    mlflow_helpers.write_database(tmp_path / "mlflow.db")
    return helpers.write_project(tmp_path, profile=PROFILE)


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    """What the training writes where nobody follows it."""
    folder = helpers.write_project(tmp_path_factory.mktemp("untracked"), profile=PROFILE)
    status, _, err = helpers.run("train", WORDS, folder, LAMBDANET_TRACKING="off")
    assert status == 0, err
    return helpers.contents(folder / TRAINED)


def start(folder, uri=None, gate="", code=CODE, **environment):
    uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
    return helpers.start(
        "train", WORDS, folder, code + helpers.RUN_STAGE,
        LAMBDANET_TRACKING="on", MLFLOW_TRACKING_URI=uri, GATE=str(gate), **environment,
    )  # fmt: skip


def finish(process):
    out, err = process.communicate(timeout=helpers.PATIENCE)
    assert out == ""
    return process.returncode, [line for line in err.splitlines() if not line.startswith(RUN_KEY.name)]


def query(folder, sql):
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db", timeout=30)) as database:
        return database.execute(sql).fetchall()


def statuses(folder):
    return [status for (status,) in query(folder, "select status from runs")]


def steps(folder, key="loss"):
    return [step for (step,) in query(folder, f"select step from metrics where key = '{key}' order by step")]


def assert_whole(folder):
    """One finished run, and every metric of every epoch once."""
    assert statuses(folder) == ["FINISHED"]
    for key in EPOCH_METRICS:
        assert steps(folder, key) == list(range(1, EPOCHS + 1)), key
    assert steps(folder, "training_seconds") == [0]
    history = list(csv.DictReader((folder / TRAINED / "history.csv").read_text().splitlines()))
    for key in ("loss", "monitored_psnr", "learning_rate"):
        found = query(folder, f"select value from metrics where key = '{key}' order by step")
        assert [value for (value,) in found] == [float(row[key]) for row in history], key


def follower(process):
    (child,) = psutil.Process(process.pid).children(recursive=True)
    assert "lambdanet.tracking.follower" in child.cmdline()
    return child.pid


def test_a_training_is_followed(project, untracked):
    process = start(project, gate=EPOCHS)
    helpers.wait_until(lambda: statuses(project) == ["RUNNING"])
    child = follower(process)
    (project / "go").touch()
    assert finish(process) == (0, [])
    assert not helpers.lives(child)
    assert helpers.contents(project / TRAINED) == untracked
    assert_whole(project)


def test_a_killed_training_is_marked_so_and_its_run_goes_on(project, untracked):
    process = start(project, gate=3)
    helpers.wait_until(lambda: steps(project) == [1, 2, 3])
    child = follower(process)
    process.kill()
    helpers.wait_until(lambda: statuses(project) == ["KILLED"], seconds=15)
    helpers.wait_until(lambda: not helpers.lives(child), seconds=15)
    process.communicate()
    run_id = query(project, "select run_uuid from runs")

    process = start(project, gate=EPOCHS)
    helpers.wait_until(lambda: statuses(project) == ["RUNNING"])
    (project / "go").touch()
    assert finish(process) == (0, [])
    assert helpers.contents(project / TRAINED) == untracked
    assert query(project, "select run_uuid from runs") == run_id
    assert_whole(project)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_is_marked_so(project, number, status):
    process = start(project, gate=2)
    helpers.wait_until(lambda: steps(project) == [1, 2])
    child = follower(process)
    process.send_signal(number)
    (project / "go").touch()
    assert finish(process)[0] == status
    assert statuses(project) == ["KILLED"]
    assert steps(project) in ([1, 2], [1, 2, 3])  # it ends with the step or the epoch that it is in
    assert not helpers.lives(child)


def test_a_training_that_fails_is_marked_so(project):
    profile = helpers.changed(PROFILE, ["train", "dncnn", "fresh_noise"], False)
    helpers.write_project(project, profile=profile)
    path = project / helpers.DATA / "gaussian-01/train.npy"
    noisy = np.load(path)
    noisy[5] = np.nan
    np.save(path, noisy)
    status, said = finish(start(project))
    assert status == 1
    assert [line[:45] for line in said] == ["error: the loss of epoch 1 is nan, not a fini"]
    assert statuses(project) == ["FAILED"]
    assert steps(project) == []


def test_a_server_that_is_not_there_costs_one_line(project, untracked):
    uri = f"http://127.0.0.1:{mlflow_helpers.closed_port()}"
    status, said = finish(start(project, uri))
    assert status == 0
    assert said == [
        f"MLflow at {uri} cannot be used: Connection refused; "
        "nothing waits for it, `lambdanet models sync` fills it in"
    ]
    assert helpers.contents(project / TRAINED) == untracked


def test_a_deleted_experiment_costs_one_line(project, monkeypatch):
    monkeypatch.chdir(project)
    uri = f"sqlite:///{project / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = mlflow_runs.connect()
    client.delete_experiment(mlflow_runs.experiment_id(client, "tiny"))
    record = {"task": "train", "profile": "tiny", "noise": "gaussian-01", "model": "dncnn", "seed": 0}
    record |= {"description": mlflow_helpers.description(RUN_KEY, helpers.DNCNN), "history": []}
    files.write_json(project / "log.json", [record])
    done = subprocess.run(
        [sys.executable, "-m", "lambdanet.tracking.follower", "log.json"],
        input="news\nfailed\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stderr.startswith("the experiment lambdanet/tiny was deleted in MLflow; bring it back with ")
    assert done.stderr.count("\n") == 1


def test_a_server_that_never_answers_is_not_waited_for(project, untracked):
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        # One whose training is killed now, to see that it ends by itself.
        (project / "other.json").write_text('[{"task": "train"}]')
        alone = subprocess.Popen(
            [sys.executable, "-m", "lambdanet.tracking.follower", "other.json"],
            cwd=project,
            env=os.environ | {"MLFLOW_TRACKING_URI": uri},
            stdin=subprocess.PIPE,
        )
        alone.stdin.close()
        process = start(project, uri, WAIT=str(live.WAIT_SECONDS), gate=1)
        helpers.wait_for_line(process, "epoch 1/4")
        child = follower(process)
        (project / "go").touch()
        helpers.wait_for_line(process, "epoch 4/4")
        assert process.wait(helpers.PATIENCE) == 0
        _, err = process.communicate()
        assert err.count("`lambdanet models sync` fills it in") == 1
        assert not helpers.lives(child)
        assert helpers.contents(project / TRAINED) == untracked
        alone.wait(helpers.PATIENCE)


@contextlib.contextmanager
def mlflow_server(folder, port):
    """A server on the database and the artifacts of a folder, killed in the end."""
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # 7 more processes, for nothing here
    with open(folder / "server.log", "a") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
        )

    def answers():
        assert process.poll() is None, (folder / "server.log").read_text()
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok
        return False

    try:
        helpers.wait_until(answers)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_what_a_dead_server_missed_is_published_later(project, untracked, monkeypatch):
    port = mlflow_helpers.closed_port()
    with mlflow_server(project, port) as uri:
        process = start(project, uri, gate=2)
        helpers.wait_until(lambda: steps(project) == [1, 2])
    (project / "go").touch()
    status, said = finish(process)
    assert status == 0
    # It was killed between two requests, or in the middle of one.
    reason = "Connection (refused|reset|aborted|broken)"
    assert len(said) == 1
    assert re.fullmatch(
        rf"MLflow at {uri} cannot be used: {reason}; {live.CONSOLATION}",
        said[0],
    )
    assert helpers.contents(project / TRAINED) == untracked
    assert (statuses(project), steps(project)) == (["RUNNING"], [1, 2])

    made_up = {"psnr": 21.0, "ssim": 0.5, "noisy_psnr": 20.0, "parameters": 372, "images": 8}
    made_up |= {"clean_sha256": "c" * 64, "noisy_sha256": "d" * 64}
    made_up |= {"weights_sha256": files.sha256(project / TRAINED / "weights.safetensors")}
    files.write_json(project / "runs/tiny/scores/gaussian-01/dncnn-0.json", made_up)
    with mlflow_server(project, port):
        monkeypatch.chdir(project)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        done = sync.publish(sync.from_outputs(config.load("profile.yaml")), "tiny", None)
        assert (done.versions, done.without_log) == (["denoiser-gaussian-01 version 1"], [])
        (run,) = mlflow_helpers.runs(mlflow_runs.connect())
        assert run.data.metrics["psnr"] == 21.0
    assert_whole(project)
    assert len(list((project / "artifacts").rglob("weights.safetensors"))) == 1


def start_patiently(folder, patience, gate=""):
    """A training as `dvc repro` starts it: nothing is said about tracking."""
    environment = {"LAMBDANET_TRACKING": "", "PATIENCE": str(patience), "GATE": str(gate)}
    return helpers.start("train", WORDS, folder, CODE + helpers.RUN_STAGE, **environment)


def test_what_is_over_soon_is_followed_by_nobody(project, untracked):
    process = start_patiently(project, 3600, gate=1)
    helpers.wait_for_line(process, "epoch 1/4")
    assert psutil.Process(process.pid).children(recursive=True) == []
    (project / "go").touch()
    assert finish(process) == (0, [])
    assert helpers.contents(project / TRAINED) == untracked
    assert statuses(project) == []


def test_what_lasts_is_followed_from_its_first_epoch(project, untracked):
    process = start_patiently(project, 0.5, gate=2)
    helpers.wait_until(lambda: steps(project) == [1, 2])
    assert statuses(project) == ["RUNNING"]
    (project / "go").touch()
    assert finish(process) == (0, [])
    assert helpers.contents(project / TRAINED) == untracked
    assert_whole(project)


def test_what_is_interrupted_soon_is_told_of(project):
    process = start_patiently(project, 3600, gate=2)
    helpers.wait_for_line(process, "epoch 2/4")
    process.send_signal(signal.SIGTERM)
    (project / "go").touch()
    assert finish(process) == (143, [])
    assert statuses(project) == ["KILLED"]
    assert steps(project) in ([1, 2], [1, 2, 3])


def test_without_mlflow_nothing_follows_and_nothing_is_said(project, untracked):
    blocked = WITHOUT_MLFLOW + "\nimport importlib.util\nassert not importlib.util.find_spec('mlflow')\n"
    process = start(project, gate=1, code=blocked + CODE)
    helpers.wait_for_line(process, "epoch 1/4")
    assert psutil.Process(process.pid).children(recursive=True) == []
    (project / "go").touch()
    assert finish(process) == (0, [])
    assert helpers.contents(project / TRAINED) == untracked
    assert statuses(project) == []


def test_a_training_from_the_command_line_is_followed_too(project):
    environment = os.environ | {
        "LAMBDANET_TRACKING": "on",
        "MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}",
    }
    code = "from lambdanet import cli, live; live.WAIT_SECONDS = 60; cli.main()"
    words = ["train", "gaussian-01", "dncnn", "--out", "runs/a", "--epochs", str(EPOCHS), "--profile", "tiny"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=project, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert statuses(project) == ["FINISHED"]
    assert steps(project) == list(range(1, EPOCHS + 1))
    tags = dict(query(project, "select key, value from tags"))
    assert tags["run"] == RUN_KEY.name
    assert "stage" not in tags  # it was none of DVC's
