"""Train one denoiser on one noise: the loop and its data."""

import contextlib
import hashlib
import inspect
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambdanet import backends, models
from lambdanet.backends.cuda import graphs
from lambdanet.config import Training
from lambdanet.data import noise as noises
from lambdanet.data.images import to_tensor
from lambdanet.training import checkpoint, optimizers
from lambdanet.training.interruption import watch_for_interruption
from lambdanet.training.progress import OnEpoch, Progress, ignore


def binary_cross_entropy(output: Tensor, clean: Tensor) -> Tensor:
    """Mean of -x log f(y) - (1 - x) log(1 - f(y)); unlike torch's, NaN comes out as NaN."""
    output = output.clamp(1e-6, 1 - 1e-6)
    return -(clean * output.log() + (1 - clean) * (1 - output).log()).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": binary_cross_entropy, "mae": F.l1_loss, "mse": F.mse_loss,
}  # fmt: skip


@dataclass(frozen=True)
class Pairs:
    """Stored images: clean uint8 and noisy float16, both (n, h, w, 3) in the same order."""

    clean: np.ndarray
    noisy: np.ndarray

    def __post_init__(self) -> None:
        if self.clean.shape != self.noisy.shape:
            raise ValueError(
                f"clean and noisy images differ in shape: {self.clean.shape} and {self.noisy.shape}"
            )


def train(
    model_config: dict,
    noise_config: dict,
    settings: Training,
    train_pairs: Pairs,
    test_pairs: Pairs,
    *,
    seed: int,
    device: torch.device,
    checkpoints: Path,
    label: str = "",
    on_epoch: OnEpoch = ignore,
) -> tuple[nn.Module, list[dict]]:
    """Train a denoiser, or resume from the checkpoint of a killed training of the same settings.

    The initial weights follow from `seed`, the order from (seed, epoch), fresh noise from
    (seed, epoch, step): the same arguments on the same kind of device give the same result.

    Args:
        model_config: keyword arguments of `create_model`.
        noise_config: keyword arguments of `create_noise`, for fresh noise.
        settings: how to train.
        train_pairs: what to learn from.
        test_pairs: monitored only; nothing is chosen by it.
        seed: of everything random.
        device: where to train.
        checkpoints: folder; `checkpoint.discard` it when the result is safe.
        label: names the training in its progress lines.
        on_epoch: called after each epoch.

    Returns:
        The model and a row per epoch: epoch, learning_rate (last), loss (mean), monitored_psnr (dB).

    Raises:
        ValueError: a bad configuration, or a loss that is not finite.
        SystemExit: with 130 or 143 after SIGINT or SIGTERM; a checkpoint was written.
    """
    count, size = len(train_pairs.clean), settings.batch_size
    steps = math.ceil(count / size)  # of an epoch; the last batch may be smaller
    noise = noises.create_noise(**noise_config)
    torch.manual_seed(seed)
    model = models.create_model(**model_config).to(device)
    backend = backends.of_training(device=device.type, **model_config)
    half = backend in backends.HALF
    if half or backend == backends.CHANNELS_LAST:
        model.to(memory_format=torch.channels_last)
    optimizer = optimizers.create(settings.optimizer, model, settings.weight_decay, device)
    clean = torch.from_numpy(np.array(train_pairs.clean)).to(device)
    noisy = None if settings.fresh_noise else torch.from_numpy(np.array(train_pairs.noisy)).to(device)
    monitor = _monitored(test_pairs, settings.monitored, device)

    key = _key(model_config, noise_config, settings, train_pairs, test_pairs, seed, device)
    done, loss_sum, history = 0, torch.zeros((), dtype=torch.float64, device=device), []
    if state := checkpoint.load_newest(checkpoints, key):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done, history = state["done"], state["history"]
        loss_sum += state["loss_sum"]
    generator = torch.Generator(device)

    def learn(batch: Tensor) -> Tensor:
        """One step on the images of these numbers; their mean loss."""
        x = to_tensor(clean[batch])
        y = noise(x, generator) if noisy is None else to_tensor(noisy[batch])
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            output = model(y)
        loss = LOSSES[settings.loss](output.float(), x)
        loss.backward()
        optimizer.step()
        loss_sum.add_(loss.detach() * len(batch))
        return loss.detach()

    if graphs.usable(device, optimizer):
        learn = graphs.Recorded(learn, generator)

    def save() -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": done}
        checkpoint.save(checkpoints, key, done, state | {"history": history, "loss_sum": loss_sum.item()})

    progress = Progress(label, settings.epochs, steps, done, on_epoch)
    with watch_for_interruption() as interruption, contextlib.closing(progress):
        for epoch in range(done // steps, settings.epochs):
            model.train()
            order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count)).to(device)
            for step in range(done % steps, steps):
                generator.manual_seed(_seed(seed, epoch, step))
                optimizers.set_rate(optimizer, optimizers.learning_rate(settings, done, steps), device)
                loss = learn(order[step * size : (step + 1) * size])
                done += 1
                if progress.step(loss) and done % steps:  # a minute has passed; an epoch's end is saved below
                    save()
                if interruption:
                    break
            if done % steps == 0:
                rate = optimizers.learning_rate(settings, done - 1, steps)
                history.append(_row(epoch, rate, loss_sum / count, model, monitor))
                loss_sum.zero_()
                progress.epoch(history[-1])
            save()
            if interruption:
                progress.note(f"stopped in epoch {epoch + 1}; the checkpoint is written, run again to resume")
                sys.exit(128 + interruption.signal)
    return model.eval(), history


