"""The command `lambdanet`; what runs the pipeline is in `pipelines.commands`, loaded when it is asked for."""

import contextlib
import dataclasses
import errno
import functools
import importlib
import importlib.util
import json
import logging
import math
import os
import shutil
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from lambdanet import __version__, config, yaml12
from lambdanet.inference import bundled, catalogue

# As in stages/entry.py: threads that spin long while they wait are ruinous on a shared machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

SECTIONS = {
    "Reproduce the paper": ("run", "status", "report", "doctor"),
    "Use and train networks": ("denoise", "demo", "train", "evaluate", "models"),
    "Servers and other machines": ("ui", "cluster"),
}
IN_PIPELINES = ("run", "status", "cluster")
EXAMPLES = """\b
Examples:
  lambdanet run --profile sample --dry-run
  lambdanet denoise photo.png -o clean.png
  lambdanet train speckle lambdanet --profile sample --out trained
"""


class Commands(click.Group):
    """A group with sections in its help and one form of error: a line on stderr.

    The exit status is 2 for a wrong command line, 130 after Ctrl-C and 1 for any other error.
    """

    def main(self, *words: Any, **named: Any) -> None:
        for name in ("stdin", "stdout", "stderr"):  # None where the parent process closed it
            setattr(sys, name, getattr(sys, name) or open(os.devnull, "r+"))  # noqa: SIM115
        logging.basicConfig(format="%(message)s")
        try:
            status = super().main(*words, **named | {"standalone_mode": False})
            sys.exit(status if isinstance(status, int) else 0)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.ClickException as error:
            message, status = error.format_message(), error.exit_code
            if context := getattr(error, "ctx", None):
                message = f"{message.rstrip('.')}; see `{context.command_path} --help`"
        except click.Abort:
            message, status = "stopped; run the same command again", 130
        except ModuleNotFoundError as error:
            name = (error.name or str(error)).partition(".")[0]
            message, status = f"the package {name} is not installed; in a clone `make setup` installs all", 1
        except (ValueError, OSError) as error:
            message, status = str(error), 1
        click.echo(f"error: {' '.join(message.split())}", err=True)
        sys.exit(status)

    def list_commands(self, context: click.Context) -> list[str]:
        return [name for names in _sections().values() for name in names]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in IN_PIPELINES:
            return super().get_command(context, name)
        return getattr(importlib.import_module("pipelines.commands"), name)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in _sections().items():
            with formatter.section(title):
                texts = [self.get_command(context, name).get_short_help_str(75) for name in names]
                formatter.write_dl(list(zip(names, texts, strict=True)))


def _sections() -> dict[str, list[str]]:
    """The commands that are installed: the library alone has none of `pipelines`."""
    there = importlib.util.find_spec("pipelines") is not None
    return {
        title: [name for name in names if there or name not in IN_PIPELINES]
        for title, names in SECTIONS.items()
    }


class NamedPath(click.Path):
    """A path, but for the empty one of a variable that is not set, which would be the current folder."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        return super().convert(value or self.fail("it is empty", parameter, context), parameter, context)


def no_nan(_context: click.Context, _option: click.Parameter, value: float) -> float:
    """Refuse NaN, which is within click's ranges."""
    if math.isnan(value):
        raise click.BadParameter("it is not a number")
    return value


PROFILE = click.option(
    "--profile", default="sample", show_default=True, envvar="LAMBDANET_PROFILE", show_envvar=True,
    help="Scale of the pipeline: sample, quick, paper, or a folder with a profile.yaml.",
)  # fmt: skip
DATA = click.option(
    "--data", type=NamedPath(path_type=Path),
    help="Folder with clean/ and NOISE/, like runs/sample/data/photos; default: the profile's images, "
    "prepared anew in a temporary folder.",
)  # fmt: skip
DEVICE = click.option(
    "--device", default="auto", show_default=True, envvar="LAMBDANET_DEVICE", show_envvar=True,
    help="auto, cpu or cuda; cpu/BACKEND forces one: reference, portable, fused, channels-last, bf16 ...",
)  # fmt: skip


