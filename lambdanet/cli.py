"""The `lambdanet` command: what a person does by hand, without DVC."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from lambdanet import __version__, params
from lambdanet.params import Cell

# As in stages/door.py: threads that spin long while they wait are ruinous on a shared machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


class OneLineErrors(click.Group):
    """A group that turns what a user can mend into one line on stderr and exit status 1."""

    def invoke(self, context: click.Context) -> object:
        logging.basicConfig(format="%(message)s")
        try:
            return super().invoke(context)
        except (ValueError, OSError) as error:
            sys.exit(f"error: {' '.join(str(error).split())}")


PROFILE = click.option("--profile", help="Profile of params.yaml; default: the active one.")
DATA = click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder with clean/ and noisy/NOISE/, like data/sample; default: the profile's images, prepared "
    "anew in a temporary folder.",
)
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Image Denoising Using LambdaNetworks, reproduced.

    The pipeline itself is run by `dvc repro`; these are the single steps by hand. Noises, models and
    profiles are those of params.yaml in the current folder.
    """


@main.command()
def check() -> None:
    """Check params.yaml: every key, every noise and every model of every profile."""
    from lambdanet.models import create_model
    from lambdanet.noise import create_noise

    loaded = _params()
    for name, config in loaded.noises.items():
        with _within(f"noises.{name}"):
            create_noise(**config)
    for profile in loaded.trainings:
        for name in loaded.models:
            with _within(f"models.{name} under profile {profile}"):
                create_model(**loaded.model(profile, name))
    cells = len(loaded.cells(loaded.profile))
    click.echo(f"params.yaml is valid; profile {loaded.profile} has {cells} trainings")


@main.command()
@click.argument("noise")
@click.argument("model")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write; replaced.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--epochs", type=int, help="Instead of the profile's.")
@click.option("--batch-size", type=int, help="Instead of the profile's.")
@click.option("--learning-rate", type=float, help="Instead of the profile's.")
@click.option("--fresh-noise/--stored-noise", default=None, help="Instead of the profile's.")
@PROFILE
@DATA
@DEVICE
def train(
    noise: str,
    model: str,
    out: Path,
    seed: int,
    profile: str | None,
    data: Path | None,
    device: str,
    **changes: float | None,
) -> None:
    """Train MODEL on NOISE and write weights.safetensors, model.json and history.csv.

    Interrupted, it goes on where it stopped when the same command is run again.
    """
    loaded = _params()
    profile = profile or loaded.profile
    settings = dataclasses.asdict(loaded.training(profile, model))
    settings |= {name: value for name, value in changes.items() if value is not None}
    settings = params.build(params.Training, settings, "options")
    noise_config = loaded.noise(noise)
    from lambdanet import experiment  # after the words were checked: torch takes seconds

    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= set(experiment.FILES)):
        raise ValueError(f"{out} exists and is not the folder of a training; name another one")

    checkpoints = out.with_name(f".{out.name}.checkpoints")
    with _data(loaded, profile, noise, data) as (clean, noisy):
        experiment.train_cell(
            Cell(profile, noise, model, seed),
            loaded.model(profile, model),
            noise_config,
            settings,
            clean,
            noisy,
            out,
            checkpoints=checkpoints,
            log=out.with_name(f"{out.name}.log.json"),
            device=device,
        )
    shutil.rmtree(checkpoints)
    click.echo(f"{out / experiment.WEIGHTS}: trained; score it with")
    click.echo(f"  lambdanet evaluate {out / experiment.WEIGHTS} {noise} --profile {profile}")


@main.command()
@click.argument("weights", type=click.Path(path_type=Path))
@click.argument("noise")
@PROFILE
@DATA
@DEVICE
def evaluate(weights: Path, noise: str, profile: str | None, data: Path | None, device: str) -> None:
    """Score a WEIGHTS file on the test images with NOISE; print the scores as JSON."""
    from lambdanet import experiment

    loaded = _params()
    with _data(loaded, profile or loaded.profile, noise, data) as (clean, noisy):
        scores, _ = experiment.evaluate_weights(weights, clean, noisy, device=device)
    click.echo(json.dumps(scores, indent=2))


@main.command()
@click.argument("weights", type=click.Path(path_type=Path))
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@DEVICE
def denoise(weights: Path, image: Path, out: Path, device: str) -> None:
    """Denoise the photograph IMAGE with a WEIGHTS file; OUT is a PNG file."""
    from lambdanet import experiment

    experiment.denoise_image(weights, image, out, device=device)
    click.echo(f"{out}: written")


@main.command()
@PROFILE
def show(profile: str | None) -> None:
    """Print the table of a profile, where its report lies and what to do next."""
    from lambdanet.report import tables

    profile = profile or _params().profile
    folder = Path("results") / profile
    table = tables.read_table(folder / "table2.csv")
    best = "-".join(table.loc[table["psnr"].idxmax(), ["noise", "model"]])
    found = [
        *Path("weights", profile).glob(f"{best}-*"),
        *Path("models", profile).glob(f"{best}-*/*.safetensors"),
    ]
    click.echo(tables.as_text(table))
    click.echo(f"\nreport:     {folder / 'report.html'}")
    click.echo("changes:    edit params.yaml, then `dvc repro` redoes what the change touches")
    click.echo("CIFAR-10:   dvc exp run -S profile=quick")
    if found:
        click.echo(f"your image: lambdanet denoise {found[0]} in.png out.png")


@main.command("export-weights")
@PROFILE
def export_weights(profile: str | None) -> None:
    """Copy the weights behind a profile's committed table to weights/PROFILE, for git."""
    from lambdanet import experiment

    profile = profile or _params().profile
    folder = Path("weights") / profile
    count = experiment.export_weights(
        Path("results") / profile / "digests.json", Path("models") / profile, folder
    )
    click.echo(f"{folder}: {count} weights files, each the one that its score names")


def _params() -> params.Params:
    return params.load(Path("params.yaml"))


@contextlib.contextmanager
def _within(where: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"params.yaml: {where}: {error}") from None


@contextlib.contextmanager
def _data(loaded: params.Params, profile: str, noise: str, data: Path | None) -> Iterator[tuple[Path, Path]]:
    """The folders of the clean and the noisy images: those in `data`, or made for the occasion."""
    from lambdanet import corruption, datasets

    noise_config = loaded.noise(noise)
    config = params.look_up(loaded.downloads, profile, "profile")
    if data is not None:
        yield data / "clean", data / "noisy" / noise
        return
    with tempfile.TemporaryDirectory() as temporary:
        clean, noisy = Path(temporary, "clean"), Path(temporary, noise)
        datasets.prepare(
            config.dataset,
            {"train": config.train, "test": config.test},
            config.seed,
            clean,
            source=os.environ.get("LAMBDANET_CIFAR10"),
            downloads=Path("downloads"),
        )
        corruption.prepare_noisy(clean, noise_config, loaded.noise_seed, noisy)
        yield clean, noisy
