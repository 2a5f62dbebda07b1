"""Metrics, noise and batches beside scikit-image, torchmetrics and torch's own loader.

    python -m benchmarks.data [--quick]

Needs nothing but the project; torchmetrics is measured where it is installed (see peers.py).
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import skimage.metrics
import skimage.util
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import peers, pictures
from benchmarks.measuring import interleave, medians
from benchmarks.tables import Table, command
from lambdanet.data.images import to_tensor
from lambdanet.data.noise import create_noise
from lambdanet.evaluation import metrics

OURS, SKIMAGE, TORCHMETRICS = "ours", "scikit-image", "torchmetrics"
NOISES = {  # ours, and scikit-image's words for the same
    "gaussian-01": ({"name": "gaussian", "sigma": 0.1}, {"mode": "gaussian", "var": 0.01, "clip": False}),
    "gaussian-02": ({"name": "gaussian", "sigma": 0.2}, {"mode": "gaussian", "var": 0.04, "clip": False}),
    "gaussian-03": ({"name": "gaussian", "sigma": 0.3}, {"mode": "gaussian", "var": 0.09, "clip": False}),
    "speckle": ({"name": "speckle", "variance": 0.1}, {"mode": "speckle", "var": 0.1}),
    "salt-and-pepper": ({"name": "salt-and-pepper", "amount": 0.05}, {"mode": "s&p", "amount": 0.05}),
}
BATCH = 256

Metric = Callable[[], np.ndarray]


def measure(quick: bool = False) -> Iterator[Table]:
    """Time what a training does beside the network, and compare its results."""
    repeats = 1 if quick else 7
    clean, noisy = pictures.pairs(32 if quick else 500)
    note = "torchmetrics' own mean counts mirrored borders too; they are cut off here."
    yield metric("SSIM", _ssims(clean.double(), noisy.double()), repeats, note)
    whole = _ssims(*(images.double() for images in pictures.pairs(64 if quick else 10_000)))
    del whole[TORCHMETRICS]  # it wants all of them in memory, several times
    yield metric("SSIM of a whole test set", whole, min(repeats, 3))
    yield metric("PSNR of each image", _psnrs(clean.double(), noisy.double()), repeats)
    yield noise(clean[:BATCH], repeats)
    yield batches(pictures.patches(256 if quick else 10_000), repeats)


def metric(title: str, methods: dict[str, Metric | str], repeats: int, *notes: str) -> Table:
    """Time functions to a value per image, and compare the values with scikit-image's."""
    present = {name: method for name, method in methods.items() if callable(method)}
    values = {name: method() for name, method in present.items()}
    count = len(values[OURS])
    seconds = interleave(present, repeats)
    times, rows = medians(seconds, count), []
    for name, method in methods.items():
        row = {"method": name}
        if name in times:
            row |= _timed(times, name)
            row["difference"] = float(np.abs(values[name] - values[SKIMAGE]).max())
        rows.append(row if callable(method) else row | {"note": method})
    about = (
        f"The same {count} pairs of 32 x 32 images in float64, {torch.get_num_threads()} threads, in turns; "
        "difference: the largest from scikit-image's value of an image."
    )
    return Table(title, about, rows, list(notes), seconds)


def _timed(times: dict[str, float], name: str) -> dict[str, float]:
    return {"µs/image": 1e6 * times[name], "speed": max(times.values()) / times[name]}


def _ssims(clean: Tensor, noisy: Tensor) -> dict[str, Metric | str]:
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    x, y = (images.permute(0, 2, 3, 1).numpy() for images in (clean, noisy))

    def one(a: np.ndarray, b: np.ndarray) -> float:
        return skimage.metrics.structural_similarity(a, b, channel_axis=-1, **settings)

    def build() -> Metric:
        similarity = peers.load("torchmetrics.functional.image").structural_similarity_index_measure

        def inner() -> np.ndarray:
            _, positions = similarity(noisy, clean, sigma=1.5, data_range=1.0, return_full_image=True)
            edge = metrics.RADIUS
            return positions[..., edge:-edge, edge:-edge].flatten(1).mean(1).numpy()

        return inner

    return {
        OURS: lambda: metrics.ssim(clean, noisy, data_range=1).numpy(),
        SKIMAGE: lambda: np.array([one(a, b) for a, b in zip(x, y, strict=True)]),
        TORCHMETRICS: peers.attempt(build),
    }


def _psnrs(clean: Tensor, noisy: Tensor) -> dict[str, Metric | str]:
    x, y = clean.numpy(), noisy.numpy()

    def ours() -> np.ndarray:
        errors = metrics.mean_squared_error(clean, noisy).tolist()
        return np.array([metrics.psnr(error, data_range=1) for error in errors])

    def one(a: np.ndarray, b: np.ndarray) -> float:
        return skimage.metrics.peak_signal_noise_ratio(a, b, data_range=1)

    def build() -> Metric:
        ratio = peers.load("torchmetrics.functional.image").peak_signal_noise_ratio
        return lambda: ratio(noisy, clean, data_range=1.0, dim=(1, 2, 3), reduction="none").numpy()

    return {
        OURS: ours,
        SKIMAGE: lambda: np.array([one(a, b) for a, b in zip(x, y, strict=True)]),
        TORCHMETRICS: peers.attempt(build),
    }


def noise(clean: Tensor, repeats: int) -> Table:
    """Time the five noises on a batch, and compare how strong they come out."""
    rows, seconds = [], {}
    as_array = clean.permute(0, 2, 3, 1).numpy()
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    for name, (config, words) in NOISES.items():
        add = create_noise(**config)
        methods = {
            OURS: lambda add=add: add(clean, generator),
            SKIMAGE: lambda words=words: skimage.util.random_noise(as_array, rng=rng, **words),
        }
        strengths = {
            OURS: (methods[OURS]() - clean).std().item(),
            SKIMAGE: float((methods[SKIMAGE]() - as_array).std()),
        }
        found = interleave(methods, repeats)
        times = medians(found, len(clean))
        row = {"noise": name} | {f"{who}, µs/image": 1e6 * time for who, time in times.items()}
        row |= {"speed": times[SKIMAGE] / times[OURS]}
        rows.append(row | {f"{who}, deviation": strength for who, strength in strengths.items()})
        seconds |= {f"{name}: {who}": values for who, values in found.items()}
    about = (
        f"One batch of {len(clean)} images of 32 x 32 in float32, given whole to both, in turns; "
        "deviation: the standard deviation of what was added."
    )
    return Table("Noise", about, rows, seconds=seconds)


def batches(stored: np.ndarray, repeats: int) -> Table:
    """Time an epoch of shuffled float batches from uint8 images that lie in memory."""
    clean = torch.from_numpy(stored)
    loader = DataLoader(TensorDataset(clean), BATCH, shuffle=True)

    def ours() -> None:
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(clean)))
        for batch in order.split(BATCH):
            to_tensor(clean[batch])

    def torchs() -> None:
        for (batch,) in loader:
            to_tensor(batch)

    methods = {OURS: ours, "torch DataLoader, no workers": torchs}
    seconds = interleave(methods, repeats)
    times = medians(seconds, len(clean))
    rows = [{"method": name} | _timed(times, name) for name in methods]
    steps = math.ceil(len(clean) / BATCH)
    about = f"{steps} batches of {BATCH} from {len(clean)} resident uint8 images to float32, in turns."
    return Table("Fresh shuffled batches", about, rows, seconds=seconds)


main = command(measure)

if __name__ == "__main__":
    main()
