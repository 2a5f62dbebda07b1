"""One cell of the grid, from stored images to weights and from weights to scores.

What DVC's stages and the command line share; it carries values between files and computes nothing.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lambdanet import (
    backends,
    checkpoint,
    datasets,
    devices,
    evaluation,
    examination,
    files,
    provenance,
    records,
    timing,
)
from lambdanet.evaluation import Input
from lambdanet.images import to_tensor
from lambdanet.models import load_weights, save_weights
from lambdanet.noise import create_noise
from lambdanet.params import Cell, Training
from lambdanet.training import Pairs, train

MONITORED_SIDE = 64  # of a test image, while it trains: whole photographs as one batch need gigabytes
BESIDE = ("studies", "sets")  # folders of what is not in the table
WEIGHTS, MODEL, HISTORY = FILES = ("weights.safetensors", "model.json", "history.csv")


def train_cell(
    cell: Cell,
    model_config: dict,
    noise_config: dict,
    settings: Training,
    clean: Path,
    noisy: Path,
    out: Path,
    *,
    checkpoints: Path,
    log: Path,
    device: str = "auto",
    on_news: Callable[[], None] = lambda: None,
) -> None:
    """Train one cell; write the weights, the model's description and the history to a folder.

    Args:
        cell: what is trained, for the record; its seed counts.
        model_config: keyword arguments of `create_model`.
        noise_config: keyword arguments of `create_noise`.
        settings: how to train.
        clean: folder with train.npy and test.npy.
        noisy: the same with noise.
        out: folder, replaced as a whole at the end.
        checkpoints: folder for this cell's checkpoints and its lock.
        log: JSON file that times, memory and device are added to, epoch by epoch.
        device: "auto", "cpu" or "cuda".
        on_news: called when the log has something new.

    Raises:
        ValueError: bad settings or data, another process trains the same, or a loss not finite.
        SystemExit: after SIGINT (130) or SIGTERM (143), with a checkpoint written.
    """
    where = devices.prepare(device)
    devices.leave_compiler_out()
    pairs = {
        split: Pairs(datasets.load_images(clean, split), datasets.load_images(noisy, split))
        for split in datasets.SPLITS
    }
    with files.sole_writer(checkpoints / "lock"):
        files.discard_parts(out)
        description = describe(cell, model_config, noise_config, settings)
        data = {split: _digests(pairs[split]) for split in datasets.SPLITS}
        record = provenance.Log(
            log,
            where,
            task="train",
            **asdict(cell),
            stage=_stage(),
            description=description,
            data=data,
            computed_by=backends.of_training(model_config["name"], where.type),
        )
        on_news()

        def on_epoch(row: dict, seconds: float | None) -> None:
            record.epoch(row, seconds)
            on_news()

        smaller = f"lower batch_size, now {settings.batch_size}"
        with devices.memory_errors_in_one_line(where, smaller):
            model, history = train(
                model_config, noise_config, settings, pairs["train"], _middle(pairs["test"]),
                seed=cell.seed, device=where, checkpoints=checkpoints, label=cell.name, on_epoch=on_epoch,
            )  # fmt: skip
        with files.new_folder(out) as new:
            save_weights(new / WEIGHTS, model, description)
            files.write_json(new / MODEL, description)
            files.write_csv(new / HISTORY, history)
        record.finish(files.sha256(out / WEIGHTS))
        checkpoint.discard(checkpoints)


def describe(cell: Cell, model_config: dict, noise_config: dict, settings: Training) -> dict:
    """What stands in model.json, and in the header of the weights."""
    return {
        "cell": asdict(cell),
        "model": model_config,
        "noise": noise_config,
        "training": settings.described(),
    }


def evaluate_weights(
    weights: Path, clean: Path, noisy: Path, *, device: str = "auto"
) -> tuple[dict, nn.Module]:
    """Score a weights file on the test images of two folders: the scores and the model."""
    where = devices.prepare(device)
    images = datasets.load_images(clean, "test"), datasets.load_images(noisy, "test")
    return _score(weights, *images, where)


def _score(
    weights: Path, clean: np.ndarray, noisy: np.ndarray, where: torch.device, before: Input | None = None
) -> tuple[dict, nn.Module]:
    model, _ = load_weights(weights)
    scores = evaluation.evaluate(model, clean, noisy, device=where, before=before)
    return scores | {"weights_sha256": files.sha256(weights)}, model


def compare_cells(
    cells: list[Cell], trained: Path, clean: Path, noisy: Path, out: Path, *, device: str = "auto"
) -> None:
    """Score those of some cells that were trained, into one JSON file each.

    Args:
        cells: which to look for.
        trained: folder with one folder of `train_cell` a cell.
        clean: folder with test.npy.
        noisy: the same with noise.
        out: folder, replaced as a whole.
        device: "auto", "cpu" or "cuda".

    Raises:
        ValueError: none of them was trained, or weights or data cannot be read or do not fit.
    """
    found = [cell for cell in cells if (trained / cell.name / WEIGHTS).is_file()]
    if not found:
        raise ValueError(f"{trained} holds no training of a study; run `dvc repro`")
    where = devices.prepare(device)
    images = datasets.load_images(clean, "test"), datasets.load_images(noisy, "test")
    before = evaluation.score_input(*images, device=where)
    with files.new_folder(out) as new:
        for cell in found:
            scores, _ = _score(trained / cell.name / WEIGHTS, *images, where, before)
            files.write_json(new / f"{cell.name}.json", asdict(cell) | scores)


def examine_cell(
    cell: Cell, trained: Path, clean: Path, noisy: Path, out: Path, folder: Path, *, device: str = "auto"
) -> None:
    """Score a cell of a set into a JSON file; write its noise levels and examples to a folder.

    Args:
        cell: what was trained.
        trained: folder of `train_cell`.
        clean: folder with train.npy and test.npy.
        noisy: the same with noise.
        out: JSON file: the scores, and those on training images as train_...
        folder: replaced as a whole: levels.csv and PNG files.
        device: "auto", "cpu" or "cuda".

    Raises:
        ValueError: weights or data that cannot be read or do not fit.
    """
    where = devices.choose_device(device)
    scores, model = evaluate_weights(trained / WEIGHTS, clean, noisy, device=device)
    images = {
        split: (datasets.load_images(clean, split), datasets.load_images(noisy, split))
        for split in datasets.SPLITS
    }
    scores |= examination.on_training_images(model, *images["train"], device=where)
    with files.new_folder(folder) as new:
        files.write_csv(new / "levels.csv", examination.levels(model, images["test"][0], device=where))
        examination.write_examples(model, *images["test"], new, device=where)
    files.write_json(out, asdict(cell) | scores)


def export_weights(digests: Path, trained: Path, out: Path) -> int:
    """Copy the weights behind a report, for git: one CELL.safetensors for each of its table's cells.

    Those of studies and sets go to folders of these names, as far as they are here.

    Args:
        digests: the digests.json beside the table, with trainings.json.
        trained: folder with one folder of `train_cell` for each cell.
        out: folder, replaced as a whole.

    Returns:
        The number of files.

    Raises:
        ValueError: weights are missing or are not those that were scored.
    """
    try:
        scored = {cell: entry["weights"] for cell, entry in json.loads(digests.read_text()).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{digests} cannot be read ({error}); make it with `dvc repro`") from None
    with files.new_folder(out) as new:
        for cell, digest in scored.items():
            weights = trained / cell / WEIGHTS
            if not weights.is_file() or files.sha256(weights) != digest:
                raise ValueError(f"{weights} is missing or is not what was scored; run `dvc repro`")
            files.write_bytes(new / f"{cell}.safetensors", weights.read_bytes())
        beside = [path for kind in BESIDE for path in sorted(trained.glob(f"{kind}/*/{WEIGHTS}"))]
        known = _scored_weights(digests.with_name(records.TRAININGS)) if beside else {}
        beside = [path for path in beside if files.sha256(path) == known.get(path.parent.name)]
        for path in beside:
            name = path.parent.relative_to(trained)
            files.write_bytes(new / f"{name}.safetensors", path.read_bytes())
    return len(scored) + len(beside)


def _scored_weights(path: Path) -> dict[str, str]:
    """By training, the digest of the weights that a report is about."""
    try:
        return {name: one["scores"]["weights_sha256"] for name, one in json.loads(path.read_text()).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); make it with `dvc repro`") from None


def evaluate_cell(
    cell: Cell,
    noise_config: dict,
    trained: Path,
    clean: Path,
    noisy: Path,
    out: Path,
    panel: Path,
    *,
    log: Path,
    device: str = "auto",
) -> None:
    """Score one trained cell into a JSON file, and write its panel of photographs.

    Args:
        cell: what was trained, for the record.
        noise_config: keyword arguments of `create_noise`, for the photographs.
        trained: folder of `train_cell`.
        clean: folder with test.npy.
        noisy: the same with noise.
        out: JSON file.
        panel: folder for PNG files, replaced as a whole.
        log: JSON file for what depends on the machine: its device, and the time an image takes there.
        device: "auto", "cpu" or "cuda".

    Raises:
        ValueError: weights or data that cannot be read or do not fit.
    """
    where = devices.choose_device(device)
    record = provenance.Log(log, where, task="evaluate", **asdict(cell), stage=_stage())
    scores, model = evaluate_weights(trained / WEIGHTS, clean, noisy, device=device)
    images = to_tensor(datasets.load_images(noisy, "test")[: timing.BATCH], where)
    seconds = timing.inference_seconds(model, images)
    evaluation.write_panel(model, create_noise(**noise_config), panel, device=where)
    files.write_json(out, asdict(cell) | scores)
    record.finish(scores["weights_sha256"], scores=scores, inference_seconds_per_image=seconds)


def _middle(pairs: Pairs) -> Pairs:
    """The middle of images that are larger than what is monitored."""
    starts = (max(0, side - MONITORED_SIDE) // 2 for side in pairs.clean.shape[1:3])
    middle = [slice(start, start + MONITORED_SIDE) for start in starts]
    return Pairs(pairs.clean[:, *middle], pairs.noisy[:, *middle])


def _digests(pairs: Pairs) -> dict:
    images = {"clean": pairs.clean, "noisy": pairs.noisy}
    return {"images": len(pairs.clean)} | {
        f"{kind}_sha256": datasets.digest(values) for kind, values in images.items()
    }


def _stage() -> str | None:
    """The DVC stage that this process runs for, if any."""
    return os.environ.get("DVC_STAGE")
