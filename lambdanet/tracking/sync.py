"""Bring MLflow up to date with what is on disk: DVC's outputs, or the weights and results in git."""

import functools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from lambdanet import files
from lambdanet.config import Config, Run, RunKey
from lambdanet.inference.catalogue import Denoiser
from lambdanet.models import create_model, read_description
from lambdanet.report.tables import read_history, read_json
from lambdanet.run_log import find_record
from lambdanet.tracking import mlflow_runs, registry
from lambdanet.tracking.mlflow_runs import Training


@dataclass(frozen=True)
class Trained:
    """A scored training and the file of its weights.

    Attributes:
        training: with its scores.
        weights: file.
        train_images: how many images or patches it was trained on.
        registered: whether its network belongs in the registry: of Table 2, or another document's.
    """

    training: Training
    weights: Path
    train_images: int
    registered: bool

    @functools.cached_property
    def any_size(self) -> bool:
        """Whether its network takes images of any size, as the registry's denoisers do."""
        try:
            network = create_model(**self.training.description["model"])
        except (TypeError, ValueError):
            return True  # whoever builds it says what is wrong
        return getattr(network, "side", None) is None


@dataclass
class Published:
    """What `publish` did, by names."""

    runs: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    without_log: list[str] = field(default_factory=list)
    one_size: list[str] = field(default_factory=list)
    summary: bool = False

    def lines(self) -> list[str]:
        """The same for a person."""
        counts = f"{len(self.versions)} new versions, {len(self.aliases)} aliases moved"
        text = [f"{len(self.runs)} runs, {counts}"]
        text += [f"  {moved}" for moved in self.aliases]
        if self.without_log:
            text.append(
                f"not restored: times, memory, device and training images' digests of "
                f"{len(self.without_log)} of {len(self.runs)} trainings; their logs are not here"
            )
        if self.one_size:
            text.append(f"not registered, as they take images of one size only: {', '.join(self.one_size)}")
        return text


def from_outputs(config: Config) -> list[Trained]:
    """The trained and scored runs among DVC's outputs: of Table 2 and of the ablations.

    Logs may be incomplete or absent.

    Raises:
        ValueError: an output cannot be read, or scores are of other weights.
    """
    found = []
    for run in config.runs:
        if run.weights.is_file() and run.scores.is_file():
            history = read_history(run.history)
            registered = run.key.model in config.models or config.is_document(run)
            scores = read_json(run.scores)
            found.append(_trained(run.weights, history, scores, run, registered=registered))
    return found


def from_committed(weights: Path, results: Path, config: Config | None = None) -> list[Trained]:
    """The runs of Table 2 whose weights and scores are in git.

    Args:
        weights: folder with a .safetensors file a run.
        results: folder of `report.write_report`.
        config: of their profile; without it, nothing is known of their logs and training images.

    Raises:
        ValueError: a file is missing, cannot be read, or scores are of other weights.
    """
    found = []
    runs = {run.key.name: run for run in config.table_runs} if config else {}
    for name, digests in read_json(results / "digests.json").items():
        if config and name not in runs:
            continue  # params.yaml has other models now
        scores = read_json(results / "scores" / f"{name}.json")
        scores |= {f"{key}_sha256": value for key, value in digests.items()}
        history = read_history(results / "histories" / f"{name}.csv")
        found.append(_trained(weights / f"{name}.safetensors", history, scores, runs.get(name)))
    return found


def catalogue(trained: list[Trained]) -> dict[Denoiser, Path]:
    """The same trainings as denoisers to choose from, with their weights files."""
    return {
        Denoiser.of(one.training.key, one.training.scores, one.train_images, version): one.weights
        for version, one in enumerate(trained, 1)
    }


def publish(trained: list[Trained], profile: str, results: Path | None) -> Published:
    """Log what MLflow lacks of these trainings, register what it lacks of their networks, set aliases.

    Args:
        trained: of `from_outputs` or `from_committed`.
        profile: whose they are.
        results: folder of the table and figures, for the summary; None: no summary.

    Raises:
        UnreachableError: MLflow does not answer; what was done is kept, the rest is for the next call.
        ValueError: a network cannot be registered.
    """
    done, errors = Published(), []
    client = mlflow_runs.connect()
    noises = dict.fromkeys(one.training.key.noise for one in trained if one.registered)
    with tempfile.TemporaryDirectory() as temporary:
        builder = registry.Builder(Path(temporary))
        for one in trained:
            name = one.training.key.name
            with mlflow_runs.reaching():  # each by itself: a training that ends now may want to say so
                run_id = mlflow_runs.log_training(client, one.training)
                done.runs.append(name)
                if not one.training.record:
                    done.without_log.append(name)
                if not one.registered:
                    continue
                if not one.any_size:
                    done.one_size.append(name)
                    continue
                try:
                    version = registry.register(
                        client, one.training, run_id, one.weights, _images(one), builder
                    )
                except ValueError as error:
                    errors.append(f"{name}: {error}")
                    continue
                if version:
                    done.versions.append(f"{version.name} version {version.version}")
    with mlflow_runs.reaching():
        for noise in noises:
            if not registry.has_versions(client, noise):
                continue  # none of its networks could be built
            for alias, one in registry.assign_aliases(client, noise).items():
                holder = (
                    f"version {one.version}: {one.model}, {one.profile}, {one.psnr:.2f} dB" if one else "none"
                )
                done.aliases.append(f"{registry.PREFIX}{noise}@{alias} -> {holder}")
        if results:
            done.summary = mlflow_runs.log_summary(client, profile, results)
    if errors:
        raise ValueError(f"not registered, all else is done: {'; '.join(errors)}")
    return done


def _images(one: Trained) -> int:
    """How many images it was trained on: by its log, else as its profile has it now."""
    return one.training.record.get("data", {}).get("train", {}).get("images") or one.train_images


def write_receipt(path: Path, trained: list[Trained], why: str = "") -> None:
    """Say which weights were published, or `why` none; the same weights always give the same bytes."""
    registered = {one.training.key.name: one.training.weights_sha256 for one in trained}
    files.write_json(path, {"registered": registered} | ({"why": why} if why else {}))


def _trained(
    weights: Path, history: pd.DataFrame, scores: dict, run: Run | None, *, registered: bool = True
) -> Trained:
    description = read_description(weights)
    digest = files.sha256(weights)
    if digest != scores.get("weights_sha256"):
        raise ValueError(f"{weights} is not what was scored; run `dvc repro`")
    try:
        run_key = RunKey(**description["cell"])
    except (KeyError, TypeError):
        raise ValueError(f"{weights} does not say which noise and model it is of") from None
    logs = (run.log, run.log.with_suffix(".evaluate.json")) if run else ()
    record, evaluation = [find_record(log, weights_sha256=digest) or {} for log in logs] or ({}, {})
    times = {row["epoch"]: row for row in record.get("history", [])}
    rows = history.to_dict("records")
    training = Training(
        key=run_key,
        description=description,
        history=[times.get(row["epoch"], {}) | row for row in rows],
        record=record,
        evaluation=evaluation,
        scores=scores,
        weights_sha256=digest,
    )
    return Trained(training, weights, run.train_images if run else 0, registered)
