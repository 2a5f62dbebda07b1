"""The `lambdanet` command: what a person does by hand, without DVC."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import socket
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


PARAMS = Path("params.yaml")
PROFILE = click.option("--profile", help="Profile of params.yaml; default: the active one.")
DATA = click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder with clean/ and noisy/NOISE/, like data/sample (of a set, with noisy/ itself); default: the "
    "profile's or the set's images, prepared anew in a temporary folder.",
)
DEVICE = click.option(
    "--device",
    default="auto",
    show_default=True,
    envvar="LAMBDANET_DEVICE",
    show_envvar=True,
    help="auto, cpu or cuda; cpu/BACKEND forces one: reference, portable, fused, channels-last, bf16 ...",
)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Image Denoising Using LambdaNetworks, reproduced.

    The pipeline itself is run by `dvc repro`; these are the single steps by hand. Noises, models and
    profiles are those of params.yaml in the current folder.
    """


@main.command()
def check() -> None:
    """Check params.yaml: every key, every noise and every model of every profile, the active one's images."""
    from lambdanet import checking

    click.echo(checking.check(PARAMS))


@main.command()
@click.option("--fix", is_flag=True, help="Mend what is safe to mend; run it while no dvc runs here.")
def doctor(fix: bool) -> None:
    """Say whether this installation, this clone and its cluster are healthy, and what to do."""
    from lambdanet import checking, doctor

    here, found = Path(), []
    parameters = doctor.parameters(lambda: checking.check(PARAMS))
    for finding in (*doctor.installation(here), parameters, *doctor.project(here, fix)):
        click.echo(str(finding))
        found.append(finding.level)
    sys.exit(doctor.BAD in found)


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
    loaded.data_set(noise, model)
    noise_config = loaded.training_noise(Cell(profile, noise, model, seed))
    from lambdanet import experiment, live  # after the words were checked: torch takes seconds

    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= set(experiment.FILES)):
        raise ValueError(f"{out} exists and is not the folder of a training; name another one")

    checkpoints = out.with_name(f".{out.name}.checkpoints")
    log = out.with_name(f"{out.name}.log.json")
    # At once, however short: there is no stage that would tell of it later.
    with live.follow(log, patience=0) as tell, _data(loaded, profile, noise, data) as (clean, noisy):
        experiment.train_cell(
            Cell(profile, noise, model, seed),
            loaded.model(profile, model),
            noise_config,
            settings,
            clean,
            noisy,
            out,
            checkpoints=checkpoints,
            log=log,
            device=device,
            on_news=tell,
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
    profile = profile or loaded.profile
    with _data(loaded, profile, noise, data) as (clean, noisy):
        scores, _ = experiment.evaluate_weights(weights, clean, noisy, device=device)
    click.echo(json.dumps(scores, indent=2))


@main.command()
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True)
)
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path, allow_dash=True),
    help="PNG file, or folder of such; - is standard output.",
)
@click.option("--noise", help="Which noise is on the image; a name of `lambdanet models`.")
@click.option("--blind", is_flag=True, help="Find out which noise it is, by trying all denoisers.")
@click.option("--alias", help="Which denoiser: champion (the default), compact or a model.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="A weights file, or a folder of them such as weights/quick, instead of MLflow's registry.",
)
@DEVICE
def denoise(
    images: tuple[Path, ...],
    out: Path,
    noise: str | None,
    blind: bool,
    alias: str | None,
    weights: Path | None,
    device: str,
) -> None:
    """Denoise photographs: each IMAGE is a file, a folder of files, or - for standard input.

    PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF or, with pillow-heif installed, HEIC; of any size, grey or
    colour, with or without alpha, of 8 or 16 bits. The output is PNG, of the same size, depth and kind,
    upright, with the colour profile and EXIF. Of several files, those that cannot be read are named, the
    others are denoised, and the exit status is 1. A name that begins with a dash goes behind --.
    """
    from lambdanet import imagefile, targets

    sys.stdout.reconfigure(errors="backslashreplace")  # names of files are bytes, not always text
    single = weights is not None and not weights.is_dir()
    if sum([noise is not None, blind, single]) != 1:
        raise ValueError("name one of --noise NOISE, --blind and --weights FILE")
    if single and alias is not None:
        raise ValueError(f"{weights} is one denoiser; leave out --alias, or name a folder")
    if weights is not None and not weights.exists():
        raise ValueError(f"{weights}: no such weights file")
    planned, notes = targets.plan(images, out)
    if len(planned) == 1 and images[0] != targets.STREAM:
        imagefile.check(next(iter(planned)))
    for note in notes:
        click.echo(note, err=True)
    from lambdanet import application  # after the words were checked: torch takes seconds

    with application.denoisers(weights, alias or "champion", noise) as choices:
        for line in application.denoise_files(planned, choices, device=device):
            click.echo(line, err=out == targets.STREAM)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, one object a version.")
