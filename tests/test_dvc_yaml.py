"""dvc.yaml and the code agree: each stage's deps are the modules that decide its output, no more."""

import ast
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

# Imported, but not what decides an output's bytes: a change here must not run a stage again.
PLUMBING = {
    "lambdanet/__init__.py": "the version",
    "lambdanet/caches.py": "where what can be made again is kept",
    "lambdanet/checkpoint.py": "resuming ends in the same bytes; test_training.py",
    "lambdanet/devices.py": "where it runs",
    "lambdanet/experiment.py": "carries values between files",
    "lambdanet/files.py": "how files are written",
    "lambdanet/graphs.py": "a recorded step gives the bytes of one that is not; test_cuda.py",
    "lambdanet/interruption.py": "when it stops",
    "lambdanet/kernels/__init__.py": "a docstring",
    "lambdanet/kernels/objects.py": "where machine code is kept; test_kernel_objects.py",
    "lambdanet/kernels/threads.py": "which thread does what",
    "lambdanet/kernels/rooms.py": "memory that kernels work in; what they read of it they wrote",
    "lambdanet/kernels/vectors.py": "how kernels are compiled; the network's own module writes them",
    "lambdanet/live.py": "tells MLflow, from a process of its own",
    "lambdanet/models/__init__.py": "the registry; the network's own module is a dependency",
    "lambdanet/models/paths.py": "how the same is computed, which the log names as it does the device",
    "lambdanet/params.py": "the values themselves reach DVC as params",
    "lambdanet/progress.py": "what is printed",
    "lambdanet/provenance.py": "the log",
    "lambdanet/records.py": "the log, read",
    "lambdanet/timing.py": "how long it took, which only the log holds",
    "lambdanet/workers.py": "which process does what; test_workers.py",
    "stages/door.py": "command line and errors",
    "stages/handover.py": "which process runs it",
}
# Of stages that are not named after their script.
SCRIPTS = {"study": "train", "rival": "train", "download-set": "download", "corrupt-set": "corrupt"}
SCRIPTS |= {f"{script}-{name}": script for script in ("train", "examine") for name in PARAMS["sets"]}
DOORS = {"door", "handover"}  # scripts that are no stage
# It reads the photographs of a folder, for which `download` has to be forced anyway.
IMAGEFILE = "lambdanet/imagefile.py"
# What made the stored images, which are a dependency themselves; datasets/__init__.py reads them.
MAKERS = {f"lambdanet/datasets/{path.name}" for path in (ROOT / "lambdanet/datasets").glob("*.py")}
MAKERS |= {IMAGEFILE}
# Of these, evaluation takes its two photographs from photos.py, and plot their names only.
PHOTOS = "lambdanet/datasets/photos.py"
# A change of a noise changes the noisy images, which are a dependency.
NOISES = {"lambdanet/noise.py"}
NOISE = MAKERS - {PHOTOS} | NOISES
# experiment.py serves training and evaluation; each uses its half.
EVALUATION = {f"lambdanet/{name}.py" for name in ("evaluation", "metrics", "denoise")} | {PHOTOS}
# Reached through live.py, whose process only reads what the stage writes.
FOLLOWER = {"lambdanet/tracking.py"}
EXAMINATION = {"lambdanet/examination.py", "lambdanet/corruption.py"}
OTHER_HALF = {
    "download": {IMAGEFILE},
    "corrupt": MAKERS,
    "train": NOISE | EVALUATION | FOLLOWER | EXAMINATION,
    "evaluate": NOISE | FOLLOWER | EXAMINATION | {"lambdanet/training.py"},
    "examine": NOISE - NOISES | {"lambdanet/training.py", PHOTOS},
    "compare": NOISE | EXAMINATION | {"lambdanet/training.py", PHOTOS},
    "plot": MAKERS,
    # what a traced network is checked against, never what is registered; how scores and histories are read
    "register": {"lambdanet/denoise.py", "lambdanet/report/tables.py"},
}


