"""Put back what a committed report was made of, to make it again with one more training in it.

A clone has the reports in git, and the weights of their tables, but none of DVC's outputs. What is put back
are the same bytes but for sample images, which are denoised anew; nothing that is there is touched.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from lambdanet import cards, files, run_log
from lambdanet.config import Config, Run
from lambdanet.data.noise import create_noise
from lambdanet.evaluation import samples
from lambdanet.models import load_weights, read_description
from lambdanet.training.experiment import describe


@dataclass
class Restored:
    """How many were put back."""

    scores: int = 0
    trainings: int = 0
    samples: int = 0


def restore(config: Config) -> Restored:
    """Put back scores, logs, histories, weights and sample images of a profile's report, where they lack.

    Args:
        config: of the profile; runs that its folder of weights lacks get none.

    Raises:
        ValueError: the report is missing or says nothing of its runs, or weights are not those scored.
    """
    _, results, weights = config.folders
    kept, done = run_log.read_trainings(results), Restored()
    for run in config.runs:
        if (entry := kept.get(run.key.name)) is None:
            continue
        score, ablation = entry["scores"], run.key.model in config.profile.ablations
        stored = weights / _name(run, ablation)
        history = results / ("studies/histories" if ablation else "histories") / f"{run.key.name}.csv"
        if not run.scores.exists():
            files.write_json(run.scores, score)
            done.scores += 1
        _restore_log(run.log, entry["log"])
        if stored.is_file() and files.sha256(stored) != score["weights_sha256"]:
            raise ValueError(f"{stored} is not what {results} scored")
        if not run.folder.exists() and (stored.is_file() or history.is_file()):
            _restore_training(run, stored, history)
            done.trainings += 1
        if not run.samples.exists():
            done.samples += _restore_samples(run, ablation, results / "samples" / run.key.model, stored)
    return done


def export_weights(config: Config) -> int:
    """Copy the weights behind a report, for git: one RUN.safetensors for each run of its table, and a README.

    Those of ablations go to a folder of that name, as far as they are here or there. weights/PROFILE is
    replaced as a whole.

    Args:
        config: of the profile; its results have trainings.json.

    Returns:
        The number of files.

    Raises:
        ValueError: weights are missing or are not those that were scored.
    """
    _, results, out = config.folders
    known, rows = run_log.read_trainings(results), []
    with files.new_folder(out) as new:
        for run in (run for run in config.runs if run.key.name in known):
            entry, ablation = known[run.key.name], run.key.model in config.profile.ablations
            name = _name(run, ablation)
            path = run.weights if run.weights.is_file() else out / name
            if ablation and not path.is_file():
                continue
            if not path.is_file() or files.sha256(path) != entry["scores"]["weights_sha256"]:
                raise ValueError(f"{path} is missing or is not what was scored; run `dvc repro`")
            files.write_bytes(new / name, path.read_bytes())
            rows.append(_row(config, run, name, read_description(path), entry))
        files.write_text(new / "README.md", cards.table(config.name, rows))
    return len(rows)


def _name(run: Run, ablation: bool) -> str:
    """Of a run's file in weights/PROFILE."""
    return f"{'ablations/' if ablation else ''}{run.key.name}.safetensors"


def _row(config: Config, run: Run, name: str, description: dict, entry: dict) -> dict:
    """What the README says of a file; see `cards.table`."""
    return {
        "file": name, "description": description, "scores": entry["scores"],
        "train_images": run.train_images, "dataset": config.dataset(run.key.model),
        "commit": (entry["log"] or {}).get("commit"),
    }  # fmt: skip


def _restore_log(path: Path, record: dict | None) -> None:
    if record and not run_log.find_record(path, record["weights_sha256"]):
        files.write_json(path, [record, *run_log.read_records(path)])


def _restore_training(run: Run, stored: Path, history: Path) -> None:
    expected = describe(run)
    with files.new_folder(run.folder) as new:
        if history.is_file():
            files.write_bytes(new / run.history.name, history.read_bytes())
        if stored.is_file():
            files.write_bytes(new / run.weights.name, stored.read_bytes())
            found = read_description(stored)
            # Equal, but in the order in which the training wrote it; a header is sorted.
            files.write_json(new / run.description.name, expected if expected == found else found)


def _restore_samples(run: Run, ablation: bool, kept: Path, stored: Path) -> bool:
    if kept.is_dir() and run.levels:
        with files.new_folder(run.samples) as new:
            for path in kept.iterdir():
                files.write_bytes(new / path.name, path.read_bytes())
        return True
    if not ablation and stored.is_file():
        model, _ = load_weights(stored)
        samples.write_samples(model, create_noise(**run.noise), run.samples, device=torch.device("cpu"))
        return True
    return False
