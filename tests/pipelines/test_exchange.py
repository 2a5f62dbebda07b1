"""Checkpoints in the DVC remote, and what is tried again."""

import subprocess
import time

import pytest
import scratch
from dvc_helpers import DVC

from pipelines import exchange, stage

# DVC's own use of pygtrie.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")


class OwnError(Exception):
    """As a file system defines it."""


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = scratch.project(tmp_path / "project")
    subprocess.run([*DVC, "remote", "add", "-q", "-d", "r", str(tmp_path / "remote")], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    return folder


def checkpoint(folder):
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints/1").write_text("one")


def test_dvc_gc_leaves_checkpoints_in_the_remote_alone(project, tmp_path):
    scratch.repro(project)
    beside = exchange.Beside(project, "key/a")
    checkpoint(project)
    assert beside.push() == 1
    stored = tmp_path / "remote/lambdanet-state/key/a/checkpoints/1"
    assert stored.read_text() == "one"
    subprocess.run([*DVC, "push", "-q"], cwd=project, check=True)
    objects = list((tmp_path / "remote/files/md5").glob("*/*"))
    assert objects
    (project / "dvc.lock").unlink()
    subprocess.run([*DVC, "gc", "-q", "--workspace", "--cloud", "--force"], cwd=project, check=True)
    assert [path for path in objects if path.exists()] == []
    assert stored.read_text() == "one"


@pytest.mark.parametrize("error", [TypeError("x"), stage.StageError("a failed"), KeyboardInterrupt()])
def test_what_stopped_a_stage_is_raised_although_the_last_copy_fails(project, monkeypatch, error):
    def away(_beside):
        raise ConnectionError("away")

    def fails():
        raise error

    monkeypatch.setattr(exchange.Beside, "push", away)
    with pytest.raises(type(error)) as caught:
        exchange.run("a", project, "key", fails, lambda _line: None, ())
    assert caught.value is error


@pytest.mark.parametrize(
    ("error", "calls", "ended"),
    [
        (ConnectionError("away"), 2, None),
        (TimeoutError(), 2, None),
        (OwnError("away"), 2, None),
        (stage.BusyError("busy"), 2, None),
        (stage.StoppedError("stopped"), 1, stage.StoppedError),
        (OSError("Permission denied"), 1, stage.StageError),
        (TypeError("x"), 1, TypeError),
        (KeyError("x"), 1, KeyError),
        (ValueError("x"), 1, ValueError),
    ],
    ids=repr,
)
def test_only_what_may_pass_is_tried_again(monkeypatch, error, calls, ended):
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    called = []

    def call():
        called.append(1)
        if len(called) == 1:
            raise error
        return "done"

    if ended:
        with pytest.raises(ended):
            exchange.patiently(call, "pushing", lambda _line: None)
    else:
        assert exchange.patiently(call, "pushing", lambda _line: None) == "done"
    assert len(called) == calls