@click.group(cls=Commands, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Image Denoising Using LambdaNetworks, reproduced.

    Noises and models are those of params.yaml in the current folder, profiles its folders with a
    profile.yaml. Errors are one line; the exit status is 2 for a wrong command line, 1 for other errors.
    """


def command_name() -> str:
    """`lambdanet` as the user's shell finds it: by its path where its environment is not active."""
    script = Path(sys.executable).with_name("lambdanet")
    if os.environ.get("VIRTUAL_ENV") == sys.prefix or sys.prefix == sys.base_prefix or not script.is_file():
        return "lambdanet"
    here = Path.cwd()
    return str(script.relative_to(here) if script.is_relative_to(here) else script)


@main.command()
@click.option("--fix", is_flag=True, help="Mend what is safe to mend; run it while no dvc runs here.")
def doctor(fix: bool) -> None:
    """Check the installation and, in a clone, its parameters, files and servers.

    A line for each finding: ok, note, or BAD with what to do. The exit status is 1 if one is BAD.
    """
    from lambdanet import doctor

    levels = set()
    for finding in doctor.diagnose(fix, _begin if sys.stderr.isatty() else lambda _: None):
        click.echo(str(finding))
        levels.add(finding.level)
    sys.exit(doctor.BAD in levels)


def _begin(what: str) -> None:
    click.echo(f"...   {what}\r", nl=False, err=True)  # until the finding, which is longer, replaces it


@main.command()
@PROFILE
@click.option("--open", "in_browser", is_flag=True, help="Open the report in a browser.")
def report(profile: str, in_browser: bool) -> None:
    """Print a profile's table, and where its report is."""
    folder = Path("results", profile)
    page = folder / "report.html"
    if not (folder / "table2.csv").is_file():
        config.find(profile)
        raise ValueError(f"{page} is missing; `lambdanet run --profile {profile}` makes it")
    if in_browser:
        if not webbrowser.open(page.resolve().as_uri()):
            raise ValueError(f"no browser can be started here; open {page}")
        return
    show_table(profile)


def show_table(profile: str) -> None:
    """Print a profile's table, where its report is, and commands that work in the current folder."""
    from lambdanet.report import tables

    name, example = command_name(), Path("docs/images/gaussian-01.png")
    photo = example if example.is_file() else "photo.png"
    click.echo(tables.as_text(tables.read_table(Path("results", profile, "table2.csv"))))
    click.echo(f"report: results/{profile}/report.html")
    click.echo(f"next:   {name} report --profile {profile} --open")
    click.echo(f"        {name} denoise {photo} -o clean.png")
    click.echo(f"        {name} ui")


@main.command()
@click.argument("noise")
@click.argument("model")
@click.option("--out", required=True, type=NamedPath(path_type=Path), help="Folder to write; replaced.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, config.LARGEST_SEED))
@click.option("--epochs", type=int, help="Instead of the profile's.")
@click.option("--batch-size", type=int, help="Instead of the profile's.")
@click.option("--learning-rate", type=float, help="Instead of the profile's.")
@click.option("--fresh-noise/--stored-noise", default=None, help="Instead of the profile's.")
@PROFILE
@DATA
@DEVICE
def train(
    noise: str, model: str, out: Path, seed: int, profile: str, data: Path | None, device: str,
    **changes: float | None,
) -> None:  # fmt: skip
    """Train one network without DVC.

    MODEL is one of Table 2, or an ablation of the profile; NOISE is one of params.yaml. --out gets
    weights.safetensors, model.json and history.csv. An interrupted training resumes from its checkpoint when
    the same command is run again.
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
    # At once, however short: there is no stage that would log it later.
    with live.follow(run.log, patience=0) as tell, _data(loaded, run, data) as run_with_data:
        experiment.train_run(run_with_data, device=device, on_news=tell)
    shutil.rmtree(run.checkpoints)
    click.echo(f"{run.weights}: trained; score it with")
    click.echo(f"  {command_name()} evaluate {run.weights} {noise} --profile {profile}")


@main.command()
@click.argument("weights", type=NamedPath(path_type=Path))
@click.argument("noise")
@PROFILE
@DATA
@DEVICE
def evaluate(weights: Path, noise: str, profile: str, data: Path | None, device: str) -> None:
    """Score a weights file on test images; print JSON.

    The images are those of Table 2, or of the ablation that the weights are of, with NOISE.
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
    "images", metavar="IMAGE...", nargs=-1, required=True, type=NamedPath(path_type=Path, allow_dash=True)
)
@click.option(
    "-o", "--out", required=True, type=NamedPath(path_type=Path, allow_dash=True),
    help="PNG file, or folder of such; - is standard output.",
)  # fmt: skip
@click.option(
    "--noise",
    help="Noise on the image, or another name of `lambdanet.load`; default: Gaussian, sigma 1 to 55 of 255. "
    "With --alias or --weights a noise of params.yaml; default: found out by trying all denoisers.",
)
@click.option("--alias", help="Which denoiser of MLflow's registry: champion, compact or a model.")
@click.option(
    "--weights", type=NamedPath(path_type=Path),
    help="A weights file, or a folder of them such as weights/paper, of which --alias chooses.",
)  # fmt: skip
@click.option(
    "--strength", default=1.0, show_default=True, type=click.FloatRange(0, 1), callback=no_nan,
    help="Of the noise, how much to remove.",
)  # fmt: skip
@DEVICE
def denoise(
    images: tuple[Path, ...], out: Path, noise: str | None, alias: str | None, weights: Path | None,
    strength: float, device: str,
) -> None:  # fmt: skip
    """Denoise photographs.

    Each IMAGE is a file, a folder of files, or - for standard input: PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF
    or, with pillow-heif installed, HEIC; of any size, grey or colour, with or without alpha, of 8 or 16 bits.
    The output is PNG, of the same size, depth and kind, upright, with the colour profile and EXIF. Of several
    files, those that cannot be read are named, the others are denoised, and the exit status is 1. A name that
    begins with a dash goes behind --. Without --alias and --weights it takes the denoisers of
    `lambdanet.load`.
    """
    from lambdanet.data import imagefile
    from lambdanet.inference import targets

    sys.stdout.reconfigure(errors="backslashreplace")  # names of files are bytes, not always text
    single = weights is not None and not weights.is_dir()
    if single and (noise or alias):
        raise click.UsageError(f"{weights} is one denoiser; leave out --noise and --alias, or name a folder")
    if weights is not None and not weights.exists():
        raise ValueError(f"{weights}: no such weights file")
    planned, notes = targets.plan(images, out)
    first = next(iter(planned))
    if len(planned) == 1 and first != targets.STREAM and not first.is_fifo():  # a pipe is read once
        imagefile.check(first)
    for note in notes:
        click.echo(note, err=True)
    if weights is None and alias is None:
        bundled.find(noise or bundled.PHOTOGRAPHS)
    elif noise is not None:
        _need_known(noise)
    if weights is None and alias is not None:
        _need_registry()
    from lambdanet.inference import denoise_files  # after the words were checked: torch takes seconds

    with denoise_files.denoisers(weights, alias, noise) as choices:
        for line in denoise_files.run(planned, choices, device=device, strength=strength):
            click.echo(line, err=out == targets.STREAM)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=7860, show_default=True, type=click.IntRange(1, 65535))
