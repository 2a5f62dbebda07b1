"""What the tests of a cluster share: a Prefect server, its workers, and Dask's, all on this machine."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipelines"))
import scratch


@pytest.fixture
def cluster(tmp_path):
    with scratch.Cluster(tmp_path) as made:
        yield made


@pytest.fixture
def origin(tmp_path):
    """A bare repository with a project in it, whose DVC remote is a folder, and a way to clone it."""
    source = scratch.project(tmp_path / "source")
    scratch.profiles(source)
    remote = tmp_path / "remote"
    scratch.git(source, "clone", "-q", "--bare", ".", str(tmp_path / "origin.git"))

    def clone(name):
        folder = tmp_path / name
        scratch.git(tmp_path, "clone", "-q", str(tmp_path / "origin.git"), str(folder))
        local = f"[core]\n    remote = lab\n['remote \"lab\"']\n    url = {remote}\n"
        (folder / ".dvc/config.local").write_text(local)
        return folder

    return clone
