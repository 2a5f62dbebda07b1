"""A process that dies while it makes MLflow's SQLite file must not leave one that nobody can use."""

import signal

import helpers
import pytest

CONNECT = """
from lambdanet import tracking
print(len(tracking.connect().search_experiments()))
"""
# A migration copies a table into `_alembic_tmp_...`, drops it and renames the copy, in that order.
DIE = """
import os, signal, sqlalchemy
from lambdanet import tracking

@sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "after_cursor_execute")
def die(connection, cursor, statement, *rest):
    if statement.strip().startswith(STATEMENT):
        os.kill(os.getpid(), signal.SIGKILL)

tracking.connect()
"""


def python(code, folder):
    environment = {"PYTHONPATH": str(helpers.ROOT)}
    process = helpers.start("train", [], folder, code, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


LATE = pytest.param("INSERT INTO experiments", marks=pytest.mark.slow)


@pytest.mark.parametrize("statement", ["CREATE TABLE _alembic_tmp_", LATE])
def test_killed_while_making_the_database_is_made_anew(tmp_path, statement):
    status, _, err = python(DIE.replace("STATEMENT", repr(statement)), tmp_path)
    assert status == -signal.SIGKILL, err
    assert not (tmp_path / "mlflow.db").exists()
    assert python(CONNECT, tmp_path) == (0, "1\n", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]