def models(as_json: bool) -> None:
    """List the denoisers in MLflow's registry, and what their aliases stand for."""
    from lambdanet import catalogue, registry, tracking

    client = registry.open_registry()
    with tracking.reaching():
        rows = [
            dataclasses.asdict(denoiser) | {"aliases": aliases}
            for denoiser, aliases in registry.denoisers(client)
        ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        raise ValueError(f"the registry at {tracking.uri()} holds no denoisers; see `lambdanet publish`")
    import pandas as pd

    table = pd.DataFrame(rows)
    table["aliases"] = table["aliases"].map(", ".join)
    columns = ["noise", "model", "version", "psnr", "ssim", "parameters", "profile", "created", "aliases"]
    click.echo(table[columns].to_string(index=False, float_format="%.3f"))
    click.echo(f"\n{catalogue.RULE}")


@main.command()
@PROFILE
def publish(profile: str | None) -> None:
    """Bring MLflow up to date with a profile's trainings: runs, models, aliases, what is missing only.

    Taken from DVC's outputs where they are, else from weights/PROFILE and results/PROFILE. Where to is
    MLFLOW_TRACKING_URI, by default mlflow.db in the current folder.
    """
    from lambdanet import publish

    loaded = _params()
    profile = profile or loaded.profile
    params.look_up(loaded.downloads, profile, "profile")
    logs, results = Path("logs", profile), Path("results", profile)
    trained = publish.from_stages(loaded, profile, Path("models", profile), Path("scores", profile), logs)
    here = {one.training.cell for one in trained}
    if not here.issuperset(loaded.cells(profile)) and Path("weights", profile).is_dir():
        committed = publish.from_committed(Path("weights", profile), results, logs)
        missing = [one for one in committed if one.training.cell not in here]
        click.echo(f"{len(missing)} trainings from weights/{profile}, as DVC's outputs of them are not here")
        trained += missing
    if not trained:
        raise ValueError(f"nothing of the profile {profile} is here; run `dvc repro` first")
    summary = results if (results / "table2.md").is_file() else None
    for line in publish.publish(trained, profile, loaded.train_images, summary).lines():
        click.echo(line)


@main.command()
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
def ui(port: int) -> None:
    """Open MLflow's pages on this project's runs and models; ends with Ctrl-C."""
    from lambdanet import tracking

    if tracking.sqlite_file():
        _refuse_taken(port)
    tracking.connect()  # makes the database, alone, before the server's processes open it
    if not tracking.sqlite_file():
        click.echo(f"MLFLOW_TRACKING_URI names a server; its pages are at {tracking.uri()}")
        return
    store = ["--backend-store-uri", tracking.uri(), "--default-artifact-root", str(tracking.ARTIFACTS)]
    command = [sys.executable, "-m", "mlflow", "server", *store, "--port", str(port), "--workers", "1"]
    click.echo(f"http://127.0.0.1:{port}", err=True)
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # seven processes for nothing here
    os.execv(sys.executable, command)


@main.command()
@PROFILE
@click.option("--cell", help="One cell only, NOISE-MODEL-SEED, from its own score or last epoch.")
@click.option(
    "--json", "as_json", is_flag=True, help="That cell for a program, with its run's page in MLflow."
)
def show(profile: str | None, cell: str | None, as_json: bool) -> None:
    """Print the table of a profile, where its report lies and what to do next."""
    from lambdanet.report import tables

    profile = profile or _params().profile
    if cell or as_json:
        _show_cell(profile, cell or "", as_json)
        return
    folder = Path("results") / profile
    table = tables.read_table(folder / "table2.csv")
    click.echo(tables.as_text(table))
    click.echo(f"\nreport:     {folder / 'report.html'}")
    click.echo("changes:    edit params.yaml, then `dvc repro` redoes what the change touches")
    click.echo("CIFAR-10:   dvc exp run -S profile=quick")
    click.echo("runs:       make ui, then open http://127.0.0.1:5000")
    click.echo("your image: lambdanet denoise photo.png -o clean.png --blind")


def _show_cell(profile: str, name: str, as_json: bool) -> None:
    from lambdanet.report import runs, tables

    known = _params()
    cell = next((one for one in known.cells(profile) if one.name == name), None)
    if cell is None:
        raise click.ClickException(f"params.yaml has no cell {name!r} in profile {profile}; `dvc stage list`")
    folders = Path("scores") / profile, Path("models") / profile
    row = tables.cell_row(cell, *folders, comparable=runs.is_papers(known, profile))
    url = None
    if as_json:
        from lambdanet import tracking

        with contextlib.suppress(tracking.UnreachableError):
            url = tracking.run_page(cell)
        click.echo(json.dumps({"table": [row], "mlflow": url}))
    else:
        click.echo("\n".join(f"{key}: {value}" for key, value in row.items()))


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


@main.command()
@PROFILE
def restore(profile: str | None) -> None:
    """Put back what a profile's committed report was made of, to make it again with one training more."""
    from lambdanet import restoring

    loaded = _params()
    profile = profile or loaded.profile
    folders = {name: Path(name) / profile for name in ("scores", "models", "panels", "logs")}
    done = restoring.restore(loaded, profile, Path("results") / profile, Path("weights") / profile, **folders)
    click.echo(
        f"put back for {profile}: {done.scores} scores, {done.trainings} trainings, "
        f"{done.photographs} folders of photographs"
    )


def _refuse_taken(port: int) -> None:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else just after another has ended
        try:
            tried.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(
                f"port {port} cannot be used ({error.strerror}); choose another by --port"
            ) from None


def _params() -> params.Params:
    return params.load(PARAMS)


@contextlib.contextmanager
def _data(loaded: params.Params, profile: str, noise: str, data: Path | None) -> Iterator[tuple[Path, Path]]:
    """The folders of the clean and the noisy images: those in `data`, or made for the occasion."""
    from lambdanet import corruption, datasets

    noise_config = loaded.noise(noise)
    of_set = noise in loaded.sets
    config = loaded.download(profile, noise if of_set else "")
    if data is not None:
        yield data / "clean", data / "noisy" if of_set else data / "noisy" / noise
        return
    with tempfile.TemporaryDirectory() as temporary:
        clean, noisy = Path(temporary, "clean"), Path(temporary, noise)
        source = os.environ.get(datasets.SOURCES.get(config.dataset, ""))
        datasets.prepare(config, clean, source=source, downloads=Path("downloads"))
        corruption.prepare_noisy(clean, noise_config, loaded.noise_seed, noisy)
        yield clean, noisy


if __name__ == "__main__":
    main()
