import dataclasses
import json
import math
import os
import re
import signal
import time
from datetime import datetime

import helpers
import mlflow_helpers
import pytest

from lambdanet.tracking import mlflow_runs

RECORD, RUN_KEY = mlflow_helpers.RECORD, mlflow_helpers.RUN_KEY
DESCRIPTION = mlflow_helpers.description(RUN_KEY, helpers.DNCNN)
ABLATIONS = [{"study": "depth", "record": {}}, {"record": RECORD | {"stage": "x/dvc.yaml:ablate@dncnn"}}]
SCORES = {"psnr": 25.5, "ssim": 0.8, "parameters": 372, "images": 8, "seed": 0, "noisy_psnr": math.inf}


def log_training(client, training):
    return mlflow_runs.log_training(client, training).info.run_id


def of(epochs, status="RUNNING", **changes):
    """The training as it stands after so many epochs."""
    finished = status == "FINISHED"
    training = mlflow_runs.Training(
        key=RUN_KEY, description=DESCRIPTION, history=mlflow_helpers.rows(epochs, images=32), status=status,
        record=RECORD if finished else RECORD | {"finished": None},
        weights_sha256="e" * 64 if finished else None,
    )  # fmt: skip
    return dataclasses.replace(training, **changes)


def milliseconds(text):
    return round(1000 * datetime.fromisoformat(text).timestamp())


@pytest.mark.parametrize("known", ABLATIONS)
def test_an_ablation_names_its_script_with_and_without_a_log(client, known):
    log_training(client, of(3, "FINISHED", **known))
    (run,) = mlflow_helpers.runs(client)
    assert run.data.tags["stage"].endswith("ablate@dncnn")
    assert run.data.tags["mlflow.source.name"] == "stages/ablate.py"


def test_a_training_becomes_one_run_with_all_that_is_known(client, tmp_path):
    run_id = log_training(client, of(3, "FINISHED", scores=SCORES))
    (run,) = mlflow_helpers.runs(client)
    assert run.info.run_id == run_id
    assert (run.info.run_name, run.info.status) == ("gaussian-01-dncnn-0", "FINISHED")
    assert run.info.start_time == milliseconds("2026-01-02T03:04:00.125Z")
    assert run.info.end_time == milliseconds("2026-01-02T03:05:00.500Z")
    assert run.info.artifact_uri.startswith((tmp_path / "mlartifacts/tiny").as_uri())
    expected = {f"model.{key}": str(value) for key, value in helpers.DNCNN.items()}
    expected |= {f"noise.{key}": str(value) for key, value in helpers.GAUSSIAN.items()}
    expected |= {f"training.{key}": str(value) for key, value in (helpers.TRAIN | {"epochs": 3}).items()}
    assert run.data.params == expected
    tags = {
        "task": "train", "run": "gaussian-01-dncnn-0", "profile": "tiny", "noise": "gaussian-01",
        "model": "dncnn", "seed": "0", "weights_sha256": "e" * 64, "stage": RECORD["stage"],
        "device": "a machine", "backend": "winograd", "commit": "0123456789ab",
        "mlflow.source.git.commit": "0123456789ab", "mlflow.source.name": "stages/train.py",
    }  # fmt: skip
    assert tags.items() <= run.data.tags.items()

    moments = [milliseconds(f"2026-01-02T03:04:0{n}.250Z") for n in (1, 2, 3)]
    found = mlflow_helpers.histories(client, run_id)
    by_epoch = {
        "loss": (0.5, 0.25, 0.5 / 3),
        "monitored_psnr": (21, 22, 23),
        "learning_rate": (0.01, 0.005, 0.01 / 3),
        "epoch_seconds": (0.5, 1, 1.5),
        "images_per_second": (64, 32, 32 / 1.5),
    }
    for key, values in by_epoch.items():
        assert found.pop(key) == list(zip((1, 2, 3), values, moments, strict=True)), key
    # No infinite noisy_psnr, and neither the seed nor the number of images.
    once = {"psnr": 25.5, "ssim": 0.8, "parameters": 372, "training_seconds": 9.5, "peak_memory_bytes": 1000}
    found = {key: [value[:2] for value in values] for key, values in found.items()}
    assert found == {key: [(0, value)] for key, value in once.items()}


