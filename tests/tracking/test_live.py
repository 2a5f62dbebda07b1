import contextlib
import socket
import threading

import helpers
import mlflow_helpers
import pytest
import torch

from lambdanet import files
from lambdanet.run_log import Log
from lambdanet.tracking import live, mlflow_runs, sync

RUN_KEY = mlflow_helpers.RUN_KEY
TRAINED = "runs/tiny/models/gaussian-01/dncnn-0"
ENDS = [(SystemExit(143), "KILLED"), (KeyboardInterrupt(), "KILLED"), (ValueError(), "FAILED")]
DETAILS = {
    "task": "train", "profile": "tiny", "noise": "gaussian-01", "model": "dncnn", "seed": 0,
    "stage": "train@gaussian-01-dncnn-0", "data": {"train": mlflow_helpers.RECORD["data"]["train"]},
    "description": mlflow_helpers.description(RUN_KEY, helpers.DNCNN),
}  # fmt: skip


@pytest.fixture(autouse=True)
def tracking(monkeypatch):
    monkeypatch.setenv("LAMBDANET_TRACKING", "on")
    monkeypatch.setattr(live, "WAIT_SECONDS", helpers.PATIENCE)  # the machine may be busy with other tests


@contextlib.contextmanager
def training(folder, **options):
    """Begin a training that is followed: its log, and a function that logs its epochs up to one."""
    log = Log(folder / "log.json", torch.device("cpu"), **DETAILS)
    with live.follow(log.path, **options) as tell:

        def train(last, first=1):
            for row in mlflow_helpers.rows(last)[first - 1 :]:
                log.epoch(row, 0.5)
                tell()

        yield log, train


def statuses(client):
    return [run.info.status for run in mlflow_helpers.runs(client)]


def steps(client, key="loss"):
    found = [mlflow_helpers.histories(client, run.info.run_id) for run in mlflow_helpers.runs(client)]
    return [step for one in found for step, _, _ in one.get(key, [])]


def test_a_training_is_logged_while_it_runs(client, tmp_path):
    with training(tmp_path) as (log, train):
        train(2)
        helpers.wait_until(lambda: steps(client) == [1, 2])
        assert statuses(client) == ["RUNNING"]
        train(3, first=3)
        log.finish("e" * 64)
    assert statuses(client) == ["FINISHED"]
    for key in mlflow_helpers.EPOCH_METRICS:
        assert steps(client, key) == [1, 2, 3], key
    (run,) = mlflow_helpers.runs(client)
    assert run.data.metrics["training_seconds"] == log.record["seconds"]


def test_the_same_training_again_ends_its_own_run(client, tmp_path):
    for ended in (["FINISHED"], ["FINISHED", "FINISHED"]):
        with training(tmp_path) as (log, train):
            train(1)
            helpers.wait_until(lambda: "RUNNING" in statuses(client))
            log.finish("e" * 64)
        assert statuses(client) == ended


@pytest.mark.parametrize(("error", "status"), ENDS)
def test_how_a_training_ended_is_logged_and_its_run_resumed(client, tmp_path, error, status):
    with contextlib.suppress(BaseException), training(tmp_path) as (_, train):
        train(2)
        raise error
    assert statuses(client) == [status]
    with training(tmp_path) as (log, train):
        train(3, first=3)
        log.finish("e" * 64)
    assert (statuses(client), steps(client)) == (["FINISHED"], [1, 2, 3])


