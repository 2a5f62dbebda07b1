"""dvc.yaml and the code agree: each stage's deps are the modules that decide its output, no more.

Proved from the imports: a stage depends on every module that its script loads, through any number of
imports, but for those whose docstring says "Not a dependency in DVC", and why. Of the networks, a training
loads its own alone.
"""

import ast
import contextlib
import functools
import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo
from dvc.repo.index import Index
from helpers import ROOT, read_yaml

from lambdanet import config

STAGES = read_yaml(ROOT / "dvc.yaml")["stages"]
MARK = "Not a dependency in DVC: "
REGISTRY = "lambdanet/models/__init__.py"
# How the same is computed: recorded with each result as the device is, not hashed.
BACKENDS = "lambdanet/backends/"


def content(stage):
    return STAGES[stage].get("do", STAGES[stage])


def script(stage):
    return content(stage)["cmd"].split()[1]


@functools.cache
def tree(path):
    return ast.parse((ROOT / path).read_text())


@functools.cache
def is_hashed(path):
    """Whether a module's docstring does not say that it decides nothing."""
    said = " ".join((ast.get_docstring(tree(path)) or "").split())
    return not path.startswith(BACKENDS) and MARK not in said


def is_module(name):
    base = ROOT / name.replace(".", "/")
    return base.with_suffix(".py").is_file() or (base / "__init__.py").is_file()


@functools.cache
def imports(path):
    """The project's files that a module names in its imports, wherever in it they stand."""
    found = []
    for node in ast.walk(tree(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            own = [name for name in submodules if is_module(name)]
            names = own if len(own) == len(submodules) else [node.module, *own]
        for name in names:
            base = "stages/entry" if name == "entry" else name.replace(".", "/")
            found += [f for f in (f"{base}.py", f"{base}/__init__.py") if (ROOT / f).is_file()]
    return found


def loaded_by(path, code):
    """The files that a script loads; of the networks, if `code` is given, only that file."""
    found, waiting = set(), [path]
    while waiting:
        current = waiting.pop()
        network = current.startswith("lambdanet/models/") and current != REGISTRY
        if current in found or (network and code and Path(current).stem != code):
            continue
        found.add(current)
        if not current.startswith(BACKENDS):  # which look whether a network is one of theirs
            waiting += imports(current)
    return found


def files(dep):
    path = ROOT / dep
    assert path.exists(), f"{dep} does not exist"
    return {f.relative_to(ROOT).as_posix() for f in (path.rglob("*.py") if path.is_dir() else [path])}


def cases():
    """Each stage with the network that it is of; none for those that take all networks."""
    networks = {path.stem for path in (ROOT / "lambdanet/models").glob("[a-z]*.py")}
    table = config.Table(**read_yaml(ROOT / "params.yaml")["table"])
    of = {"train-lambdanet": ["lambdanet"], "train": table.baselines, "ablate": sorted(networks)}
    return [(stage, code) for stage in STAGES for code in of.get(stage, [None])]


@pytest.mark.parametrize(("stage", "code"), cases())
def test_deps_are_the_modules_that_decide_the_output(stage, code):
    deps = content(stage)["deps"]
    named = [dep for dep in deps if dep.startswith(("lambdanet", "stages"))]
    named = [dep.replace("${item.model}", str(code)).replace("${item.code}", str(code)) for dep in named]
    decide = {path for path in loaded_by(script(stage), code) if is_hashed(path)}
    if code:  # which network it is, is a parameter
        decide -= {REGISTRY}
    if "lambdanet/models" in named:  # networks as they are, with what registers them
        decide |= files("lambdanet/models")
    assert set().union(*map(files, named)) == decide


def test_each_script_is_of_a_stage():
    scripts = {path.name for path in (ROOT / "stages").glob("*.py")} - {"entry.py"}
    assert scripts == {Path(script(stage)).name for stage in STAGES}


def test_only_plot_writes_into_git():
    uncached = {stage: [o for o in content(stage)["outs"] if isinstance(o, dict)] for stage in STAGES}
    assert {stage: outs for stage, outs in uncached.items() if outs} == {
        "plot": [{"results/${profile}": {"cache": False, "persist": True}}],
        "register": [{"runs/${profile}/receipt.json": {"cache": False}}],
    }
    ignored = ["runs/paper/a", "results/sample/a", "weights/quick/a", "mlflow.db", "mlartifacts/a"]
    kept = ["results/paper/table2.md", "weights/paper/a.safetensors", "results/benchmarks.json"]
    words = ["git", "check-ignore", "--no-index", *kept, "sample/dvc.lock", *ignored]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.split() == ignored


@pytest.fixture(scope="module", params=["", "sample", "quick"], ids=lambda folder: folder or "paper")
def resolved(request):
    """A profile's stages as DVC resolves them, by name, and the profile as `config` does."""
    with contextlib.chdir(ROOT), Repo() as repo:
        stages = Index.from_file(repo, str(Path(request.param, "dvc.yaml"))).stages
        return {one.name: one for one in stages}, config.load(Path(request.param, "profile.yaml"))


def below(paths):
    return [Path(one.fs_path).relative_to(ROOT).as_posix() for one in paths]


def test_dvc_and_config_have_the_same_stages_and_paths(resolved):
    stages, loaded = resolved
    expected = {"plot": [loaded.folders.results]}
    for run in loaded.runs:
        of_table = run in loaded.table_runs
        kind = "train-lambdanet" if run.key.model in loaded.params.table.lambdanets else "train"
        name = f"{kind}@{run.key.name}" if of_table else f"ablate@{run.key.model}"
        expected[name] = [run.folder if of_table else run.folder.parent]  # an ablation's is of all its seeds
        assert {run.clean.as_posix(), run.noisy.as_posix()} <= set(below(stages[name].deps))
    for noise in [*loaded.params.table.noises, "ablations"]:
        name = "evaluate-ablations" if noise == "ablations" else f"evaluate@{noise}"
        expected[name] = [loaded.folders.of(kind, noise) for kind in ("scores", "samples")]
    expected |= {f"download@{name}": [loaded.data(name)] for name in loaded.profile.datasets}
    for name, pair in loaded.profile.pairs.items():
        expected[f"corrupt@{name}"] = [loaded.data(pair.dataset, pair.noise)]
    outs = {name: below(stage.outs) for name, stage in stages.items()}
    del outs["register"]
    assert outs == {name: [path.as_posix() for path in paths] for name, paths in expected.items()}
    assert loaded.name != "sample" or len(stages) <= 45  # so that it takes minutes
