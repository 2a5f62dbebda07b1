"""MLflow's SQLite file: made by a process that dies, in folders with odd names, not writable."""

import os
import signal

import helpers
import mlflow_helpers
import pytest

pytestmark = mlflow_helpers.WARNINGS

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


# Registers a network, reads it back, and prints what of its files lies where.
REGISTER = """
from pathlib import Path
import mlflow_helpers
from lambdanet import registry, tracking

one = mlflow_helpers.trained(Path(), "cnn")
client = tracking.connect()
run_id = tracking.log_training(client, one.training)
registry.register(client, one.training, run_id, one.weights, 32, registry.Builder(Path("built")))
((denoiser, _),) = registry.denoisers(registry.open_registry())
fetched = registry.fetch(client, denoiser, Path("fetched"))
assert fetched.read_bytes() == one.weights.read_bytes()
print(tracking.moved_from(client.get_run(run_id).info.artifact_uri))
"""
# Reads, and then tries to write.
READ = """
from lambdanet import tracking
client = tracking.connect()
print(len(client.search_experiments()))
try:
    with tracking.reaching():
        tracking.experiment_id(client, "tiny")
except ValueError as error:
    print(error)
"""


def python(code, folder):
    environment = {"PYTHONPATH": os.pathsep.join([str(helpers.ROOT), str(helpers.ROOT / "tests")])}
    process = helpers.start("train", [], folder, code, **environment)
    out, err = process.communicate(timeout=helpers.PATIENCE)
    return process.returncode, out, err


LATE = pytest.param("INSERT INTO experiments", marks=pytest.mark.slow)


@pytest.mark.parametrize("statement", ["CREATE TABLE _alembic_tmp_", LATE])
def test_killed_while_making_the_database_is_made_anew(tmp_path, statement):
    status, _, err = python(DIE.replace("STATEMENT", repr(statement)), tmp_path)
    assert status == -signal.SIGKILL, err
    assert not (tmp_path / "mlflow.db").exists()
    assert python(CONNECT, tmp_path) == (0, "1\n", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]


def test_a_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "50% noise? #1, my%20été"
    folder.mkdir()
    assert python(REGISTER, folder) == (0, "None\n", "")
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert {"mlflow.db", "mlartifacts", "fetched"} <= {path.name for path in folder.iterdir()}
    assert len(list(folder.glob("mlartifacts/tiny/models/*/artifacts/MLmodel"))) == 1


@pytest.mark.parametrize("what", [".", "mlflow.db"])
def test_what_is_not_writable_can_be_read(tmp_path, what):
    mlflow_helpers.write_database(tmp_path / "mlflow.db")
    (tmp_path / what).chmod(0o555 if what == "." else 0o444)
    status, out, err = python(helpers.AS_A_USER + READ, tmp_path)
    (tmp_path / what).chmod(0o755)
    assert (status, out.splitlines(), err) == (
        0,
        [
            "1",
            "MLflow at sqlite:///mlflow.db cannot be used: attempt to write a readonly database",
        ],
        "",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
