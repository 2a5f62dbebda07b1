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
    monkeypatch.setattr(warm, "main", lambda command, jobs: found.append((*command, jobs)) or 5)
    return found


@pytest.mark.parametrize("status", [0, 255])
def test_parameters_are_checked_dvc_runs_and_the_table_is_shown_whatever_came(calls, monkeypatch, status):
    monkeypatch.setattr(repro, "lambdanet", lambda words, standalone_mode: calls.append(tuple(words)))
    monkeypatch.setattr(warm, "main", lambda command, jobs: calls.append((*command, jobs)) or status)
    assert repro.main() == status
    assert calls == [("check",), ("dvc", "--wait-for-lock", "repro", 3), ("show",)]
    helpers.wait_until(lambda: hasattr(sys.modules.get(repro.SHOWING), "read_table"))  # loaded meanwhile


def test_nothing_runs_where_the_parameters_are_not_valid(calls):
    with pytest.raises(SystemExit) as end:
        repro.main()
    assert str(end.value).startswith("error: params.yaml")
    assert calls == []