def demo(host: str, port: int) -> None:
    """Show a page to try the denoisers on photographs.

    A photograph is dropped on the page, denoised on this machine and shown beside the original. Nothing is
    kept or sent anywhere. --host 0.0.0.0 lets other machines use the page, without a password.
    """
    _need_packages("gradio")
    need_port(host, port)
    from lambdanet import demo

    click.echo(f"http://{in_url(host)}:{port}, until Ctrl-C", err=True)
    demo.serve(in_url(host), port)


@main.group()
def models() -> None:
    """List, sync, restore and convert trained networks.

    `list` and `sync` are about MLflow's registry: mlflow.db in the current folder, or the server that
    MLFLOW_TRACKING_URI names. `pin` and `reject` take precedence over its rule for aliases, until `unpin`.
    `export` and `restore` are about weights/PROFILE, which is in git. `onnx` takes one network, as
    `lambdanet.load` does.
    """


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON, one object a version.")
def list_models(as_json: bool) -> None:
    """List the denoisers in MLflow's registry and their aliases."""
    _need_registry()
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
        raise ValueError(f"the registry at {mlflow_runs.uri()} holds no denoisers: `lambdanet models sync`")
    import pandas as pd

    table = pd.DataFrame(rows)
    table["aliases"] = table["aliases"].map(", ".join)
    columns = ["noise", "model", "version", "psnr", "ssim", "parameters", "profile", "created", "aliases"]
    click.echo(table[columns].to_string(index=False, float_format="%.3f"))
    click.echo(f"\n{catalogue.RULE}")


def _choose(how: str, noise: str, version: int | None) -> None:
    from lambdanet.tracking import mlflow_runs, registry

    client = registry.open_registry()
    with mlflow_runs.reaching():
        moved = getattr(registry, how)(client, noise, version)
    for alias, one in moved.items():
        click.echo(registry.moved_line(noise, alias, one))
    click.echo(f"{len(moved)} aliases moved")


for _how, _help in {
    "pin": "Give VERSION of the denoiser for NOISE its aliases, whatever the scores.",
    "reject": "Take the aliases of VERSION of the denoiser for NOISE away.",
    "unpin": "Undo `pin` and `reject` of VERSION, by default of all versions.",
}.items():
    _words = [
        click.Argument(["noise"]),
        click.Argument(["version"], type=click.IntRange(1), required=_how != "unpin"),
    ]
    models.add_command(
        click.Command(_how, params=_words, help=_help, callback=functools.partial(_choose, _how))
    )


