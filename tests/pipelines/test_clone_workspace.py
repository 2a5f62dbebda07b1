"""A commit as a folder, and git's origin."""

import re
import threading

import helpers
import pytest
import scratch

from pipelines import workspace


def test_a_workspace_has_no_password_and_mends_itself_and_lock_files_are_no_changes(project):
    (project / "dvc.lock").write_text("stages: {}\n")
    scratch.profiles(project)
    scratch.git(project, "remote", "add", "origin", "https://me:s3cr3t@host.example/x.git")
    head = workspace.resolve(project, "")
    for _ in range(2):
        with workspace.opened(project, head, "name", print) as folder:
            assert "s3cr3t" not in (folder / ".git/config").read_text()
            assert workspace.git(folder, "remote", "get-url", "origin") == "https://host.example/x.git"
            assert (folder / "dvc.lock").read_text() == "stages: {}\n"
            (folder / "dvc.lock").write_text("stages:\n  a:\n    cm")
    (project / "small/dvc.lock").write_text("schema: '2.0'\n")
    (project / "dvc.lock").write_text("schema: '2.0'\n")
    assert workspace.changes(project) == []


def test_a_relative_remote_is_refused(project):
    head, local = workspace.resolve(project, ""), project / ".dvc/config.local"
    for line in ("url = ../lab", "url=lab", "dir =  cache"):
        local.write_text(f"['remote \"lab\"']\n    {line}\n")
        refused = pytest.raises(ValueError, match=f"{re.escape(line)} is relative")
        with refused, workspace.opened(project, head, "name", print):
            pass
    for number, line in enumerate(("url = /lab", "url=/lab", "url = ssh://lab/x", "dir =  /cache")):
        local.write_text(f"['remote \"lab\"']\n    {line}\n")
        with workspace.opened(project, head, f"{number}", print) as folder:
            assert (folder / ".dvc/config.local").read_text() == local.read_text()


@pytest.mark.parametrize(
    ("said", "fetches", "kind"),
    [
        ("", 1, None),
        ("fatal: Could not resolve host: lab", 5, workspace.AwayError),
        ("ssh: connect to host lab port 22: No route to host", 5, workspace.AwayError),
        ("fatal: Permission denied", 1, ValueError),
    ],
)
def test_of_eight_one_at_a_time_fetches_and_tries_again(project, monkeypatch, said, fetches, kind):
    monkeypatch.setattr(workspace, "FETCH_WAITS", (0.0,) * 4)
    together, alone, calls = threading.Barrier(8, timeout=helpers.PATIENCE), threading.Lock(), []

    def git(_folder, *words):
        calls.append(words)
        assert alone.acquire(blocking=False)
        threading.Event().wait(0.05)
        alone.release()
        if said:
            raise ValueError(f"git fetch: {said}")

    def fetch():
        together.wait()
        try:
            return workspace.fetch(project)
        except ValueError as error:
            return type(error), str(error)

    monkeypatch.setattr(workspace, "git", git)
    refused = f"git origin cannot be reached: git fetch: {said}"
    assert helpers.at_once(8, fetch) == [(kind, refused) if said else None] * 8
    assert calls == 8 * fetches * [("fetch", "--quiet", "origin")]


def test_without_an_origin_a_revision_is_that_of_the_clone(project, tmp_path):
    scratch.git(project, "remote", "add", "upstream", str(tmp_path / "nowhere"))
    scratch.git(project, "branch", "mine")
    assert workspace.resolve(project, "mine") == scratch.git(project, "rev-parse", "HEAD")
    assert "no revision 'yours' here or at origin" in helpers.refusal(workspace.resolve, project, "yours")


def test_eight_who_need_a_commit_fetch_it_once(tmp_path, monkeypatch):
    source = scratch.project(tmp_path / "source")
    scratch.git(tmp_path, "clone", "-q", str(source), "clone")
    scratch.commit(source)
    head, clone = scratch.git(source, "rev-parse", "HEAD"), tmp_path / "clone"
    git, together, calls = workspace.git, threading.Barrier(8, timeout=helpers.PATIENCE), []

    def waits(folder, *words):
        if words == ("remote",):  # each has looked for the commit
            together.wait()
        calls.append(words[0])
        return git(folder, *words)

    monkeypatch.setattr(workspace, "git", waits)
    assert helpers.at_once(8, lambda: workspace.resolve(clone, head)) == [head] * 8
    assert calls.count("fetch") == 1
