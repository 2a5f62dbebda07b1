import csv
import hashlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from lambdanet import checking
from lambdanet.cli import main
from lambdanet.models import create_model, save_weights

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def project(tmp_path):
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["profiles"]["sample"]["download"] = {"dataset": "photos", "train": 40, "test": 20}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
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


def test_trains_and_scores_a_cell_without_dvc(project, lambdanet):
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


def test_a_model_of_a_set_takes_the_set_s_images_and_its_own_noise(project, lambdanet):
    raw = yaml.safe_load((project / "params.yaml").read_text())
    raw["profiles"]["sample"]["sets"]["bsds500"]["download"] = {"dataset": "photos", "train": 16, "test": 4}
    (project / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    done = lambdanet("train", "bsds500", "dncnn-blind", "--epochs", 1, "--out", "runs/a")
    assert done.exit_code == 0, done.output
    assert json.loads((project / "runs/a/model.json").read_text())["noise"]["name"] == "blind-gaussian"
    (record,) = json.loads((project / "runs/a.log.json").read_text())
    assert record["data"]["train"]["images"] == 16
    scores = json.loads(lambdanet("evaluate", "runs/a/weights.safetensors", "bsds500").stdout)
    assert scores["images"] == 4
    assert "is not trained on speckle, but on bsds500" in one_line(
        lambdanet("train", "speckle", "dncnn-blind", "--out", "runs/b")
    )


def test_check_accepts_the_projects_parameters(project, lambdanet):
    done = lambdanet("check")
    assert done.output == "params.yaml is valid; profile sample has 30 trainings\n"


def test_check_accepts_a_folder_of_photographs(project, lambdanet):
    raw = yaml.safe_load((project / "params.yaml").read_text())
    raw["profiles"]["sample"]["download"]["dataset"] = "photographs"
    (project / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    (project / "photographs").mkdir()
    assert lambdanet("check").output.startswith("params.yaml is valid")


def test_a_check_is_made_once_for_the_same_parameters(project, lambdanet, monkeypatch, tmp_path):
    tried = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checking, "_make_all", lambda loaded: tried.append(loaded.profile))
    first, second = lambdanet("check"), lambdanet("check")
    assert first.output == second.output == "params.yaml is valid; profile sample has 30 trainings\n"
    assert tried == ["sample"]
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("profile: sample", "profile: quick"))
    assert "profile quick" in lambdanet("check").output
    assert tried == ["sample", "quick"]
    (project / "params.yaml").write_text(text)
    lambdanet("check")
    assert tried == ["sample", "quick"]


