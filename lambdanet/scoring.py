"""From trained networks to scores and sample images: what the DVC stages and the command line share.

Not a dependency in DVC: it carries values between files and computes nothing.
"""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lambdanet import devices, evaluation, examination, files, provenance, timing
from lambdanet.arrays import SPLITS, load_images
from lambdanet.config import Run
from lambdanet.evaluation import Input
from lambdanet.experiment import WEIGHTS, stage
from lambdanet.images import to_tensor
from lambdanet.models import load_weights
from lambdanet.noise import create_noise


def score_table(runs: list[Run], scores: Path, samples: Path, *, device: str = "auto") -> None:
    """Score those runs of one noise that were trained, and show each on photographs.

    The log of each gets the device and the time that an image takes there.

    Args:
        runs: of Table 2, on one noise.
        scores: folder of the runs' JSON files, replaced as a whole.
        samples: folder of the runs' folders of PNG files, replaced as a whole.
        device: "auto", "cpu" or "cuda".

    Raises:
        ValueError: none of them was trained, or weights or data cannot be read or do not fit.
    """
    where = devices.prepare(device)
    trained = _trained(runs)
    with files.new_folder(scores) as new_scores, files.new_folder(samples) as new_samples:
        for run, images, before in _with_images(trained, where):
            record = _record(run, where)
            result, model = _score(run.folder / WEIGHTS, *images, where, before)
            seconds = timing.inference_seconds(model, to_tensor(images[1][: timing.BATCH], where))
            evaluation.write_samples(
                model, create_noise(**run.noise), new_samples / run.samples.name, device=where
            )
            files.write_json(new_scores / run.scores.name, asdict(run.cell) | result)
            record.finish(result["weights_sha256"], scores=result, inference_seconds_per_image=seconds)


def score_ablations(runs: list[Run], scores: Path, samples: Path, *, device: str = "auto") -> None:
    """Score those ablations that were trained, some of them by noise level and on training images too.

    Args:
        runs: of the ablations.
        scores: folder of the runs' JSON files, replaced as a whole.
        samples: folder of what is known by noise level, levels.csv and PNG files; replaced as a whole.
        device: "auto", "cpu" or "cuda".

    Raises:
        ValueError: none of them was trained, or weights or data cannot be read or do not fit.
    """
    where = devices.prepare(device)
    trained = _trained(runs)
    with files.new_folder(scores) as new_scores, files.new_folder(samples) as new_samples:
        for run, images, before in _with_images(trained, where):
            result, model = _score(run.folder / WEIGHTS, *images, where, before)
            if run.levels:
                result |= _by_level(run, model, images, new_samples / _below(run, run.samples), where)
            files.write_json(new_scores / _below(run, run.scores), asdict(run.cell) | result)


def evaluate_weights(weights: Path, clean: Path, noisy: Path, *, device: str = "auto") -> dict:
    """Score a weights file on the test images of two folders."""
    where = devices.prepare(device)
    return _score(weights, load_images(clean, "test"), load_images(noisy, "test"), where)[0]


def _trained(runs: list[Run]) -> list[Run]:
    found = [run for run in runs if (run.folder / WEIGHTS).is_file()]
    if not found:
        where = runs[0].folder.parent if runs else "profile.yaml"
        raise ValueError(f"{where} holds nothing trained; run `dvc repro`")
    return found


def _with_images(
    runs: list[Run], where: torch.device
) -> Iterator[tuple[Run, tuple[np.ndarray, np.ndarray], Input]]:
    """Each run with its test images, and what these score before a network has seen them."""
    for (clean, noisy), same in groupby(runs, key=lambda run: (run.clean, run.noisy)):
        images = load_images(clean, "test"), load_images(noisy, "test")
        before = evaluation.score_input(*images, device=where)
        yield from ((run, images, before) for run in same)


def _score(
    weights: Path, clean: np.ndarray, noisy: np.ndarray, where: torch.device, before: Input | None = None
) -> tuple[dict, nn.Module]:
    model, _ = load_weights(weights)
    scores = evaluation.evaluate(model, clean, noisy, device=where, before=before)
    return scores | {"weights_sha256": files.sha256(weights)}, model


def _by_level(
    run: Run, model: nn.Module, images: tuple[np.ndarray, np.ndarray], folder: Path, where: torch.device
) -> dict:
    """Write levels.csv and examples; the scores on training images."""
    split = SPLITS[0]
    files.write_csv(folder / "levels.csv", examination.levels(model, images[0], device=where))
    examination.write_examples(model, *images, folder, device=where)
    stored = load_images(run.clean, split), load_images(run.noisy, split)
    return examination.on_training_images(model, *stored, device=where)


def _below(run: Run, path: Path) -> Path:
    """A path of an ablation's, below the folder of all ablations."""
    return Path(*path.parts[-2:])


def _record(run: Run, where: torch.device) -> provenance.Log:
    log = run.log.with_suffix(".evaluate.json")
    return provenance.Log(log, where, task="evaluate", **asdict(run.cell), stage=stage())
