"""The real dvc.yaml, every stage, at a tiny size, by stock `dvc repro` in a temporary clone."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import helpers
import mlflow_helpers
import numpy as np
import pytest
import skimage.data
from PIL import Image

from lambdanet.data.images import to_bytes, to_tensor
from lambdanet.inference.denoise import denoise
from lambdanet.models import load_weights
from lambdanet.tracking import mlflow_runs

DVC = (sys.executable, "-m", "dvc")
NOISES = ("gaussian-01", "speckle")
MODELS = {"lambdanet-u4-m7": "train-lambdanet", "autoencoder": "train"}
RUNS = [f"{noise}-{model}-0" for noise in NOISES for model in MODELS]
ABLATIONS = [f"gaussian-01-{name}" for name in ("base-0", "channels-d8-0", "channels-d8-1", "cnn-bce-0")]
COLLECTED = {"plot", "register"}
NETWORK = {f"train@{noise}-autoencoder-0" for noise in NOISES} | {f"evaluate@{noise}" for noise in NOISES}
NETWORK |= {"evaluate-ablations", "register"}  # weights and scores stay: nothing for `plot`
CHANGED = [("report/figures.py", {"plot"})]
CHANGED += [pytest.param("models/autoencoder.py", NETWORK, marks=pytest.mark.slow)]
SMALL = {"name": "lambdanet", "u": 2, "m": 3, "k": 4, "heads": 2, "d": 4}
TRAIN = helpers.TRAIN | {"epochs": 1, "batch_size": 4, "schedule": "cosine", "monitored": 10}


def ablation(study, model, hyperparameters, **changes):
    """A complete entry of `ablations`."""
    of = {"study": study, "model": model, "code": model, "dataset": "photos", "train": TRAIN}
    return helpers.PROFILE["ablations"]["loss-bce"] | of | {"hyperparameters": hyperparameters} | changes


HYPERPARAMETERS = {key: value for key, value in SMALL.items() if key != "name"}
PROFILE = helpers.PROFILE | {
    "profile": "sample", "root": "..", "file": "sample/profile.yaml", "dataset": "photos",
    "datasets": {"photos": {"dataset": "photos", "train": 64, "test": 20}},
    "pairs": {noise: {"dataset": "photos", "noise": noise} for noise in NOISES},
    # Copies: YAML would have an alias, and `dvc exp run` changes what an alias names.
    "train": {"lambdanet-u4-m7": TRAIN | {"epochs": 2}, "autoencoder": dict(TRAIN)},
    "levels": ["cnn-bce"],
    "ablations": {
        "base": ablation("base", "lambdanet", HYPERPARAMETERS),
        "channels-d8": ablation("channels", "lambdanet", HYPERPARAMETERS | {"d": 8}, seeds=[0, 1]),
        "cnn-bce": ablation("split", "cnn", {"width": 4}),
    },
}  # fmt: skip


class Clone:
    """A copy of the working tree in a repository of its own, whose only profile is a tiny `sample`."""

    def __init__(self, folder):
        self.folder = folder
        words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(words, cwd=helpers.ROOT, check=True, capture_output=True, text=True)
        for name in filter(None, listed.stdout.split("\0")):
            source, target = helpers.ROOT / name, folder / name
            if source.is_symlink() or source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
        shutil.rmtree(folder / "quick")
        helpers.edit_yaml(folder / "params.yaml", ("models", "lambdanet-u4-m7"), SMALL)
        table = {"noises": [*NOISES], "lambdanets": ["lambdanet-u4-m7"], "baselines": ["autoencoder"]}
        helpers.edit_yaml(folder / "params.yaml", ("table",), table)
        helpers.write_yaml(folder / "sample/profile.yaml", PROFILE)
        # So that DVC has another graph beside; it is not run.
        paper = {"profile": "paper", "root": ".", "file": "profile.yaml"}
        helpers.write_yaml(folder / "profile.yaml", PROFILE | paper)
        (folder / "dvc.lock").unlink()
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "tiny"]):
            self.git(*command)
        self.git("update-index", "--skip-worktree", "sample/dvc.lock")

    def git(self, *words):
        return self.run("git", *words)

    def run(self, *words):
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "DVC_NO_ANALYTICS": "1",
            "OMP_NUM_THREADS": "1",
            "LAMBDANET_TRACKING": "",  # as it is for a user: `register` logs short trainings
        }
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def mlflow(self):
        """What the clone's MLflow holds now: of a copy, as MLflow keeps a file open that was replaced."""
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            shutil.copy(self.folder / "mlflow.db", folder)
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
            return mlflow_helpers.state(mlflow_runs.connect(), "sample")

    def repro(self):
        """Run stock `dvc repro` of the sample; the stages whose commands were really executed."""
        said = self.run(*DVC, "repro", "sample/dvc.yaml")
        return set(re.findall(r"Running stage 'sample/dvc.yaml:(.+?)'", said))


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    clone = Clone(tmp_path_factory.mktemp("clone"))
    clone.first = clone.repro()
    return clone


