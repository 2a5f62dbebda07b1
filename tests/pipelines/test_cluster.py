"""A cluster on this machine, with real servers, workers, git and SSH, and what may befall it.

Every test trains with a seed of its own, so that nothing of the others is used, and compares with an
undisturbed serial `dvc repro`.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from helpers import wait_until

from pipelines import rehearsal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("sshd", path="/usr/sbin:/usr/bin"), reason="no OpenSSH server here"),
]
EPOCHS = 400  # half a minute, to do something in


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    rehearsal.make_source(folder / "source", ("autoencoder",))
    with rehearsal.Cluster(folder, folder / "source") as made:
        yield made


@pytest.fixture
def grid(cluster, request):
    grid = Grid(cluster, seed=1 + list(FAULTS).index(request.node.originalname))
    yield grid
    for host in (*cluster.workers, cluster.person):
        host.kill()
    print(f"{request.node.originalname}: {grid.told}")


class Grid:
    """One training on the cluster, and what is done to it."""

    def __init__(self, cluster, seed):
        self.cluster, self.seed, self.told = cluster, seed, {}
        person = cluster.person
        params = person.clone / "params.yaml"
        raw = yaml.safe_load(params.read_text())
        raw["seeds"] = [seed]
        raw["profiles"]["sample"]["models"]["autoencoder"]["epochs"] = EPOCHS
        params.write_text(yaml.safe_dump(raw, sort_keys=False))
        for words in (["commit", "-qam", f"seed {seed}"], ["push", "-q", "origin", "HEAD:main"]):
            person.run("git", *words)
        self.cell = f"sample-gaussian-01-autoencoder-{seed}"

    def start(self, workers=2, **environment):
        for host in self.cluster.workers[:workers]:
            self.cluster.start_worker(host, **environment)
        self.process = self.cluster.reproduce("plot@sample")

    def training(self):
        """The host that trains, and its process, once it has a checkpoint."""
        found = []

        def trains():
            for host in self.cluster.workers:
                for process in host.processes():
                    try:
                        words = process.cmdline()
                    except psutil.Error:
                        continue
                    if words[1:3] == ["stages/train.py", "sample"] and list(
                        host.clone.glob(f".dvc/tmp/workspaces/*/checkpoints/sample/*-{self.seed}/*.pt")
                    ):
                        found[:] = [(host, process)]
            return found

        wait_until(trains, 400)
        return found[0]

    def copied(self):
        """The checkpoints beside the remote."""
        return sorted(self.cluster.server.folder.glob(f"remote-state/train@{self.cell}/checkpoints/**/*.pt"))

    def runs(self, kind="train"):
        return [run for run in self.cluster.runs() if run["name"] == f"{kind}@{self.cell}"]

    def finish(self):
        """Wait for the end, and hold the result against that of a serial `dvc repro`."""
        status = self.process.wait(900)
        self.ended = time.time()
        log = self.cluster.person.log("reproduce").read_text()
        assert status == 0, log
        person = self.cluster.person
        serial = person.folder / "serial"
        if not serial.exists():
            person.run("git", "clone", "-q", str(person.clone), str(serial), cwd=person.folder)
        for words in (["fetch", "-q"], ["reset", "-q", "--hard", "origin/main"]):
            person.run("git", *words, cwd=serial)
        off = {"MLFLOW_TRACKING_URI": "", "LAMBDANET_TRACKING": "off"}
        person.run(*rehearsal.DVC, "repro", "plot@sample", cwd=serial, **off)
        stages = yaml.safe_load((serial / "dvc.lock").read_text())["stages"]
        ours = yaml.safe_load((person.clone / "dvc.lock").read_text())["stages"]
        assert {name: ours.get(name) for name in stages if self.cell in name} == {
            name: entry for name, entry in stages.items() if self.cell in name
        }
        assert rehearsal.differences(person.clone, serial) == []

    def resumed(self):
        """Whether a later run of the training went on from a checkpoint."""
        logs = "".join(host.log("worker").read_text() for host in self.cluster.workers)
        return re.search(rf"gaussian-01-autoencoder-{self.seed}: going on from epoch", logs)

    def trained(self):
        """How often a worker ran the training's command."""
        logs = "".join(host.log("worker").read_text() for host in self.cluster.workers)
        return len(re.findall(rf"Running stage 'train@{self.cell}'", logs))

    def until_it_goes_on(self, began, seconds):
        """Wait until a second run of the training trains; the time that passed."""
        wait_until(lambda: any("Running" in run["states"] for run in self.runs()[1:]), seconds)
        self.told["seconds until it went on"] = round(time.time() - began)


