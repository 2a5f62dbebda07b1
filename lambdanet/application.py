"""Use denoisers on people's own photographs: which one, from where, file by file."""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from lambdanet import blind, catalogue, devices, imagefile
from lambdanet.catalogue import Denoiser
from lambdanet.denoise import denoise_photograph
from lambdanet.models import load_weights, read_description
from lambdanet.noise import create_noise


@dataclass(frozen=True)
class Choice:
    """A denoiser that may be used: what it is called, and its weights file."""

    label: str
    weights: Path


@contextlib.contextmanager
def denoisers(weights: Path | None, alias: str, noise: str | None) -> Iterator[list[Choice]]:
    """The denoisers to use: one, or one for each noise where `noise` is None.

    Args:
        weights: a weights file; a folder of CELL.safetensors, with the scores in results/ under the
            same name; or None: MLflow's registry.
        alias: of the catalogue.
        noise: which noise they shall be for; None: one for each.

    Raises:
        ValueError: there is no such denoiser; the line says what there is.
        UnreachableError: MLflow does not answer.
    """
    if weights is None:
        from lambdanet import registry, tracking

        with tempfile.TemporaryDirectory() as temporary:
            client = registry.open_registry()
            with tracking.reaching():
                found = registry.denoisers(client)
                held = {(d.noise, name): d for d, names in found for name in names}
                chosen = _chosen(held, alias, noise)
                choices = []
                for denoiser in chosen:
                    folder = Path(temporary, denoiser.noise)
                    folder.mkdir()
                    path = registry.fetch(client, denoiser, folder)
                    choices.append(Choice(_label(denoiser, f"version {denoiser.version}"), path))
            yield choices
    elif weights.is_dir():
        from lambdanet import publish

        paths = publish.catalogue(publish.from_committed(weights, Path("results", weights.name)))
        held = {}
        for name in dict.fromkeys(denoiser.noise for denoiser in paths):
            of_noise = catalogue.aliases([denoiser for denoiser in paths if denoiser.noise == name])
            held |= {(name, key): denoiser for key, denoiser in of_noise.items()}
        yield [Choice(_label(one, str(paths[one])), paths[one]) for one in _chosen(held, alias, noise)]
    else:
        read_description(weights)
        yield [Choice(str(weights), weights)]


def denoise_files(image: Path, out: Path, choices: list[Choice], *, device: str = "auto") -> Iterator[str]:
    """Denoise a photograph, or all in a folder, with the denoiser that fits each best.

    Args:
        image: a file, or a folder.
        out: a .png file; of a folder, a folder for files of the same names as .png.
        choices: of `denoisers`; with more than one, each photograph's noise is found out first.
        device: "auto", "cpu" or "cuda".

    Yields:
        A line for a person, for each file.

    Raises:
        ValueError: a file cannot be read, names collide, or `out` does not fit `image`; in a folder,
            after all others were denoised.
    """
    devices.keep_freed_memory()
    where = devices.choose_device(device)
    loaded = {choice: load_weights(choice.weights) for choice in choices}
    models = {choice: (model.to(where), description) for choice, (model, description) in loaded.items()}
    if not image.is_dir():
        if out.suffix.lower() != ".png":
            raise ValueError(f"{out}: the output is a PNG file, name it .png")
        if out.resolve() == image.resolve():
            raise ValueError(f"{out} is the image itself; name another file")
        yield _denoise_file(image, out, models, where)
        return
    targets = _targets(image, out)
    failed = []
    for path, target in tqdm(targets.items(), unit="image", disable=None, leave=False):
        try:
            yield _denoise_file(path, target, models, where)
        except ValueError as error:
            failed.append(str(error))
            yield f"error: {error}"
    if failed:
        raise ValueError(f"{len(failed)} of {len(targets)} files in {image} could not be denoised")


def _denoise_file(path: Path, target: Path, models: dict, device: torch.device) -> str:
    photograph = imagefile.read(path)
    if len(models) == 1:
        (choice,) = models
    else:
        choice = _best(photograph.rgb, models, device)
    output = denoise_photograph(models[choice][0], photograph.rgb, device)
    imagefile.write_png(target, replace(photograph, rgb=output))
    return f"{target}: written, by {choice.label}"


def _best(rgb: np.ndarray, models: dict[Choice, tuple[nn.Module, dict]], device: torch.device) -> Choice:
    rgb = rgb[blind.middle(*rgb.shape[:2])]
    values = torch.from_numpy(rgb.astype(np.float32) / np.iinfo(rgb.dtype).max).to(device)
    noisy = values.permute(2, 0, 1)[None].contiguous()
    misfits = {
        choice: blind.misfit(noisy, model, create_noise(**description["noise"])).item()
        for choice, (model, description) in models.items()
    }
    return min(misfits, key=misfits.get)


def _targets(folder: Path, out: Path) -> dict[Path, Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in imagefile.SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} holds no images ({', '.join(imagefile.SUFFIXES)})")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; for the images of a folder name a folder")
    targets = {path: out / f"{path.stem}.png" for path in paths}
    if len(set(targets.values())) < len(targets):
        twice = [path.name for path, target in targets.items() if list(targets.values()).count(target) > 1]
        raise ValueError(f"{', '.join(twice)} in {folder} would be written to the same file; rename one")
    if out.resolve() == folder.resolve():
        raise ValueError(f"{out} is the folder of the images themselves; name another one")
    return targets


def _chosen(held: dict[tuple[str, str], Denoiser], alias: str, noise: str | None) -> Iterable[Denoiser]:
    noises = list(dict.fromkeys(name for name, _ in held))
    if not noises:
        raise ValueError("there are no denoisers here yet; `make repro` or `lambdanet publish` makes some")
    if noise is not None and noise not in noises:
        raise ValueError(f"there is no denoiser for the noise {noise!r}; there are {', '.join(noises)}")
    wanted = [noise] if noise is not None else noises
    chosen = [held[name, alias] for name in wanted if (name, alias) in held]
    if not chosen:
        of_noise = [name for one, name in held if one == wanted[0]]
        raise ValueError(f"{wanted[0]} has no denoiser {alias!r}; it has {', '.join(of_noise)}")
    return chosen


def _label(denoiser: Denoiser, where: str) -> str:
    return f"{denoiser.model} for {denoiser.noise} ({where}, {denoiser.psnr:.2f} dB)"
