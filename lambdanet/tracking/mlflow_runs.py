"""MLflow's runs: one for each training, with a logged model once it is scored.

What MLflow holds is a projection of files: `log_training` brings a run up to date with what is known of
its training, whether it is called after each epoch or long afterwards, and leaves alone what is there.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import filelock
import mlflow
import requests
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from lambdanet.config import RunKey
from lambdanet.run_log import read_records

logging.getLogger("alembic").setLevel(logging.WARNING)
for _name in ("mlflow", "urllib3"):
    logging.getLogger(_name).setLevel(logging.ERROR)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for what it raises, too

DATABASE, ARTIFACTS = Path("mlflow.db"), Path("mlartifacts")
DATABASE_SERVERS = ("postgresql", "mysql", "mssql")  # as the addresses begin that MLflow takes
WEIGHTS = "extra_files/weights.safetensors"  # in a model
LEARNING = ("loss", "monitored_psnr", "learning_rate")
# Of an error's long text, what a reader wants; a server killed while it answers breaks the connection.
REASON = re.compile(
    r"Connection (refused|reset|aborted|broken)|Name or service not known|timed out|database is locked|"
    r"attempt to write a readonly database"
)
EPOCHS = 100  # of one request; MLflow takes 1,000 metrics


class UnreachableError(ValueError):
    """MLflow does not answer, or its database cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What MLflow shall hold of one training; what is not known is empty.

    Attributes:
        key: what was trained.
        description: its model, noise and settings, as in model.json.
        history: rows of the history; `seconds` and `finished` of an epoch where the log has them.
        status: MLflow's: RUNNING, FINISHED, FAILED or KILLED.
        record: the training's record in the logs.
        scores: what `evaluate` wrote.
        weights_sha256: digest of the weights, once there are any.
        weights: file of the weights; with scores, it becomes a logged model.
        study: that an ablation belongs to.
        dataset: the data set's name in profile.yaml.
        train_images: how many images or patches it was trained on.
        registered: whether it belongs in the registry: of Table 2, or another document's experiment.
    """

    key: RunKey
    description: dict
    history: list[dict]
    status: str = "FINISHED"
    record: dict = field(default_factory=dict)
    scores: dict = field(default_factory=dict)
    weights_sha256: str | None = None
    weights: Path | None = None
    study: str = ""
    dataset: str = ""
    train_images: int = 0
    registered: bool = True

    @property
    def commit(self) -> str:
        """That trained it; empty where the log does not tell."""
        return self.record.get("commit", "")


def uri() -> str:
    """`MLFLOW_TRACKING_URI`, or a SQLite file in the current folder.

    Not by its whole path: MLflow takes no %, ? or # in it.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DATABASE}"


def connect() -> MlflowClient:
    """A client of `uri()`; a SQLite file that is not there yet is made, by one process alone.

    Raises:
        UnreachableError: see `reaching`.
    """
    mlflow.set_tracking_uri(uri())
    with reaching():
        if (path := sqlite_file()) and not path.exists():
            _make_database(path)
        if uri().startswith(DATABASE_SERVERS):  # MLflow itself tries one that is away for 100 seconds
            sqlalchemy.create_engine(uri(), poolclass=sqlalchemy.NullPool).connect().close()
        client = MlflowClient(uri())
        client.search_experiments(max_results=1)
    return client


def _make_database(path: Path) -> None:
    """Make it under another name first: one whose maker was killed halfway can never be used."""
    part = path.with_name(f"{path.name}.part")
    for left in path.parent.glob(f"{part.name}*"):
        left.unlink()
    MlflowClient(_sqlite(uri()).set(database=str(part)).render_as_string()).search_experiments(max_results=1)
    os.replace(part, path)


@contextlib.contextmanager
def reaching() -> Iterator[None]:
    """Turn whatever MLflow raises in this block into one line; one process at a time in a SQLite file.

    Raises:
        UnreachableError: it did.
    """
    try:
        with _alone():
            yield
    except (
        MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError, ImportError,
    ) as error:  # fmt: skip
        text = " ".join(str(error).split())
        text = found[0] if (found := REASON.search(text)) else text[:300]
        if isinstance(error, ImportError):
            text = f"its database's driver is not installed ({text})"
        address = re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", uri())  # no password
        raise UnreachableError(f"MLflow at {address} cannot be used: {text}") from None


