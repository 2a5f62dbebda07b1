import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import helpers
import pytest
from helpers import ROOT, lambdanet, one_line
from PIL import Image

from lambdanet import checking, cli
from pipelines import cluster, commands, graph

PROFILE = "sample/profile.yaml"
TABLE = helpers.read_yaml(ROOT / "params.yaml")["table"]
RUNS = len(TABLE["noises"]) * len(TABLE["lambdanets"] + TABLE["baselines"])  # of one seed
ABLATIONS = len(helpers.read_yaml(ROOT / PROFILE)["ablations"])
VALID = [f"sample/profile.yaml is valid: {RUNS} runs of Table 2, {ABLATIONS} of ablations"]
SERVERS = ("ui --port", "demo --host ::1 --port", "cluster up", "cluster up --host ::1")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The project's params.yaml and its sample, with fewer images, in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    raw = helpers.read_yaml(ROOT / PROFILE)
    raw["datasets"]["photos"] = {"dataset": "photos", "train": 40, "test": 20}
    helpers.write_yaml(tmp_path / PROFILE, raw)
    return tmp_path


def test_trains_and_scores_without_dvc(project):
    done = lambdanet("train", "speckle", "autoencoder", "--epochs", 2, "--out", "runs/a")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (project / "runs").iterdir()) == ["a", "a.log.json"]
    rows = helpers.read_csv(project / "runs/a/history.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert json.loads((project / "runs/a/model.json").read_text())["training"]["epochs"] == 2
    scores = json.loads(lambdanet("evaluate", "runs/a/weights.safetensors", "speckle").stdout)
    assert (scores["images"], scores["parameters"]) == (20, 47355)
    monitored = float(rows[-1]["monitored_psnr"])  # all 20 are monitored
    assert scores["psnr"] == pytest.approx(monitored, abs=1e-3)


def test_the_parameters_are_checked_with_the_folders_of_photographs(project, monkeypatch):
    assert checking.check() == checking.check(["sample"]) == VALID
    helpers.edit_yaml(project / PROFILE, ["datasets", "photos", "dataset"], "photographs")
    assert "photos: dataset is 'photographs', neither one of photos, " in helpers.refusal(checking.check)
    (project / "photographs").mkdir()
    assert checking.check() == VALID
    monkeypatch.chdir(ROOT)
    assert [line.partition("profile.yaml")[0] for line in checking.check()] == ["", "quick/", "sample/"]


PARAMS = "params.yaml"
WRONG = [
    (PARAMS, ["noises", "speckle", "variance"], -1,
     "params.yaml: noises.speckle: variance of noise 'speckle' is -1, must be a number above 0"),
    (PARAMS, ["models", "lambdanet", "m"], 4, "sample/profile.yaml: train.lambdanet: m is 4"),
    (PARAMS, ["models", "lambdanet", "norm"], ["batch"], "norm of model 'lambdanet' is ['batch']"),
    (PROFILE, ["train", "dncnn", "hyperparameters", "width"], 3200000, "must have at most 1,000,000,000"),
    (PARAMS, ["studies", "channels", "axis"], "depth",
     "ablations.channels-d4: depth is None, must be above 0: channels has a figure over it"),
    (PARAMS, ["studies", "channels", "group"], "norm", "ablations.channels-d4: norm is None, must be above"),
    (PROFILE, ["ablations", "base", "hyperparameters", "m"], 4,
     "sample/profile.yaml: ablations.base: m is 4, must be odd"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "path", "value", "says"), WRONG)
def test_what_is_wrong_in_the_parameters_is_named(project, file, path, value, says):
    helpers.edit_yaml(project / file, path, value)
    assert says in helpers.refusal(checking.check)


def test_an_ablation_is_trained_and_scored_on_its_own_images(project):
    few = {"dataset": "photos", "train": 16, "test": 12}
    helpers.edit_yaml(project / PROFILE, ["datasets", "few"], few)
    helpers.edit_yaml(project / PROFILE, ["pairs", "few"], {"dataset": "few", "noise": "gaussian-25"})
    helpers.edit_yaml(project / PROFILE, ["ablations", "dncnn-blind", "dataset"], "few")
    done = lambdanet("train", "gaussian-25", "dncnn-blind", "--epochs", 1, "--out", "runs/a")
    assert done.exit_code == 0, done.output
    assert helpers.read_yaml(project / "runs/a/model.json")["noise"]["name"] == "blind-gaussian"
    scores = json.loads(lambdanet("evaluate", "runs/a/weights.safetensors", "gaussian-25").stdout)
    assert scores["images"] == 12


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "speckle", "dncnn", "--data", "none", "--out", "x"], "none/clean/train.npy is missing"),
        (["evaluate", "params.yaml", "speckle"], "params.yaml: not a readable safetensors file"),
        (["models", "export"], "results/sample/trainings.json cannot be read"),
        (["models", "restore"], "results/sample/trainings.json cannot be read"),
        (["report"], "results/sample/report.html is missing; `lambdanet run --profile sample` makes it"),
    ],
)
def test_bad_words_are_one_line_and_leave_nothing(project, words, says):
    before = sorted(project.rglob("*"))
    assert says in one_line(lambdanet(*words))
    assert sorted(project.rglob("*")) == before


