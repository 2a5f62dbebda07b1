"""MLflow's runs: one for each training, and a summary of each grid.

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
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import filelock

from lambdanet.config import RunKey
from lambdanet.records import read_records

# Before MLflow is loaded. A dead server must be noticed in seconds, not after the default's 4 minutes.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

import mlflow
import requests
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

logging.getLogger("alembic").setLevel(logging.WARNING)
for _name in ("mlflow", "urllib3"):
    logging.getLogger(_name).setLevel(logging.ERROR)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for what it raises, too

DATABASE, ARTIFACTS = Path("mlflow.db"), Path("mlartifacts")
LEARNING = ("loss", "monitored_psnr", "learning_rate")
EPOCH_METRICS = (*LEARNING, "epoch_seconds", "images_per_second")
# Of an error's long text, what a reader wants; a server killed while it answers breaks the connection.
REASONS = (
    "Connection refused", "Connection reset", "Connection aborted", "Connection broken",
    "Name or service not known", "timed out", "database is locked",
    "attempt to write a readonly database",
)  # fmt: skip
BATCH = 500  # entries of one request; MLflow takes 1,000 metrics


class UnreachableError(ValueError):
    """MLflow does not answer, or its database cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What MLflow shall hold of one training; what is not known is empty.

    Attributes:
        run: what was trained.
        description: its model, noise and settings, as in model.json.
        history: rows of the history; `seconds` and `finished` of an epoch where the log has them.
        status: MLflow's: RUNNING, FINISHED, FAILED or KILLED.
        record: the training's record in the logs.
        evaluation: the evaluation's record in the logs.
        scores: what `evaluate` wrote.
        weights_sha256: digest of the weights, once there are any.
    """

    key: RunKey
    description: dict
    history: list[dict]
    status: str = "FINISHED"
    record: dict = field(default_factory=dict)
    evaluation: dict = field(default_factory=dict)
    scores: dict = field(default_factory=dict)
    weights_sha256: str | None = None


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
        for reason in REASONS:
            if reason in text:
                text = reason
        if isinstance(error, ImportError):
            text = f"its database's driver is not installed ({text})"
        raise UnreachableError(f"MLflow at {_without_password(uri())} cannot be used: {text[:300]}") from None


def _without_password(address: str) -> str:
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", address)


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


def _local_path(place: str) -> Path:
    """The path that MLflow keeps as a path or as a file URI."""
    return Path(url2pathname(urlsplit(place).path) if place.startswith("file:") else place)


def moved_from(place: str) -> Path | None:
    """Where this folder was when its database noted a place of artifacts; None if it was here.

    Of databases in the current folder; another one's artifacts may be anywhere.
    """
    database = sqlite_file()
    if not database or database.resolve().parent != Path.cwd():
        return None
    there, between, _ = _local_path(place).as_posix().rpartition(f"/{ARTIFACTS}/")
    return Path(there) if between and Path(there) != Path.cwd() else None


def moved_line(there: Path) -> str:
    """What to do in a folder that was moved or copied from `there`."""
    return (
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
    # A server decides itself where artifacts go.
    folder = (ARTIFACTS / profile).resolve().as_uri() if sqlite_file() else None
    for _ in range(2):
        if found := client.get_experiment_by_name(name):
            if found.lifecycle_stage != "active":
                raise ValueError(
                    f"the experiment {name} was deleted in MLflow; bring it back with "
                    f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
                )
            if there := moved_from(found.artifact_location):
                raise ValueError(moved_line(there))
            return found.experiment_id
        try:
            return client.create_experiment(name, artifact_location=folder)
        except MlflowException as error:
            reason = error  # another process made it just now, or it cannot be made
    raise reason


def find_run(client: MlflowClient, experiment: str, **tags: str) -> str | None:
    """The newest run of an experiment with these tags."""
    wanted = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
    found = client.search_runs([experiment], wanted, order_by=["attributes.start_time DESC"], max_results=1)
    return found[0].info.run_id if found else None


def run_page(run_key: RunKey) -> str | None:
    """Where a browser shows the newest run of a run; None without such a run, or without a server.

    Raises:
        UnreachableError: the server does not answer.
    """
    if not uri().startswith("http"):
        return None
    client = connect()
    with reaching():
        experiment = experiment_id(client, run_key.profile)
        run_id = find_run(client, experiment, run=run_key.name)
    return f"{uri().rstrip('/')}/#/experiments/{experiment}/runs/{run_id}" if run_id else None


def log_training(
    client: MlflowClient, training: Training, run_id: str | None = None, logged: dict | None = None
) -> str:
    """Bring the run of a training up to date, and make it where it is missing.

    Args:
        client: of `connect`.
        training: what is known by now.
        run_id: the run, where it is known already.
        logged: (key, step) to value of the metrics that it is known to hold; what is logged is added.

    Returns:
        The run's id.
    """
    experiment = experiment_id(client, training.key.profile)
    run_id = run_id or _find(client, experiment, training) or _create(client, experiment, training)
    run = client.get_run(run_id)
    if logged is None:
        logged = {}
    if not logged:
        for key in EPOCH_METRICS:
            history = sorted(client.get_metric_history(run_id, key), key=lambda one: one.timestamp)
            logged |= {(key, metric.step): metric.value for metric in history}

    epochs = [one for one in _epoch_metrics(training) if _is_news(one, logged.get((one.key, one.step)))]
    metrics = epochs + _metrics(training, run.data.metrics)
    params = [p for p in _params(training.description) if p.key not in run.data.params]
    tags = [tag for tag in _tags(training) if run.data.tags.get(tag.key) != tag.value]
    if params or tags:
        client.log_batch(run_id, params=params, tags=tags)
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])
    logged |= {(metric.key, metric.step): metric.value for metric in epochs}
    present = {(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs}
    if inputs := [i for i in _inputs(training) if (i.dataset.name, i.dataset.digest) not in present]:
        client.log_inputs(run_id, datasets=inputs)
    if training.status != run.info.status:
        if training.status == "RUNNING":
            client.update_run(run_id, status="RUNNING")
        else:
            client.set_terminated(run_id, training.status, _milliseconds(training.record.get("finished")))
    return run_id


def log_summary(client: MlflowClient, profile: str, results: Path) -> bool:
    """Log a grid's table, report and figures to a run of their own, unless they are there.

    Returns:
        Whether they were logged now.
    """
    experiment = experiment_id(client, profile)
    files = [results / name for name in ("table2.md", "table2.csv", "report.html")]
    files += sorted((results / "figures").glob("*.png"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    run_id = find_run(client, experiment, task="summary", results_sha256=digest)
    if run_id:
        listed = client.list_artifacts(run_id) + client.list_artifacts(run_id, "figures")
        present = {item.path.rpartition("/")[2] for item in listed}
        if {path.name for path in files} <= present and client.get_run(run_id).info.status == "FINISHED":
            return False
    if not run_id:
        tags = {"task": "summary", "profile": profile, "results_sha256": digest}
        tags["mlflow.note.content"] = (results / "table2.md").read_text()[:5000]
        run_id = client.create_run(experiment, tags=tags, run_name=f"table2-{profile}").info.run_id
    for path in files:
        client.log_artifact(run_id, str(path), "figures" if path.parent.name == "figures" else None)
    client.set_terminated(run_id, "FINISHED")
    return True


class Mirror:
    """Keeps MLflow up to date with the last record of one log; see `lambdanet.tracking.live`."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.client: MlflowClient | None = None
        self.run_id: str | None = None
        self.logged: dict = {}
        self.monitor = None

    def update(self, status: str, *, watch_system: bool = False) -> None:
        """Log what is new.

        Args:
            status: of the computation.
            watch_system: whether to log the machine's load from now on.

        Raises:
            UnreachableError: MLflow does not answer; call again later.
        """
        records = read_records(self.log)
        record = records[-1] if records else {}
        if "task" not in record:  # none yet, or one of an earlier training that was restored from a report
            return
        if "weights_sha256" in record:
            status = "FINISHED"  # whatever happened after that
        elif status == "FINISHED":
            return
        try:
            self.client = self.client or connect()
            with reaching():
                self._log(record, status)
                self._watch(watch_system and status == "RUNNING")
        except UnreachableError:
            self.monitor, self.logged = None, {}  # it ends by itself; what arrived is not known
            raise

    def _log(self, record: dict, status: str) -> None:
        run_key = RunKey(*(record[key] for key in ("profile", "noise", "model", "seed")))
        digest = record.get("weights_sha256")
        if record["task"] == "evaluate":
            run_id = find_run(
                self.client,
                experiment_id(self.client, run_key.profile),
                weights_sha256=digest,
                run=run_key.name,
            )
            if run_id:  # else the training was not tracked, and `publish` logs all of it
                metrics = _scores(record["scores"]) | _evaluation(record)
                scored = _milliseconds(record["finished"])
                values = [Metric(key, value, scored, 0) for key, value in metrics.items()]
                self.client.log_batch(run_id, values)
            return
        training = Training(
            key=run_key, description=record["description"], history=record["history"], status=status,
            record=record, weights_sha256=digest,
        )  # fmt: skip
        self.run_id = log_training(self.client, training, self.run_id, self.logged)

    def _watch(self, wanted: bool) -> None:
        # MLflow's monitor ends for good when the server does not answer once.
        alive = any(thread.name == "SystemMetricsMonitor" for thread in threading.enumerate())
        if wanted and not alive and self.run_id:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self.monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=uri())
            self.monitor.start()
        elif not wanted and self.monitor:
            self.monitor.finish()
            self.monitor = None