def test_a_training_that_was_followed_is_scored_without_a_second_point(client, tmp_path):
    one = mlflow_helpers.trained(tmp_path)
    record = one.record | {"seconds": 9.5, "peak_memory_bytes": 1000}
    scored = dataclasses.replace(one, record=record)
    followed = dataclasses.replace(scored, scores={}, weights=None)
    for known in (followed, scored, scored):
        run_id = log_training(client, known)
    found = mlflow_helpers.histories(client, run_id)
    points = {key: [point[:2] for point in found[key]] for key in ("training_seconds", "peak_memory_bytes")}
    assert points == {"training_seconds": [(0, 9.5)], "peak_memory_bytes": [(0, 1000)]}
    assert len(found["psnr"]) == 1


def test_metrics_are_those_of_a_model_on_a_dataset(client, tmp_path):
    one = mlflow_helpers.trained(tmp_path, seed=0, psnr=25.0)
    other = dataclasses.replace(mlflow_helpers.trained(tmp_path, seed=1, psnr=27.0), study="depth")
    for training in (one, one, other, other):  # the second time adds nothing
        log_training(client, training)
    experiment = client.get_experiment_by_name("lambdanet/tiny").experiment_id
    (found,) = client.search_logged_models([experiment], filter_string="metrics.psnr > 26")
    assert (found.name, found.status, found.model_type) == ("gaussian-01-dncnn-1", "READY", "denoiser")
    assert found.params["training.epochs"] == "3"
    assert found.tags.items() >= {"study": "depth", "noise": "gaussian-01", "model": "dncnn"}.items()
    held = {one.key: (one.value, one.dataset_name, one.dataset_digest) for one in found.metrics}
    tests = "tiny/patches/gaussian-01/test", "d" * 36
    assert (held["psnr"], held["ssim"]) == ((27.0, *tests), (0.75, *tests))
    assert len(found.metrics) == len(held)
    grouped = client.search_runs([experiment], "tags.study = 'depth'")
    assert [run.data.tags["run"] for run in grouped] == ["gaussian-01-dncnn-1"]


def test_a_dataset_names_dvcs_digest(client, tmp_path):
    out = "    - path: runs/tiny/data/patches/{}\n      hash: md5\n      md5: {}.dir\n      size: 1\n"
    lock = out.format("clean", "1" * 32) + out.format("gaussian-01", "2" * 32)
    helpers.folder(tmp_path, {"tiny/dvc.lock": lock.encode()})
    one = mlflow_helpers.trained(tmp_path)
    inputs = client.get_run(log_training(client, one)).inputs.dataset_inputs
    sources = {one.dataset.name: json.loads(one.dataset.source) for one in inputs}
    for kind, sha256, md5 in (("clean", "c" * 64, "1" * 32), ("gaussian-01", "d" * 64, "2" * 32)):
        uri = f"runs/tiny/data/patches/{kind}/test.npy"
        source = {"uri": uri, "sha256": sha256, "dvc_md5": f"{md5}.dir"}
        assert sources.pop(f"tiny/patches/{kind}/test") == source
    assert sources == {}


def test_a_long_history_arrives_whole_but_for_what_is_not_finite(client):
    history = [{"epoch": n, "learning_rate": 0.1, "loss": 1 / n, "monitored_psnr": 20} for n in range(1, 701)]
    history[1] |= {"monitored_psnr": math.inf, "loss": math.nan}
    run_id = log_training(client, of(0, history=history))
    found = mlflow_helpers.histories(client, run_id)
    found = {key: [point[:2] for point in points] for key, points in found.items()}
    finite = [1, *range(3, 701)]
    assert found["loss"] == [(n, 1 / n) for n in finite]
    assert found["monitored_psnr"] == [(n, 20) for n in finite]
    assert found["learning_rate"] == [(n, 0.1) for n in range(1, 701)]