@models.command()
@PROFILE
def sync(profile: str) -> None:
    """Add a profile's missing runs, models and aliases to MLflow.

    They are taken from DVC's outputs where they are here, else from weights/PROFILE and results/PROFILE.
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
        raise ValueError(f"nothing of the profile {profile} is here: `lambdanet run --profile {profile}`")
    for line in sync.publish(trained).lines():
        click.echo(line)


@models.command()
@PROFILE
def export(profile: str) -> None:
    """Copy the weights behind a profile's report to weights/PROFILE."""
    loaded = config.load(config.find(profile))
    from lambdanet import restoring

    count = restoring.export_weights(loaded)
    click.echo(f"{loaded.folders.weights}: {count} weights files, each the one that its score names")


@models.command()
@PROFILE
def restore(profile: str) -> None:
    """Put the committed weights and scores back as DVC's outputs, where they are missing."""
    loaded = config.load(config.find(profile))
    from lambdanet import restoring

    done = restoring.restore(loaded)
    click.echo(
        f"restored for {profile}: {done.scores} scores, {done.trainings} trainings, "
        f"{done.samples} folders of sample images"
    )


@models.command()
@click.argument("name")
@click.option("-o", "--out", required=True, type=NamedPath(path_type=Path), help="File to write, .onnx.")
def onnx(name: str, out: Path) -> None:
    """Write a trained network as an ONNX file.

    NAME is a noise, a noise and a model such as gaussian-01-lambdanet, or a weights file. The program takes
    float32 images (n, 3, height, width) with black 0 and white 1, of any size from 8 x 8. It is compared with
    the network before it is written.
    """
    if out.suffix.lower() != ".onnx":
        raise ValueError(f"{out}: the output is an ONNX file, name it .onnx")
    weights = bundled.find(name)
    _need_packages("onnx", "onnxscript", "onnxruntime")
    from lambdanet.inference import onnx

    difference = onnx.export(weights, out)
    click.echo(
        f"{out}: written, opset {onnx.OPSET}, of {weights}; differs from the network by at most "
        f"{difference:.1e} on {len(onnx.CHECKED_SIZES)} sizes"
    )


@main.command()
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
def ui(port: int) -> None:
    """Show MLflow's pages on this folder's runs and models."""
    from lambdanet.tracking import mlflow_runs

    if mlflow_runs.sqlite_file():
        need_port("127.0.0.1", port)
    mlflow_runs.connect()  # makes the database, alone, before the server's processes open it
    if not mlflow_runs.sqlite_file():
        click.echo(f"MLFLOW_TRACKING_URI names a server; its pages are at {mlflow_runs.uri()}")
        return
    store = ["--backend-store-uri", mlflow_runs.uri(), "--default-artifact-root", str(mlflow_runs.ARTIFACTS)]
    command = [sys.executable, "-m", "mlflow", "server", *store, "--port", str(port), "--workers", "1"]
    click.echo(f"http://127.0.0.1:{port}, until Ctrl-C", err=True)
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # seven processes for nothing here
    os.execv(sys.executable, command)


def _need_packages(*names: str) -> None:
    """Refuse a command whose packages are not part of the base install, before torch is loaded."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise ValueError(f"this needs more packages: pip install {' '.join(missing)}")


OF_THIS_MACHINE = "name an address of this machine"


def need_port(host: str, port: int, advice: str = "choose another by --port") -> None:
    """Refuse a port that another process listens on, before a server is started there."""
    try:
        socket.getaddrinfo(host, port)  # what `create_server` raises for an unknown host names none
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except socket.gaierror as error:
        raise ValueError(f"host {host} cannot be used ({error.strerror}); {OF_THIS_MACHINE}") from None
    except OSError as error:
        what = f"port {port}"
        if error.errno == errno.EADDRNOTAVAIL:
            what, advice = f"host {host}", OF_THIS_MACHINE
        raise ValueError(f"{what} cannot be used ({os.strerror(error.errno)}); {advice}") from None


def in_url(host: str) -> str:
    """A host as URLs have it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def _need_registry() -> None:
    """Before MLflow is loaded; of another store than the usual file `open_registry` says it."""
    if not os.environ.get("MLFLOW_TRACKING_URI") and not Path("mlflow.db").exists():
        raise ValueError(catalogue.NO_REGISTRY)


def _need_known(noise: str) -> None:
    """In the project's folder, refuse an unknown noise before torch is loaded."""
    if Path(config.PARAMS).is_file():
        raw = yaml12.read(Path(config.PARAMS))
        if isinstance(raw, dict) and isinstance(raw.get("noises"), dict):
            config.look_up(raw["noises"], noise, "noise")


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