def test_the_training_process_is_killed(grid):
    grid.start()
    _, process = grid.training()
    began = time.time()
    process.kill()
    grid.until_it_goes_on(began, 60)
    grid.finish()
    first, second = grid.runs()
    assert (first["state"], second["state"]) == ("Crashed", "Completed")
    assert "was killed" in first["messages"][-1]
    assert grid.resumed()


def test_a_worker_is_killed_with_all_that_it_runs(grid):
    grid.start()
    host, _ = grid.training()
    wait_until(grid.copied, 30)
    began = time.time()
    host.kill()
    grid.until_it_goes_on(began, 120)
    grid.finish()
    first, second = grid.runs()
    assert (first["state"], second["state"]) == ("Crashed", "Completed")
    assert "no heartbeat" in first["messages"][-1]
    assert host.name not in second["worker"]
    assert grid.resumed()
    assert not grid.copied()  # they are taken away when the result is safe


def test_a_worker_is_asked_to_stop(grid):
    grid.start()
    host, process = grid.training()
    began = time.time()
    grid.cluster.stop(host, "worker", signal.SIGTERM)
    assert not process.is_running()
    assert not host.processes()
    assert grid.copied()
    grid.until_it_goes_on(began, 60)
    grid.finish()
    first, second = grid.runs()
    assert (first["state"], second["state"]) == ("Crashed", "Completed")
    assert grid.resumed()


def test_the_prefect_server_is_killed_and_comes_back(grid):
    grid.start()
    grid.training()
    grid.cluster.stop(grid.cluster.server, "prefect")
    time.sleep(15)
    began = time.time()
    grid.cluster.start_prefect()
    grid.finish()
    grid.told["seconds from its return to the end"] = round(grid.ended - began)
    assert grid.trained() == 1


def test_the_mlflow_server_is_killed_and_comes_back(grid):
    grid.start()
    grid.training()
    grid.cluster.stop(grid.cluster.server, "mlflow")
    time.sleep(15)
    grid.cluster.start_mlflow()
    grid.finish()
    assert grid.trained() == 1
    grid.cluster.person.run(*rehearsal.DVC, "repro", "register@sample")
    runs = json.loads(grid.cluster.person.run(sys.executable, "-c", HISTORY, grid.cell[7:]).splitlines()[-1])
    assert [(run["status"], run["epochs"]) for run in runs] == [("FINISHED", list(range(1, EPOCHS + 1)))]


HISTORY = """
import json, sys
from lambdanet import tracking
client = tracking.connect()
experiment = tracking.experiment_id(client, "sample")
runs = client.search_runs([experiment], f"tags.cell = '{sys.argv[1]}'")
print(json.dumps([{"status": run.info.status, "epochs": sorted(
    one.step for one in client.get_metric_history(run.info.run_id, "loss"))} for run in runs]))
"""


def test_the_remote_is_away_for_a_while(grid):
    grid.start()
    _, process = grid.training()
    sshd = grid.cluster.server.started["sshd"]
    for one in (*psutil.Process(sshd.pid).children(recursive=True), sshd):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    sshd.wait()
    psutil.wait_procs([process], 120)
    time.sleep(15)
    assert grid.process.poll() is None
    began = time.time()
    grid.cluster.start_ssh()
    grid.finish()
    grid.told["seconds from its return to the end"] = round(grid.ended - began)
    assert grid.trained() == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a disk of its own")
