"""Use denoisers on people's own image files: which one, from where, file by file."""

import contextlib
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from lambdanet import devices, files
from lambdanet.config import RunKey
from lambdanet.data import imagefile
from lambdanet.data.imagefile import Photograph
from lambdanet.inference import blind, bundled, catalogue, trained
from lambdanet.inference.catalogue import Denoiser
from lambdanet.inference.targets import STREAM, identity
from lambdanet.inference.trained import TrainedDenoiser
from lambdanet.models import read_description
from lambdanet.run_log import TRAININGS, read_trainings


@contextlib.contextmanager
def denoisers(weights: Path | None, alias: str | None, noise: str | None) -> Iterator[dict[str, Path]]:
    """The denoisers to use, by what they are called: one, or one for each noise where `noise` is None.

    Args:
        weights: a weights file; a folder like weights/paper, with the scores in results/paper beside
            weights/; or None.
        alias: of the catalogue, for a folder "champion" by default; without `weights`, that of MLflow's
            registry, or where it is None too, the denoiser of `lambdanet.load`.
        noise: which noise they shall be for; None: one for each, of `lambdanet.load` that for photographs.

    Yields:
        Their weights files.

    Raises:
        ValueError: there is no such denoiser; the line says what there is.
        UnreachableError: MLflow does not answer.
    """
    if weights is None and alias is None:
        path = bundled.find(noise or bundled.PHOTOGRAPHS)
        yield {path.stem: path}
    elif weights is None:
        from lambdanet.tracking import mlflow_runs, registry

        with tempfile.TemporaryDirectory() as temporary:
            client = registry.open_registry()
            with mlflow_runs.reaching():
                found = registry.denoisers(client)
                held = {(d.noise, name): d for d, names in found for name in names}
                choices = {}
                for denoiser in _chosen(held, alias, noise):
                    folder = Path(temporary, denoiser.noise)
                    folder.mkdir()
                    label = _label(denoiser, f"version {denoiser.version}")
                    choices[label] = registry.fetch(client, denoiser, folder)
            yield choices
    elif weights.is_dir():
        whole = weights.resolve()
        results = whole.parents[1] / "results" / whole.name if len(whole.parts) > 2 else whole
        if not (results / TRAININGS).is_file():
            raise ValueError(f"{weights} has no scores ({results / TRAININGS}); name one .safetensors file")
        paths = committed(weights, results)
        held = {}
        for name in dict.fromkeys(denoiser.noise for denoiser in paths):
            of_noise = catalogue.aliases([denoiser for denoiser in paths if denoiser.noise == name])
            held |= {(name, key): denoiser for key, denoiser in of_noise.items()}
        chosen = _chosen(held, alias or "champion", noise)
        yield {_label(one, str(paths[one])): paths[one] for one in chosen}
    else:
        read_description(weights)
        yield {str(weights): weights}


def committed(weights: Path, results: Path) -> dict[Denoiser, Path]:
    """The best seed of each noise and model whose weights and scores are in git, with its weights file.

    Args:
        weights: folder with a .safetensors file a run; a run without one is left out.
        results: folder of `report.write_report`.

    Raises:
        ValueError: a file cannot be read, or scores are of other weights.
    """
    scored = {}
    for name, entry in read_trainings(results).items():
        path = weights / f"{name}.safetensors"
        if path.is_file():
            scores = entry["scores"]
            key = RunKey(*(scores[part] for part in ("profile", "noise", "model", "seed")))
            one = Denoiser.of(key, scores, 0)
            if files.sha256(path) != one.weights_sha256:
                raise ValueError(f"{path} is not what was scored; run `dvc repro`")
            scored[one] = path
    paths = {one.weights_sha256: path for one, path in scored.items()}
    return {one: paths[one.weights_sha256] for one in catalogue.best_seeds(scored)}


def run(
    targets: dict[Path, Path], choices: dict[str, Path], *, device: str = "auto", strength: float = 1.0
) -> Iterator[str]:
    """Denoise photographs, each with the denoiser that fits it best.

    Args:
        targets: of `targets.plan`: for each image the .png file to write.
        choices: of `denoisers`; with more than one, each photograph's noise is found out first.
        device: "auto", "cpu" or "cuda".
        strength: of what a network removes, how much goes, from 0 to 1.

    Yields:
        A line for the user, for each file.

    Raises:
        ValueError: a file cannot be denoised; of several, after all others were.
    """
    devices.keep_freed_memory()
    loaded = {label: trained.load(weights, device=device) for label, weights in choices.items()}
    written, failed = set(), 0
    for path, target in tqdm(targets.items(), unit="image", disable=None, leave=False):
        try:
            if target != STREAM and identity(target) in written:  # names differ in case only, as on macOS
                raise ValueError(f"{path} would be written to the file of another image; rename one")
            yield _denoise_file(path, target, loaded, strength)
            written.add(identity(target))
        except (ValueError, OSError, MemoryError, ImportError) as error:  # the last: a library does not fit
            line = str(error) or f"{path}: not enough memory to denoise it"
            if len(targets) == 1:
                raise ValueError(line) from None
            failed += 1
            yield f"error: {' '.join(line.split())}"
    if failed:
        raise ValueError(f"{failed} of {len(targets)} files could not be denoised")


def _denoise_file(path: Path, target: Path, loaded: dict[str, TrainedDenoiser], strength: float) -> str:
    photograph = _read(path)
    label = next(iter(loaded)) if len(loaded) == 1 else blind.best(photograph, loaded)
    _write(target, loaded[label].denoise_photograph(photograph, strength=strength))
    frames = f" (the first of {photograph.frames} images in {path})" if photograph.frames > 1 else ""
    return f"{'standard output' if target == STREAM else target}: written, by {label}{frames}"


def _read(path: Path) -> Photograph:
    if path == STREAM:
        return imagefile.decode(sys.stdin.buffer.read(), "standard input")
    return imagefile.read(path)


def _write(target: Path, photograph: Photograph) -> None:
    if target == STREAM:
        sys.stdout.buffer.write(imagefile.encode_png(photograph))
        sys.stdout.buffer.flush()
    else:
        imagefile.write_png(target, photograph)


def _chosen(held: dict[tuple[str, str], Denoiser], alias: str, noise: str | None) -> Iterable[Denoiser]:
    noises = list(dict.fromkeys(name for name, _ in held))
    if not noises:
        raise ValueError("there are no denoisers here yet: `make repro` or `lambdanet models sync`")
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