def _find(client: MlflowClient, experiment: str, training: Training) -> str | None:
    run_key = training.key.name
    if training.weights_sha256:
        found = find_run(client, experiment, weights_sha256=training.weights_sha256, run=run_key)
        if found:
            return found
    # One that was killed here, and goes on or is made whole now; elsewhere the same may be running.
    same = {"training_sha256": _identity(training), "workspace": _workspace(), "run": run_key}
    found = find_run(client, experiment, **same) if same["training_sha256"] else None
    if found and "weights_sha256" not in client.get_run(found).data.tags:
        return found
    return None


def _create(client: MlflowClient, experiment: str, training: Training) -> str:
    tags = {tag.key: tag.value for tag in _tags(training)}
    tags["workspace"] = _workspace()
    started = _started(training.record)
    return client.create_run(experiment, started, tags, run_name=training.key.name).info.run_id


def _tags(training: Training) -> list[RunTag]:
    run_key, record = training.key, training.record
    tags = {
        "task": "train",
        "run": run_key.name,
        "profile": run_key.profile,
        "noise": run_key.noise,
        "model": run_key.model,
        "seed": run_key.seed,
        "training_sha256": _identity(training),
        "weights_sha256": training.weights_sha256,
        # None of a training by hand; without a log it is one of DVC's outputs.
        "stage": record.get("stage", f"train@{run_key.name}"),
        "device": record.get("device"),
        "commit": record.get("commit"),
        "mlflow.source.git.commit": record.get("commit"),
        "mlflow.source.name": "stages/train.py",
    }
    return [RunTag(key, str(value)) for key, value in tags.items() if value is not None]


