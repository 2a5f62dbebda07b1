"""The committed networks and other denoisers on photographs with Gaussian noise: quality and cost.

    python -m benchmarks.denoisers [--quick]

`python -m benchmarks --only denoisers` also writes JSON. scikit-image's photographs are always taken; those
of BSDS500, with CBSD68 and BSD68, which published tables are of, if the variable LAMBDANET_BSDS500 names its
archive. `pip install -e '.[bench]'` brings OpenCV, BM3D, which takes most of the time, PyWavelets and
msgpack, which reads SCICO's DnCNN: `pip install --no-deps scico==0.0.7`. All that takes about half an hour
(calculated).
"""

import functools
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from PIL import Image

from benchmarks import peers
from benchmarks.tables import Table, command
from lambdanet.data import bsds500, photos
from lambdanet.data.images import to_tensor
from lambdanet.evaluation import metrics
from lambdanet.inference import bundled, trained
from lambdanet.models import read_description

ROOT = Path(__file__).resolve().parent.parent
SIGMAS = (15, 25, 50)  # of 255
SIDE = 256
COUNT = 3  # photographs of a table
SCIKIT_IMAGE = "scikit-image"
NOISY, SCICO, BM3D = "noisy", "SCICO: DnCNN, 17 layers, each channel by itself", "BM3D"
ABOUT = (
    "{count} photographs of {source}, {side} x {side}, with Gaussian noise of {sigma} of 255, clipped to 8 "
    "bits as in a file; means of PSNR (dB) and SSIM. All methods but `photographs` are told the noise's true "
    "strength, networks by the choice of one. Seconds: the processor's, of all threads, per megapixel; "
    "medians over the photographs, which go through all methods in turn."
)
NOTES = [
    "Networks are named by their file in weights/paper, seed 0; of Table 2's noises, the nearest. Of "
    "ours, all but `photographs` learned from CIFAR-10's images of 32 x 32, with noise that was not clipped.",
    "Settings: wavelets shifted by 0 to 3 pixels each way (cycle_spin); non-local means exact, h 0.6 sigma; "
    "TV of weight 0.75 sigma and OpenCV's h 0.5 sigma, of five factors each those of the best mean PSNR over "
    "these three strengths on six training photographs of BSDS500.",
    "SCICO's DnCNN is the one of three that learned the nearest sigma: 0.06, 0.1 or 0.2 of 1. It runs on the "
    "kernels of ours.",
    "Published values are mostly of noise that is not clipped, and cannot be set beside these.",
]
CBSD68 = (  # of BSDS500's `val`
    "101085 101087 102061 103070 105025 106024 108005 108070 108082 109053 119082 12084 123074 126007 130026 "
    "134035 14037 143090 145086 147091 148026 148089 157055 159008 160068 16077 163085 167062 167083 170057 "
    "175032 175043 182053 189080 19021 196073 197017 208001 210088 21077 216081 219090 220075 223061 227092 "
    "229036 236037 24077 241004 241048 253027 253055 260058 271035 285079 291000 295087 296007 296059 299086 "
    "300091 302008 304034 304074 306005 3096 33039 351093"
)
STEP = 12  # of these, BM3D gets every 12th
PUBLISHED = {  # PSNR (dB) at SIGMAS, on CBSD68
    "CBM3D, published": (33.52, 30.71, 27.38),
    "DnCNN for one sigma, published": (33.99, 31.31, 28.01),
    "CDnCNN-B, blind, published": (None, 31.23, 27.92),
    "FFDNet, published": (33.87, 31.21, 27.96),
}
PUBLISHED_GREY = {  # on BSD68
    "BM3D, published": (31.07, 28.57, 25.62),
    "DnCNN-S, for one sigma, published": (31.73, 29.23, 26.23),
    "DnCNN-B, blind, published": (31.61, 29.16, 26.23),
}
ABOUT_PUBLISHED = (
    "{count} {kind} photographs of 481 x 321 of BSDS500's `val`, which `photographs` did not learn from, "
    "with Gaussian noise of sigma, of 255: means of each photograph's PSNR (dB), outputs clipped and rounded "
    "to 8 bits."
)
NOTES_CBSD68 = [
    "The noise is not clipped, as that of the published values. `photographs`, which learned from clipped "
    "noise, clips the image first.",
    "CBM3D and DnCNN for one sigma: https://github.com/cszn/DnCNN/issues/4, by DnCNN's first author. "
    "CDnCNN-B and FFDNet: Zhang et al. 2018 (https://arxiv.org/abs/1710.04026), as later papers quote it.",
]
NOTES_BSD68 = [
    f"{NOTES_CBSD68[0]} Grey is made of the colours by Pillow; the published images may differ by rounding.",
    "Published values: Zhang et al. 2017 (https://arxiv.org/abs/1608.03981), Table II.",
]
STORED = {"PNG": "", "JPEG, colours at full resolution": "4:4:4", "JPEG, at half of it": "4:2:0"}
ABOUT_STORED = (
    "What is left of the noise where a noisy photograph was stored as JPEG of quality 90 by Pillow: "
    "`photographs` on the {count} photographs of scikit-image above, sigma {sigma}; means of PSNR (dB)."
)
PACKAGES = {"pywt": "PyWavelets", "cv2": "opencv-python-headless", "bm3d": "bm3d"}

