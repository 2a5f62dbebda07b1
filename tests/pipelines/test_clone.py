"""Clones and the workspaces made from them: real git, real DVC, no network."""

import json
import os
import subprocess

import pytest
import yaml
from helpers import PARAMS

from pipelines import clone, profiles

IDENTITY = ["-c", "user.name=t", "-c", "user.email=t@localhost"]


def git(folder, *words):
    done = subprocess.run(["git", *IDENTITY, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A clone with an origin beside it; the current folder."""
    origin, here = tmp_path / "origin", tmp_path / "here"
    origin.mkdir()
    profiles_ = {"tiny": PARAMS["profiles"]["tiny"], "other": PARAMS["profiles"]["tiny"]}
    profiles_["other"] = profiles_["other"] | {"seeds": [1, 2]}
    (origin / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"profiles": profiles_}, sort_keys=False))
    (origin / "code.py").write_text("one\n")
    (origin / ".dvc").mkdir()
    (origin / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (origin / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    git(origin, "init", "-q", "-b", "main")
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "one")
    git(tmp_path, "clone", "-q", str(origin), str(here))
    monkeypatch.chdir(here)
    return here


def test_the_commit_is_that_of_origin_whatever_the_profile_and_the_results(project):
    profiles.make_active("other")
    (project / "dvc.lock").write_text("anything")
    (project / "results").mkdir()
    (project / "results/table.md").write_text("anything")
    assert clone.pushed_commit() == git(project, "rev-parse", "HEAD")


def test_seeds_that_workers_would_not_take_are_refused(project):
    profiles.make_active("other")
    text = (project / "params.yaml").read_text()
    assert yaml.safe_load(text)["seeds"] == [1, 2]
    (project / "params.yaml").write_text(text.replace("seeds: [1, 2]", "seeds: [1, 3]", 1))
    with pytest.raises(clone.CloneError, match=r"^uncommitted changes in params\.yaml"):
        clone.pushed_commit()


@pytest.mark.parametrize(
    ("name", "text"),
    [("code.py", "two\n"), ("new.py", "x\n"), ("params.yaml", "profile: tiny\nseeds: [3]\n")],
)
def test_changes_are_refused(project, name, text):
    (project / name).write_text(text)
    with pytest.raises(
        clone.CloneError, match=f"^uncommitted changes in {name}: workers run what is committed"
    ):
        clone.pushed_commit()


def test_a_commit_that_origin_lacks_is_refused(project):
    (project / "code.py").write_text("two\n")
    git(project, "commit", "-qam", "two")
    with pytest.raises(clone.CloneError, match=r"origin does not have commit \w{12}, .*git push"):
        clone.pushed_commit()


def test_an_origin_that_is_away_is_one_line(project):
    git(project, "remote", "set-url", "origin", "/nowhere")
    with pytest.raises(
        clone.CloneError, match=r"^git origin cannot be reached: git fetch --quiet: .*nowhere"
    ):
        clone.pushed_commit()


def test_revisions_are_those_of_origin(project, tmp_path):
    first = git(project, "rev-parse", "HEAD")
    (tmp_path / "origin/code.py").write_text("two\n")
    git(tmp_path / "origin", "commit", "-qam", "two")
    second = git(tmp_path / "origin", "rev-parse", "HEAD")
    assert clone.resolve("main") == second != first
    assert clone.resolve(first) == clone.resolve(first[:10]) == first
    for wrong in ("nothing", "--upload-pack=touch /tmp/x", "a b", ""):
        with pytest.raises(clone.CloneError, match="revision"):
            clone.resolve(wrong)


def test_a_workspace_has_the_commit_the_profile_and_the_clone_s_cache_and_settings(project):
    subprocess.run(["dvc", "config", "--local", "core.remote", "there"], check=True)
    subprocess.run(["dvc", "config", "--local", "remote.there.url", "/somewhere"], check=True)
    commit = clone.resolve("main")
    made = clone.workspace(project, commit, "other", "gpu 1/a")
    assert made.parent == project / ".dvc/tmp/workspaces"
    assert made.name == f"gpu-1-a-other-{commit[:12]}"
    assert git(made, "rev-parse", "HEAD") == commit
    assert yaml.safe_load((made / "params.yaml").read_text())["profile"] == "other"
    config = (made / ".dvc/config.local").read_text()
    assert str(project / ".dvc/cache") in config
    assert "/somewhere" in config
    assert git(made, "remote", "get-url", "origin") == git(project, "remote", "get-url", "origin")
    (made / "kept").touch()
    assert clone.workspace(project, commit, "other", "gpu 1/a") == made
    assert (made / "kept").exists()
    assert clone.workspace(project, commit, "other", "gpu2") != made


def test_a_workspace_of_a_commit_that_nobody_has_is_not_made(project):
    with pytest.raises(clone.CloneError, match="origin has no revision"):
        clone.workspace(project, "0" * 40, "tiny", "gpu")
    assert not list(project.glob(".dvc/tmp/workspaces/*"))


def test_old_workspaces_are_forgotten(project):
    commit = clone.resolve("main")
    old = clone.workspace(project, commit, "tiny", "old")
    young = clone.workspace(project, commit, "tiny", "young")
    os.utime(old, (0, 0))
    clone.workspace(project, commit, "tiny", "new")
    assert young.exists()
    assert not old.exists()


def test_what_a_killed_dvc_left_is_mended(project):
    assert clone.mend() == []
    rwlock, lock = project / ".dvc/tmp/rwlock", project / "dvc.lock"
    rwlock.parent.mkdir(exist_ok=True)
    rwlock.write_text(json.dumps({}))
    lock.write_text("schema: '2.0'\nstages:\n  a:\n    cmd: echo\n")
    assert clone.mend() == []
    git(project, "add", "-f", "dvc.lock")
    git(project, "commit", "-qm", "lock")
    for damaged in (
        "schema: '2.0'\nstages:\n  a:\n    cm",
        "schema: '2.0'\nstages:\n  a:\n",
        "stages: {a: {",
        "",
    ):
        rwlock.write_text('{"/a": {"re')
        lock.write_text(damaged)
        assert len(clone.mend()) == 2
        assert not rwlock.exists()
        assert lock.read_text() == "schema: '2.0'\nstages:\n  a:\n    cmd: echo\n"


def test_experiments_are_found_by_name(project):
    head = git(project, "rev-parse", "HEAD")
    git(project, "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/bold-try", head)
    assert clone.experiments() == ["bold-try"]
