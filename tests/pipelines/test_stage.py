"""One stage as a process: how it ends, and what becomes of signals."""

import re
import threading

import pytest
import scratch

from pipelines import stage


def test_a_stage_is_run_once(project):
    scratch.write_stages(project, a=([], "echo one; seq 1000; echo two"))
    lines = []
    assert stage.run("a", lines.append) == "done"
    assert lines[lines.index("one") + 1001] == "two"
    assert (project / "a").read_text() == "a\n"
    assert stage.run("a", lines.append) == "unchanged"
    (project / "a").unlink()
    assert stage.run("a", folder=project) == "done"  # from the cache
    assert (project / "a").read_text() == "a\n"


@pytest.mark.parametrize(
    ("command", "retries", "said"),
    [
        ("echo 'error: x is 3, must be 4' >&2; exit 1", 0, "error: x is 3, must be 4"),
        ("kill -9 $$", stage.RETRIES, "killed"),
        ("sh -c 'kill -9 $$'; exit 137", stage.RETRIES, "killed"),
        ("kill -15 $$", stage.RETRIES, "killed"),
        ("kill -11 $$", 0, "a failed: exited with -11; "),
        ("exit 139", 0, "a failed: exited with 139; "),
        ("exit 134", 0, "a failed: exited with 134; "),
        ("echo 'torch.OutOfMemoryError: CUDA out of memory' >&2; exit 1", 0, "out of memory"),
        ("exit 3", 0, "exited with 3; look at it with `dvc repro --single-item a`"),
    ],
)
def test_a_failure_says_what_it_was(project, command, retries, said):
    scratch.write_stages(project, a=([], command))
    with pytest.raises(stage.StageError, match=re.escape(said)) as caught:
        stage.run("a")
    assert caught.value.retries == retries
    assert "\n" not in str(caught.value)


def test_a_stage_has_a_limit_and_leaves_nothing_behind(project):
    scratch.write_stages(project, a=([], "sleep 1234 & echo $! > pid; wait"))
    with pytest.raises(stage.StageError, match="longer than its limit of 10 s"):
        stage.run("a", limit=10)
    assert not scratch.lives(int((project / "pid").read_text()))


SAVES = "trap 'sleep 1; echo saved > checkpoint; exit 143' TERM; echo ready; while :; do sleep 0.1; done"


@pytest.mark.parametrize("script", [SAVES, "echo ready; exec sleep 1234"])
def test_a_stage_that_is_asked_to_stop_may_write_and_is_not_tried_again(project, monkeypatch, script):
    scratch.write_stages(project, a=([], f'sh -c "{script}"'))
    monkeypatch.setattr(stage, "stopping", threading.Event())
    with pytest.raises(stage.StageError, match="a was stopped"):
        stage.run("a", lambda line: stage.stopping.set() if line == "ready" else None)
    assert (project / "checkpoint").exists() == ("saved" in script)
    with pytest.raises(stage.StageError):
        stage.run("a")


def test_progress_is_read_from_the_lines_of_a_training():
    for said in ("epoch 3/5: loss 0.01", "step 1,000 of 2,000: loss 1"):
        assert stage.progress(f"quick-speckle-dncnn-0: {said}") == said
    assert stage.progress("Running stage 'a':") == stage.progress("error: epoch") == ""