def _monitored(pairs: Pairs, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Evenly spaced test images, clean and noisy; CIFAR-10's order is by class."""
    count = min(count, len(pairs.clean))
    picked = np.linspace(0, len(pairs.clean) - 1, count).round().astype(int)
    return to_tensor(pairs.clean[picked], device), to_tensor(pairs.noisy[picked], device)


def _row(epoch: int, rate: float, loss: Tensor, model: nn.Module, monitor: tuple[Tensor, Tensor]) -> dict:
    psnr = _monitored_psnr(model, *monitor)
    for name, value in {"loss": loss.item(), "monitored PSNR": psnr}.items():
        if not math.isfinite(value):
            raise ValueError(
                f"the {name} of epoch {epoch + 1} is {value}, not a finite number; no model is written. "
                "Lower learning_rate, or look at the data"
            )
    return {"epoch": epoch + 1, "learning_rate": rate, "loss": loss.item(), "monitored_psnr": psnr}


@torch.no_grad()
def _monitored_psnr(model: nn.Module, clean: Tensor, noisy: Tensor, batch: int = 100) -> float:
    model.eval()
    output = torch.cat([model(part) for part in noisy.split(batch)])
    mse = F.mse_loss(output.clamp(0, 1), clean).item()
    return -10 * math.log10(mse) if mse else math.inf


def _seed(*entropy: int) -> int:
    (seed,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return int(seed)


def _key(
    model_config: dict,
    noise_config: dict,
    settings: Training,
    train_pairs: Pairs,
    test_pairs: Pairs,
    seed: int,
    device: torch.device,
) -> str:
    """Name everything that decides the result, so that a checkpoint of anything else is not used."""
    digest = hashlib.sha256()
    name = model_config["name"]
    where = [device.type, backends.of_training(device=device.type, **model_config), torch.__version__]
    configs = [model_config, noise_config, asdict(settings), seed, where]
    digest.update(json.dumps(configs, sort_keys=True).encode())
    code = [inspect.getsource(module) for module in (sys.modules[__name__], optimizers, noises)]
    digest.update("".join([*code, models.source(name), backends.source()]).encode())
    for images in (train_pairs.clean, train_pairs.noisy, test_pairs.clean, test_pairs.noisy):
        digest.update(np.ascontiguousarray(images))
    return digest.hexdigest()