def trainings(noise):
    return {f"{stage}@{noise}-{model}-0" for model, stage in MODELS.items()}


def test_every_stage_runs_and_then_none(clone):
    expected = {"download@photos", "evaluate-ablations", *COLLECTED}
    expected |= {f"{stage}@{noise}" for stage in ("corrupt", "evaluate") for noise in NOISES}
    expected |= {f"ablate@{name}" for name in ("base", "channels-d8", "cnn-bce")}
    assert clone.first == expected.union(*map(trainings, NOISES))
    assert clone.repro() == set()
    assert "up to date" in clone.run(*DVC, "status", "sample/dvc.yaml")
    assert clone.git("status", "--porcelain") == ""
    assert "&id" not in (clone.folder / "sample/dvc.lock").read_text()


def test_mlflow_holds_one_whole_run_of_each_training(clone):
    runs, versions = clone.mlflow()
    assert sorted(runs) == sorted([*RUNS, *ABLATIONS])
    assert {run["status"] for run in runs.values()} == {"FINISHED"}
    registered = {f"{one.noise}-{one.model}-{one.seed}" for one, _ in versions}
    assert registered == {*RUNS, "gaussian-01-cnn-bce-0"}  # which is another document's experiment
    results = clone.folder / "results/sample"
    for name in RUNS:
        run = runs[name]
        history = helpers.read_csv(results / "histories" / f"{name}.csv")
        metrics = {key: [value[:2] for value in values] for key, values in run["metrics"].items()}
        for key in ("loss", "monitored_psnr", "learning_rate"):
            assert metrics[key] == [(int(row["epoch"]), float(row[key])) for row in history]
        assert len(metrics["epoch_seconds"]) == len(history)
        scores = json.loads((results / "scores" / f"{name}.json").read_text())
        for key in ("psnr", "ssim", "parameters", "noisy_psnr"):
            assert metrics[key] == [(0, scores[key])]
        assert {"training_seconds", "peak_memory_bytes"} <= set(metrics)
        epochs = PROFILE["train"][run["tags"]["model"]]["epochs"]
        assert (run["params"]["training.epochs"], len(history)) == (str(epochs), epochs)
        stage = MODELS["autoencoder" if "autoencoder" in name else "lambdanet-u4-m7"]
        assert run["tags"]["stage"] == f"sample/dvc.yaml:{stage}@{name}"
        kinds = ("clean", next(noise for noise in NOISES if name.startswith(noise)))
        folders = [f"sample/photos/{kind}/{split}" for kind in kinds for split in ("test", "train")]
        assert [name for name, _ in run["inputs"]] == folders


def test_registered_denoisers_denoise_a_photograph(clone):
    denoise_photo = [sys.executable, "-m", "lambdanet", "denoise", "photo.png", "-o", "out.png"]
    photo, out = clone.folder / "photo.png", clone.folder / "out.png"
    Image.fromarray(skimage.data.chelsea()[:50, :70]).save(photo)
    said = clone.run(*denoise_photo, "--noise", "speckle", "--alias", "lambdanet-u4-m7")
    assert said.startswith("out.png: written, by lambdanet-u4-m7 for speckle (version 1, ")
    folder = clone.folder / "runs/sample/models/speckle/lambdanet-u4-m7-0"
    weights, _ = load_weights(folder / "weights.safetensors")
    expected = to_bytes(denoise(weights, to_tensor(skimage.data.chelsea()[None, :50, :70])))[0]
    np.testing.assert_array_equal(helpers.pixels_of(out), expected)
    assert "out.png: written, by " in clone.run(*denoise_photo, "--alias", "champion")
    listed = clone.run(sys.executable, "-m", "lambdanet", "models", "list").splitlines()
    assert sum(line.split()[:2] == ["speckle", "autoencoder"] for line in listed) == 1
    photo.unlink()
    out.unlink()


