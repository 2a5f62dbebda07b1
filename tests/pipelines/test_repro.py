import subprocess
import sys

import helpers
import pytest

from pipelines import cores, repro, warm


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What is called, in order; the current folder is an empty one."""
    found = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cores, "usual_jobs", lambda: 3)
    return found


@pytest.mark.parametrize("status", [0, 255])
def test_parameters_are_checked_dvc_runs_and_the_table_is_shown_whatever_came(calls, monkeypatch, status):
    monkeypatch.setattr(repro.subprocess, "call", lambda words: calls.append(tuple(words[-2:])) or 0)
    monkeypatch.setattr(warm, "main", lambda command, jobs: calls.append((*command, jobs)) or status)
    monkeypatch.setattr(repro, "lambdanet", lambda words: calls.append(tuple(words)) or sys.exit(0))
    assert repro.main() == status
    assert calls == [("lambdanet", "check"), ("dvc", "--wait-for-lock", "repro", 3), ("show",)]
    helpers.wait_until(lambda: hasattr(sys.modules.get(repro.SHOWING), "read_table"))  # loaded meanwhile


def test_a_table_that_is_not_there_is_one_line(calls, monkeypatch):
    monkeypatch.setattr(repro.subprocess, "call", lambda _: 0)
    monkeypatch.setattr(warm, "main", lambda *_: 0)
    with pytest.raises(SystemExit) as end:
        repro.main()
    assert str(end.value).startswith("error: params.yaml is missing")


def test_nothing_runs_where_the_parameters_are_not_valid(tmp_path):
    command = [sys.executable, "-c", "import sys; from pipelines import repro; sys.exit(repro.main())"]
    environment = {"PYTHONPATH": str(helpers.ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: params.yaml is missing")
    assert done.stderr.count("\n") == 1
