"""A copy of the project with tiny profiles, for the tests that run its real dvc.yaml."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
TABLE = ("download", "corrupt", "train", "evaluate", "plot", "register")
DVC = [str(Path(sys.executable).with_name("dvc"))]
TINY = {
    "download": {"dataset": "photos", "train": 64, "test": 20},
    "train": {"batch_size": 4, "learning_rate": 0.01, "schedule": "cosine", "monitored": 10},
    "models": {"lambdanet-u4-m7": {"epochs": 2}, "autoencoder": {"epochs": 1}},
}


# Runs by experiment and name, versions by model and number, with all that they hold.
DUMP = """
import json
from lambdanet import tracking
client = tracking.connect()
def artifacts(run_id, folder=None):
    for one in client.list_artifacts(run_id, folder):
        yield from artifacts(run_id, one.path) if one.is_dir else [one.path]
def run(one):
    info, data = one.info, one.data
    histories = {key: client.get_metric_history(info.run_id, key) for key in data.metrics}
    names[info.run_id] = info.run_name
    return {
        "name": info.run_name, "status": info.status, "start": info.start_time, "end": info.end_time,
        "tags": data.tags, "params": data.params, "artifacts": sorted(artifacts(info.run_id)),
        "metrics": {key: [(m.step, m.value) for m in history] for key, history in histories.items()},
        "times": {key: [m.timestamp for m in history] for key, history in histories.items()},
        "inputs": sorted((d.dataset.name, d.dataset.digest) for d in one.inputs.dataset_inputs),
    }
names = {}
runs = {
    e.name: sorted(map(run, client.search_runs([e.experiment_id])), key=lambda one: one["name"])
    for e in client.search_experiments() if e.name.startswith("lambdanet/")
}
def version(one):
    return [int(one.version), names[one.run_id], one.tags, one.description, one.status]
models = {
    m.name: {"aliases": {alias: int(number) for alias, number in m.aliases.items()},
             "description": m.description,
             "versions": sorted(map(version, client.search_model_versions(f"name='{m.name}'")))}
    for m in client.search_registered_models()
}
print(json.dumps({"runs": runs, "models": models}))
"""


SMALL = {"name": "lambdanet", "u": 2, "m": 3, "k": 4, "heads": 2, "d": 4}
# Beside the table: dvc.yaml names their models and has a matrix over them.
BESIDE = {
    "models": {
        "lambdanet": SMALL,
        "autoencoder": {"name": "autoencoder", "width": 4},
        "dncnn": {"name": "dncnn", "depth": 3, "width": 4, "residual": True},
        "cnn": {"name": "cnn", "width": 4},
    },
    "studies": {
        "base": {"title": "Base"},
        "channels": {"title": "d", "axis": "d"},
        "size": {"title": "Size"},
    },
    "variations": {"base": {"study": "base"}, "channels-d8": {"study": "channels", "d": 8}},
    "rivals": {"size-autoencoder-3": {"study": "size", "model": "autoencoder", "width": 3}},
    "sets": {
        "bsds500": {"name": "clipped-gaussian", "sigma": 0.1},
        "split": {"name": "gaussian", "sigma": 0.1},
    },
    "own": {"bsds500": {"dncnn-25": {"model": "dncnn"}}, "split": {"cnn-bce": {"model": "cnn"}}},
}


def copy_project(folder: Path) -> None:
    """Copy this project's files as they lie here, without what was run: no results, weights or dvc.lock."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        kept = not name.startswith(("results/", "weights/")) and name != "dvc.lock"
        if (kept or name == "results/benchmarks.json") and (ROOT / name).exists():  # `plot` reads that one
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)


def leave_table(folder: Path, raw: dict) -> None:
    """Remove what is trained beside the table from a copy's dvc.yaml, and from its params.yaml."""
    raw |= {key: {} for key in ("studied", "studies", "variations", "rivals", "sets", "own")}
    for profile in raw["profiles"].values():
        for key in ("studied", "sets"):
            profile.pop(key, None)
    pipeline = yaml.safe_load((folder / "dvc.yaml").read_text())
    pipeline["stages"] = {name: pipeline["stages"][name] for name in TABLE}
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))


class Clone:
    """A copy of the working tree in a repository of its own, with two tiny profiles.

    Without what is trained beside the table, which has a test of its own; or with it alone.
    """

    def __init__(self, folder: Path, *, beside: bool = False) -> None:
        self.folder = folder
        copy_project(folder)
        raw = yaml.safe_load((folder / "params.yaml").read_text())
        raw["noises"] = {name: raw["noises"][name] for name in ("gaussian-01", "speckle")}
        raw["models"] = {"lambdanet-u4-m7": SMALL, "autoencoder": raw["models"]["autoencoder"]}
        raw["profiles"] = {"quick": TINY, "paper": TINY | {"train": TINY["train"] | {"batch_size": 8}}}
        raw["profile"] = "quick"
        if beside:
            own = {"download": TINY["download"], "train": {}}
            tiny = TINY | {
                "models": {name: {"epochs": 1} for name in BESIDE["models"]},
                "study": {"epochs": 2}, "rival": {"epochs": 1}, "sets": {"bsds500": own, "split": own},
            }  # fmt: skip
            raw |= BESIDE | {"studied": {}, "profiles": {"quick": tiny}}
        else:
            leave_table(folder, raw)
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
            "LAMBDANET_TRACKING": "",  # as it is for a person: short trainings are told of by `register`
        }
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def mlflow(self) -> dict:
        """What the clone's MLflow holds, without ids: see DUMP."""
        return json.loads(self.run(sys.executable, "-c", DUMP))

    def repro(self, *targets: str) -> set[str]:
        """Run `dvc repro`; the stages whose commands were really executed."""
        said = self.run(*DVC, "repro", *targets)
        return set(re.findall(r"Running stage '(.+?)'", said))
