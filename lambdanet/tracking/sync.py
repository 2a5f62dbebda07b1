"""Bring MLflow up to date with what is on disk: DVC's outputs, or the weights and results in git."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from mlflow import MlflowClient

from lambdanet import files
from lambdanet.config import Config, Run, RunKey
from lambdanet.inference.catalogue import Denoiser, best_seeds
from lambdanet.models import read_description
from lambdanet.report.tables import read_history
from lambdanet.run_log import find_record, read_trainings
from lambdanet.tracking import export, mlflow_runs, registry
from lambdanet.tracking.mlflow_runs import Training


@dataclass
class Published:
    """What `publish` did, by names."""

    runs: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    without_log: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The same for users."""
        counts = f"{len(self.versions)} new versions, {len(self.aliases)} aliases moved"
        text = [f"{len(self.runs)} runs, {counts}", *(f"  {moved}" for moved in self.aliases)]
        if self.without_log:
            text.append(
                f"not restored: times, memory, device and training images' digests of "
                f"{len(self.without_log)} of {len(self.runs)} trainings; their logs are not here"
            )
        return text


def from_outputs(config: Config) -> list[Training]:
    """The trained and scored runs among DVC's outputs: of Table 2 and of the ablations.

    Logs may be incomplete or absent.

    Raises:
        ValueError: an output cannot be read, or scores are of other weights.
    """
    return [
        _training(run.weights, read_history(run.history), files.read_json(run.scores), run, config)
        for run in config.runs
        if run.weights.is_file() and run.scores.is_file()
    ]


def from_committed(weights: Path, results: Path, config: Config) -> list[Training]:
    """The runs of Table 2 whose weights and scores are in git.

    Args:
        weights: folder with a .safetensors file a run; a run without one is left out.
        results: folder of `report.write_report`.
        config: of their profile.

    Raises:
        ValueError: a file is missing, cannot be read, or scores are of other weights.
    """
    found = []
    runs = {run.key.name: run for run in config.table_runs}
    for name, entry in read_trainings(results).items():
        path = weights / f"{name}.safetensors"
        if path.is_file() and name in runs:  # params.yaml may have other models now
            history = read_history(results / "histories" / f"{name}.csv")
            found.append(_training(path, history, entry["scores"], runs[name], config))
    return found


def publish(trained: list[Training]) -> Published:
    """Log what MLflow lacks of these trainings, register what it lacks of their best networks, set aliases.

    Args:
        trained: of `from_outputs` or `from_committed`.

    Raises:
        UnreachableError: MLflow does not answer; what was done is kept, the rest is for the next call.
        ValueError: a network cannot be registered.
    """
    done, model_ids = Published(), {}
    client = mlflow_runs.connect()
    for one in trained:
        with mlflow_runs.reaching():  # each by itself: a training that ends now may want to log it
            model_ids[one.weights_sha256] = mlflow_runs.model_of(mlflow_runs.log_training(client, one))
        done.runs.append(one.key.name)
        if not one.record:
            done.without_log.append(one.key.name)
    registered = [one for one in trained if one.registered]
    by_weights = {one.weights_sha256: one for one in registered}
    errors = _register(client, by_weights, model_ids, done.versions)
    with mlflow_runs.reaching():
        for noise in dict.fromkeys(one.key.noise for one in registered):
            moved = registry.assign_aliases(client, noise)
            done.aliases += [registry.moved_line(noise, alias, one) for alias, one in moved.items()]
    if errors:
        raise ValueError(f"not registered, all else is done: {'; '.join(errors)}")
    return done


def _register(
    client: MlflowClient, by_weights: dict[str, Training], model_ids: dict[str, str], made: list[str]
) -> list[str]:
    """Register what the registry lacks, and add it to `made`; what could not be registered, and why."""
    errors, best = [], best_seeds(map(_denoiser, by_weights.values()))
    with tempfile.TemporaryDirectory() as folder:
        builder = export.Builder(Path(folder))
        for seed in (seed for seeds in best.values() for seed in seeds):
            one, model_id = by_weights[seed.weights_sha256], model_ids[seed.weights_sha256]
            try:
                with mlflow_runs.reaching():
                    version = registry.register(client, seed, one, model_id, builder, new=seed in best)
            except mlflow_runs.UnreachableError:
                raise
            except ValueError as error:
                errors.append(f"{one.key.name}: {error}")
                continue
            if version:
                made.append(f"{version.name} version {version.version}")
    return errors


def write_receipt(path: Path, trained: list[Training], why: str = "") -> None:
    """Say which weights were published, or `why` none; the same weights always give the same bytes."""
    registered = {one.key.name: one.weights_sha256 for one in trained}
    files.write_json(path, {"registered": registered} | ({"why": why} if why else {}))


def _denoiser(one: Training) -> Denoiser:
    return Denoiser.of(one.key, one.scores, one.train_images)


def _training(weights: Path, history: pd.DataFrame, scores: dict, run: Run, config: Config) -> Training:
    description, digest = read_description(weights), files.sha256(weights)
    if digest != scores.get("weights_sha256"):
        raise ValueError(f"{weights} is not what was scored; run `dvc repro`")
    try:
        run_key = RunKey(**description["cell"])
    except (KeyError, TypeError):
        raise ValueError(f"{weights} does not say which noise and model it is of") from None
    record = find_record(run.log, digest) or {}
    times = {row["epoch"]: row for row in record.get("history", [])}
    ablation = config.profile.ablations.get(run_key.model)
    images = record.get("data", {}).get("train", {}).get("images") or run.train_images
    return Training(
        key=run_key,
        description=description,
        history=[times.get(row["epoch"], {}) | row for row in history.to_dict("records")],
        record=record,
        scores=scores,
        weights_sha256=digest,
        weights=weights,
        study=ablation.study if ablation else "",
        dataset=config.dataset(run_key.model),
        train_images=images,
        registered=not ablation or config.is_document(run),
    )
