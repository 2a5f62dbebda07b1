"""One run, from stored images to weights: what the DVC stages and the command line share.

Not a dependency in DVC: it carries values between files and computes nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict

import torch

from lambdanet import backends, devices, files, run_log
from lambdanet.config import Run
from lambdanet.data.arrays import SPLITS, digest, load_images
from lambdanet.models import save_weights
from lambdanet.training import checkpoint
from lambdanet.training.loop import Pairs, train

MONITORED_SIDE = 64  # of a test image, while it trains: whole photographs as one batch need gigabytes


def train_run(
    run: Run, *, device: str = "auto", on_news: Callable[[], None] = lambda: None, keep: bool = False
) -> None:
    """Train; write the weights, the model's description and the history to the run's folder.

    The folder is replaced as a whole at the end. The log gets times, memory and device, epoch by epoch.

    Args:
        run: what to train, and where its files lie.
        device: "auto", "cpu" or "cuda".
        on_news: called when the log has something new.
        keep: leave the last checkpoint, from which the same call writes the same at once.

    Raises:
        ValueError: bad settings or data, another process trains the same, or a loss not finite.
        SystemExit: after SIGINT (130) or SIGTERM (143), with a checkpoint written.
    """
    where = devices.prepare(device)
    torch.set_num_threads(run.threads)
    pairs = {split: Pairs(load_images(run.clean, split), load_images(run.noisy, split)) for split in SPLITS}
    with files.sole_writer(run.checkpoints / "lock"):
        files.discard_parts(run.folder)
        description = describe(run)
        record = run_log.Log(
            run.log,
            where,
            task="train",
            **asdict(run.key),
            description=description,
            data={split: _data(run, pairs[split]) for split in SPLITS},
            computed_by=backends.of_training(device=where.type, **run.model),
        )
        on_news()

        def on_epoch(row: dict, seconds: float | None) -> None:
            record.epoch(row, seconds)
            on_news()

        smaller = f"lower batch_size, now {run.settings.batch_size}"
        with devices.memory_errors_in_one_line(where, smaller):
            model, history = train(
                run.model, run.noise, run.settings, pairs["train"], _middle(pairs["test"]),
                seed=run.key.seed, device=where, checkpoints=run.checkpoints, label=run.key.name,
                on_epoch=on_epoch,
            )  # fmt: skip
        with files.new_folder(run.folder) as new:
            save_weights(new / run.weights.name, model, description)
            files.write_json(new / run.description.name, description)
            files.write_csv(new / run.history.name, history)
        record.finish(files.sha256(run.weights))
        if not keep:
            checkpoint.discard(run.checkpoints)


def discard_checkpoints(runs: Iterable[Run]) -> None:
    """Remove what `train_run` kept.

    DVC removes a stage's output before it runs: an interrupted ablation writes the seeds that it had done
    again from their last checkpoints, so these stay until all seeds are done.
    """
    for run in runs:
        checkpoint.discard(run.checkpoints)


def describe(run: Run) -> dict:
    """What stands in model.json, and in the header of the weights."""
    return {
        "cell": asdict(run.key),  # an old name, kept so that weights files keep their bytes
        "model": run.model,
        "noise": run.noise,
        "training": run.settings.described(),
    }


def _middle(pairs: Pairs) -> Pairs:
    """The middle of images that are larger than what is monitored."""
    starts = (max(0, side - MONITORED_SIDE) // 2 for side in pairs.clean.shape[1:3])
    middle = [slice(start, start + MONITORED_SIDE) for start in starts]
    return Pairs(pairs.clean[:, *middle], pairs.noisy[:, *middle])


def _data(run: Run, pairs: Pairs) -> dict:
    images = {"clean": pairs.clean, "noisy": pairs.noisy}
    folders = {"clean": run.clean.as_posix(), "noisy": run.noisy.as_posix()}
    return {"images": len(pairs.clean)} | folders | {f"{k}_sha256": digest(v) for k, v in images.items()}