@pytest.mark.parametrize("status", ["RUNNING", "KILLED", "FAILED"])
def test_an_unfinished_run_of_the_same_training_is_resumed_by_its_new_epochs(client, status):
    run_id = log_training(client, of(1, status))
    first, info = mlflow_helpers.histories(client, run_id), client.get_run(run_id).info
    assert info.status == status
    ended = None if status == "RUNNING" else pytest.approx(1000 * time.time(), abs=60_000)
    assert info.end_time == ended
    assert log_training(client, of(2)) == log_training(client, of(3)) == run_id
    assert client.get_run(run_id).info.status == "RUNNING"
    assert log_training(client, of(3, "FINISHED")) == run_id
    info = client.get_run(run_id).info
    assert (info.status, info.end_time) == ("FINISHED", milliseconds(RECORD["finished"]))
    found = mlflow_helpers.histories(client, run_id)
    for key in mlflow_helpers.EPOCH_METRICS:
        assert [step for step, _, _ in found[key]] == [1, 2, 3], key
        assert found.pop(key)[:1] == first[key]
    assert {len(values) for values in found.values()} == {1}


def test_a_killed_run_of_another_training_or_workspace_is_left_alone(client, tmp_path, monkeypatch):
    here = log_training(client, of(1, "KILLED"))
    changes = [
        {"record": RECORD | {"commit": "another"}},
        {"record": RECORD | {"data": {**RECORD["data"], "test": {}}}},
        {"description": helpers.changed(DESCRIPTION, ["training", "epochs"], 4)},
    ]
    others = [log_training(client, of(2, **change)) for change in changes]
    monkeypatch.chdir(helpers.folder(tmp_path / "elsewhere"))
    others.append(log_training(client, of(2)))
    monkeypatch.chdir(tmp_path)
    assert len({here, *others}) == 5
    assert client.get_run(here).info.status == "KILLED"
    assert [step for step, _, _ in mlflow_helpers.histories(client, here)["loss"]] == [1]
    assert log_training(client, of(2)) == here


def test_workers_that_are_told_one_name_resume_each_others_run(client, tmp_path, monkeypatch):
    monkeypatch.setenv("LAMBDANET_WORKSPACE", "grid:tiny:c0ffee")
    lost = log_training(client, of(1))
    monkeypatch.chdir(helpers.folder(tmp_path / "other"))
    assert log_training(client, of(3, "FINISHED")) == lost


def test_a_finished_run_is_known_by_its_weights_alone(client, tmp_path, monkeypatch):
    first = log_training(client, of(3, "FINISHED"))
    later = RECORD | {"started": "2026-01-03T00:00:00.000Z", "finished": None}
    second = log_training(client, of(1, record=later))  # the same training once more, from the beginning
    assert second != first
    assert log_training(client, of(3, "FINISHED", weights_sha256="f" * 64)) == second
    assert log_training(client, of(3, "FINISHED")) == first
    monkeypatch.chdir(helpers.folder(tmp_path / "elsewhere"))
    assert log_training(client, of(3, "FINISHED", weights_sha256="f" * 64)) == second
    assert len(mlflow_helpers.runs(client)) == 2
    assert client.get_run(first).data.tags["weights_sha256"] == "e" * 64


def test_a_deleted_experiment_is_one_line_that_says_what_to_do(client):
    run_id = log_training(client, of(1))
    experiment = client.get_run(run_id).info.experiment_id
    client.delete_experiment(experiment)
    said = helpers.refusal(log_training, client, of(2))
    assert said.startswith("the experiment lambdanet/tiny was deleted in MLflow")
    assert said.endswith(f"`mlflow experiments restore --experiment-id {experiment}`")
    client.restore_experiment(experiment)
    assert log_training(client, of(2)) == run_id


def test_a_database_without_its_driver_or_server_is_one_line_without_the_password(monkeypatch):
    uri = f"postgresql://me:secret@127.0.0.1:{helpers.free_port()}/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    why = r"(its database's driver is not installed \(No module named 'psycopg|.*refused).*"
    said = f"{re.escape(uri.replace('secret', '***'))} cannot be used: {why}"
    with pytest.raises(mlflow_runs.UnreachableError, match=rf"^MLflow at {said}$") as caught:
        mlflow_runs.connect()
    assert "secret" not in str(caught.value)