# (h, w, 3), or for networks (h, w, 1) too; black 0, white 1, noise may go beyond
Denoise = Callable[[np.ndarray], np.ndarray]


def measure(quick: bool = False) -> Iterator[Table]:
    """Compare denoisers on photographs with Gaussian noise of three strengths."""
    side, count = (64, 1) if quick else (SIDE, COUNT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        files = _bsds500()
        for source, clean in images(files, side, count).items():
            for sigma in SIGMAS[1:2] if quick else SIGMAS:
                about = ABOUT.format(count=len(clean), source=source, side=side, sigma=sigma)
                rows, seconds = compare(methods(sigma), clean, sigma)
                yield Table(f"Denoisers, {source}, sigma {sigma}", about, rows, NOTES, seconds)
            if source == SCIKIT_IMAGE:
                about = ABOUT_STORED.format(count=len(clean), sigma=SIGMAS[1])
                yield Table("Noise in JPEG", about, stored(clean, SIGMAS[1]))
        if files:
            yield from beside_published(files, quick)
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
    present = {NOISY: _unchanged} | {name: one for name, one in found.items() if callable(one)}
    scores, seconds = {name: [] for name in present}, {name: [] for name in present}
    for one in present.values():
        one(clean[0][:64, :64] / 255)
    for number, photograph in enumerate(clean):
        noisy = add_noise(photograph, sigma, seed=number)
        names = list(present)
        for name in reversed(names) if number % 2 else names:
            start = time.process_time()
            output = present[name](noisy / 255)
            seconds[name].append(time.process_time() - start)
            scores[name].append(score(photograph, _to_bytes(output)))
    megapixels = clean[0].shape[0] * clean[0].shape[1] / 1e6
    rows = []
    for name in [NOISY, *found]:
        if name not in present:
            rows.append({"method": name, "note": f"not run: {found[name]}"})
            continue
        psnrs, ssims = zip(*scores[name], strict=True)
        row = {"method": name, "PSNR": mean(psnrs), "SSIM": mean(ssims)}
        rows.append(row | {"s/megapixel": median(seconds[name]) / megapixels if name != NOISY else None})
    return rows, seconds


def stored(clean: list[np.ndarray], sigma: float) -> list[dict]:
    """A row for each of `STORED`: what `photographs` makes of noisy photographs that were stored so.

    Args:
        clean: uint8, (h, w, 3) each.
        sigma: of the noise that is put on, of 255.
    """
    denoise, rows = trained.load(bundled.find(bundled.PHOTOGRAPHS), device="cpu"), []
    for name, colours in STORED.items():
        noisy = [_as_jpeg(add_noise(one, sigma, seed=i), colours) for i, one in enumerate(clean)]
        found = {"noisy": noisy, "denoised": [denoise(one) for one in noisy]}
        psnrs = {
            key: mean(score(*pair)[0] for pair in zip(clean, images, strict=True))
            for key, images in found.items()
        }
        rows.append({"stored as": name} | psnrs)
    return rows


def _as_jpeg(image: np.ndarray, colours: str) -> np.ndarray:
    """An image as JPEG brings it back, with the colours subsampled so; "" leaves it as it is."""
    if not colours:
        return image
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90, subsampling=colours)
    return np.asarray(Image.open(file))


