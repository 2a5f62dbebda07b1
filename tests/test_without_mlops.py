"""Training and scoring need none of the tools around them."""

import csv
import json

import helpers
import numpy as np
import pytest
import torch

from lambdanet import files
from lambdanet.evaluation import evaluator
from lambdanet.models import load_weights

BLOCK = """
import sys

class Blocker:
    names = {"dvc", "prefect", "mlflow", "pooch"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
"""
CODE = BLOCK + helpers.RUN_STAGE


def test_train_and_evaluate_run_alone(tmp_path):
    project = helpers.write_project(tmp_path)
    status, out, err = helpers.run("train", helpers.train_words(), project, CODE)
    assert (status, out) == (0, ""), err
    status, out, err = helpers.run("evaluate", ["profile.yaml", "gaussian-01"], project, CODE)
    assert (status, out, err) == (0, "", "")

    history = list(csv.DictReader((project / helpers.OUT / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert float(history[1]["loss"]) < float(history[0]["loss"])
    assert [float(row["learning_rate"]) for row in history] == [0.01, 0.0099]

    (path,) = (project / "runs/tiny/scores/gaussian-01").iterdir()  # the others are not trained
    scores = json.loads(path.read_text())
    clean, noisy = (np.load(project / helpers.DATA / name / "test.npy") for name in ("clean", "gaussian-01"))
    weights = project / helpers.OUT / "weights.safetensors"
    model, description = load_weights(weights)
    run_key = {"profile": "tiny", "noise": "gaussian-01", "model": "lambdanet", "seed": 0}
    assert description == {
        "cell": run_key, "model": helpers.LAMBDANET, "noise": helpers.GAUSSIAN,
        "training": helpers.TRAIN | {"epochs": 2},
    }  # fmt: skip
    assert json.loads((project / helpers.OUT / "model.json").read_text()) == description
    expected = evaluator.evaluate(model, clean, noisy, device=torch.device("cpu"))
    for key, value in expected.items():
        assert scores[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), key
    assert scores["noisy_psnr"] == pytest.approx(20, abs=0.7)
    assert scores["weights_sha256"] == files.sha256(weights)
    assert {key: scores[key] for key in run_key} == run_key
    shown = project / "runs/tiny/samples/gaussian-01/lambdanet-0"
    assert sorted(path.name for path in shown.iterdir()) == sorted(
        f"{name}-{kind}.png" for name in ("astronaut", "chelsea") for kind in ("clean", "noisy", "denoised")
    )