def _alone() -> contextlib.AbstractContextManager:
    """A SQLite file that several processes open first is destroyed, and it takes one writer at a time.

    One that cannot be written here needs no lock; SQLite's journal would stand beside it.
    """
    path = sqlite_file()
    if path is None or (path.exists() and not all(os.access(one, os.W_OK) for one in (path, path.parent))):
        return contextlib.nullcontext()
    return filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=600)


def sqlite_file() -> Path | None:
    """The file that `uri()` names; None where it names a server."""
    found = _sqlite(uri())
    return Path(found.database) if found and found.database else None


def _sqlite(text: str) -> sqlalchemy.URL | None:
    with contextlib.suppress(sqlalchemy.exc.ArgumentError):
        found = sqlalchemy.make_url(text)
        return found if found.get_backend_name() == "sqlite" else None
    return None


def check_not_moved(place: str) -> None:
    """Refuse a place of artifacts in another folder than the one that its database lies in.

    Raises:
        ValueError: this folder was moved or copied, with its database.
    """
    database = sqlite_file()
    if not database or database.resolve().parent != Path.cwd():
        return  # its artifacts may be anywhere
    path = url2pathname(urlsplit(place).path) if place.startswith("file:") else place
    there, between, _ = path.rpartition(f"/{ARTIFACTS}/")
    if between and Path(there) != Path.cwd():
        raise ValueError(
            f"this folder was moved or copied from {there}, where its {DATABASE} still points: "
            f"delete {DATABASE} and {ARTIFACTS} here, then `lambdanet models sync` makes them again"
        )


def experiment_id(client: MlflowClient, profile: str) -> str:
    """The experiment of a profile, made where it is missing.

    Raises:
        ValueError: it was deleted in MLflow, which keeps its name, or the folder is another by now.
        MlflowException: it cannot be made.
    """
    name = f"lambdanet/{profile}"
    if not (found := client.get_experiment_by_name(name)):
        # A server decides itself where artifacts go.
        folder = (ARTIFACTS / profile).resolve().as_uri() if sqlite_file() else None
        try:
            return client.create_experiment(name, artifact_location=folder)
        except MlflowException as error:
            if not (found := client.get_experiment_by_name(name)):  # else another process made it just now
                raise error from None
    if found.lifecycle_stage != "active":
        raise ValueError(
            f"the experiment {name} was deleted in MLflow; bring it back with "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
        )
    check_not_moved(found.artifact_location)
    return found.experiment_id


def find_run(client: MlflowClient, experiment: str, also: str = "", **tags: str) -> Run | None:
    """The newest run of an experiment with these tags."""
    wanted = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items()) + also
    found = client.search_runs([experiment], wanted, order_by=["attributes.start_time DESC"], max_results=1)
    return found[0] if found else None


def log_record(log: Path, status: str) -> None:
    """Bring MLflow up to date with the last record of a training's log.

    Args:
        log: file of `run_log.Log`.
        status: MLflow's, of the training.

    Raises:
        UnreachableError: MLflow does not answer; call again later.
    """
    records = read_records(log)
    record = records[-1] if records else {}
    if "task" not in record:  # none yet, or one of an earlier training that was restored from a report
        return
    digest = record.get("weights_sha256")
    training = Training(
        key=RunKey(*(record[key] for key in ("profile", "noise", "model", "seed"))),
        description=record["description"], history=record["history"], record=record,
        status="FINISHED" if digest else status,  # whatever happened after that
        weights_sha256=digest,
    )  # fmt: skip
    client = connect()
    with reaching():
        log_training(client, training)