def beside_published(files: dict[str, bytes], quick: bool) -> Iterator[Table]:
    """Compare denoisers as published tables do, in colours and in grey.

    Args:
        files: of BSDS500, as `read_files` gives them.
        quick: take a small part of one photograph, and one sigma.
    """
    clean = [bsds500.decode(files[f"val/{name}.jpg"]) for name in CBSD68.split()]
    if quick:
        clean = [_middle(clean[0], 64)]
    sigmas = SIGMAS[1:2] if quick else SIGMAS
    names = [NOISY, bundled.NAMES[bundled.PHOTOGRAPHS], SCICO]
    grey = [np.asarray(Image.fromarray(photograph).convert("L"))[..., None] for photograph in clean]
    for title, kind, photographs, known, notes in (
        ("CBSD68", "colour", clean, PUBLISHED, NOTES_CBSD68),
        ("BSD68", "greyscale", grey, PUBLISHED_GREY, NOTES_BSD68),
    ):
        rows = psnr_rows(names, photographs, sigmas)
        for name, values in known.items():
            of_sigmas = dict(zip(SIGMAS, values, strict=True))
            rows.append({"method": name} | {_column(sigma): of_sigmas[sigma] for sigma in sigmas})
        about = ABOUT_PUBLISHED.format(count=len(photographs), kind=kind)
        yield Table(title, about, rows, notes, digits=4)
    few = clean[::STEP]
    about = ABOUT_PUBLISHED.format(count=len(few), kind="colour")
    rows = psnr_rows([*names, BM3D], few, sigmas)
    yield Table(f"CBSD68, every {STEP}th photograph", about, rows, NOTES_CBSD68[:1], digits=4)


def psnr_rows(names: list[str], clean: list[np.ndarray], sigmas: tuple[int, ...]) -> list[dict]:
    """A row for each method: the mean over the photographs of their PSNR, for each sigma.

    Args:
        names: of `methods`, and `NOISY`.
        clean: uint8, (h, w, 3) each, or (h, w, 1), which only networks take.
        sigmas: of the noise that is put on, of 255, and not clipped.
    """
    rows = {name: {"method": name} for name in names}
    for sigma in sigmas:
        found = methods(sigma)
        for name, row in rows.items():
            if name != NOISY and not callable(found[name]):
                row["note"] = f"not run: {found[name]}"
                continue
            psnrs = []
            for number, photograph in enumerate(clean):
                noisy = add_noise(photograph, sigma, seed=number, clipped=False) / 255
                output = noisy if name == NOISY else _to_bytes(found[name](noisy)) / 255
                psnrs.append(metrics.psnr(np.square(output - photograph / 255).mean(), data_range=1))
            row[_column(sigma)] = mean(psnrs)
    return list(rows.values())


def _column(sigma: int) -> str:
    return f"sigma {sigma}"


def add_noise(clean: np.ndarray, sigma: float, *, seed: int, clipped: bool = True) -> np.ndarray:
    """A photograph with Gaussian noise of `sigma`, both of 255; clipped and rounded to uint8, or float."""
    noisy = clean + sigma * np.random.default_rng(seed).standard_normal(clean.shape)
    return _to_bytes(noisy / 255) if clipped else noisy


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(255 * image.clip(0, 1)).astype(np.uint8)