def _params(description: dict) -> list[Param]:
    return [
        Param(f"{section}.{key}", str(value))
        for section in ("model", "noise", "training")
        for key, value in description[section].items()
    ]


def _epoch_metrics(training: Training) -> list[Metric]:
    images = training.record.get("data", {}).get("train", {}).get("images")
    found = []
    for row in training.history:
        values = {key: row[key] for key in LEARNING}
        if seconds := row.get("seconds"):
            values["epoch_seconds"] = seconds
            values |= {"images_per_second": images / seconds} if images else {}
        moment = _milliseconds(row.get("finished") or training.record.get("finished"))
        found += [Metric(key, value, moment, row["epoch"]) for key, value in values.items()]
    return [metric for metric in found if math.isfinite(metric.value)]  # MLflow's charts cannot hold inf


def _is_news(metric: Metric, logged: float | None) -> bool:
    """Whether it is not logged, or as something else; an epoch done twice takes another time each time."""
    return logged is None or (metric.key in LEARNING and metric.value != logged)


def _metrics(training: Training, present: dict[str, float]) -> list[Metric]:
    """What there is one value of, at the end, and is not present yet or was another."""
    if training.status != "FINISHED":
        return []
    values = _scores(training.scores) | _evaluation(training.evaluation)
    # A log that was restored from a report has no times.
    for name, key in (("training_seconds", "seconds"), ("peak_memory_bytes", "peak_memory_bytes")):
        if key in training.record:
            values[name] = training.record[key]
    # Scored anew, the same weights may have other scores; MLflow shows the newest.
    now = _milliseconds(None)
    trained = _milliseconds(training.record.get("finished"))
    scored = _milliseconds(training.evaluation.get("finished") or training.record.get("finished"))
    moments = {key: trained if key in ("training_seconds", "peak_memory_bytes") else scored for key in values}
    return [
        Metric(key, value, now if key in present else moments[key], 0)
        for key, value in values.items()
        if present.get(key) != value
    ]


