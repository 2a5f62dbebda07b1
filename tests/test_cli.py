import csv
import hashlib
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from lambdanet.cli import main
from lambdanet.models import create_model, save_weights

ROOT = Path(__file__).resolve().parent.parent


PROFILE = "sample/profile.yaml"


def read(path):
    return yaml.safe_load(path.read_text())


def write(path, raw):
    path.write_text(yaml.safe_dump(raw, sort_keys=False))


@pytest.fixture
def project(tmp_path):
    """The project's params.yaml and its sample, with fewer images."""
    (tmp_path / "sample").mkdir()
    shutil.copy(ROOT / "params.yaml", tmp_path)
    raw = read(ROOT / PROFILE)
    raw["datasets"]["photos"] = {"dataset": "photos", "train": 40, "test": 20}
    write(tmp_path / PROFILE, raw)
    return tmp_path


@pytest.fixture
def lambdanet(project, monkeypatch):
    """Run the command in the project's folder."""
    monkeypatch.chdir(project)
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])


def one_line(done):
    assert done.exit_code == 1, done.output
    assert done.output.startswith("error: ")
    assert done.output.count("\n") == 1
    return done.output


def test_trains_and_scores_without_dvc(project, lambdanet):
    done = lambdanet("train", "speckle", "autoencoder", "--epochs", 2, "--out", "runs/a")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (project / "runs").iterdir()) == ["a", "a.log.json"]
    rows = list(csv.DictReader((project / "runs/a/history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert json.loads((project / "runs/a/model.json").read_text())["training"]["epochs"] == 2
    done = lambdanet("evaluate", "runs/a/weights.safetensors", "speckle")
    scores = json.loads(done.stdout)
    assert scores["images"] == 20
    assert scores["parameters"] == 47355
    assert scores["psnr"] == pytest.approx(
        float(rows[-1]["monitored_psnr"]), abs=1e-3
    )  # all 20 are monitored


VALID = "sample/profile.yaml is valid: 20 runs of Table 2, 8 of ablations\n"


def test_check_accepts_the_projects_parameters(project, lambdanet):
    assert lambdanet("check").output == lambdanet("check", "sample").output == VALID


def test_check_looks_for_a_folder_of_photographs(project, lambdanet):
    raw = read(project / PROFILE)
    raw["datasets"]["photos"]["dataset"] = "photographs"
    write(project / PROFILE, raw)
    assert one_line(lambdanet("check")) == (
        "error: sample/profile.yaml: datasets.photos: dataset is 'photographs', neither one of photos, "
        "cifar10, cifar10-split, bsds500 nor a folder that exists\n"
    )
    (project / "photographs").mkdir()
    assert lambdanet("check").output == VALID


@pytest.mark.parametrize(
    ("file", "path", "value", "says"),
    [
        (
            "params.yaml",
            ["noises", "speckle", "variance"],
            -1,
            "params.yaml: noises.speckle: variance of noise 'speckle' is -1, must be a number above 0",
        ),
        ("params.yaml", ["noises", "speckle", "varience"], 1, "noise 'speckle' takes variance"),
        (
            "params.yaml",
            ["models", "lambdanet", "m"],
            4,
            "sample/profile.yaml: train.lambdanet: m is 4",
        ),
        ("params.yaml", ["models", "dncnn", "dept"], 4, "dncnn' has no parameter dept; it takes: depth"),
        (PROFILE, ["train", "dncnn", "batch_size"], 0, "batch_size is 0, must be at least 1"),
        ("params.yaml", ["models", "dncnn", "foo"], 1, "has no parameter foo"),
        (PROFILE, ["train", "dncnn", "hyperparameters", "width"], 3200000, "must have at most 1,000,000,000"),
        (PROFILE, ["train", "dncnn", "hyperparameters", "residual"], 1, "is 1, must be true or false"),
        ("params.yaml", ["models", "lambdanet", "norm"], ["batch"], "norm of model 'lambdanet' is ['batch']"),
        (
            PROFILE,
            ["ablations", "base", "hyperparameters", "m"],
            4,
            "sample/profile.yaml: ablations.base: m is 4, must be odd",
        ),
    ],
)
def test_check_names_what_is_wrong(project, lambdanet, file, path, value, says):
    raw = read(project / file)
    inner = raw
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    write(project / file, raw)
    assert says in one_line(lambdanet("check"))


def test_an_ablation_is_trained_and_scored_on_its_own_images(project, lambdanet):
    raw = read(project / PROFILE)
    raw["datasets"]["few"] = {"dataset": "photos", "train": 16, "test": 12}
    raw["pairs"]["few"] = {"dataset": "few", "noise": "gaussian-25"}
    raw["ablations"]["dncnn-blind"]["dataset"] = "few"
    write(project / PROFILE, raw)
    done = lambdanet("train", "gaussian-25", "dncnn-blind", "--epochs", 1, "--out", "runs/a")
    assert done.exit_code == 0, done.output
    assert read(project / "runs/a/model.json")["noise"]["name"] == "blind-gaussian"
    scores = json.loads(lambdanet("evaluate", "runs/a/weights.safetensors", "gaussian-25").stdout)
    assert scores["images"] == 12


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "rain", "dncnn", "--out", "x"], "unknown noise 'rain'; params.yaml has gaussian-01"),
        (
            ["train", "speckle", "unet", "--out", "x"],
            "unknown model 'unet'; Table 2 has lambdanet",
        ),
        (["train", "speckle", "dncnn", "--epochs", "0", "--out", "x"], "epochs is 0, must be at least 1"),
        (["train", "speckle", "dncnn", "--data", "none", "--out", "x"], "none/clean/train.npy is missing"),
        (
            ["train", "speckle", "dncnn", "--device", "abacus", "--out", "x"],
            "device 'abacus' is not available",
        ),
        (["evaluate", "none.safetensors", "speckle"], "none.safetensors: no such weights file"),
        (["evaluate", "params.yaml", "speckle"], "params.yaml: not a readable safetensors file"),
        (["models"], "there is no registry yet (mlflow.db)"),
        (["show"], "results/sample/table2.csv cannot be read"),
        (["show", "--profile", "nope"], "unknown profile 'nope'; there are sample"),
        (["export-weights"], "results/sample/digests.json cannot be read"),
        (["restore"], "results/sample/trainings.json cannot be read"),
    ],
)
def test_bad_words_are_one_line_and_leave_nothing(project, lambdanet, words, says):
    before = sorted(project.rglob("*"))
    assert says in one_line(lambdanet(*words))
    assert sorted(project.rglob("*")) == before