def test_the_remote_s_disk_is_full(grid):
    disk = grid.cluster.remote
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", disk], check=True)
    try:
        grid.start()

        def told():
            logs = [host.log("worker").read_text() for host in grid.cluster.workers]
            return any("pushing it failed" in log and "again in" in log for log in logs)

        wait_until(told, 400)
        assert grid.process.poll() is None
        began = time.time()
        subprocess.run(["mount", "-o", "remount,size=400m", disk], check=True)
        grid.finish()
        grid.told["seconds from free space to the end"] = round(grid.ended - began)
        assert grid.trained() == 1
        # Nothing half-written has stayed under a good name.
        fresh = grid.cluster.person.folder / "fresh"
        grid.cluster.person.run("git", "clone", "-q", str(grid.cluster.person.clone), str(fresh))
        for name in ("config.local",):
            shutil.copy(grid.cluster.person.clone / ".dvc" / name, fresh / ".dvc" / name)
        shutil.copy(grid.cluster.person.clone / "dvc.lock", fresh / "dvc.lock")
        grid.cluster.person.run(*rehearsal.DVC, "pull", "evaluate", "train", cwd=fresh)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_two_flows_at_once_train_nothing_twice(grid):
    person = grid.cluster.person
    other = person.folder / "other"
    if not other.exists():
        origin = person.run("git", "remote", "get-url", "origin").strip()
        person.run("git", "clone", "-q", origin, str(other))
        shutil.copy(person.clone / ".dvc/config.local", other / ".dvc/config.local")
    grid.start()
    words = ("-m", "pipelines.reproduce", "--on-workers", "plot@sample")
    second = person.start("second", sys.executable, *words, cwd=other)
    grid.training()
    with pytest.raises(RuntimeError, match="reproduces here already"):
        person.run(sys.executable, *words)
    grid.finish()
    assert second.wait(600) == 0, person.log("second").read_text()
    assert grid.trained() == 1
    found = rehearsal.differences(person.clone, other)  # the other one has not seen the earlier seeds
    assert [name for name in found if grid.cell in name or name.startswith("results")] == []


def test_a_clone_with_damaged_lock_files_goes_on(grid):
    grid.start(workers=1)
    host, _ = grid.training()
    host.kill()
    for workspace in host.clone.glob(".dvc/tmp/workspaces/*"):
        (workspace / ".dvc/tmp/rwlock").write_text('{"/somewhere": {"wri')
        (workspace / "dvc.lock").write_text("schema: '2.0'\nstages:\n  train@x:\n    c")
    grid.cluster.start_worker(host)
    grid.until_it_goes_on(time.time(), 150)
    grid.finish()
    assert grid.resumed()


def test_a_worker_with_other_versions_takes_no_part_and_is_told(grid, tmp_path):
    other = tmp_path / "torch-9.9.9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    grid.start(workers=1, PYTHONPATH=str(tmp_path))
    person, odd, good = grid.cluster.person, *grid.cluster.workers
    wait_until(lambda: "no worker has this clone's versions" in person.log("reproduce").read_text(), 300)
    assert "torch 9.9.9, locked is" in odd.log("worker").read_text()
    grid.cluster.start_worker(good)
    grid.finish()
    assert all(odd.name not in run["worker"] for run in grid.runs())


def test_changes_that_workers_cannot_see_are_refused(grid):
    person = grid.cluster.person
    words = (sys.executable, "-m", "pipelines.reproduce", "--on-workers")
    noise = person.clone / "lambdanet/noise.py"
    text = noise.read_text()
    noise.write_text(text + "\n")
    with pytest.raises(RuntimeError, match=r"error: uncommitted changes in lambdanet/noise.py: workers run"):
        person.run(*words)
    person.run("git", "commit", "-qam", "not pushed")
    with pytest.raises(RuntimeError, match=r"error: origin does not have commit \w{12}, .* git push"):
        person.run(*words)
    person.run("git", "reset", "-q", "--hard", "origin/main")


FAULTS = [name for name in globals() if name.startswith("test_")]