def _scores(scores: dict) -> dict[str, float]:
    return {
        key: value
        for key, value in scores.items()
        if isinstance(value, int | float) and key not in ("seed", "images") and math.isfinite(value)
    }


def _evaluation(record: dict) -> dict[str, float]:
    return {"inference_seconds_per_image": record["inference_seconds_per_image"]} if record else {}


def _inputs(training: Training) -> list[DatasetInput]:
    """The images: of training from the log, of testing from there or from the scores."""
    run_key, data = training.key, training.record.get("data", {})
    data = data if "test" in data else data | {"test": training.scores} if training.scores else data
    inputs = []
    for split, context in (("train", "training"), ("test", "testing")):
        for kind, noise in (("clean", "clean"), ("noisy", run_key.noise)):
            if digest := data.get(split, {}).get(f"{kind}_sha256"):
                # Scores alone do not say which data set they are of.
                folder = data[split].get(kind, f"runs/{run_key.profile}/data/{noise}")
                dataset = Dataset(
                    name=f"{folder.removeprefix('runs/').replace('/data/', '/')}/{split}",
                    digest=digest[:36],  # all that MLflow takes
                    source_type="local",
                    source=json.dumps({"uri": f"{folder}/{split}.npy", "sha256": digest}),
                    profile=json.dumps({"images": data[split]["images"]}),
                )
                inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return inputs


def _identity(training: Training) -> str | None:
    """A digest of settings, data and code; None where the log does not tell."""
    if "data" not in training.record:
        return None
    parts = [training.description, training.record["data"], training.record["commit"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _workspace() -> str:
    # Workers that hand a training on to each other are told one name for all of them.
    if shared := os.environ.get("LAMBDANET_WORKSPACE"):
        return shared
    return f"{socket.gethostname()}:{Path.cwd()}"


def _started(record: dict) -> int:
    if "started" in record or "finished" not in record:
        return _milliseconds(record.get("started"))
    return _milliseconds(record["finished"]) - int(1000 * record["seconds"])  # a log of an earlier version


def _milliseconds(moment: str | None) -> int:
    """ISO 8601 to MLflow's time; now where there is none."""
    return int(1000 * (datetime.fromisoformat(moment).timestamp() if moment else time.time()))