def _unchanged(noisy: np.ndarray) -> np.ndarray:
    return noisy


def score(clean: np.ndarray, output: np.ndarray) -> tuple[float, float]:
    """PSNR and SSIM of uint8 photographs."""
    x, y = (255 * to_tensor(image[None]) for image in (clean, output))
    error = metrics.mean_squared_error(x, y).item()
    return metrics.psnr(error, data_range=255), metrics.ssim(x, y, data_range=255).item()


def methods(sigma: float) -> dict[str, Denoise | str]:
    """Every method for a strength of noise."""
    return networks(sigma / 255) | {SCICO: scico(sigma / 255)} | classical(sigma / 255)


def networks(sigma: float) -> dict[str, Denoise]:
    """The networks of Table 2 for the nearest Gaussian noise, and the one for photographs."""
    distances = {}
    for path in sorted((ROOT / "weights/paper").glob("*-0.safetensors")):
        noise = read_description(path)["noise"]
        if noise["name"] == "gaussian":
            distances[path] = abs(noise["sigma"] - sigma)
    nearest = min(distances.values())
    of_table = [path for path, distance in distances.items() if distance == nearest]
    chosen = [bundled.find(bundled.PHOTOGRAPHS), *of_table]
    return {path.stem: trained.load(path, device="cpu") for path in chosen}


def scico(sigma: float) -> Denoise | str:
    """SCICO's DnCNN, a published network of one channel, for the nearest noise."""
    try:
        return functools.partial(peers.by_channel, peers.scico_dncnn(sigma))
    except ImportError as error:
        return str(error)


def classical(sigma: float) -> dict[str, Denoise | str]:
    """Methods that learned nothing, each as its documentation has it for noise of this strength, of 1."""
    from skimage import restoration

    shrink = {"sigma": sigma, "convert2ycbcr": True, "rescale_sigma": True, "channel_axis": -1}
    wavelet = functools.partial(
        restoration.cycle_spin, func=restoration.denoise_wavelet, max_shifts=3, func_kw=shrink, workers=1,
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
        "scikit-image: wavelet, BayesShrink": _of_package("pywt", lambda _: wavelet),
        "scikit-image: non-local means": non_local,
        "scikit-image: TV, Chambolle": total_variation,
        "OpenCV: fastNlMeansDenoisingColored": _of_package("cv2", lambda cv2: _opencv(cv2, 255 * sigma)),
        BM3D: _of_package("bm3d", lambda bm3d: functools.partial(bm3d.bm3d_rgb, sigma_psd=sigma)),
    }


def _of_package(name: str, build: Callable) -> Denoise | str:
    try:
        return build(peers.load(name))
    except ImportError as error:
        return f"the package {PACKAGES[name]} is {error}"


def _opencv(cv2: object, sigma: float) -> Denoise:
    cv2.setNumThreads(1)
    strength = 0.5 * sigma
    return lambda noisy: (
        cv2.fastNlMeansDenoisingColored(_to_bytes(noisy), None, strength, strength, 7, 21) / 255
    )


def images(files: dict[str, bytes], side: int, count: int) -> dict[str, list[np.ndarray]]:
    """Clean photographs, uint8, (side, side, 3), by where they come from; `files` of BSDS500, or none."""
    found = {SCIKIT_IMAGE: [photos.photograph(name, side) for name in (*photos.TEST, *photos.TRAIN)[:count]]}
    if files:
        names = sorted(name for name in files if name.startswith("val/"))
        names = [names[at] for at in np.linspace(0, len(names) - 1, count).round().astype(int)]
        found["BSDS500"] = [_middle(bsds500.decode(files[name]), side) for name in names]
    return found


def _bsds500() -> dict[str, bytes]:
    archive = os.environ.get("LAMBDANET_BSDS500")
    return bsds500.read_files(Path(archive)) if archive else {}


def _middle(image: np.ndarray, side: int) -> np.ndarray:
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side]


main = command(measure)

if __name__ == "__main__":
    main()
