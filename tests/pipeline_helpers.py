"""A copy of the project with a tiny profile `sample`, for the tests that run its real dvc.yaml."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import helpers
import mlflow_helpers
import pytest
import yaml

from lambdanet.tracking import mlflow_runs

DVC = [str(Path(sys.executable).with_name("dvc"))]
SMALL = {"name": "lambdanet", "u": 2, "m": 3, "k": 4, "heads": 2, "d": 4}
NOISES = ("gaussian-01", "speckle")
TRAIN = helpers.TRAIN | {"epochs": 1, "batch_size": 4, "schedule": "cosine", "monitored": 10}


def ablation(study: str, model: str, code: str, **changes: object) -> dict:
    """A complete entry of `ablations`."""
    return {
        "study": study, "model": model, "code": code, "dataset": "photos", "noise": "gaussian-01",
        "test_noise": "gaussian-01", "hyperparameters": {}, "train": TRAIN, "seeds": [0],
    } | changes  # fmt: skip


HYPERPARAMETERS = {key: value for key, value in SMALL.items() if key != "name"}
PROFILE = {
    "profile": "sample",
    "root": "..",
    "file": "sample/profile.yaml",
    "threads": 1,
    "seeds": [0],
    "dataset": "photos",
    "datasets": {"photos": {"dataset": "photos", "train": 64, "test": 20}},
    "pairs": {noise: {"dataset": "photos", "noise": noise} for noise in NOISES},
    "train": {"lambdanet-u4-m7": TRAIN | {"epochs": 2}, "autoencoder": TRAIN},
    "levels": ["cnn-bce"],
    "ablations": {
        "base": ablation("base", "lambdanet", "lambdanet", hyperparameters=HYPERPARAMETERS),
        "channels-d8": ablation(
            "channels", "lambdanet", "lambdanet", hyperparameters=HYPERPARAMETERS | {"d": 8}, seeds=[0, 1]
        ),
        "cnn-bce": ablation("split", "cnn", "cnn", hyperparameters={"width": 4}),
    },
}


class Clone:
    """A copy of the working tree in a repository of its own, whose only profile is a tiny `sample`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=helpers.ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
        for name in filter(None, listed.stdout.split("\0")):
            source, target = helpers.ROOT / name, folder / name
            if source.is_symlink() or source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
        shutil.rmtree(folder / "quick")
        raw = self.read("params.yaml")
        raw["models"] |= {"lambdanet-u4-m7": SMALL}
        raw["table"] = {"noises": [*NOISES], "lambdanets": ["lambdanet-u4-m7"], "baselines": ["autoencoder"]}
        self.write("params.yaml", raw)
        self.write("sample/profile.yaml", PROFILE)
        # The paper's profile, so that DVC has another graph beside; it is not run.
        self.write("profile.yaml", PROFILE | {"profile": "paper", "root": ".", "file": "profile.yaml"})
        (folder / "dvc.lock").unlink()
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "tiny"]):
            self.git(*command)
        self.git("update-index", "--skip-worktree", "sample/dvc.lock")

    def read(self, name: str) -> dict:
        return yaml.safe_load((self.folder / name).read_text())

    def write(self, name: str, raw: dict) -> None:
        (self.folder / name).write_text(yaml.safe_dump(raw, sort_keys=False))

    def git(self, *words: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        return self.run("git", *identity, *words)

    def run(self, *words: str) -> str:
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

    def mlflow(self) -> tuple[dict, list]:
        """What the clone's MLflow holds now: of a copy, as MLflow keeps a file open that was replaced."""
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            shutil.copy(self.folder / "mlflow.db", folder)
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
            return mlflow_helpers.state(mlflow_runs.connect(), "sample")

    def repro(self) -> set[str]:
        """Run stock `dvc repro` of the sample; the stages whose commands were really executed."""
        said = self.run(*DVC, "repro", "sample/dvc.yaml")
        return set(re.findall(r"Running stage 'sample/dvc.yaml:(.+?)'", said))