def test_a_check_that_failed_or_saw_a_folder_is_made_again(project, lambdanet, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    raw = yaml.safe_load((project / "params.yaml").read_text())
    raw["models"]["lambdanet"]["m"] = 4
    (project / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    assert "m is 4" in one_line(lambdanet("check"))
    assert "m is 4" in one_line(lambdanet("check"))
    raw["models"]["lambdanet"]["m"] = 23
    raw["profiles"]["sample"]["download"]["dataset"] = "photographs"
    (project / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    (project / "photographs").mkdir()
    assert lambdanet("check").exit_code == 0
    (project / "photographs").rmdir()
    assert "nor a folder that exists" in one_line(lambdanet("check"))


def test_a_check_needs_no_place_to_remember_it(project, lambdanet, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert lambdanet("check").output == "params.yaml is valid; profile sample has 30 trainings\n"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (
            ["noises", "speckle", "variance"],
            -1,
            "variance of noise 'speckle' is -1, must be a number above 0",
        ),
        (["noises", "speckle", "varience"], 1, "noise 'speckle' takes variance"),
        (["models", "lambdanet", "m"], 4, "m is 4, must be odd"),
        (["models", "dncnn", "dept"], 4, "model 'dncnn' has no parameter dept; it takes: depth, width"),
        (["models", "dncnn", "width"], 3200000, "must have at most 1,000,000,000"),
        (["models", "dncnn", "width"], 10**30, "cannot have these hyperparameters, or is too large"),
        (["models", "lambdanet", "norm"], ["batch"], "norm of model 'lambdanet' is ['batch'], must be text"),
        (["models", "lambdanet", "activation"], {"a": 1}, "is {'a': 1}, must be text"),
        (["models", "cnn", "slope"], "0.2", "slope of model 'cnn' is '0.2', must be a finite number"),
        (["models", "dncnn", "residual"], 1, "residual of model 'dncnn' is 1, must be true or false"),
        (["train", "batch_size"], 0, "batch_size is 0, must be at least 1"),
        (["profile"], "huge", "profile is 'huge', must be one of sample, quick, paper"),
        (
            ["profiles", "sample", "download", "dataset"],
            "cifra10",
            "params.yaml: profiles.sample.download: dataset is 'cifra10', neither one of photos, cifar10, "
            "cifar10-split, bsds500 nor a folder that exists",
        ),
    ],
)
def test_check_names_what_is_wrong(project, lambdanet, path, value, says):
    raw = yaml.safe_load((project / "params.yaml").read_text())
    inner = raw
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (project / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    assert says in one_line(lambdanet("check"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (["noises", "gaussian-01"], "noises.gaussian-01"),
        (["variations"], "variations"),
        (["rivals"], "rivals"),
    ],
)
def test_check_names_what_the_pipeline_lacks(project, lambdanet, path, name):
    (project / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    assert lambdanet("check").exit_code == 0
    raw = yaml.safe_load((project / "params.yaml").read_text())
    inner = raw
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    (project / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    assert one_line(lambdanet("check")) == f"error: params.yaml: {name} is missing; dvc.yaml refers to it\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "rain", "dncnn", "--out", "x"], "unknown noise 'rain'; params.yaml has gaussian-01"),
        (["train", "speckle", "unet", "--out", "x"], "unknown model 'unet'; params.yaml has lambdanet"),
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
        (["export-weights"], "results/sample/digests.json cannot be read"),
        (["restore"], "results/sample/trainings.json cannot be read"),
    ],
)
def test_bad_words_are_one_line_and_leave_nothing(project, lambdanet, words, says):
    before = sorted(project.rglob("*"))
    assert says in one_line(lambdanet(*words))
    assert sorted(project.rglob("*")) == before


def test_the_device_is_also_that_of_the_environment(project, lambdanet, monkeypatch):
    monkeypatch.setenv("LAMBDANET_DEVICE", "cpu/abacus")
    assert "unknown path 'abacus'" in one_line(lambdanet("train", "speckle", "dncnn", "--out", "x"))
    assert not (project / "x").exists()


def test_params_missing_is_one_line(tmp_path):
    command = [sys.executable, "-m", "lambdanet", "check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "error: params.yaml is missing; run this in the project's folder\n"


def test_show_prints_the_table_and_where_to_go_on(lambdanet, project):
    results = project / "results"
    results.symlink_to(ROOT / "results")
    done = lambdanet("show", "--profile", "quick")
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((results / "quick/table2.csv").read_text().splitlines()))
    for row, line in zip(rows, done.stdout.splitlines()[1:], strict=False):
        run = [f"{float(row['psnr']):.2f}", f"{int(row['parameters']):,}"] if row["psnr"] else ["not", "run"]
        assert {row["model"], *run} <= set(line.split())
    said = [line for line in done.stdout.splitlines() if line.startswith(("report:", "runs:", "your image:"))]
    assert said == [
        "report:     results/quick/report.html",
        "runs:       make ui, then open http://127.0.0.1:5000",
        "your image: lambdanet denoise photo.png -o clean.png --blind",
    ]


def test_exported_weights_are_those_that_were_scored(project, lambdanet):
    config = {"name": "autoencoder", "width": 1}
    trained = project / "models/sample/c/weights.safetensors"
    save_weights(trained, create_model(**config), {"model": config})
    results = project / "results/sample"
    results.mkdir(parents=True)
    (results / "digests.json").write_text('{"c": {"weights": "0"}}')
    assert "is not what was scored" in one_line(lambdanet("export-weights"))
    assert not (project / "weights/sample").exists()
    digest = hashlib.sha256(trained.read_bytes()).hexdigest()
    (results / "digests.json").write_text(json.dumps({"c": {"weights": digest}}))
    assert lambdanet("export-weights").exit_code == 0
    assert (project / "weights/sample/c.safetensors").read_bytes() == trained.read_bytes()


def test_committed_weights_are_those_of_the_committed_scores():
    folders = [path for path in (ROOT / "weights").glob("*") if path.name != "sample"]
    if not folders:
        pytest.skip("no weights are committed")
    for folder in folders:
        digests = json.loads((ROOT / "results" / folder.name / "digests.json").read_text())
        table = folder.glob("*.safetensors")
        found = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in table}
        assert found == {cell: entry["weights"] for cell, entry in digests.items()}
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
