"""Files of DVC that git, a kill or a disk damaged: what `lambdanet doctor` says, and what its advice does."""

import os
import subprocess

import pytest
import scratch
from dvc_helpers import DVC

from pipelines import health, workspace


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one output, made and committed; the current folder."""
    folder = scratch.project(tmp_path / "project")
    scratch.repro(folder)
    scratch.commit(folder)
    monkeypatch.chdir(folder)
    return folder


def found(lines, text):
    (line,) = [line for line in lines if text in line[1]]
    return line


@pytest.mark.parametrize("fix", [False, True])
def test_a_merge_conflict_in_dvc_lock_is_named_and_left_alone(project, fix):
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
    level, what, advice = found(health._lock_files(fix), "dvc.lock")
    assert (level, what) == ("BAD", "dvc.lock is in a merge conflict and was left as it is")
    assert advice.startswith("choose a side (`git checkout --ours dvc.lock` or `--theirs`) or edit it")
    assert workspace.mend(project) == []
    assert lock.read_bytes() == conflict


def test_a_damaged_dvc_lock_is_as_committed_again_and_kept(project):
    lock, kept = project / "dvc.lock", project / ".dvc/tmp/lambdanet/dvc.lock.damaged"
    before = lock.read_text()
    cut = before[: before.rindex("cmd") + 2]
    lock.write_text(cut)
    assert found(health._lock_files(False), "cut off")[0] == "BAD"
    assert "as committed again" in found(health._lock_files(True), "damaged")[1]
    assert (lock.read_text(), kept.read_text()) == (before, cut)


def test_a_damaged_dvc_lock_of_which_no_whole_one_is_committed_is_moved_away(project):
    lock, kept = project / "dvc.lock", project / ".dvc/tmp/lambdanet/dvc.lock.damaged"
    lock.write_text("stages:\n  a:\n    cm")
    scratch.commit(project)
    assert "moved away" in found(health._lock_files(True), "damaged")[1]
    assert not lock.exists()
    assert kept.read_text() == "stages:\n  a:\n    cm"


def test_an_overwritten_file_in_the_cache_is_named_and_the_advice_helps(project):
    (line,) = health._data()
    assert line[0] == "ok"
    output = next(path for path, _ in health._outputs(project / ".dvc/cache/files/md5"))
    content = output.read_bytes()
    (md5,) = {md5 for path, md5 in health._outputs(project / ".dvc/cache/files/md5") if path == output}
    stored = project / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    os.chmod(stored, 0o644)
    before = stored.stat()
    stored.write_bytes(content[:-1] + b"#")
    os.utime(stored, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a disk does it
    level, what, advice = next(line for line in health._data() if line[0] == "BAD")
    assert f"{stored}" in what
    assert level == "BAD"
    remedy, _, rest = advice.partition("; ")
    assert rest.startswith("dvc repro")
    subprocess.run(remedy, shell=True, check=True)
    subprocess.run([*DVC, "repro", "-q"], check=True)
    assert output.read_bytes() == content
    assert [level for level, _, _ in health._data()] == ["ok"]