def test_what_is_over_before_patience_is_left_to_register(client, tmp_path, monkeypatch):
    uri = mlflow_runs.uri()  # MLflow keeps what it opened by its name, which must not be a relative one here
    monkeypatch.setattr(mlflow_runs, "uri", lambda: uri)
    monkeypatch.setenv("LAMBDANET_TRACKING", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for error in (None, ValueError()):
        with contextlib.suppress(ValueError), training(tmp_path, patience=3600) as (_, train):
            train(2)
            if error:
                raise error
    assert statuses(client) == []
    with training(tmp_path, patience=0.1) as (_, train):
        train(2)
        helpers.wait_until(lambda: steps(client) == [1, 2])


def test_a_log_without_a_training_of_now_makes_no_run(client, tmp_path):
    """What failed before it began, and the log of an earlier training that was restored from a report."""
    files.write_json(tmp_path / "log.json", [{"device": "cpu", "weights_sha256": "e" * 64}])
    with live.follow(tmp_path / "log.json"):
        pass
    with live.follow(tmp_path / "log.json") as tell:
        tell()
    assert statuses(client) == []


def test_whatever_mlflow_raises_costs_one_line(client, tmp_path, capsys):
    client.delete_experiment(mlflow_runs.experiment_id(client, "tiny"))
    with training(tmp_path) as (_, train):
        train(3)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("the experiment lambdanet/tiny was deleted in MLflow; bring it back with ")
    assert said.endswith(f"; {live.CATCHING_UP}")


def test_a_server_that_never_answers_is_not_waited_for(client, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(live, "WAIT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        with training(tmp_path) as (_, train):
            train(1)
            connection, _ = server.accept()  # MLflow waits for an answer now, for 20 seconds
            train(3, first=2)
        assert capsys.readouterr().err == f"MLflow answers too slowly; {live.CATCHING_UP}\n"
        connection.close()
    for thread in threading.enumerate():
        if thread.name == "lambdanet-mlflow":
            thread.join(helpers.PATIENCE)


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    """What the training writes where nothing is logged to MLflow."""
    folder = tmp_path_factory.mktemp("untracked")
    assert run_stage(folder, LAMBDANET_TRACKING="off") == []
    return helpers.contents(folder / TRAINED)


def run_stage(folder, **environment):
    """Train in a new project; the lines that are not about the training."""
    helpers.write_project(folder)
    status, out, err = helpers.run("train", helpers.train_words("dncnn"), folder, **environment)
    assert (status, out) == (0, ""), err
    return [line for line in err.splitlines() if not line.startswith(RUN_KEY.name)]


def test_a_stage_that_is_logged_writes_the_same_bytes(tmp_path, untracked, monkeypatch):
    uri = mlflow_helpers.write_database(tmp_path / "mlflow.db")
    said = run_stage(tmp_path, LAMBDANET_TRACKING="on", MLFLOW_TRACKING_URI=uri)
    assert said in ([], [f"MLflow answers too slowly; {live.CATCHING_UP}"])  # it may, on a busy machine
    assert helpers.contents(tmp_path / TRAINED) == untracked
    if not said:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        client = mlflow_runs.connect()
        assert (statuses(client), steps(client)) == (["FINISHED"], [1, 2])


def test_a_server_that_is_not_there_costs_a_stage_one_line(tmp_path, untracked):
    uri = f"http://127.0.0.1:{helpers.free_port()}"
    (line,) = run_stage(tmp_path, LAMBDANET_TRACKING="on", MLFLOW_TRACKING_URI=uri)
    said = (f"MLflow at {uri} cannot be used: Connection refused", "MLflow answers too slowly")
    assert line in [f"{one}; {live.CATCHING_UP}" for one in said]
    assert helpers.contents(tmp_path / TRAINED) == untracked


@contextlib.contextmanager
def mlflow_server(folder, port):
    """A server as `make up` starts it, killed in the end; gives its address."""
    address = f"http://127.0.0.1:{port}"
    words = ["-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    words += ["--default-artifact-root", str(folder / "mlartifacts")]
    without = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # 7 more processes, for nothing here
    with helpers.served(f"{address}/health", folder, *words, **without):
        yield address


@pytest.mark.slow
def test_one_store_behind_a_server_and_without_it(client, tmp_path, monkeypatch, capsys):
    """`make up`, a training whose server dies, then `make repro`, and `make up` again: one run, one model."""
    helpers.write_config(tmp_path)
    here, port = mlflow_runs.uri(), helpers.free_port()
    with mlflow_server(tmp_path, port) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        one = mlflow_helpers.trained(tmp_path, "autoencoder")
        assert mlflow_helpers.register(mlflow_runs.connect(), one).version == "1"
        with training(tmp_path) as (log, train):
            train(1)
            helpers.wait_until(lambda: steps(client).count(1) == 2)  # the other's history has an epoch 1 too
            log.epoch(mlflow_helpers.rows(2)[1], 0.5)
        assert capsys.readouterr().err == ""
    one = mlflow_helpers.trained(tmp_path, psnr=26.5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
    done = sync.publish([one])
    assert done.versions == ["denoiser-gaussian-01 version 2"]
    with mlflow_server(tmp_path, port) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert sync.publish([one]).versions == []
        served = mlflow_runs.connect()
        assert len(mlflow_helpers.runs(served)) == 3
        experiment = served.get_experiment_by_name("lambdanet/tiny").experiment_id
        (found,) = served.search_logged_models([experiment], filter_string="metrics.psnr > 26")
        assert found.name == "gaussian-01-dncnn-0"
