import dataclasses
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import helpers
import mlflow_helpers
import pytest

from lambdanet import files
from lambdanet.config import RunKey
from lambdanet.tracking import mlflow_runs
from lambdanet.tracking.mlflow_runs import Training, UnreachableError, log_summary, log_training

pytestmark = mlflow_helpers.WARNINGS

RUN_KEY = RunKey("tiny", "gaussian-01", "dncnn", 0)
DESCRIPTION = mlflow_helpers.description(RUN_KEY, helpers.DNCNN)
RECORD = {
    "device": "a machine",
    "seconds": 9.5,
    "peak_memory_bytes": 1000,
    "started": "2026-01-02T03:04:00.125Z",
    "finished": "2026-01-02T03:05:00.500Z",
    "commit": "0123456789ab",
    "stage": "train@tiny-gaussian-01-dncnn-0",
    "data": {
        "train": {"images": 32, "clean_sha256": "a" * 64, "noisy_sha256": "b" * 64},
        "test": {"images": 8, "clean_sha256": "c" * 64, "noisy_sha256": "d" * 64},
    },
}
SCORES = {"psnr": 25.5, "ssim": 0.8, "parameters": 372, "images": 8, "seed": 0, "noisy_psnr": math.inf}


def of(epochs, status="RUNNING", **changes):
    """The training as it stands after so many epochs."""
    finished = status == "FINISHED"
    training = Training(
        key=RUN_KEY,
        description=DESCRIPTION,
        history=mlflow_helpers.rows(epochs, images=32),
        status=status,
        record=RECORD if finished else RECORD | {"finished": None},
        weights_sha256="e" * 64 if finished else None,
    )
    return dataclasses.replace(training, **changes)


def milliseconds(text):
    return round(1000 * datetime.fromisoformat(text).timestamp())


@pytest.fixture
def client(tmp_path, monkeypatch):
    return mlflow_helpers.use_database(tmp_path, monkeypatch)


def test_a_training_becomes_one_run_with_all_that_is_known(client, tmp_path):
    evaluation = {"inference_seconds_per_image": 0.002}
    run_id = log_training(client, of(3, "FINISHED", scores=SCORES, evaluation=evaluation))
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
        "device": "a machine", "commit": "0123456789ab", "mlflow.source.git.commit": "0123456789ab",
    }  # fmt: skip
    assert tags.items() <= run.data.tags.items()
    assert run.data.tags["workspace"].endswith(f":{tmp_path}")

    moments = [milliseconds(f"2026-01-02T03:04:0{n}.250Z") for n in (1, 2, 3)]
    end = milliseconds(RECORD["finished"])
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
    assert found == {
        "psnr": [(0, 25.5, end)],
        "ssim": [(0, 0.8, end)],
        "parameters": [(0, 372, end)],
        "inference_seconds_per_image": [(0, 0.002, end)],
        "training_seconds": [(0, 9.5, end)],
        "peak_memory_bytes": [(0, 1000, end)],
    }  # and no infinite noisy_psnr, and neither the seed nor the number of images


def test_a_runs_datasets_are_the_images_with_their_digests(client):
    (run_id, again) = (log_training(client, of(1)), log_training(client, of(1)))
    assert run_id == again
    inputs = client.get_run(run_id).inputs.dataset_inputs
    found = {
        (one.dataset.name, one.dataset.digest): {tag.key: tag.value for tag in one.tags} for one in inputs
    }
    assert len(inputs) == 4
    assert found == {
        ("tiny/clean/train", "a" * 36): {"mlflow.data.context": "training"},
        ("tiny/gaussian-01/train", "b" * 36): {"mlflow.data.context": "training"},
        ("tiny/clean/test", "c" * 36): {"mlflow.data.context": "testing"},
        ("tiny/gaussian-01/test", "d" * 36): {"mlflow.data.context": "testing"},
    }
    assert all(
        ("a" if "clean/train" in one.dataset.name else "") * 64 in one.dataset.source for one in inputs
    )


def test_without_a_log_the_test_images_come_from_the_scores(client):
    scores = SCORES | {"clean_sha256": "1" * 64, "noisy_sha256": "2" * 64}
    run_id = log_training(client, of(1, "FINISHED", record={}, scores=scores))
    names = {one.dataset.name: one.dataset.digest for one in client.get_run(run_id).inputs.dataset_inputs}
    assert names == {"tiny/clean/test": "1" * 36, "tiny/gaussian-01/test": "2" * 36}
    found = mlflow_helpers.histories(client, run_id)
    assert found["psnr"][0][:2] == (0, 25.5)
    assert "training_seconds" not in found


