"""The committed networks and other denoisers on photographs with Gaussian noise: quality and cost.

    python -m benchmarks.denoisers [--quick]

`python -m benchmarks --only denoisers` also writes JSON. scikit-image's photographs are always taken,
photographs of BSDS500 if the variable LAMBDANET_BSDS500 names its archive. `pip install -e '.[bench]'` brings
OpenCV, BM3D, which takes most of the time, and PyWavelets. deepinv's DnCNN is not run: its weights come from
a hub.
"""

import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch

from benchmarks import peers
from benchmarks.tables import Table, command
from lambdanet.data import bsds500, photos
from lambdanet.data.images import to_tensor
from lambdanet.evaluation import metrics
from lambdanet.inference import trained
from lambdanet.models import read_description

ROOT = Path(__file__).resolve().parent.parent
SIGMAS = (15, 25, 50)  # of 255
SIDE = 256
COUNT = 3  # photographs of a table
ABOUT = (
    "{count} photographs of {source}, {side} x {side}, with Gaussian noise of {sigma} of 255, clipped to 8 "
    "bits as in a file; means of PSNR (dB) and SSIM. All methods but the networks are told the noise's true "
    "strength. Seconds: the processor's, of all threads, per megapixel; medians over the photographs, which "
    "go through all methods in turn."
)
NOTES = [
    "Networks are named by their file in weights/paper, seed 0; of Table 2's noises, the nearest. All "
    "but `photographs` learned from CIFAR-10's images of 32 x 32, with noise that was not clipped.",
    "Settings: wavelets shifted by 0 to 3 pixels each way (cycle_spin); non-local means exact, h 0.6 sigma; "
    "TV of weight 0.75 sigma and OpenCV's h 0.5 sigma, of five factors each those of the best mean PSNR over "
    "these three strengths on six training photographs of BSDS500.",
    "Published values are mostly of noise that is not clipped, and cannot be set beside these.",
]
PACKAGES = {"pywt": "PyWavelets", "cv2": "opencv-python-headless", "bm3d": "bm3d"}
DEEPINV = "deepinv: DnCNN"

Denoise = Callable[[np.ndarray], np.ndarray]  # uint8 to uint8, (h, w, 3)


