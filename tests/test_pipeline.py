"""The real dvc.yaml, every stage, at a tiny size, in a temporary clone."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DVC = [str(Path(sys.executable).with_name("dvc"))]
TINY = {
    "download": {"dataset": "photos", "train": 64, "test": 20},
    "train": {"batch_size": 4, "learning_rate": 0.01, "schedule": "cosine", "monitored": 10},
    "models": {"lambdanet-u4-m7": {"epochs": 2}, "autoencoder": {"epochs": 1}},
}


class Clone:
    """A copy of the working tree in a repository of its own, with two tiny profiles."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        for name in listed.stdout.splitlines():
            kept = not name.startswith(("results/", "weights/")) and name != "dvc.lock"
            if kept and (ROOT / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
        raw = yaml.safe_load((folder / "params.yaml").read_text())
        raw["noises"] = {name: raw["noises"][name] for name in ("gaussian-01", "speckle")}
        small = {"name": "lambdanet", "u": 2, "m": 3, "k": 4, "heads": 2, "d": 4}
        raw["models"] = {"lambdanet-u4-m7": small, "autoencoder": raw["models"]["autoencoder"]}
        raw["profiles"] = {"quick": TINY, "paper": TINY | {"train": TINY["train"] | {"batch_size": 8}}}
        raw["profile"] = "quick"
        self.write_params(raw)
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "tiny"]):
            self.git(*command)

    def params(self) -> dict:
        return yaml.safe_load((self.folder / "params.yaml").read_text())

    def write_params(self, raw: dict) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))

    def git(self, *words: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        return self.run("git", *identity, *words)

    def run(self, *words: str) -> str:
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def repro(self) -> set[str]:
        """Run `dvc repro`; the stages whose commands were really executed."""
        return set(re.findall(r"Running stage '(.+?)'", self.run(*DVC, "repro")))


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
    assert clone.first == expected
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
    assert report.count("data:image/") == 4


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
    assert ran == {"corrupt@quick-speckle", "plot@quick"} | {
        f"{stage}@quick-{cell}" for stage in ("train", "evaluate") for cell in cells
    }
    raw["noises"]["speckle"]["variance"] = 0.1
    clone.write_params(raw)
    assert clone.repro() <= {"plot@quick"}  # the rest comes from DVC's run-cache
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


def test_table_of_an_inactive_profile_shows_what_was_not_run(clone):
    profiles = [sys.executable, "-m", "pipelines.profiles"]
    clone.run(*profiles, "run", "paper", *DVC, "repro", "evaluate@paper-speckle-autoencoder-0")
    clone.run(*DVC, "checkout")  # takes the inactive profile's outputs away
    clone.run(*profiles, "table", "paper")
    assert clone.params()["profile"] == "quick"
    lines = (clone.folder / "results/paper/table2.md").read_text().splitlines()
    assert sum("| not run |" in line for line in lines) == 3
    assert sum(line.startswith("| speckle | autoencoder | 47,355 | **") for line in lines) == 1


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
