"""Checkpoints in the DVC remote, and which errors of a remote may pass."""

import shutil
import tarfile
import threading
from unittest.mock import Mock

import pytest
import scratch

from pipelines import exchange, graph, stage
from pipelines.stage import StageError


class OwnError(Exception):
    """As a file system defines it."""


@pytest.fixture
def project(project, tmp_path):
    scratch.dvc(project, "remote", "add", "-q", "-d", "r", str(tmp_path / "remote"))
    return project


def write(folder, **texts):
    for kind, text in texts.items():
        path = folder / "runs/small" / kind / "speckle/1"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


def test_checkpoints_and_logs_go_to_another_worker_and_dvc_gc_leaves_them_alone(project, tmp_path):
    scratch.repro(project)
    write(project, checkpoints="one", logs="a log", scores="no state")
    (project / "runs/small/logs/lock.part").write_text("half")
    exchange.Archive(project, "key/a").push(0, "checkpoints", "logs")
    scratch.dvc(project, "push", "-q")
    objects = list((tmp_path / "remote/files/md5").glob("*/*"))
    assert objects
    (project / "dvc.lock").unlink()
    scratch.dvc(project, "gc", "-q", "--workspace", "--cloud", "--force")
    assert [path for path in objects if path.exists()] == []

    for kind in ("checkpoints", "logs", "scores"):
        write(project, **{kind: ""}).unlink()
    log = write(project, logs="a longer log, of here")
    assert exchange.Archive(project, "key/b").fetch() == 0
    assert exchange.Archive(project, "key/a").fetch() == 1
    assert (project / "runs/small/checkpoints/speckle/1").read_text() == "one"
    assert log.read_text() == "a longer log, of here"
    assert not (project / "runs/small/scores/speckle/1").exists()


def test_a_push_that_is_killed_loses_no_checkpoint(project, tmp_path):
    checkpoint = write(project, checkpoints="one")
    exchange.Archive(project, "key").push(0, "checkpoints")
    checkpoint.unlink()
    (whole,) = (tmp_path / "remote").rglob("key.tar")
    part = whole.rename(whole.with_suffix(".tar.part"))  # ended before it got its name
    assert exchange.Archive(project, "key").fetch() == 1
    assert checkpoint.read_text() == "one"

    checkpoint.unlink()
    part.write_bytes(part.read_bytes()[:700])  # ended in the middle of the first one
    assert (exchange.Archive(project, "key").fetch(), checkpoint.exists()) == (0, False)
    part.rename(whole)  # one that was whole is not given up
    with pytest.raises(tarfile.ReadError):
        exchange.Archive(project, "key").fetch()


def test_a_workspace_that_dvc_has_not_used_yet_will_do(project):
    shutil.rmtree(project / ".dvc/tmp", ignore_errors=True)
    assert exchange.run("a", project, "key", lambda: stage.run("a"), print) == "done"
    assert exchange.Archive(project, "key").there


@pytest.mark.parametrize("error", [TypeError("x"), StageError("a failed"), KeyboardInterrupt()])
def test_what_stopped_a_stage_is_raised_although_the_last_copy_fails(project, monkeypatch, error):
    monkeypatch.setattr(exchange.Archive, "push", Mock(side_effect=ConnectionError("away")))
    with pytest.raises(type(error)) as caught:
        exchange.run("a", project, "key", Mock(side_effect=error), print)
    assert caught.value is error


def test_a_stage_that_failed_while_the_remote_is_away_may_run_again(project, monkeypatch):
    there = graph.remote(project)

    def fails():
        monkeypatch.setattr(graph, "remote", Mock(side_effect=OwnError("away")))
        raise StageError("a failed to pull")

    with pytest.raises(StageError, match="reaching the remote failed: OwnError: away"):
        exchange.run("a", project, "key", fails, print)
    monkeypatch.setattr(graph, "remote", lambda _folder: there)
    write(project, checkpoints="one")
    with pytest.raises(StageError, match="nothing failed"):
        exchange.run("a", project, "key", lambda: stage.run("nothing"), print)
    assert exchange.Archive(project, "key").there  # with a new connection


FULL = f"{900 * 'a'} - [Errno 28] No space left on device: {900 * 'b'}"
ERRORS = {
    60: [ConnectionError("away"), TimeoutError(), OwnError("away"), StageError("ERROR: failed to push")],
    4: [StageError("busy", 4)],
    0: [OSError("Permission denied"), StageError(FULL)],
}


@pytest.mark.parametrize("retries", ERRORS)
def test_only_what_may_pass_is_tried_again(retries):
    for error in ERRORS[retries]:
        with pytest.raises(StageError) as caught, exchange.reaching("pushing"):
            raise error
        assert caught.value.retries == retries


@pytest.mark.parametrize("error", [TypeError("x"), ValueError("x"), StageError("stopped")], ids=repr)
def test_a_bug_and_what_was_stopped_stay_what_they_are(monkeypatch, error):
    monkeypatch.setattr(stage, "stopping", threading.Event())
    if isinstance(error, StageError):
        stage.stopping.set()
    with pytest.raises(type(error)) as caught, exchange.reaching("pushing"):
        raise error
    assert caught.value is error
