"""`reproduce` on Dask workers: with the same file system, and in clones of their own."""

import os
import signal
import socket
import time

import pytest
import scratch

pytest.importorskip("prefect_dask")
pytestmark = pytest.mark.slow
STAGES = {
    "a": ([], "true"),
    "b": (["a"], f"test ! -e {{pid}} || {{{{ echo $$ > {{pid}}; {scratch.WAITS}; }}}}"),
    "c": (["a"], "sleep 3"),
    "d": (["b", "c"], "true"),
}


@pytest.fixture
def dask(cluster):
    """A scheduler; gives its address."""
    where = f"tcp://127.0.0.1:{scratch.free_port()}"
    start_scheduler(cluster, where)
    return where


def start_scheduler(cluster, address):
    words = ("--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard")
    cluster.start("scheduler", cluster.folder, "distributed.cli.dask_scheduler", *words)


def start_worker(cluster, address, name, folder, count=1, **more):
    words = ("lambdanet", "cluster", "workers", "--dask", address, "--name", name, "--count", str(count))
    cluster.start(name, folder, *words, **more)


def write(origin, tmp_path):
    """The stages above in a clone, pushed; with a local one, whose output DVC does not exchange."""
    names = {"pid": tmp_path / "pid", "go": tmp_path / "go"}
    me = origin("me")
    stages = {name: (needs, command.format(**names)) for name, (needs, command) in STAGES.items()}
    scratch.write_stages(me, **stages)
    text, local = (me / "dvc.yaml").read_text(), "outs:\n    - d:\n        cache: false\n"
    (me / "dvc.yaml").write_text(text.replace("outs:\n    - d\n", local))
    (me / "profile.yaml").unlink()
    scratch.commit(me)
    scratch.git(me, "push", "-q", "origin", "HEAD")
    names["pid"].touch()  # stage b waits
    return me


def undisturbed(origin, tmp_path):
    (tmp_path / "pid").unlink(missing_ok=True)
    alone = origin("alone")
    scratch.repro(alone)
    return scratch.lock(alone)


@pytest.mark.skipif(os.geteuid() != 0, reason="hides a folder from processes, which only root can")
def test_workers_in_their_own_clones_one_of_which_is_killed(cluster, dask, origin, tmp_path):
    me = write(origin, tmp_path)
    for name in ("one", "two"):
        start_worker(cluster, dask, name, origin(name), hidden=me)
    flow = scratch.start(me, "reproduce", "--where", f"dask:{dask}", PREFECT_API_URL=cluster.url)
    pid = scratch.number(tmp_path / "pid")
    held = scratch.psutil.Process(pid).cwd()
    victim = next(name for name in ("one", "two") if f"/{name}/" in held)
    cluster.kill(victim, signal.SIGKILL)
    scratch.wait_until(lambda: scratch.number(tmp_path / "pid") != pid)
    (tmp_path / "go").touch()
    _, err = flow.communicate(timeout=2 * scratch.SECONDS)
    assert flow.returncode == 0, err
    assert scratch.lock(me) == undisturbed(origin, tmp_path)
    assert (me / "d").read_text() == "a\na\n"
    assert not (me / ".dvc/tmp/lambdanet/workspaces").exists()


def test_the_scheduler_is_killed_and_workers_here_copy_nothing(cluster, dask, origin, tmp_path):
    me = write(origin, tmp_path)
    (me / ".dvc/config.local").unlink()
    start_worker(cluster, dask, "one", me)
    words = ("reproduce", "--where", f"dask:{dask}")
    flow = scratch.start(me, *words, PREFECT_API_URL=cluster.url)
    pid = scratch.number(tmp_path / "pid")
    cluster.kill("scheduler")
    _, err = flow.communicate(timeout=scratch.SECONDS)
    assert (flow.returncode, "stages did not end well" in err.splitlines()[-1]) == (1, True), err
    cluster.kill("one")
    scratch.wait_until(lambda: not scratch.lives(pid))
    (tmp_path / "go").touch()
    start_scheduler(cluster, dask)
    for name in ("two", "three"):
        start_worker(cluster, dask, name, me)
    status, _, err = scratch.run(me, *words, PREFECT_API_URL=cluster.url)
    assert status == 0, err
    assert scratch.lock(me) == undisturbed(origin, tmp_path)
    assert not (me / ".dvc/tmp/lambdanet/workspaces").exists()


@pytest.mark.parametrize(
    ("numbers", "status"),
    [([signal.SIGINT], 130), ([signal.SIGINT] * 2, 130), ([signal.SIGKILL], -signal.SIGKILL)],
    ids=["Ctrl-C", "Ctrl-C twice", "SIGKILL"],
)
def test_a_flow_that_is_stopped_frees_its_workers(cluster, dask, origin, tmp_path, numbers, status):
    me = write(origin, tmp_path)
    (me / ".dvc/config.local").unlink()
    start_worker(cluster, dask, "both", me, count=2)
    words = ("reproduce", "--where", f"dask:{dask}")
    flow = scratch.start(me, *words, PREFECT_API_URL=cluster.url)
    pid, log = scratch.number(tmp_path / "pid"), me / "runs/paper/reproduce.log"
    scratch.wait_until(lambda: " c: done" in log.read_text())
    for number in numbers:
        os.killpg(flow.pid, number)
        time.sleep(0.5)
    _, err = flow.communicate(timeout=scratch.SECONDS)
    # Python ends by the signal itself where the second one finds it at its end; a shell says 130 too.
    assert flow.returncode in (status, -numbers[0]), err
    assert "Traceback" not in err
    assert status != 130 or err.splitlines()[-1] == "error: stopped; run the same command again"
    scratch.wait_until(lambda: not scratch.lives(pid))
    assert not (me / "b").exists()
    (tmp_path / "go").touch()
    again, _, err = scratch.run(me, *words, PREFECT_API_URL=cluster.url)
    assert (again, "; 2 of 2 stages ended" in err) == (0, True), err
    assert scratch.lock(me) == undisturbed(origin, tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="hides a folder from processes, which only root can")
def test_a_worker_with_other_versions_refuses_the_stage(cluster, dask, origin, tmp_path):
    me = write(origin, tmp_path)
    other = tmp_path / "other/torch-1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    path = f"{other.parent}{os.pathsep}{scratch.ROOT}"
    start_worker(cluster, dask, "there", origin("there"), hidden=me, PYTHONPATH=path)
    status, _, err = scratch.run(me, "reproduce", "--where", f"dask:{dask}", PREFECT_API_URL=cluster.url)
    said = f"a was not run: {socket.gethostname()} has other versions: torch 1.0, wanted "
    assert (status, said in err.splitlines()[-1]) == (1, True), err
    assert not (me / "dvc.lock").exists()
    assert not list((tmp_path / "remote").rglob("*"))