def test_a_log_of_an_earlier_version_gives_the_times_that_it_has(client):
    old = {key: RECORD[key] for key in ("device", "seconds", "peak_memory_bytes", "finished")}
    run_id = log_training(client, of(3, "FINISHED", record=old, history=mlflow_helpers.rows(3)))
    info, end = client.get_run(run_id).info, milliseconds(RECORD["finished"])
    assert (info.start_time, info.end_time) == (end - 9500, end)
    losses = mlflow_helpers.histories(client, run_id)["loss"]
    assert losses == [(n, 0.5 / n, end) for n in (1, 2, 3)]


def test_a_log_that_was_restored_from_a_report_gives_what_it_has(client, tmp_path):
    kept = {key: RECORD[key] for key in ("device", "commit")} | {"weights_sha256": "e" * 64}
    mirror = mlflow_runs.Mirror(tmp_path / "log.json")
    files.write_json(mirror.log, [kept])
    mirror.update("RUNNING")  # before a new training has begun its own record
    assert mirror.run_id is None
    run_id = log_training(client, of(3, "FINISHED", record=kept, scores=SCORES))
    assert client.get_run(run_id).data.tags["device"] == "a machine"
    found = mlflow_helpers.histories(client, run_id)
    assert found["psnr"][0][1] == 25.5
    assert {"training_seconds", "peak_memory_bytes"}.isdisjoint(found)


def test_logging_again_adds_nothing(client):
    training = of(3, "FINISHED", scores=SCORES)
    run_id = log_training(client, training)
    before, info = mlflow_helpers.histories(client, run_id), client.get_run(run_id)
    assert log_training(client, training) == run_id
    assert log_training(client, training, run_id, {}) == run_id
    after = client.get_run(run_id)
    assert mlflow_helpers.histories(client, run_id) == before
    assert len(mlflow_helpers.runs(client)) == 1
    assert after.info.end_time == info.info.end_time
    assert (after.data.tags, after.data.params) == (info.data.tags, info.data.params)


@pytest.mark.parametrize("remembers", [True, False])
def test_only_new_epochs_are_added(client, remembers):
    logged = {} if remembers else None
    run_id = log_training(client, of(1), None, logged)
    first = mlflow_helpers.histories(client, run_id)
    assert client.get_run(run_id).info.status == "RUNNING"
    assert client.get_run(run_id).info.end_time is None
    for training in (of(2), of(3), of(3, "FINISHED")):
        assert log_training(client, training, run_id if remembers else None, logged) == run_id
    found = mlflow_helpers.histories(client, run_id)
    for key in mlflow_runs.EPOCH_METRICS:
        assert [step for step, _, _ in found[key]] == [1, 2, 3], key
        assert found[key][:1] == first[key]
    assert {len(values) for key, values in found.items() if key not in mlflow_runs.EPOCH_METRICS} == {1}
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_long_history_arrives_whole(client):
    history = [{"epoch": n, "learning_rate": 0.1, "loss": 1 / n, "monitored_psnr": 20} for n in range(1, 701)]
    run_id = log_training(client, of(0, history=history))
    losses = mlflow_helpers.histories(client, run_id)["loss"]
    assert [(step, value) for step, value, _ in losses] == [(n, 1 / n) for n in range(1, 701)]


def test_what_is_not_finite_is_left_out(client):
    history = mlflow_helpers.rows(3)
    history[1] |= {"monitored_psnr": math.inf, "loss": math.nan}
    run_id = log_training(client, of(0, history=history))
    found = mlflow_helpers.histories(client, run_id)
    assert [step for step, _, _ in found["monitored_psnr"]] == [1, 3]
    assert [step for step, _, _ in found["loss"]] == [1, 3]
    assert [step for step, _, _ in found["learning_rate"]] == [1, 2, 3]


@pytest.mark.parametrize("status", ["KILLED", "FAILED"])
def test_an_unfinished_run_of_the_same_training_is_gone_on_with(client, status):
    run_id = log_training(client, of(1, status))
    assert client.get_run(run_id).info.status == status
    assert client.get_run(run_id).info.end_time == pytest.approx(1000 * time.time(), abs=60_000)
    assert log_training(client, of(2)) == run_id
    assert client.get_run(run_id).info.status == "RUNNING"
    assert log_training(client, of(3, "FINISHED")) == run_id
    run = client.get_run(run_id)
    assert (run.info.status, run.info.end_time) == ("FINISHED", milliseconds(RECORD["finished"]))
    assert [step for step, _, _ in mlflow_helpers.histories(client, run_id)["loss"]] == [1, 2, 3]


def test_a_killed_training_on_other_data_or_by_other_code_is_not_gone_on_with(client):
    killed = log_training(client, of(1, "KILLED"))
    for change in ({"commit": "another"}, {"data": {**RECORD["data"], "test": {}}}):
        changed = dataclasses.replace(of(2), record=RECORD | change)
        assert log_training(client, changed) != killed


