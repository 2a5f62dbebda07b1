"""From trained networks to scores and images: what the DVC stages and the command line share.

Not a dependency in DVC: it carries values between files and computes nothing.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lambdanet import devices, files
from lambdanet.config import Run
from lambdanet.data.arrays import load_images
from lambdanet.evaluation import evaluator
from lambdanet.models import load_weights

# Of a run, its network, a folder and a device: writes images there, and returns what else is to be scored.
Show = Callable[[Run, nn.Module, Path, torch.device], dict]


def score_runs(runs: list[Run], scores: Path, samples: Path, show: Show, *, device: str = "auto") -> None:
    """Score those runs that were trained.

    Args:
        runs: any.
        scores: folder that holds the JSON files of all of them, replaced as a whole.
        samples: folder that holds their folders of images, replaced as a whole.
        show: called for each.
        device: "auto", "cpu" or "cuda".

    Raises:
        ValueError: none of them was trained, or weights or data cannot be read or do not fit.
    """
    where = devices.prepare(device)
    trained = [run for run in runs if run.weights.is_file()]
    if not trained:
        raise ValueError(f"nothing was trained of what {scores} is for; run `dvc repro`")
    with files.new_folder(scores) as new_scores, files.new_folder(samples) as new_samples:
        for run in trained:
            images = load_images(run.clean, "test"), load_images(run.noisy, "test")
            found, model = _score(run.weights, *images, where)
            found |= show(run, model, new_samples / run.samples.relative_to(samples), where)
            files.write_json(new_scores / run.scores.relative_to(scores), asdict(run.key) | found)


def evaluate_weights(weights: Path, clean: Path, noisy: Path, *, device: str = "auto") -> dict:
    """Score a weights file on the test images of two folders."""
    where = devices.prepare(device)
    return _score(weights, load_images(clean, "test"), load_images(noisy, "test"), where)[0]


def _score(
    weights: Path, clean: np.ndarray, noisy: np.ndarray, where: torch.device
) -> tuple[dict, nn.Module]:
    model, _ = load_weights(weights)
    scores = evaluator.evaluate(model, clean, noisy, device=where)
    return scores | {"weights_sha256": files.sha256(weights)}, model