def test_lost_mlflow_is_restored_by_register_alone(clone):
    before = clone.mlflow()
    receipt = (clone.folder / "runs/sample/receipt.json").read_bytes()
    for path in (*clone.folder.glob("mlflow.db*"), *clone.folder.glob("runs/sample/receipt.json")):
        path.unlink()
    shutil.rmtree(clone.folder / "mlartifacts")
    assert clone.repro() == {"register"}
    assert (clone.folder / "runs/sample/receipt.json").read_bytes() == receipt
    assert clone.mlflow() == before
    assert clone.repro() == set()
    assert "up to date" in clone.run(*DVC, "status", "sample/dvc.yaml")


def test_results_hold_every_run_with_true_values(clone):
    results = clone.folder / "results/sample"
    rows = helpers.read_csv(results / "table2.csv")
    assert [f"{row['noise']}-{row['model']}-0" for row in rows] == RUNS
    for row, run_key in zip(rows, RUNS, strict=True):
        score = json.loads((results / "scores" / f"{run_key}.json").read_text())
        assert float(row["psnr"]) == pytest.approx(score["psnr"], abs=1e-5)
    assert {row["paper_psnr"] for row in rows} == {""}  # these are not the paper's images
    report = (results / "report.html").read_text()
    assert "http://" not in report
    assert "https://" not in report
    figures = {path.stem for path in (results / "figures").iterdir()}
    assert {"convergence", "psnr", "panel-speckle", "study-channels", "levels-split"} <= figures
    assert report.count("data:image/") == len(figures)


def test_metrics_and_plots_are_shown_by_dvc(clone):
    metrics = json.loads(clone.run(*DVC, "metrics", "show", "--json"))
    shown = metrics[""]["data"] if "" in metrics else metrics["workspace"]["data"]
    names = [Path(name) for name in shown]
    assert sorted(path.stem for path in names if path.parts[1] == "sample") == sorted(RUNS)
    plots = json.loads(clone.run(*DVC, "plots", "show", "--json"))["data"]
    assert "results/sample/figures/convergence.png" in plots
    assert any("histories" in name for name in plots)


@pytest.mark.slow
def test_changed_noise_reruns_its_own_stages_and_what_collects_them(clone):
    params, variance = clone.folder / "params.yaml", ("noises", "speckle", "variance")
    helpers.edit_yaml(params, variance, 0.2)
    # One stage scores all ablations, and depends on all stored images.
    own = {"corrupt@speckle", "evaluate@speckle", "evaluate-ablations", *COLLECTED}
    assert clone.repro() == own | trainings("speckle")
    helpers.edit_yaml(params, variance, 0.1)
    assert clone.repro() <= COLLECTED  # the rest comes from DVC's run-cache
    assert clone.git("status", "--porcelain", "--", ":!params.yaml") == ""


@pytest.mark.parametrize(("module", "stages"), CHANGED)
def test_a_changed_module_reruns_what_it_decides_and_no_more(clone, module, stages):
    path = clone.folder / "lambdanet" / module
    before = path.read_text()
    path.write_text(before + "\n# changed\n")
    assert clone.repro() == stages
    path.write_text(before)
    assert clone.repro() <= COLLECTED


def test_changed_ablation_reruns_itself_and_what_collects_ablations(clone):
    profile = clone.folder / "sample/profile.yaml"
    helpers.edit_yaml(profile, ("ablations", "channels-d8", "hyperparameters", "d"), 12)
    helpers.edit_yaml(profile, ("ablations", "base", "study"), "keys")  # how it is shown, not how trained
    assert clone.repro() == {"ablate@channels-d8", "evaluate-ablations", *COLLECTED}
    assert clone.repro() == set()
    helpers.edit_yaml(profile, ("levels",), ["base"])  # how it is scored
    assert clone.repro() == {"evaluate-ablations", *COLLECTED}
    assert "&id" not in (clone.folder / "sample/dvc.lock").read_text()


@pytest.mark.slow
def test_an_experiment_of_either_profile_changes_its_settings(clone):
    setting = "train.autoencoder.learning_rate=0.02"
    for profile, target in (("sample/", "sample/dvc.yaml:train"), ("", "train")):
        target = f"{target}@speckle-autoencoder-0"
        clone.run(*DVC, "exp", "run", "-S", f"{profile}profile.yaml:{setting}", target)
        name = helpers.read_yaml(clone.folder / f"{profile}profile.yaml")["profile"]
        trained = clone.folder / f"runs/{name}/models/speckle/autoencoder-0/model.json"
        assert json.loads(trained.read_text())["training"]["learning_rate"] == 0.02
    clone.git("checkout", "-q", "sample/profile.yaml", "profile.yaml")
    clone.git("update-index", "--skip-worktree", "sample/dvc.lock")  # as the Makefile does before each run
    assert clone.git("status", "--porcelain", "sample", "profile.yaml") == ""