def python(code, folder, *before):
    """Run code as a user's process in a folder: (status, stdout, stderr)."""
    path = os.pathsep.join([str(helpers.ROOT), *map(str, TESTS)])
    environment = os.environ | {"PYTHONPATH": path}
    done = helpers.python("-c", code, before=before, cwd=folder, env=environment)
    return done.returncode, done.stdout, done.stderr


TESTS = (helpers.ROOT / "tests", helpers.ROOT / "tests/tracking")
# A migration copies a table into `_alembic_tmp_...`, drops it and renames the copy, in that order.
DIE = """
import os, signal, sqlalchemy
from lambdanet.tracking import mlflow_runs

@sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "after_cursor_execute")
def die(connection, cursor, statement, *rest):
    if statement.strip().startswith("CREATE TABLE _alembic_tmp_"):
        os.kill(os.getpid(), signal.SIGKILL)

mlflow_runs.connect()
"""
# Forks, because four interpreters that load MLflow would take most of the time.
TOGETHER = """
import os, sys
import mlflow.store.tracking.sqlalchemy_store
import test_mlflow_runs
from lambdanet.config import RunKey
from lambdanet.tracking import mlflow_runs

reading, writing = os.pipe()
children = []
for number in range(4):
    if not (child := os.fork()):
        os.close(writing)
        os.read(reading, 1)  # until all are there
        client = mlflow_runs.connect()
        key = RunKey("tiny", "gaussian-01", f"model-{number}", 0)
        for epochs in range(1, 4):
            with mlflow_runs.reaching():
                status, digest = ("FINISHED", f"{number:064}") if epochs == 3 else ("RUNNING", None)
                training = test_mlflow_runs.of(epochs, status, key=key, weights_sha256=digest)
                mlflow_runs.log_training(client, training)
        os._exit(0)
    children.append(child)
os.close(writing)
sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
"""


def test_a_database_whose_maker_was_killed_is_made_anew_by_four_processes_at_once(tmp_path, monkeypatch):
    status, _, err = python(DIE, tmp_path)
    assert status == -signal.SIGKILL, err
    assert not (tmp_path / "mlflow.db").exists()
    assert python(TOGETHER, tmp_path) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow_runs.connect()
    found = mlflow_helpers.runs(client)
    assert sorted(run.data.tags["model"] for run in found) == [f"model-{number}" for number in range(4)]
    for run in found:
        assert run.info.status == "FINISHED"
        metrics = mlflow_helpers.histories(client, run.info.run_id)
        for key in mlflow_helpers.EPOCH_METRICS:
            assert [step for step, _, _ in metrics[key]] == [1, 2, 3], key


def test_a_folder_may_have_any_name(tmp_path, monkeypatch):
    folder = helpers.folder(tmp_path / "50% noise? #1, my%20été")
    mlflow_helpers.write_database(folder / "mlflow.db")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log_training(mlflow_runs.connect(), mlflow_helpers.trained(tmp_path))
    log_training(mlflow_runs.connect(), mlflow_helpers.trained(tmp_path, seed=1))
    assert len(list(folder.glob("mlartifacts/tiny/models/*/artifacts/extra_files/weights.safetensors"))) == 2


# So that root, too, may only do what the modes of its files allow.
AS_A_USER = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
# Reads, and then tries to write.
READ = """
from lambdanet.tracking import mlflow_runs
client = mlflow_runs.connect()
print(len(client.search_experiments()))
try:
    with mlflow_runs.reaching():
        mlflow_runs.experiment_id(client, "tiny")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("what", [".", "mlflow.db"])
def test_what_is_not_writable_can_be_read(tmp_path, what):
    mlflow_helpers.write_database(tmp_path / "mlflow.db")
    (tmp_path / what).chmod(0o555 if what == "." else 0o444)
    status, out, err = python(READ, tmp_path, *AS_A_USER)
    (tmp_path / what).chmod(0o755)
    refused = "MLflow at sqlite:///mlflow.db cannot be used: attempt to write a readonly database"
    assert (status, out.splitlines(), err) == (0, ["1", refused], "")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