def log_training(client: MlflowClient, training: Training) -> Run:
    """Bring the run of a training up to date, and make it where it is missing.

    Args:
        client: of `connect`.
        training: what is known by now; with scores and weights, its model is logged.

    Returns:
        The run, as it is then.
    """
    experiment = experiment_id(client, training.key.profile)
    tags, params = _tags(training), [Param(*one) for one in _params(training.description).items()]
    if not (run := _find(client, experiment, training)):
        started = _milliseconds(training.record.get("started"))
        run = client.create_run(experiment, started, tags, run_name=training.key.name)
    run_id = run.info.run_id
    client.log_batch(run_id, params=params, tags=[RunTag(*one) for one in tags.items()])
    done = {one.step for one in client.get_metric_history(run_id, "learning_rate")}
    rows = [row for row in training.history if row["epoch"] not in done]
    for start in range(0, len(rows), EPOCHS):
        some = rows[start : start + EPOCHS]
        metrics = [one for row in some for one in _epoch_metrics(row, training.record)]
        client.log_batch(run_id, metrics=metrics)
    inputs = _inputs(training)
    client.log_inputs(run_id, datasets=inputs)
    if training.status == "FINISHED":
        _log_results(client, run, training, inputs[-1].dataset if training.scores else None)
    if training.status == "RUNNING":
        client.update_run(run_id, status="RUNNING")
    elif training.status != run.info.status:
        client.set_terminated(run_id, training.status, _milliseconds(training.record.get("finished")))
    return client.get_run(run_id)


def _find(client: MlflowClient, experiment: str, training: Training) -> Run | None:
    run, digest = {"run": training.key.name}, training.weights_sha256
    here = run | {"training_sha256": _identity(training)} if "data" in training.record else {}
    # An earlier training may have had the same weights; this one's run has to end nevertheless.
    if here and (found := find_run(client, experiment, " and attributes.status = 'RUNNING'", **here)):
        return found
    if digest and (found := find_run(client, experiment, weights_sha256=digest, **run)):
        return found
    # One that was killed here, and is resumed or completed now; on another machine the same may be running.
    return find_run(client, experiment, " and attributes.status != 'FINISHED'", **here) if here else None


def _tags(training: Training) -> dict[str, str]:
    run_key, record = training.key, training.record
    # None of a training from the command line; without a log it is one of DVC's outputs.
    made = f"ablate@{run_key.model}" if training.study else f"train@{run_key.name}"
    stage = record.get("stage", made)
    tags = {
        "task": "train",
        "run": run_key.name,
        "profile": run_key.profile,
        "noise": run_key.noise,
        "model": run_key.model,
        "seed": run_key.seed,
        "study": training.study or None,
        "training_sha256": _identity(training) if "data" in record else None,
        "weights_sha256": training.weights_sha256,
        "stage": stage,
        "device": record.get("device"),
        "backend": record.get("computed_by"),
        "commit": record.get("commit"),
        "mlflow.source.git.commit": record.get("commit"),
        "mlflow.source.name": "stages/ablate.py" if "ablate@" in (stage or made) else "stages/train.py",
    }
    return {key: str(value) for key, value in tags.items() if value is not None}


def _params(description: dict) -> dict[str, str]:
    sections = ("model", "noise", "training")
    return {f"{one}.{key}": str(value) for one in sections for key, value in description[one].items()}


def _epoch_metrics(row: dict, record: dict) -> list[Metric]:
    images = record.get("data", {}).get("train", {}).get("images")
    values = {key: row[key] for key in LEARNING}
    if seconds := row.get("seconds"):
        values["epoch_seconds"] = seconds
        values |= {"images_per_second": images / seconds} if images else {}
    moment = _milliseconds(row.get("finished") or record.get("finished"))
    # MLflow's charts cannot hold inf.
    return [Metric(key, value, moment, row["epoch"]) for key, value in values.items() if math.isfinite(value)]


