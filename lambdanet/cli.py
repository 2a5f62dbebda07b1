"""The `lambdanet` command: what a person does by hand, without DVC."""

import contextlib
import dataclasses
import functools
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

from lambdanet import __version__, config
from lambdanet.inference import catalogue

# As in stages/entry.py: threads that spin long while they wait are ruinous on a shared machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


class OneLineErrors(click.Group):
    """A group that turns what a user can mend into one line on stderr and exit status 1."""

    def invoke(self, context: click.Context) -> object:
        logging.basicConfig(format="%(message)s")
        try:
            return super().invoke(context)
        except (ValueError, OSError) as error:
            sys.exit(f"error: {' '.join(str(error).split())}")
        except ModuleNotFoundError as error:
            sys.exit(f"error: {error}; install what this project needs by `make setup`")


PROFILE = click.option(
    "--profile", default="sample", show_default=True, help="paper, or a folder with a profile.yaml."
)
DATA = click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder with clean/ and NOISE/, like runs/sample/data/photos; default: the profile's images, "
    "prepared anew in a temporary folder.",
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

    The pipeline itself is run by `dvc repro`; these are the single steps. Noises and models are those
    of params.yaml in the current folder, profiles its folders with a profile.yaml.
    """


@main.command()
@click.argument("profiles", nargs=-1)
def check(profiles: tuple[str, ...]) -> None:
    """Check params.yaml and the PROFILES, by default all: every key, noise and model, the images' folders."""
    from lambdanet import checking

    click.echo("\n".join(checking.check(list(profiles))))


@main.command()
@click.option("--fix", is_flag=True, help="Mend what is safe to mend; run it while no dvc runs here.")
def doctor(fix: bool) -> None:
    """Say whether this installation, this clone and its cluster are healthy, and what to do."""
    from lambdanet import checking, doctor

    here, found = Path(), []
    parameters = doctor.parameters(lambda: "; ".join(checking.check()))
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
    profile: str,
    data: Path | None,
    device: str,
    **changes: float | None,
) -> None:
    """Train MODEL of Table 2, or an ablation, on NOISE: weights.safetensors, model.json and history.csv.

    Interrupted, it resumes from its checkpoint when the same command is run again.
    """
    loaded = config.load(config.find(profile))
    given = {name: value for name, value in changes.items() if value is not None}
    run = _run(loaded, noise, model, seed)
    settings = config.build(config.Training, dataclasses.asdict(run.settings) | given, "options")
    if out.exists() and not (
        out.is_dir()
        and {path.name for path in out.iterdir()}
        <= {path.name for path in (run.weights, run.description, run.history)}
    ):
        raise ValueError(f"{out} exists and is not the folder of a training; name another one")
    from lambdanet.tracking import live
    from lambdanet.training import experiment  # after the words were checked: torch takes seconds

    files = {"log": out.with_name(f"{out.name}.log.json"), "folder": out}
    files["checkpoints"] = out.with_name(f".{out.name}.checkpoints")
    run = dataclasses.replace(run, settings=settings, **files)
    # At once, however short: there is no stage that would tell of it later.
    with live.follow(run.log, patience=0) as tell, _data(loaded, run, data) as run_with_data:
        experiment.train_run(run_with_data, device=device, on_news=tell)
    shutil.rmtree(run.checkpoints)
    click.echo(f"{run.weights}: trained; score it with")
    click.echo(f"  lambdanet evaluate {run.weights} {noise} --profile {profile}")


@main.command()
@click.argument("weights", type=click.Path(path_type=Path))
@click.argument("noise")
@PROFILE
@DATA
@DEVICE
def evaluate(weights: Path, noise: str, profile: str, data: Path | None, device: str) -> None:
    """Score a WEIGHTS file on its data set's test images with NOISE; print the scores as JSON.

    The images are those of Table 2, or of the ablation that the weights are of.
    """
    loaded = config.load(config.find(profile))
    loaded.noise(noise)
    if not weights.exists():
        raise ValueError(f"{weights}: no such weights file")
    from lambdanet.evaluation import scoring
    from lambdanet.models import read_description

    described = read_description(weights).get("cell") or {}
    model = described.get("model")
    model = model if model in loaded.profile.ablations else loaded.models[0]
    with _data(loaded, _run(loaded, noise, model, 0), data) as run:
        scores = scoring.evaluate_weights(weights, run.clean, run.noisy, device=device)
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
    help="A weights file, or a folder of them such as weights/paper, instead of MLflow's registry.",
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
    from lambdanet.data import imagefile
    from lambdanet.inference import targets

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
    if weights is None:
        _need_registry()
    from lambdanet.inference import photographs  # after the words were checked: torch takes seconds

    with photographs.denoisers(weights, alias or "champion", noise) as choices:
        for line in photographs.denoise_files(planned, choices, device=device):
            click.echo(line, err=out == targets.STREAM)


