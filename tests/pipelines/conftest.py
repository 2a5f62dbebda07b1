import pytest
import scratch


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with the stages of `scratch.DIAMOND`, the current folder."""
    folder = scratch.project(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder
