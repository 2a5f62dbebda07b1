"""The real dvc.yaml, every stage, at a tiny size, in a temporary clone."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image
from pipeline_helpers import DVC, TINY, Clone

from lambdanet.denoise import denoise
from lambdanet.images import to_bytes, to_tensor
from lambdanet.models import load_weights


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    clone = Clone(tmp_path_factory.mktemp("clone"))
    clone.first = clone.repro()
    clone.git("add", "-A")
    clone.git("commit", "-qm", "quick")
    return clone


CELLS = {
    f"{noise}-{model}-0"
    for noise in ("gaussian-01", "speckle")
    for model in ("lambdanet-u4-m7", "autoencoder")
}


def test_every_stage_runs_and_then_none(clone):
    expected = {"download@quick", "plot@quick", "corrupt@quick-gaussian-01", "corrupt@quick-speckle"}
    expected |= {f"{stage}@quick-{cell}" for stage in ("train", "evaluate") for cell in CELLS}
    assert clone.first == expected | {"register@quick"}
    assert clone.repro() == set()
    assert "up to date" in clone.run(*DVC, "status")


def test_mlflow_holds_one_whole_run_of_each_cell(clone):
    held = clone.mlflow()["runs"]
    assert list(held) == ["lambdanet/quick"]
    runs = {run["name"]: run for run in held["lambdanet/quick"]}
    assert sorted(run["name"] for run in held["lambdanet/quick"]) == sorted([*CELLS, "table2-quick"])
    assert {run["status"] for run in runs.values()} == {"FINISHED"}
    results = clone.folder / "results/quick"
    for cell in CELLS:
        run = runs[cell]
        history = list(csv.DictReader((results / "histories" / f"{cell}.csv").read_text().splitlines()))
        for key in ("loss", "monitored_psnr", "learning_rate"):
            assert run["metrics"][key] == [[int(row["epoch"]), float(row[key])] for row in history]
        assert len(run["metrics"]["epoch_seconds"]) == len(history)
        scores = json.loads((results / "scores" / f"{cell}.json").read_text())
        for key in ("psnr", "ssim", "parameters", "noisy_psnr"):
            assert run["metrics"][key] == [[0, scores[key]]]
        assert {"training_seconds", "peak_memory_bytes", "inference_seconds_per_image"} <= set(run["metrics"])
        assert run["params"]["training.epochs"] == str(len(history))
        assert run["tags"]["stage"] == f"train@quick-{cell}"
        noise = cell.partition("-lambdanet")[0].partition("-autoencoder")[0]
        folders = [
            f"quick/{folder}/{split}" for folder in ("clean", f"noisy/{noise}") for split in ("test", "train")
        ]
        assert [name for name, _ in run["inputs"]] == folders
    figures = [f"figures/{path.name}" for path in (results / "figures").iterdir()]
    summary = sorted([*figures, "report.html", "table2.csv", "table2.md"])
    assert runs["table2-quick"]["artifacts"] == summary


def test_registry_holds_every_network_and_its_aliases_follow_the_scores(clone):
    models = clone.mlflow()["models"]
    assert sorted(models) == ["denoiser-gaussian-01", "denoiser-speckle"]
    for noise in ("gaussian-01", "speckle"):
        held = models[f"denoiser-{noise}"]
        networks = {number: tags["model"] for number, _, tags, _, _ in held["versions"]}
        assert networks == {1: "lambdanet-u4-m7", 2: "autoencoder"}
        scores = {}
        for number, run, tags, description, status in held["versions"]:
            assert run == f"{noise}-{networks[number]}-0"
            score = json.loads((clone.folder / "results/quick/scores" / f"{run}.json").read_text())
            assert (tags["psnr"], tags["noise"], status) == (str(score["psnr"]), noise, "READY")
            assert f"PSNR {score['psnr']:.2f} dB" in description
            scores[number] = score["psnr"]
        best = max(scores, key=scores.get)
        aliases = {"champion": best, "compact": 1, "lambdanet-u4-m7": 1, "autoencoder": 2}
        assert held["aliases"] == aliases


def test_registered_denoisers_denoise_a_photograph(clone):
    command = [sys.executable, "-m", "lambdanet"]
    photo, out = clone.folder / "photo.png", clone.folder / "out.png"
    Image.fromarray(skimage.data.chelsea()[:50, :70]).save(photo)
    said = clone.run(
        *command, "denoise", "photo.png", "-o", "out.png", "--noise", "speckle", "--alias", "compact"
    )
    assert said.startswith("out.png: written, by lambdanet-u4-m7 for speckle (version 1, ")
    weights, _ = load_weights(clone.folder / "models/quick/speckle-lambdanet-u4-m7-0/weights.safetensors")
    expected = to_bytes(denoise(weights, to_tensor(skimage.data.chelsea()[None, :50, :70])))[0]
    with Image.open(out) as image:
        np.testing.assert_array_equal(np.asarray(image), expected)
    assert "out.png: written, by " in clone.run(*command, "denoise", "photo.png", "-o", "out.png", "--blind")
    listed = clone.run(*command, "models").splitlines()
    assert sum(line.split()[:2] == ["speckle", "autoencoder"] for line in listed) == 1
    photo.unlink()
    out.unlink()


def test_lost_mlflow_is_restored_by_register_alone(clone):
    before = clone.mlflow()
    receipt = (clone.folder / "receipts/quick.json").read_bytes()
    for path in (*clone.folder.glob("mlflow.db*"), *clone.folder.glob("receipts/*")):
        path.unlink()
    shutil.rmtree(clone.folder / "mlartifacts")
    assert clone.repro() == {"register@quick"}
    assert (clone.folder / "receipts/quick.json").read_bytes() == receipt
    after = clone.mlflow()
    for run in [*before["runs"]["lambdanet/quick"], *after["runs"]["lambdanet/quick"]]:
        # When a score was logged first is nobody's but its own, and so is all of the summary.
        times = run.pop("times")
        if run["tags"]["task"] == "summary":
            del run["start"], run["end"]
        else:
            run["epochs ended"] = {key: times[key] for key in ("loss", "monitored_psnr", "learning_rate")}
    assert after["models"] == before["models"]
    for old, new in zip(before["runs"]["lambdanet/quick"], after["runs"]["lambdanet/quick"], strict=True):
        assert new == old, old["name"]
    assert clone.repro() == set()
    assert "up to date" in clone.run(*DVC, "status")


def test_results_hold_every_cell_with_true_values(clone):
    results = clone.folder / "results/quick"
    with open(results / "table2.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["noise"], row["model"]) for row in rows] == [
        (noise, model) for noise in ("gaussian-01", "speckle") for model in ("lambdanet-u4-m7", "autoencoder")
    ]
    for row in rows:
        cell = f"{row['noise']}-{row['model']}-0"
        score = json.loads((results / "scores" / f"{cell}.json").read_text())
        assert float(row["psnr"]) == pytest.approx(score["psnr"], abs=1e-5)
        assert 5 < score["psnr"] < 30
        assert 0 < score["ssim"] < 1
        history = list(csv.DictReader((results / "histories" / f"{cell}.csv").read_text().splitlines()))
        assert len(history) == TINY["models"][row["model"]]["epochs"]
        assert float(history[0]["loss"]) > 0
    assert rows[0]["paper_psnr"] == "26.710000"
    assert rows[2]["paper_psnr"] == ""
    assert {row["parameters"] for row in rows if row["model"] == "autoencoder"} == {"47355"}
    # 20.0 dB is what sigma 0.1 gives before clipping; clipping for scoring gains a little.
    assert 19.9 < float(rows[0]["noisy_psnr"]) < 21
    report = (results / "report.html").read_text()
    assert "http://" not in report
    assert "https://" not in report
    assert report.count("data:image/") == 5


def test_metrics_and_plots_are_shown_by_dvc(clone):
    metrics = json.loads(clone.run(*DVC, "metrics", "show", "--json"))
    shown = metrics[""]["data"] if "" in metrics else metrics["workspace"]["data"]
    assert {Path(name).stem for name in shown} == CELLS
    plots = json.loads(clone.run(*DVC, "plots", "show", "--json"))["data"]
    assert "results/quick/figures/convergence.png" in plots
    assert any("histories" in name for name in plots)


def test_changed_noise_reruns_its_cells_and_what_collects_them(clone):
    raw = clone.params()
    raw["noises"]["speckle"]["variance"] = 0.2
    clone.write_params(raw)
    ran = clone.repro()
    cells = {cell for cell in CELLS if cell.startswith("speckle")}
    assert ran == {"corrupt@quick-speckle", "plot@quick", "register@quick"} | {
        f"{stage}@quick-{cell}" for stage in ("train", "evaluate") for cell in cells
    }
    raw["noises"]["speckle"]["variance"] = 0.1
    clone.write_params(raw)
    assert clone.repro() <= {"plot@quick", "register@quick"}  # the rest comes from DVC's run-cache
    assert clone.git("status", "--porcelain") == ""


def test_changed_plotting_reruns_plotting_only(clone):
    module = clone.folder / "lambdanet/report/figures.py"
    before = module.read_text()
    module.write_text(before + "\n# changed\n")
    assert clone.repro() == {"plot@quick"}
    module.write_text(before)
    clone.repro()


def test_changed_network_reruns_its_own_cells_only(clone):
    module = clone.folder / "lambdanet/models/autoencoder.py"
    before = module.read_text()
    module.write_text(before + "\n# changed\n")
    # The same code otherwise gives the same bytes, so what depends on the weights does not run.
    expected = {
        f"{s}@quick-{n}-autoencoder-0" for s in ("train", "evaluate") for n in ("gaussian-01", "speckle")
    }
    assert clone.repro() == expected
    module.write_text(before)
    assert clone.repro() == set()


@pytest.mark.slow
def test_switching_profiles_deletes_nothing(clone):
    clone.run(*DVC, "exp", "run", "-S", "profile=paper")
    clone.git("add", "-A")
    clone.git("commit", "-qm", "paper")
    assert clone.params()["profile"] == "paper"
    for command in (
        ["checkout"],
        ["exp", "run", "-S", "profile=quick"],
        ["checkout"],
        ["exp", "run", "-S", "profile=paper"],
        ["repro"],
    ):
        clone.run(*DVC, *command)
        changed = clone.git("status", "--porcelain").split("\n")
        assert [line for line in changed if line and "params.yaml" not in line] == [], command
        for profile in ("quick", "paper"):
            assert (clone.folder / "results" / profile / "table2.md").is_file()
    clone.git("checkout", "params.yaml")