DENOISE = ["denoise", "a.png", "-o", "b.png"]
TRAIN = ["train", "speckle", "dncnn", "--out", "x"]
MORE = "this needs more packages: pip install"
MISTAKES = [  # words, exit status, what is said
    (["denoise", "a.png", "-o", "b.jpg"], 1, "b.jpg: the output is a PNG file, name it .png"),
    (["denoise", "a.txt", "-o", "b.png"], 1, "a.txt: cannot be read as an image (it is neither"),
    (["denoise", "c.png", "-o", "b.png"], 1, "c.png: cannot be read as an image (No such file"),
    (["denoise", "a.png", "-o", "a.png"], 1, "a.png is the image a.png itself; name another"),
    ([*DENOISE, "--noise", "rain", "--weights", "sample"], 1, "unknown noise 'rain'; params.yaml has gaus"),
    ([*DENOISE, "--noise", "rain"], 1, "there is no denoiser 'rain'; name one of photographs, gaussian-01, "),
    ([*DENOISE, "--alias", "champion"], 1, "there is no registry yet (mlflow.db); make it with `make repro`"),
    ([*DENOISE, "--strength", "2"], 2, "Invalid value for '--strength': 2.0 is not in the range"),
    (["denoise", "", "-o", "b.png"], 2, "Invalid value for 'IMAGE...': it is empty; see `main denoise"),
    (["denoise", "a.png", "-o", ""], 2, "Invalid value for '-o' / '--out': it is empty; see `main denois"),
    ([*DENOISE, "--strength", "nan"], 2, "Invalid value for '--strength': it is not a number; see `"),
    (["run", "--limit-hours", "nan"], 2, "Invalid value for '--limit-hours': it is not a number; see `"),
    (["denoise", "a.png"], 2, "Missing option '-o' / '--out'; see `main denoise --help`\n"),
    ([*TRAIN, "--seed", "-1"], 2, "Invalid value for '--seed': -1 is not in the range"),
    (["train", "rain", "dncnn", "--out", "x"], 1, "unknown noise 'rain'; params.yaml has gaussian-01"),
    (["train", "speckle", "dncnn", "--out", "."], 1, ". exists and is not the folder of a training"),
    (["evaluate", "none.safetensors", "speckle"], 1, "none.safetensors: no such weights file"),
    (["evaluate", "params.yaml", "rain"], 1, "unknown noise 'rain'; params.yaml has gaussian-01"),
    (["models", "list"], 1, "there is no registry yet (mlflow.db)"),
    (["models", "onnx", "speckle", "-o", "m.pt"], 1, "m.pt: the output is an ONNX file, name it .onnx\n"),
    (["models", "onnx", "rain", "-o", "m.onnx"], 1, "there is no denoiser 'rain'; name one of photographs"),
    (["models", "onnx", "speckle", "-o", "m.onnx"], 1, f"{MORE} onnx onnxscript onnxruntime\n"),
    (["demo"], 1, f"{MORE} gradio\n"),
    (["modles"], 2, "No such command 'modles'"),
    (["run", "--dryrun"], 2, "No such option '--dryrun'. Did you mean '--dry-run'?; see `main run --help`\n"),
    (["run", "trian"], 1, "unknown stage 'trian'; dvc.yaml has download, corrupt, train-lambdanet, train, "),
    (["run", "--where", "moon"], 1, "--where moon is not one of local, dask:ADDRESS, "),
    (["cluster", "train"], 2, "Missing argument 'NOISE'; see `main cluster train --help`\n"),
    *(([*words, "--profile", "nope"], 1, "unknown profile 'nope'; there are ") for words in (
        ["run"], ["status"], ["report"], ["models", "sync"], ["models", "export"],
        ["models", "restore"], TRAIN, ["evaluate", "params.yaml", "speckle"],
    )),
]  # fmt: skip


