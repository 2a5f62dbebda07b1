import mlflow_helpers
import pytest


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Of an empty database in the current folder, which is `tmp_path`."""
    mlflow_helpers.trace_once(monkeypatch)
    return mlflow_helpers.use_database(tmp_path, monkeypatch)