def files_imported_by(path: str) -> set[str]:
    """The project's files that a script loads, through any number of imports."""
    found, waiting = set(), [path]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.add(current)
        for node in ast.walk(ast.parse((ROOT / current).read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                base = f"stages/{name}" if name in DOORS else name.replace(".", "/")
                waiting += [f for f in (f"{base}.py", f"{base}/__init__.py") if (ROOT / f).is_file()]
    return found


def code_deps(stage: str, model: str) -> set[str]:
    """A stage's dependencies on code, folders and links resolved to the files in them."""
    found = set()
    for dep in STAGES[stage]["deps"]:
        path = ROOT / dep.replace("${item.model}", model)
        if dep.startswith(("lambdanet", "stages")):
            assert path.exists(), f"{stage} depends on {path}, which does not exist"
            files = path.resolve().rglob("*.py") if path.is_dir() else [path]
            found |= {file.relative_to(ROOT).as_posix() for file in files}
    return found


def network_files(name: str) -> set[str]:
    folder = (ROOT / "lambdanet/models" / PARAMS["models"][name]["name"]).resolve()  # it may be a link
    return {path.relative_to(ROOT).as_posix() for path in folder.glob("*.py")}


# Of the studies: the networks that they are of.
STUDIED = {
    "study": {"lambdanet"},
    "rival": {one["model"] for one in PARAMS["studied"]["all-rivals"].values()},
}
STUDIED["compare"] = STUDIED["study"] | STUDIED["rival"]
for one, entries in PARAMS["own"].items():
    STUDIED[f"train-{one}"] = STUDIED[f"examine-{one}"] = {entry["model"] for entry in entries.values()}


@pytest.mark.parametrize("model", PARAMS["models"])
@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_modules_that_decide_the_output(stage, model):
    script = SCRIPTS.get(stage, stage)
    imported = files_imported_by(f"stages/{script}.py")
    networks = {f for f in imported if f.count("/") == 3 and f.startswith("lambdanet/models/")}
    expected = imported - set(PLUMBING) - OTHER_HALF[script] - networks
    for name in STUDIED.get(stage, [model] if stage in ("train", "evaluate") else []):
        expected |= network_files(name)
    deps = code_deps(stage, model)
    if script == "download":
        expected |= {f for f in deps if f.startswith("lambdanet/datasets/")}
    assert deps == expected


def test_every_exception_is_needed():
    imported = set().union(*(files_imported_by(f"stages/{script}.py") for script in OTHER_HALF))
    assert set(PLUMBING) <= imported
    for stage, files in OTHER_HALF.items():
        assert files <= files_imported_by(f"stages/{stage}.py"), stage


def test_each_stage_is_its_script_its_section_and_its_word():
    scripts = {path.stem for path in (ROOT / "stages").glob("*.py")}
    assert scripts == {SCRIPTS.get(stage, stage) for stage in STAGES} | DOORS
    for stage, spec in STAGES.items():
        script = f"stages/{SCRIPTS.get(stage, stage)}.py"
        assert spec["cmd"].startswith(f"python {script} ")
        assert script in spec["deps"]


def test_only_plot_writes_into_git():
    uncached = {
        stage: [out for out in spec["outs"] if isinstance(out, dict)] for stage, spec in STAGES.items()
    }
    assert {stage: outs for stage, outs in uncached.items() if outs} == {
        "plot": [{"results/${item.profile}": {"cache": False, "persist": True}}],
        "register": [{"receipts/${item.profile}.json": {"cache": False}}],
    }
    ignored = ["receipts/quick.json", "mlflow.db", "mlflow.db-wal", ".mlflow.db.lock", "mlartifacts/quick/a"]
    words = ["git", "check-ignore", "--no-index", "results/quick/table2.md", *ignored]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.split() == ignored


def test_every_path_carries_the_profile():
    for stage, spec in STAGES.items():
        for out in spec["outs"]:
            assert "${item.profile}" in str(out), (stage, out)


def test_no_stage_depends_on_params_with_yaml_s_anchors():
    """DVC would write them into dvc.lock as anchors; those of two profiles have one name, which breaks it."""
    tracked = {param for spec in STAGES.values() for param in spec.get("params", [])}
    assert "studied" not in tracked
    assert "&id" not in (ROOT / "dvc.lock").read_text()
