"""What `lambdanet doctor` learns of a clone."""

import subprocess
import sys

import pytest
import scratch

from pipelines import health, workspace

# DVC's own use of pygtrie.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")


@pytest.mark.parametrize("cut", [0.3, 0.95])
def test_files_that_a_killed_dvc_left_half_written_are_named_and_mended(tmp_path, monkeypatch, cut):
    project = scratch.project(tmp_path / "project")
    scratch.repro(project)
    scratch.commit(project)
    monkeypatch.chdir(project)
    assert [line for line in health.clone(False) if line[0] == health.BAD] == []
    whole = (project / "dvc.lock").read_text()
    (project / "dvc.lock").write_text(whole[: int(cut * len(whole))])
    (project / ".dvc/tmp/rwlock").write_text('{"/a": {"read": [{"pid"')
    said = [what for level, what, _ in health.clone(False) if level == health.BAD]
    assert [what.partition(" ")[0] for what in said] == [".dvc/tmp/rwlock", "dvc.lock"]
    assert len(workspace.mend(project)) == 2
    assert (project / "dvc.lock").read_text() == whole
    assert workspace.damaged(project) == []


def test_other_versions_than_the_locked_ones_are_named(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("dvc==1.0 \\\n    --hash=sha256:aa\nnothing==2\nnumpy==0 ; python_version < '3'\n")
    assert health.locked(lock) == {"dvc": "1.0"}
    assert health.differences(health.locked(lock)) == f"dvc {health.installed()['dvc']}, wanted 1.0"
    assert health.differences(health.installed()) == ""


def test_the_module_prints_a_line_a_finding(tmp_path):
    project = scratch.project(tmp_path / "project")
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.health"], cwd=project, env=scratch.environment(project),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["ok", "ok", "ok"]
    assert [line[1] for line in lines][1:] == [
        "no DVC remote: outputs stay on this machine",
        "no cluster is named",
    ]


def test_outside_of_a_project_it_is_one_line(tmp_path):
    command = [sys.executable, "-m", "pipelines.health"]
    environment = scratch.environment(tmp_path / "x")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    said = f"error: {tmp_path} is no DVC project; run this in the project's folder\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_a_workspace_has_no_password_and_lock_files_are_no_changes(tmp_path):
    project = scratch.project(tmp_path / "project")
    scratch.profiles(project)
    scratch.git(project, "remote", "add", "origin", "https://me:s3cr3t@host.example/x.git")
    head = workspace.resolve(project, "")
    with workspace.opened(project, head, "name", print) as folder:
        assert "s3cr3t" not in (folder / ".git/config").read_text()
        assert workspace.git(folder, "remote", "get-url", "origin") == "https://host.example/x.git"
    (project / "small/dvc.lock").write_text("schema: '2.0'\n")
    (project / "dvc.lock").write_text("schema: '2.0'\n")
    assert workspace.git(project, "status", "--porcelain", "--", ".", *workspace.RESULTS) == ""