@main.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="As JSON, one object a version.")
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the denoisers in MLflow's registry, and what their aliases stand for; pin or reject one."""
    _need_registry()
    if context.invoked_subcommand:
        return
    from lambdanet.tracking import mlflow_runs, registry

    client = registry.open_registry()
    with mlflow_runs.reaching():
        rows = [
            dataclasses.asdict(denoiser) | {"aliases": aliases}
            for denoiser, aliases in registry.denoisers(client)
        ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        raise ValueError(f"the registry at {mlflow_runs.uri()} holds no denoisers; see `lambdanet publish`")
    import pandas as pd

    table = pd.DataFrame(rows)
    table["aliases"] = table["aliases"].map(", ".join)
    columns = ["noise", "model", "version", "psnr", "ssim", "parameters", "profile", "created", "aliases"]
    click.echo(table[columns].to_string(index=False, float_format="%.3f"))
    click.echo(f"\n{catalogue.RULE}")


def _choose(how: str, noise: str, version: int | None, model: str | None) -> None:
    if (version is not None and model) or (how != "unpin" and version is None and not model):
        raise ValueError("name one of VERSION and --model MODEL")
    from lambdanet.tracking import mlflow_runs, registry

    client = registry.open_registry()
    with mlflow_runs.reaching():
        moved = getattr(registry, how)(client, noise, version, model or "")
    for alias, one in moved.items():
        click.echo(registry.moved_line(noise, alias, one))
    click.echo(f"{len(moved)} aliases moved")


for _how, _help in {
    "pin": "Give a denoiser of NOISE its aliases, whatever the scores: VERSION, or the best of --model.",
    "reject": "Take the aliases of a denoiser of NOISE away: VERSION, or the best of --model.",
    "unpin": "Undo `pin` and `reject` for VERSION or --model, by default for all denoisers of NOISE.",
}.items():
    _words = [
        click.Argument(["noise"]),
        click.Argument(["version"], type=click.IntRange(1), required=False),
        click.Option(["--model"], help="An architecture's name."),
    ]
    models.add_command(
        click.Command(_how, params=_words, help=_help, callback=functools.partial(_choose, _how))
    )


@main.command()
@PROFILE
def publish(profile: str) -> None:
    """Bring MLflow up to date with a profile's trainings: runs, models, aliases, what is missing only.

    Taken from DVC's outputs where they are, else from weights/PROFILE and results/PROFILE. Where to is
    MLFLOW_TRACKING_URI, by default mlflow.db in the current folder.
    """
    loaded = config.load(config.find(profile))
    from lambdanet.tracking import sync

    _, results, weights = loaded.folders
    trained = sync.from_outputs(loaded)
    here = {one.key for one in trained}
    if not here.issuperset(run.key for run in loaded.table_runs) and weights.is_dir():
        committed = sync.from_committed(weights, results, loaded)
        missing = [one for one in committed if one.key not in here]
        click.echo(f"{len(missing)} trainings from {weights}, as DVC's outputs of them are not here")
        trained += missing
    if not trained:
        raise ValueError(f"nothing of the profile {profile} is here; run `dvc repro {loaded.pipeline}` first")
    for line in sync.publish(trained).lines():
        click.echo(line)


@main.command()
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
def ui(port: int) -> None:
    """Open MLflow's pages on this project's runs and models; ends with Ctrl-C."""
    from lambdanet.tracking import mlflow_runs

    if mlflow_runs.sqlite_file():
        _refuse_taken(port)
    mlflow_runs.connect()  # makes the database, alone, before the server's processes open it
    if not mlflow_runs.sqlite_file():
        click.echo(f"MLFLOW_TRACKING_URI names a server; its pages are at {mlflow_runs.uri()}")
        return
    store = ["--backend-store-uri", mlflow_runs.uri(), "--default-artifact-root", str(mlflow_runs.ARTIFACTS)]
    command = [sys.executable, "-m", "mlflow", "server", *store, "--port", str(port), "--workers", "1"]
    click.echo(f"http://127.0.0.1:{port}", err=True)
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # seven processes for nothing here
    os.execv(sys.executable, command)


@main.command()
@PROFILE
@click.option("--run", "name", help="One run only, NOISE-MODEL-SEED, from its own score or last epoch.")
@click.option("--json", "as_json", is_flag=True, help="That run for a program, with its page in MLflow.")
def show(profile: str, name: str | None, as_json: bool) -> None:
    """Print the table of a profile, where its report lies and what to do next."""
    if name or as_json:
        _show_run(profile, name or "", as_json)
        return
    folder = Path("results") / profile
    if not folder.is_dir():
        config.find(profile)
    from lambdanet.report import tables

    table = tables.read_table(folder / "table2.csv")
    click.echo(tables.as_text(table))
    click.echo(f"\nreport:     {folder / 'report.html'}")
    click.echo(
        "changes:    edit params.yaml or a profile.yaml, then `dvc repro` redoes what the change touches"
    )
    click.echo("CIFAR-10:   dvc repro quick/dvc.yaml")
    click.echo("runs:       make ui, then open http://127.0.0.1:5000")
    weights = Path("weights") / profile  # where they are in git, no registry is needed
    committed = f" --weights {weights}" if weights.is_dir() else ""
    click.echo(f"your image: lambdanet denoise photo.png -o clean.png --blind{committed}")


def _show_run(profile: str, name: str, as_json: bool) -> None:
    loaded = config.load(config.find(profile))
    run = next((one for one in loaded.runs if one.key.name == name), None)
    if run is None:
        raise ValueError(f"profile {profile} has no run {name!r}; they are NOISE-MODEL-SEED")
    from lambdanet.report import runs, tables

    row, url = tables.run_row(run, comparable=runs.is_papers(loaded)), None
    if as_json:
        from lambdanet.tracking import mlflow_runs

        with contextlib.suppress(mlflow_runs.UnreachableError):
            url = mlflow_runs.run_page(run.key)
        click.echo(json.dumps({"table": [row], "mlflow": url}))
    else:
        click.echo("\n".join(f"{key}: {value}" for key, value in row.items()))


@main.command("export-weights")
@PROFILE
def export_weights(profile: str) -> None:
    """Copy the weights behind a profile's committed table to weights/PROFILE, for git."""
    loaded = config.load(config.find(profile))
    from lambdanet import restoring

    count = restoring.export_weights(loaded, loaded.folders.weights)
    click.echo(f"{loaded.folders.weights}: {count} weights files, each the one that its score names")


@main.command()
@PROFILE
def restore(profile: str) -> None:
    """Put back what a profile's committed report was made of, to make it again with one training more."""
    loaded = config.load(config.find(profile))
    from lambdanet import restoring

    _, results, weights = loaded.folders
    done = restoring.restore(loaded, results, weights)
    click.echo(
        f"put back for {profile}: {done.scores} scores, {done.trainings} trainings, "
        f"{done.samples} folders of sample images"
    )


def _need_registry() -> None:
    """Before MLflow is loaded; of another store than the usual file `open_registry` says it."""
    if not os.environ.get("MLFLOW_TRACKING_URI") and not Path("mlflow.db").exists():
        raise ValueError(catalogue.NO_REGISTRY)


def _refuse_taken(port: int) -> None:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else just after another has ended
        try:
            tried.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(
                f"port {port} cannot be used ({error.strerror}); choose another by --port"
            ) from None


def _run(loaded: config.Config, noise: str, model: str, seed: int) -> config.Run:
    """A training as the profile has it; of an ablation, on another noise than its own if one is named."""
    if model not in loaded.profile.ablations:
        return loaded.run(noise, model, seed)
    run, parameters = loaded.ablation(model, seed), loaded.noise(noise)
    own = noise == run.key.noise
    run_key = dataclasses.replace(run.key, noise=noise)
    return run if own else dataclasses.replace(run, key=run_key, noise=parameters)


@contextlib.contextmanager
def _data(loaded: config.Config, run: config.Run, data: Path | None) -> Iterator[config.Run]:
    """The run with the folders of its clean and noisy images: those in `data`, or made for the occasion."""
    from lambdanet.data import corruption, datasets

    if data is not None:
        yield dataclasses.replace(run, clean=data / "clean", noisy=data / run.key.noise)
        return
    wanted, noise = loaded.download(run.key.model), loaded.noise(run.key.noise)
    with tempfile.TemporaryDirectory() as temporary:
        clean, noisy = Path(temporary, "clean"), Path(temporary, "noisy")
        source = os.environ.get(datasets.SOURCES.get(wanted.dataset, ""))
        datasets.prepare(wanted, clean, source=source, downloads=Path("downloads"))
        corruption.prepare_noisy(clean, noise, loaded.params.corrupt.seed, noisy)
        yield dataclasses.replace(run, clean=clean, noisy=noisy)


if __name__ == "__main__":
    main()