def test_mistakes_are_found_before_what_takes_long_to_load(project, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Image.new("RGB", (16, 16)).save(project / "a.png")
    (project / "a.txt").write_text("no image")
    for name in ("dvc.yaml", "sample/dvc.yaml"):
        shutil.copy(ROOT / "dvc.yaml", project / name)
    code = """
import json, sys
sys.modules.update(dict.fromkeys(["onnx", "onnxruntime", "onnxscript", "gradio"]))
from click.testing import CliRunner
from lambdanet.cli import main
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(main, words)
    print(json.dumps([done.exit_code, done.output]), file=sys.stderr)
    assert not {"torch", "mlflow", "dvc", "prefect"} & set(sys.modules), words
"""
    before = sorted(project.rglob("*"))
    done = helpers.python("-c", code, json.dumps([words for words, _, _ in MISTAKES]), cwd=project)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stderr.splitlines()]
    expected = [[status, f"error: {start}"] for _, status, start in MISTAKES]
    assert [[status, text[: len(e[1])]] for (status, text), e in zip(said, expected, strict=True)] == expected
    assert {text.count("\n") for _, text in said} == {1}
    assert sorted(project.rglob("*")) == before


def test_the_device_is_also_that_of_the_environment(project, monkeypatch):
    monkeypatch.setenv("LAMBDANET_DEVICE", "cpu/abacus")
    assert "unknown backend 'abacus'" in one_line(lambdanet("train", "speckle", "dncnn", "--out", "x"))
    assert not (project / "x").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "{folder} has no dvc.yaml; run this in the project's folder"),
        (["train", *TRAIN[1:]], "unknown profile 'sample'; there are none; run this in the project's folder"),
    ],
)
def test_outside_of_a_project_it_says_so(tmp_path, words, said):
    done = helpers.python("-m", "lambdanet", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {said.format(folder=tmp_path)}\n")
    assert list(tmp_path.iterdir()) == []


def test_report_prints_the_table_and_commands_that_work_here(project, monkeypatch):
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    results = project / "results"
    results.symlink_to(ROOT / "results")
    done = lambdanet("report", "--profile", "paper")
    assert done.exit_code == 0, done.output
    rows = helpers.read_csv(results / "paper/table2.csv")
    for row, line in zip(rows, done.stdout.splitlines()[1:], strict=False):
        run = [f"{float(row['psnr']):.2f}", f"{int(row['parameters']):,}"] if row["psnr"] else ["not", "run"]
        assert {row["model"], *run} <= set(line.split())
    assert done.stdout.splitlines()[len(rows) + 1 :] == [
        "report: results/paper/report.html",
        "next:   lambdanet report --profile paper --open",
        "        lambdanet denoise photo.png -o clean.png",
        "        lambdanet ui",
    ]
    opened = []
    monkeypatch.setattr(cli.webbrowser, "open", lambda url: bool(opened.append(url)))
    said = one_line(lambdanet("report", "--profile", "paper", "--open"))
    assert said == "error: no browser can be started here; open results/paper/report.html\n"
    assert opened == [(results / "paper/report.html").resolve().as_uri()]


def test_status_counts_runs_and_stages(monkeypatch):
    monkeypatch.chdir(ROOT)
    reasons = {"sample/dvc.yaml:train@a": "", "sample/dvc.yaml:train@b": "", "sample/dvc.yaml:plot": ""}
    found = graph.Graph(dict.fromkeys(reasons, frozenset()), reasons)
    monkeypatch.setattr(graph, "load", lambda _file: found)
    lines = lambdanet("status").output.splitlines()
    assert re.fullmatch(rf"Table 2: \d+ of {RUNS} runs are trained here, \d+ scored", lines[0])
    assert re.fullmatch(rf"ablations: \d+ of {ABLATIONS} runs are trained here, \d+ scored", lines[1])
    assert lines[2] == "out of date: 2 train, 1 plot"
    assert lines[3].endswith("lambdanet run --profile sample --dry-run")


def test_a_dry_run_estimates_from_earlier_runs(project):
    stages = [f"sample/dvc.yaml:{name}" for name in ("train@speckle-dncnn-0", "ablate@base", "plot")]
    log = project / "runs/sample/reproduce.log"
    log.parent.mkdir(parents=True)
    ended = [(stages[0], "done in 1 s"), (stages[0], "done in 75 s"), (stages[1], "done in 3723 s")]
    ended += [(stages[2], "unchanged in 9 s"), (stages[2], "net: done in 9 s")]
    log.write_text("".join(f"00:00:00 {name}: {how}\n" for name, how in ended))
    wanted = graph.Graph(dict.fromkeys(stages, frozenset()), dict.fromkeys(stages, "changed"))
    assert commands._plan(wanted, "sample") == [
        f"{stages[0]}: changed (about 0:01:15)",
        f"{stages[1]}: changed (about 1:02:03)",
        f"{stages[2]}: changed (no estimate)",
        "3 stages, at least 1:03:18 one after the other",
    ]


def test_committed_weights_are_those_of_the_committed_scores():
    for folder in (ROOT / "weights").glob("*"):
        results = ROOT / "results" / folder.name
        table = {path.stem for path in folder.glob("*.safetensors")}
        assert table == {path.stem for path in (results / "scores").iterdir()}
        trainings = json.loads((results / "trainings.json").read_text())
        for path in folder.rglob("*.safetensors"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert digest == trainings[path.stem]["scores"]["weights_sha256"]


@pytest.mark.parametrize("words", SERVERS)
def test_no_server_begins_on_a_taken_port(project, monkeypatch, words):
    host = "::1" if "::1" in words else "127.0.0.1"
    others = "end its user: `lambdanet ui`, or the cluster of another clone"
    advice = others if "up" in words else "choose another by --port"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(cli, "_need_packages", lambda *_names: None)
    (project / ".dvc").mkdir()
    (project / "dvc.yaml").touch()
    before = sorted(project.rglob("*"))
    try:
        other = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError:
        pytest.skip(f"{host} is not an address of this machine")
    with other:
        port = other.getsockname()[1]
        for name in ("PREFECT", "MLFLOW"):
            monkeypatch.setattr(cluster, "PREFECT", helpers.free_port())
            monkeypatch.setattr(cluster, name, port)
            said = one_line(lambdanet(*words.split(), *([port] if "--port" in words else [])))
            assert said == f"error: port {port} cannot be used (Address already in use); {advice}\n"
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.1"])  # the second is for documentation
def test_a_host_that_is_not_this_machine_is_named(host):
    said = helpers.refusal(cli.need_port, host, helpers.free_port())
    assert re.fullmatch(rf"host {host} cannot be used \(.+\); name an address of this machine", said)


def test_help_names_every_command():
    installed = Path(sys.executable).with_name("lambdanet")
    done = subprocess.run([installed, "--help"], capture_output=True, text=True)
    for command in cli.main.commands.keys() | cli.IN_PIPELINES:
        assert f"  {command} " in done.stdout


def test_help_of_the_library_alone_has_no_commands_of_the_pipeline(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pipelines", None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert "\n  denoise " in out
    assert not [name for name in cli.IN_PIPELINES if f"\n  {name} " in out]
