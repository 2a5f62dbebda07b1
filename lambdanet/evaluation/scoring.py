"""From trained networks to scores and images: what the DVC stages and the command line share.

Not a dependency in DVC: it carries values between files and computes nothing.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from lambdanet import devices, files, run_log
from lambdanet.config import Run
from lambdanet.data.arrays import load_images
from lambdanet.data.images import to_tensor
from lambdanet.evaluation import evaluator
from lambdanet.inference.denoise import denoise
from lambdanet.models import load_weights

BATCH = 32  # images that an image's time is the mean of
REPEATS = 5

# Of a run, its network, a folder and a device: writes images there, and returns what else is to be scored.
Show = Callable[[Run, nn.Module, Path, torch.device], dict]


def score_runs(runs: list[Run], scores: Path, samples: Path, show: Show, *, device: str = "auto") -> None:
    """Score those runs that were trained; their logs get the device and the time that an image takes.

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
            log = run.log.with_suffix(".evaluate.json")
            record = run_log.Log(log, where, task="evaluate", **asdict(run.key))
            found, model = _score(run.weights, *images, where)
            seconds = inference_seconds(model, to_tensor(images[1][:BATCH], where))
            found |= show(run, model, new_samples / run.samples.relative_to(samples), where)
            files.write_json(new_scores / run.scores.relative_to(scores), asdict(run.key) | found)
            record.finish(found["weights_sha256"], scores=found, inference_seconds_per_image=seconds)


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


def inference_seconds(model: nn.Module, noisy: Tensor) -> float:
    """Seconds an image: the median of 5 runs over the first 32 images, after one as warm-up.

    Args:
        model: the denoiser, on the device of `noisy`.
        noisy: (n, 3, h, w).
    """
    batch, seconds = noisy[:BATCH], []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        denoise(model, batch)[0, 0, 0, 0].item()  # .item() waits for the device
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:]) / len(batch)
