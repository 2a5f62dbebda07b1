"""`train` from Prefect's server: several at once, with the server away, and a worker that is stopped."""

import os
import re
import shutil
import signal
import time

import pytest
import requests
import scratch
from helpers import python

pytestmark = pytest.mark.slow
NAMES = [(noise, model) for noise in ("gaussian-01", "speckle") for model in ("cnn", "deep-cnn")]


@pytest.fixture
def project(cluster, origin, monkeypatch):
    """A clone with prefect.yaml, whose deployments the server has, and a worker of the pool."""
    folder = origin("clone")
    shutil.copytree(scratch.ROOT / "pipelines", folder / "pipelines")
    described = (scratch.ROOT / "prefect.yaml").read_text()
    for ours, theirs in (("profile: sample", "profile: small"), ("model: lambdanet", "model: cnn")):
        assert ours in described
        described = described.replace(ours, theirs)
    (folder / "prefect.yaml").write_text(described)
    scratch.commit(folder)
    (folder / ".dvc/config.local").unlink()
    cluster.start("init", folder, "lambdanet", "cluster", "init").wait(scratch.SECONDS)
    cluster.start("worker", folder, "lambdanet", "cluster", "workers", "--count", "6")
    monkeypatch.setenv("PREFECT_API_URL", cluster.url)
    return folder


def write(folder, script):
    (folder / "train.sh").write_text(script)
    scratch.commit(folder)


def queue(cluster, folder, noise, model, overrides=""):
    """Leave a training to the worker; returns the flow run."""
    given = [f"noise={noise}", f"model={model}", "profile=small", f"overrides=[{overrides}]"]
    words = ["prefect", "deployment", "run", "train/train", *(part for one in given for part in ("-p", one))]
    environment = scratch.environment(folder, PREFECT_API_URL=cluster.url)
    done = python("-m", *words, cwd=folder, env=environment, check=True)
    return re.search(r"UUID: (\S+)", done.stdout)[1]


def state(run):
    # Not by Prefect's client, which keeps the address that it found when a test of this process loaded it.
    url = f"{os.environ['PREFECT_API_URL']}/flow_runs/{run}"
    return requests.get(url, timeout=60).json()["state"]["name"]


def wait_for(*runs):
    def ended():
        found = {state(run) for run in runs}
        assert not {"Failed", "Crashed"} & found, found
        return found == {"Completed"}

    scratch.wait_until(ended, 2 * scratch.SECONDS)


def test_five_trainings_and_one_of_them_twice_at_once(cluster, project, tmp_path):
    write(project, f"echo $$ >> {tmp_path}/ran; sleep 10\n")
    runs = [queue(cluster, project, *names) for names in NAMES]
    runs += [queue(cluster, project, "speckle", "cnn", '"rate=5"'), queue(cluster, project, *NAMES[0])]
    wait_for(*runs)
    assert len((tmp_path / "ran").read_text().split()) == 5
    refs = scratch.git(project, "for-each-ref", "--format=%(refname)").split()
    assert sum("/speckle-cnn-0-" in ref for ref in refs) == 1
    status, _, err = scratch.run(project, "reproduce", "--profile", "small")
    assert status == 0, err
    assert len((tmp_path / "ran").read_text().split()) == 5  # all from the cache


@pytest.mark.parametrize("seconds", [15, 120])
def test_the_server_is_away_in_mid_training(cluster, project, tmp_path, seconds):
    write(project, f"echo $$ >> {tmp_path}/ran; while ! test -e {tmp_path}/go; do sleep 0.2; done\n")
    run = queue(cluster, project, *NAMES[0])
    scratch.number(tmp_path / "ran")
    cluster.kill("prefect")
    time.sleep(seconds)
    (tmp_path / "go").touch()
    time.sleep(5)  # it ends while the server is away
    cluster.serve()
    wait_for(run)
    assert len((tmp_path / "ran").read_text().split()) == 1


def test_a_worker_that_is_stopped_lets_its_training_write_a_checkpoint(cluster, project, tmp_path):
    # Prefect's worker gives its flows little time. As a real training does, this one stops for a signal, and
    # where it gets none, once it notices that `dvc`, the parent of its parent, is gone.
    saves = f"touch checkpoint {tmp_path}/saved; exit 143"
    lives = "kill -0 $dvc 2> /dev/null"
    waits = f"dvc=$(ps -o ppid= $PPID); echo $$ > {tmp_path}/pid; while {lives}; do sleep 0.2; done"
    write(project, f"test -e checkpoint || {{ trap '{saves}' TERM; {waits}; {saves}; }}\n")
    run = queue(cluster, project, *NAMES[0])
    pid = scratch.number(tmp_path / "pid")
    worker = cluster.processes.pop("worker")
    os.kill(worker.pid, signal.SIGTERM)
    worker.wait(scratch.SECONDS)
    scratch.wait_until(lambda: not scratch.lives(pid))
    assert (tmp_path / "saved").exists()
    cluster.start("worker", project, "lambdanet", "cluster", "workers", "--count", "6")
    wait_for(queue(cluster, project, *NAMES[0]))
    assert state(run) != "Completed"


def test_a_schedule_that_is_switched_on_starts_a_training(cluster, project):
    deployment = requests.get(f"{cluster.url}/deployments/name/train/train", timeout=60).json()
    (schedule,) = deployment["schedules"]
    assert not schedule["active"]
    url = f"{cluster.url}/deployments/{deployment['id']}/schedules/{schedule['id']}"
    on = {"active": True, "schedule": {"cron": "* * * * *", "timezone": "UTC"}}
    requests.patch(url, json=on, timeout=60).raise_for_status()

    def trained():
        runs = requests.post(f"{cluster.url}/flow_runs/filter", json={}, timeout=60).json()
        return any(run["auto_scheduled"] and run["state_type"] == "COMPLETED" for run in runs)

    scratch.wait_until(trained)