UNKNOWN = "error: unknown profile 'nope'; there are sample"
EARLY = [
    (["train", "speckle", "dncnn", "--out", "."], "error: . exists and is not the folder of a training"),
    (["train", "speckle", "dncnn", "--out", "x", "--profile", "nope"], UNKNOWN),
    (["evaluate", "params.yaml", "speckle", "--profile", "nope"], UNKNOWN),
    (["evaluate", "params.yaml", "rain"], "error: unknown noise 'rain'; params.yaml has gaussian-01"),
    (["evaluate", "none.safetensors", "speckle"], "error: none.safetensors: no such weights file"),
    (["models"], "error: there is no registry yet (mlflow.db)"),
    (["denoise", "a.png", "-o", "b.png", "--blind"], "error: there is no registry yet (mlflow.db)"),
    *(
        ([command, "--profile", "nope"], UNKNOWN)
        for command in ("publish", "restore", "export-weights", "show")
    ),
    (["show", "--run", "x"], "error: profile sample has no run 'x'; they are NOISE-MODEL-SEED"),
]


def test_mistakes_are_found_before_torch_and_mlflow_are_loaded(project, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Image.new("RGB", (16, 16)).save(project / "a.png")
    code = """
import json, sys
from click.testing import CliRunner
from lambdanet.cli import main
for words in json.loads(sys.argv[1]):
    print(json.dumps(CliRunner().invoke(main, words).output), file=sys.stderr)
    assert not {"torch", "mlflow"} & set(sys.modules), words
"""
    words = json.dumps([words for words, _ in EARLY])
    done = subprocess.run([sys.executable, "-c", code, words], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line[: len(start)] for line, (_, start) in zip(said, EARLY, strict=True)] == [s for _, s in EARLY]
    assert {line.count("\n") for line in said} == {1}
    assert sorted(path.name for path in project.iterdir()) == ["a.png", "params.yaml", "sample"]


def test_a_missing_package_is_one_line(project, monkeypatch):
    (project / "mlflow.db").touch()
    code = "import sys; sys.modules['mlflow'] = None; from lambdanet.cli import main; main(['models'])"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("error: import of mlflow halted; ")
    assert done.stderr.endswith("; install what this project needs by `make setup`\n")


def test_the_device_is_also_that_of_the_environment(project, lambdanet, monkeypatch):
    monkeypatch.setenv("LAMBDANET_DEVICE", "cpu/abacus")
    assert "unknown backend 'abacus'" in one_line(lambdanet("train", "speckle", "dncnn", "--out", "x"))
    assert not (project / "x").exists()


def test_params_missing_is_one_line(tmp_path):
    command = [sys.executable, "-m", "lambdanet", "check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "error: profile.yaml is missing; run this in the project's folder\n"


def test_show_prints_the_table_and_where_to_go_on(lambdanet, project):
    results = project / "results"
    results.symlink_to(ROOT / "results")
    done = lambdanet("show", "--profile", "paper")
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((results / "paper/table2.csv").read_text().splitlines()))
    for row, line in zip(rows, done.stdout.splitlines()[1:], strict=False):
        run = [f"{float(row['psnr']):.2f}", f"{int(row['parameters']):,}"] if row["psnr"] else ["not", "run"]
        assert {row["model"], *run} <= set(line.split())
    said = [line for line in done.stdout.splitlines() if line.startswith(("report:", "runs:", "your image:"))]
    hint = "your image: lambdanet denoise photo.png -o clean.png --blind"
    assert said == [
        "report:     results/paper/report.html",
        "runs:       make ui, then open http://127.0.0.1:5000",
        hint,
    ]
    (project / "weights").symlink_to(ROOT / "weights")
    again = lambdanet("show", "--profile", "paper").stdout.splitlines()
    assert again[-1] == f"{hint} --weights weights/paper"


def test_exported_weights_are_those_that_were_scored(project, lambdanet):
    model = {"name": "autoencoder", "width": 1}
    name = "speckle-autoencoder-0"
    trained = project / "runs/sample/models/speckle/autoencoder-0/weights.safetensors"
    save_weights(trained, create_model(**model), {"model": model})
    results = project / "results/sample"
    results.mkdir(parents=True)
    (results / "trainings.json").write_text("{}")
    (results / "digests.json").write_text(json.dumps({name: {"weights": "0"}}))
    assert "is not what was scored" in one_line(lambdanet("export-weights"))
    assert not (project / "weights/sample").exists()
    digest = hashlib.sha256(trained.read_bytes()).hexdigest()
    (results / "digests.json").write_text(json.dumps({name: {"weights": digest}}))
    assert lambdanet("export-weights").exit_code == 0
    assert (project / f"weights/sample/{name}.safetensors").read_bytes() == trained.read_bytes()


def test_committed_weights_are_those_of_the_committed_scores():
    for folder in (ROOT / "weights").glob("*"):
        digests = json.loads((ROOT / "results" / folder.name / "digests.json").read_text())
        table = folder.glob("*.safetensors")
        found = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in table}
        assert found == {name: entry["weights"] for name, entry in digests.items()}
        trainings = json.loads((ROOT / "results" / folder.name / "trainings.json").read_text())
        for path in folder.glob("*/*.safetensors"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert digest == trainings[path.stem]["scores"]["weights_sha256"]


def test_training_does_not_replace_a_folder_of_something_else(project, lambdanet):
    (project / "pictures").mkdir()
    (project / "pictures/a.png").touch()
    said = one_line(lambdanet("train", "speckle", "autoencoder", "--out", "pictures"))
    assert "pictures exists and is not the folder of a training" in said
    assert (project / "pictures/a.png").exists()


def test_the_pages_do_not_begin_on_a_taken_port(project, lambdanet, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = one_line(lambdanet("ui", "--port", port))
    assert said == f"error: port {port} cannot be used (Address already in use); choose another by --port\n"
    assert not (project / "mlflow.db").exists()


def test_help_names_every_command():
    installed = Path(sys.executable).with_name("lambdanet")
    done = subprocess.run([installed, "--help"], capture_output=True, text=True)
    for command in main.commands:
        assert f"  {command} " in done.stdout
