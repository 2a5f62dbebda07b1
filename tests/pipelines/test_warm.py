"""Stages that share one loaded torch: the same files, status, output and end as by themselves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import helpers
import psutil
import pytest

from pipelines import warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fork and pidfd_open are used on Linux only")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A process that stands ready, with its socket as `path`."""
    path = tmp_path_factory.mktemp("warm") / "stages"
    command = [sys.executable, "-m", "pipelines.warm", "--wait", str(path)]
    process = psutil.Popen(command, cwd=helpers.ROOT, env=warm.SPIN | os.environ)
    process.path = str(path)
    helpers.wait_until(path.exists)
    yield process
    process.terminate()
    process.wait()


@pytest.fixture
def project(tmp_path):
    return helpers.write_project(tmp_path / "project")


def test_same_files_and_words(server, project, tmp_path):
    alone = helpers.write_project(tmp_path / "alone")
    seen = []
    for folder, environment in ((alone, {}), (project, {warm.SOCKET: server.path})):
        done = [
            helpers.run("train", helpers.train_words(), folder, **environment),
            helpers.run("evaluate", helpers.evaluate_words(), folder, **environment),
            helpers.run("train", helpers.train_words(model="none"), folder, **environment),
            helpers.run("evaluate", [], folder, **environment),
        ]
        files = helpers.contents(folder)
        outputs = {name: files[name] for name in files if name.startswith(("out/", "scores", "panel/"))}
        seen.append((outputs, [(status, out) for status, out, _ in done], [err for *_, err in done[2:]]))
    assert len(seen[0][0]) == 3 + 1 + 6
    assert [status for status, _ in seen[0][1]] == [0, 0, 1, 1]
    assert seen[0] == seen[1]


def start_training(server, folder):
    """A long training in a copy of the server: who waits for it, and the copy."""
    params = helpers.changed(helpers.PARAMS, ["profiles", "tiny", "models", "dncnn", "epochs"], 100_000)
    helpers.write_project(folder, params)
    waiting = helpers.start("train", helpers.train_words("dncnn"), folder, **{warm.SOCKET: server.path})
    helpers.wait_for_line(waiting, "epoch 2/")
    (copy,) = server.children()
    return waiting, copy


def test_a_signal_is_passed_on(server, project):
    waiting, _ = start_training(server, project)
    waiting.send_signal(signal.SIGTERM)
    _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 128 + signal.SIGTERM
    assert "the checkpoint is written, run again to go on" in err.splitlines()[-1]
    assert list((project / "checkpoints").glob("*.pt"))
    assert server.children() == []


def test_who_is_left_alone_ends(server, project):
    waiting, copy = start_training(server, project)
    waiting.kill()
    waiting.communicate()
    copy.wait(30)
    assert list((project / "checkpoints").glob("*.pt"))


def test_a_copy_that_is_killed_fails_the_stage(server, project):
    waiting, copy = start_training(server, project)
    copy.kill()
    waiting.communicate(timeout=30)
    assert waiting.returncode == -signal.SIGKILL


def request(**changes):
    stage = str(helpers.ROOT / "stages/train.py")
    given = {"words": [stage], "folder": "/", "environment": dict(os.environ), "python": warm.python()}
    return given | changes


def test_what_would_compute_otherwise_is_declined(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    other = dict(os.environ) | {"OMP_NUM_THREADS": "2"}
    assert warm._fits(request())
    assert warm._fits(request(environment=warm.SPIN | os.environ | {"DVC_STAGE": "train"}))
    assert not warm._fits(request(environment=other))
    assert not warm._fits(request(python=f"{os.path.realpath(sys.executable)} in /elsewhere"))
    assert not warm._fits(request(python=f"/elsewhere/python in {sys.prefix}"))
    assert not warm._fits(request(words=["/elsewhere/stages/train.py"]))


@pytest.mark.parametrize("name", ["python", "python3"])
def test_another_name_of_this_python_is_no_other(name):
    code = "import sys; sys.path.insert(0, 'stages'); import handover; print(handover.python(), end='')"
    other = Path(sys.executable).with_name(name)
    if other.resolve() != Path(sys.executable).resolve():
        pytest.skip(f"there is no {other}, or it is a copy")
    command = [other, "-c", code]
    said = subprocess.run(command, cwd=helpers.ROOT, capture_output=True, text=True, check=True).stdout
    assert warm._fits(request(python=said))


def test_declined_stages_run_by_themselves(server, project):
    status, _, err = helpers.run(
        "train", helpers.train_words(), project, **{warm.SOCKET: server.path, "OMP_NUM_THREADS": "7"}
    )
    assert status == 0, err
    gone = {warm.SOCKET: str(project / "nobody")}
    assert helpers.run("evaluate", helpers.evaluate_words(), project, **gone)[0] == 0


def test_changed_code_is_seen(tmp_path, monkeypatch):
    file = Path(warm.__file__)
    before = warm._sources()
    assert str(file) in before
    monkeypatch.setattr(warm, "ROOT", tmp_path)
    assert warm._sources() == {}


@pytest.mark.parametrize(("code", "status"), [("import sys; sys.exit(3)", 3), ("import os; os.abort()", 134)])
def test_the_command_s_status_is_passed_on(code, status):
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.warm", sys.executable, "-c", code], cwd=helpers.ROOT, check=False
    )
    assert done.returncode == status


ENDING = """
import atexit, sys, threading, time
from pipelines import warm
class Loaded:
    def __del__(self):
        print("taken down")
ending, loaded = warm.Ending(), Loaded()
atexit.register(print, "at the end")
with ending.of_stage():
    threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
    print("stage", end=" ")
    END
"""


@pytest.mark.parametrize(
    ("end", "status", "out", "err"),
    [
        ("pass", 0, "stage thread\nat the end\n", ""),
        ("sys.exit(130)", 130, "stage thread\nat the end\n", ""),
        ("sys.exit()", 0, "stage thread\nat the end\n", ""),
        ("sys.exit('error: no')", 1, "stage thread\nat the end\ntaken down\n", "error: no\n"),
        ("1 / 0", 1, "stage thread\nat the end\ntaken down\n", "ZeroDivisionError: division by zero\n"),
    ],
)
def test_a_copy_ends_as_a_script_does_but_takes_nothing_down(end, status, out, err):
    done = subprocess.run(
        [sys.executable, "-c", ENDING.replace("END", end)], cwd=helpers.ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (status, out)
    assert done.stderr.endswith(err)
    assert bool(err) == bool(done.stderr)
