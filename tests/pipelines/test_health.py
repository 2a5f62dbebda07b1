"""What `lambdanet doctor` learns of a clone: damaged files, other versions, servers that are away."""

import os
import subprocess

import pytest
import scratch

from lambdanet.doctor import BAD, OK
from pipelines import health


@pytest.fixture
def project(project):
    """With one stage, whose output is made and committed."""
    scratch.write_stages(project, a=([], "true"))
    scratch.repro(project)
    scratch.commit(project)
    return project


def bad(fix=False):
    return {one.what.partition(" ")[0]: one.advice for one in health.look(fix) if one.level == BAD}


def test_files_that_a_killed_dvc_left_half_written_are_named_mended_and_kept(project):
    assert bad() == {}
    lock, rwlock = project / "dvc.lock", project / ".dvc/tmp/rwlock"
    whole = lock.read_text()
    part = whole[: whole.rindex("cmd") + 2]
    lock.write_text(part)
    rwlock.write_text('{"/a": {"read": [{"pid"')
    old = project / ".dvc/cache/files/md5/aa/x.tmp"
    old.parent.mkdir(parents=True, exist_ok=True)
    old.write_text("half")
    os.utime(old, (0, 0))
    assert bad() == dict.fromkeys([".dvc/tmp/rwlock", "dvc.lock"], "`lambdanet doctor --fix`")
    assert bad(fix=True) == bad() == {}
    assert (lock.read_text(), rwlock.exists(), old.exists()) == (whole, False, False)
    assert (project / ".dvc/tmp/lambdanet/dvc.lock.damaged").read_text() == part


def test_a_merge_conflict_in_dvc_lock_is_named_and_left_to_git(project):
    lock = project / "dvc.lock"
    text = lock.read_text()
    scratch.git(project, "checkout", "-qb", "other")
    lock.write_text(text.replace("size: ", "size: 1", 1))
    scratch.commit(project)
    scratch.git(project, "checkout", "-q", "-")
    lock.write_text(text.replace("size: ", "size: 2", 1))
    scratch.commit(project)
    with pytest.raises(subprocess.CalledProcessError):
        scratch.git(project, "merge", "other")
    conflict = lock.read_bytes()
    assert b"<<<<<<< HEAD" in conflict
    assert bad(fix=True)["dvc.lock"] == "git checkout --ours dvc.lock; git add dvc.lock; dvc repro"
    assert lock.read_bytes() == conflict


def test_other_versions_than_the_locked_ones_are_named(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("dvc==1.0 \\\n    --hash=sha256:aa\nnothing==2\nnumpy==0 ; python_version < '3'\n")
    assert health.locked(lock) == {"dvc": "1.0"}
    assert health.differences(health.locked(lock)) == f"dvc {health.installed()['dvc']}, wanted 1.0"
    assert health.differences(health.installed()) == ""
    there = health.installed()["llvmlite"]  # with it, other kernels compute
    assert health.differences(health.installed() | {"llvmlite": "none"}) == f"llvmlite {there}, wanted none"


def test_a_server_that_is_away_is_bad_and_a_folder_that_is_no_project_an_error(project, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    found = list(health.look(False))
    assert [one.level for one in found] == [OK, OK, BAD]
    assert found[1].what == "no DVC remote: outputs stay on this machine"
    assert found[2].advice == "start it, or unset PREFECT_API_URL"
    monkeypatch.chdir(project.parent)
    with pytest.raises(ValueError, match=rf"^{project.parent} is no DVC project; run this in the project's"):
        list(health.look(False))
