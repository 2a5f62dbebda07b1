"""One stage as a process: with the project's way to write dvc.lock, in an older commit with DVC's own."""

import subprocess
import sys

import pytest
from helpers import ROOT

from pipelines import stage

YAML = "stages:\n  one:\n    cmd: echo said > out\n    outs: [out]\n  bad:\n    cmd: exit 3\n"


@pytest.mark.parametrize("older", [False, True])
def test_a_stage_runs_once_and_a_failure_is_named(older, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], check=True)
    (tmp_path / "dvc.yaml").write_text(YAML)
    if not older:
        (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    files, lines = [], []
    for words in (("repro", "--single-item"), ("repro", "--single-item", "--force")):
        assert stage.run("one", lines.append, words=words) == "run"
        files.append((tmp_path / "dvc.lock").stat().st_ino)
    assert (files[0] == files[1]) is older
    assert "Running stage 'one':" in lines
    assert stage.run("one", lines.append) == "unchanged"
    with pytest.raises(stage.StageError, match=r"^bad failed: status 255; look at it with `dvc repro"):
        stage.run("bad", lines.append)