def measure(quick: bool = False) -> Iterator[Table]:
    """Compare denoisers on photographs with Gaussian noise of three strengths."""
    side, count = (64, 1) if quick else (SIDE, COUNT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for source, clean in images(side, count).items():
            for sigma in SIGMAS[1:2] if quick else SIGMAS:
                about = ABOUT.format(count=len(clean), source=source, side=side, sigma=sigma)
                rows, seconds = compare(methods(sigma), clean, sigma)
                yield Table(f"Denoisers, {source}, sigma {sigma}", about, rows, NOTES, seconds)
    finally:
        torch.set_num_threads(threads)


def compare(
    found: dict[str, Denoise | str], clean: list[np.ndarray], sigma: float
) -> tuple[list[dict], dict[str, list[float]]]:
    """Denoise each photograph by each method.

    Args:
        found: by name; a text in place of a method says why it is not run.
        clean: uint8, (h, w, 3) each.
        sigma: of the noise that is put on, of 255.

    Returns:
        A table's rows, and the processor's seconds of each call.
    """
    present = {"noisy": lambda noisy: noisy} | {name: one for name, one in found.items() if callable(one)}
    scores, seconds = {name: [] for name in present}, {name: [] for name in present}
    for one in present.values():
        one(clean[0][:64, :64])
    for number, photograph in enumerate(clean):
        noisy = add_noise(photograph, sigma, seed=number)
        names = list(present)
        for name in reversed(names) if number % 2 else names:
            start = time.process_time()
            output = present[name](noisy)
            seconds[name].append(time.process_time() - start)
            scores[name].append(score(photograph, output))
    megapixels = clean[0].shape[0] * clean[0].shape[1] / 1e6
    rows = []
    for name in ["noisy", *found]:
        if name not in present:
            rows.append({"method": name, "note": f"not run: {found[name]}"})
            continue
        psnrs, ssims = zip(*scores[name], strict=True)
        row = {"method": name, "PSNR": mean(psnrs), "SSIM": mean(ssims)}
        rows.append(row | {"s/megapixel": median(seconds[name]) / megapixels if name != "noisy" else None})
    return rows, seconds


def add_noise(clean: np.ndarray, sigma: float, *, seed: int) -> np.ndarray:
    """A photograph with Gaussian noise of `sigma`, both of 255, clipped and rounded to uint8."""
    noise = sigma * np.random.default_rng(seed).standard_normal(clean.shape)
    return np.rint((clean + noise).clip(0, 255)).astype(np.uint8)


def score(clean: np.ndarray, output: np.ndarray) -> tuple[float, float]:
    """PSNR and SSIM of uint8 photographs."""
    x, y = (255 * to_tensor(image[None]) for image in (clean, output))
    error = metrics.mean_squared_error(x, y).item()
    return metrics.psnr(error, data_range=255), metrics.ssim(x, y, data_range=255).item()


def methods(sigma: float) -> dict[str, Denoise | str]:
    """Every method for a strength of noise."""
    return networks(sigma / 255) | classical(sigma / 255) | {DEEPINV: "its weights come from a hub"}


def networks(sigma: float) -> dict[str, Denoise]:
    """The networks of Table 2 for the nearest Gaussian noise, and the one for photographs."""
    distances = {}
    for path in sorted((ROOT / "weights/paper").glob("*-0.safetensors")):
        noise = read_description(path)["noise"]
        if noise["name"] == "gaussian":
            distances[path] = abs(noise["sigma"] - sigma)
    nearest = min(distances.values())
    of_table = [path for path, distance in distances.items() if distance == nearest]
    chosen = [trained.find(trained.PHOTOGRAPHS), *of_table]
    return {path.stem: trained.load(path, device="cpu") for path in chosen}


def classical(sigma: float) -> dict[str, Denoise | str]:
    """Methods that learned nothing, each as its documentation has it for noise of this strength, of 1."""
    from skimage import restoration

    shrink = {"sigma": sigma, "convert2ycbcr": True, "rescale_sigma": True, "channel_axis": -1}
    wavelet = functools.partial(
        restoration.cycle_spin, func=restoration.denoise_wavelet, max_shifts=3, func_kw=shrink, num_workers=1,
        channel_axis=-1,
    )  # fmt: skip
    non_local = functools.partial(
        restoration.denoise_nl_means, sigma=sigma, h=0.6 * sigma, patch_size=5, patch_distance=6,
        fast_mode=False, channel_axis=-1,
    )  # fmt: skip
    total_variation = functools.partial(
        restoration.denoise_tv_chambolle, weight=0.75 * sigma, channel_axis=-1
    )
    return {
        "scikit-image: wavelet, BayesShrink": _of_package("pywt", lambda _: _on_floats(wavelet)),
        "scikit-image: non-local means": _on_floats(non_local),
        "scikit-image: TV, Chambolle": _on_floats(total_variation),
        "OpenCV: fastNlMeansDenoisingColored": _of_package("cv2", lambda cv2: _opencv(cv2, 255 * sigma)),
        "BM3D": _of_package(
            "bm3d", lambda bm3d: _on_floats(functools.partial(bm3d.bm3d_rgb, sigma_psd=sigma))
        ),
    }


def _of_package(name: str, build: Callable) -> Denoise | str:
    try:
        return build(peers.load(name))
    except ImportError as error:
        return f"the package {PACKAGES[name]} is {error}"


def _opencv(cv2: object, sigma: float) -> Denoise:
    cv2.setNumThreads(1)
    return lambda noisy: cv2.fastNlMeansDenoisingColored(noisy, None, 0.5 * sigma, 0.5 * sigma, 7, 21)


def _on_floats(function: Callable[[np.ndarray], np.ndarray]) -> Denoise:
    return lambda noisy: np.rint(255 * function(noisy / 255).clip(0, 1)).astype(np.uint8)


def images(side: int, count: int) -> dict[str, list[np.ndarray]]:
    """Clean photographs, uint8, (side, side, 3), by where they come from."""
    found = {
        "scikit-image": [photos.photograph(name, side) for name in (*photos.TEST, *photos.TRAIN)[:count]]
    }
    if archive := os.environ.get("LAMBDANET_BSDS500"):
        files = bsds500.read_files(Path(archive))
        names = sorted(name for name in files if name.startswith("val/"))
        names = [names[at] for at in np.linspace(0, len(names) - 1, count).round().astype(int)]
        found["BSDS500"] = [_middle(bsds500.decode(files[name]), side) for name in names]
    return found


def _middle(image: np.ndarray, side: int) -> np.ndarray:
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side]


main = command(measure)

if __name__ == "__main__":
    main()