def _log_results(client: MlflowClient, run: Run, training: Training, tests: Dataset | None) -> None:
    """Log what there is one value of, at the end: the run's, and the model's on the test images.

    What is there with the same value is not logged again; of scores made anew, MLflow shows the newest.
    """
    model_id, of_model = model_of(run), run.data.metrics
    if not model_id and training.weights and training.scores:
        model_id, of_model = _log_model(client, run, training), {}
    of_images = {"dataset_name": tests.name, "dataset_digest": tests.digest} if tests else {}
    scores = {
        key: value
        for key, value in training.scores.items()
        if isinstance(value, int | float) and key not in ("seed", "images") and math.isfinite(value)
    }
    record = training.record
    of_run = {"training_seconds": record.get("seconds"), "peak_memory_bytes": record.get("peak_memory_bytes")}
    now, run_id = _milliseconds(None), run.info.run_id
    metrics = [
        Metric(key, value, now, 0, run_id=run_id)
        for key, value in of_run.items()
        if value is not None and run.data.metrics.get(key) != value
    ]
    metrics += [
        Metric(key, value, now, 0, model_id, run_id=run_id, **of_images)
        for key, value in scores.items()
        if of_model.get(key) != value
    ]
    if metrics:
        client.log_batch(run_id, metrics=metrics)


def model_of(run: Run) -> str | None:
    """The id of a run's logged model."""
    outputs = run.outputs.model_outputs if run.outputs else []
    return outputs[0].model_id if outputs else None


def _log_model(client: MlflowClient, run: Run, training: Training) -> str:
    """Make a run's logged model, with its weights; the registry adds the program that needs no project."""
    of = ("noise", "model", "profile", "seed", "study", "commit", "weights_sha256")
    tags = {key: value for key, value in _tags(training).items() if key in of}
    run_id, params = run.info.run_id, _params(training.description)
    experiment, name = run.info.experiment_id, training.key.name
    model_id = client.create_logged_model(experiment, name, run_id, tags, params, "denoiser").model_id
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, WEIGHTS)
        copy.parent.mkdir()
        shutil.copy(training.weights, copy)
        client.log_model_artifacts(model_id, folder)
    client.finalize_logged_model(model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
    return model_id


def _inputs(training: Training) -> list[DatasetInput]:
    """The images: training ones from the log, test ones from there or the scores; last the noisy test."""
    run_key, data = training.key, training.record.get("data", {})
    data = data if "test" in data else data | {"test": training.scores} if training.scores else data
    inputs = []
    for split, context in (("train", "training"), ("test", "testing")):
        for kind, noise in (("clean", "clean"), ("noisy", run_key.noise)):
            if digest := data.get(split, {}).get(f"{kind}_sha256"):
                # Scores alone do not say which folder they are of.
                of = f"{training.dataset}/{noise}" if training.dataset else noise
                folder = data[split].get(kind, f"runs/{run_key.profile}/data/{of}")
                source = {"uri": f"{folder}/{split}.npy", "sha256": digest}
                dataset = Dataset(
                    name=f"{folder.removeprefix('runs/').replace('/data/', '/')}/{split}",
                    digest=digest[:36],  # all that MLflow takes
                    source_type="local",
                    source=json.dumps(source | _dvc_digest(run_key.profile, folder)),
                    profile=json.dumps({"images": data[split]["images"]}),
                )
                inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return inputs


def _dvc_digest(profile: str, folder: str) -> dict[str, str]:
    """The digest by which DVC knows a folder of images, for `dvc pull` and its cache; from dvc.lock."""
    for lock in (Path("dvc.lock"), Path(profile, "dvc.lock")):
        with contextlib.suppress(OSError):
            found = re.search(rf"path: {re.escape(folder)}\n\s+hash: md5\n\s+md5: (\S+)", lock.read_text())
            if found:
                return {"dvc_md5": found[1]}
    return {}


def _identity(training: Training) -> str:
    """A digest of settings, data, code and place."""
    # Workers that hand a training on to each other are told one name for all of them.
    workspace = os.environ.get("LAMBDANET_WORKSPACE") or f"{socket.gethostname()}:{Path.cwd()}"
    parts = [training.description, training.record["data"], training.record["commit"], workspace]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _milliseconds(moment: str | None) -> int:
    """ISO 8601 to MLflow's time; now where there is none."""
    return int(1000 * (datetime.fromisoformat(moment).timestamp() if moment else time.time()))