def test_an_epoch_that_came_out_otherwise_is_logged_again(client):
    run_id = log_training(client, of(2, "KILLED"))
    history = [row | {"loss": 7.0} for row in of(1).history]
    assert log_training(client, dataclasses.replace(of(1), history=history)) == run_id
    found = [(step, value) for step, value, _ in mlflow_helpers.histories(client, run_id)["loss"]]
    assert (1, 7.0) in found


def test_another_workspaces_run_or_another_training_is_left_alone(client, tmp_path, monkeypatch):
    here = log_training(client, of(1, "KILLED"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    there = log_training(client, of(2))
    monkeypatch.chdir(tmp_path)
    changed = helpers.changed(DESCRIPTION, ["training", "epochs"], 4)
    other = log_training(client, of(2, description=changed))
    assert len({here, there, other}) == 3
    assert client.get_run(here).info.status == "KILLED"
    assert [step for step, _, _ in mlflow_helpers.histories(client, here)["loss"]] == [1]
    assert log_training(client, of(2)) == here


def test_workers_that_are_told_one_name_go_on_with_each_others_run(client, tmp_path, monkeypatch):
    monkeypatch.setenv("LAMBDANET_WORKSPACE", "grid:tiny:c0ffee")
    lost = log_training(client, of(1))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert log_training(client, of(3, "FINISHED")) == lost
    assert client.get_run(lost).data.tags["workspace"] == "grid:tiny:c0ffee"
    assert len(mlflow_helpers.runs(client)) == 1


def test_a_finished_run_is_known_by_its_weights_alone(client, tmp_path, monkeypatch):
    first = log_training(client, of(3, "FINISHED"))
    later = RECORD | {"started": "2026-01-03T00:00:00.000Z", "finished": None}
    second = log_training(client, of(1, record=later))  # the same training once more, from the beginning
    assert second != first
    assert log_training(client, of(3, "FINISHED", weights_sha256="f" * 64)) == second
    assert log_training(client, of(3, "FINISHED")) == first
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert log_training(client, of(3, "FINISHED", weights_sha256="f" * 64)) == second
    assert len(mlflow_helpers.runs(client)) == 2
    assert client.get_run(first).data.tags["weights_sha256"] == "e" * 64


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    (folder / "figures").mkdir(parents=True)
    for name in ("table2.md", "table2.csv", "report.html", "figures/a.png", "figures/b.png"):
        (folder / name).write_text(f"this is {name}\n")
    return folder


def artifacts(client, run_id):
    inside = [one.path for one in client.list_artifacts(run_id, "figures")]
    return sorted([one.path for one in client.list_artifacts(run_id) if not one.is_dir] + inside)


def test_a_summary_is_logged_once_for_the_same_results(client, results, tmp_path):
    assert log_summary(client, "tiny", results) is True
    assert log_summary(client, "tiny", results) is False
    (run,) = mlflow_helpers.runs(client)
    assert (run.info.run_name, run.info.status) == ("table2-tiny", "FINISHED")
    assert run.data.tags["mlflow.note.content"] == "this is table2.md\n"
    names = ["figures/a.png", "figures/b.png", "report.html", "table2.csv", "table2.md"]
    assert artifacts(client, run.info.run_id) == names

    shutil.rmtree(tmp_path / "mlartifacts")
    assert log_summary(client, "tiny", results) is True
    assert [one.info.run_id for one in mlflow_helpers.runs(client)] == [run.info.run_id]
    assert artifacts(client, run.info.run_id) == names

    (results / "figures/a.png").write_text("another figure\n")
    assert log_summary(client, "tiny", results) is True
    assert len(mlflow_helpers.runs(client)) == 2
    assert log_summary(client, "tiny", results) is False


def test_a_deleted_experiment_is_one_line_that_says_what_to_do(client):
    run_id = log_training(client, of(1))
    experiment = client.get_run(run_id).info.experiment_id
    client.delete_experiment(experiment)
    with pytest.raises(ValueError, match="the experiment lambdanet/tiny was deleted in MLflow") as caught:
        log_training(client, of(2))
    assert str(caught.value).endswith(f"`mlflow experiments restore --experiment-id {experiment}`")
    assert "\n" not in str(caught.value)
    client.restore_experiment(experiment)
    assert log_training(client, of(2)) == run_id


def test_a_mirror_logs_the_machines_load_while_it_is_asked_to(client, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
    named = dataclasses.asdict(RUN_KEY)
    record = (
        RECORD | named | {"task": "train", "description": DESCRIPTION, "history": mlflow_helpers.rows(2, 32)}
    )
    mirror = mlflow_runs.Mirror(tmp_path / "log.json")
    files.write_json(mirror.log, [record])
    mirror.update("RUNNING")
    assert mirror.monitor is None
    mirror.update("RUNNING", watch_system=True)
    load = "system/cpu_utilization_percentage"
    helpers.wait_until(lambda: load in client.get_run(mirror.run_id).data.metrics)
    mirror.update("FINISHED", watch_system=True)  # the last record is none of a finished training yet
    assert client.get_run(mirror.run_id).info.status == "RUNNING"
    files.write_json(mirror.log, [record | {"weights_sha256": "e" * 64}])
    mirror.update("FINISHED", watch_system=True)
    assert mirror.monitor is None
    assert client.get_run(mirror.run_id).info.status == "FINISHED"
    assert not any("SystemMetrics" in thread.name for thread in threading.enumerate())


def unreachable(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UnreachableError) as caught:
        mlflow_runs.connect()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_server_that_is_not_there_is_one_line_within_seconds(monkeypatch):
    uri = f"http://127.0.0.1:{mlflow_helpers.closed_port()}"
    assert unreachable(uri, monkeypatch) == f"MLflow at {uri} cannot be used: Connection refused"


def test_a_damaged_database_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").write_text("no database at all, but long enough to be read as one" * 100)
    said = unreachable(f"sqlite:///{tmp_path / 'mlflow.db'}", monkeypatch)
    assert said.startswith(f"MLflow at sqlite:///{tmp_path}/mlflow.db cannot be used: ")


def test_a_database_without_its_driver_or_server_is_one_line_without_the_password(monkeypatch):
    uri = f"postgresql://me:secret@127.0.0.1:{mlflow_helpers.closed_port()}/mlflow"
    said = unreachable(uri, monkeypatch)
    assert said.startswith(f"MLflow at {uri.replace('secret', '***')} cannot be used: ")
    assert "secret" not in said
    assert "its database's driver is not installed (No module named 'psycopg" in said or "refused" in said


def test_without_a_uri_the_database_lies_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert mlflow_runs.uri() == "sqlite:///mlflow.db"
    assert mlflow_runs.sqlite_file() == Path("mlflow.db")


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("sqlite:///mine.db", "mine.db"),
        ("sqlite:////x/my%2520project/50%25%20%3F%23.db", "/x/my%20project/50% ?#.db"),
        ("sqlite:////x/a.db?timeout=60", "/x/a.db"),
        ("sqlite+pysqlite:////x/a.db", "/x/a.db"),
        ("sqlite://", None),
        ("http://127.0.0.1:5000", None),
        ("postgresql://u:p@host/mlflow", None),
        ("mlruns", None),
    ],
)
def test_the_file_of_a_uri_is_the_one_that_mlflow_opens(monkeypatch, uri, file):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert mlflow_runs.sqlite_file() == (file and Path(file))


# Forks, because eight interpreters that load MLflow would take most of the time.
TOGETHER = """
import os, sys
sys.path.insert(0, sys.argv[1])
import mlflow.store.tracking.sqlalchemy_store
import test_tracking
from lambdanet import tracking
from lambdanet.config import Run

reading, writing = os.pipe()
children = []
for number in range(8):
    if not (child := os.fork()):
        os.close(writing)
        os.read(reading, 1)  # until all are there
        run = Run("tiny", "gaussian-01", f"model-{number}", 0)
        client = tracking.connect()
        run_id, logged = None, {}
        for epochs in range(1, 6):
            with tracking.reaching():
                training = test_tracking.of(epochs, "FINISHED" if epochs == 5 else "RUNNING", run=run,
                                            weights_sha256=f"{number:064}" if epochs == 5 else None)
                run_id = tracking.log_training(client, training, run_id, logged)
        os._exit(0)
    children.append(child)
os.close(writing)
sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
"""


def test_eight_processes_at_once_on_a_database_that_is_not_there_yet(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    command = [sys.executable, "-c", TOGETHER, str(Path(__file__).parent)]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"MLFLOW_TRACKING_URI": uri}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = mlflow_runs.connect()
    found = mlflow_helpers.runs(client)
    assert sorted(run.data.tags["model"] for run in found) == [f"model-{number}" for number in range(8)]
    for run in found:
        assert run.info.status == "FINISHED"
        metrics = mlflow_helpers.histories(client, run.info.run_id)
        for key in mlflow_runs.EPOCH_METRICS:
            assert [step for step, _, _ in metrics[key]] == [1, 2, 3, 4, 5], key


def test_time_is_utc():
    assert (
        mlflow_runs._milliseconds("2026-01-02T03:04:05.678Z")
        == 1000 * int(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()) + 678
    )
