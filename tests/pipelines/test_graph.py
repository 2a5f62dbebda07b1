"""DVC's graph, as the flows use it."""

import ast
import re

import pytest
import scratch
from helpers import refusal, write_yaml

from pipelines import graph

NEEDS = {name: set(needs) for name, needs in scratch.NEEDS.items()}
SOURCES = sorted((scratch.ROOT / "pipelines").glob("*.py"))


def test_stages_needs_and_reasons_are_those_of_dvc(project):
    found = graph.load()
    assert {name: set(needs) for name, needs in found.needs.items()} == NEEDS
    order = list(found.needs)
    assert all(order.index(need) < order.index(name) for name, needs in NEEDS.items() for need in needs)
    assert set(found.reasons) == set(NEEDS)
    assert set(graph.load(targets=["b"]).needs) == {"a", "b"}
    scratch.repro(project)
    assert graph.load().to_run() == {}
    (project / "b").unlink()
    found = graph.load()
    assert found.to_run() == {"b": frozenset(), "d": {"b"}}
    assert [found.why(name) for name in "bd"] == ["changed outs: b deleted", "changed deps: b deleted"]
    assert graph.load(targets=["c", "e"]).to_run() == {}
    (project / "source").write_text("other\n")
    assert graph.load().why("a") == "changed deps: source modified"


def test_what_dvc_does_not_exchange_is_local(project):
    outs = {"kept": ["kept"], "shown": [{"shown": {"cache": False}}], "old": [{"old": {"persist": True}}]}
    stages = {name: {"cmd": f"touch {name}", "deps": ["source"], "outs": out} for name, out in outs.items()}
    stages["lonely"] = {"cmd": "touch lonely", "outs": ["lonely"]}
    stages["always"] = stages["kept"] | {"cmd": "touch always", "outs": ["always"], "always_changed": True}
    write_yaml(project / "dvc.yaml", {"stages": stages})
    assert graph.load().local == {"shown", "old", "lonely", "always"}


@pytest.mark.parametrize("text", ["stages: [", "stages: {a: {cmd: 'echo ${x}'}}"])
def test_what_cannot_be_read_is_one_line(project, text):
    assert "has no stage 'nothing'" in refusal(graph.load, targets=["nothing"])
    (project / "dvc.yaml").write_text(text)
    assert refusal(graph.load).startswith("DVC: ")


def test_profiles_are_the_root_as_its_profile_yaml_names_it_and_the_folders(project):
    assert graph.dvc_file("paper", project) == "dvc.yaml"
    (project / "profile.yaml").write_text("profile: mine\nout: other\n")
    assert graph.dvc_file("mine", project) == "dvc.yaml"
    assert refusal(graph.dvc_file, "paper", project) == "unknown profile 'paper'; there are mine"
    scratch.profiles(project)
    assert graph.profiles(project) == {"paper": "dvc.yaml", "small": "small/dvc.yaml"}
    assert graph.dvc_file("small") == "small/dvc.yaml"
    assert "there are paper, small" in refusal(graph.dvc_file, "large")
    small = [f"{noise}-{model}" for noise in ("gaussian-01", "speckle") for model in ("cnn", "deep-cnn")]
    stages = {f"small/dvc.yaml:train@{one}-0" for one in small}
    assert set(graph.load("small/dvc.yaml", ["train"]).needs) == stages
    assert len(graph.load().needs) == 12
    one = "small/dvc.yaml:train@speckle-cnn-0"
    for target in (one, one.partition(":")[2]):
        assert graph.load("small/dvc.yaml", [target]).needs == {one: frozenset()}
    (project / "profile.yaml").unlink()  # as in another pipeline
    assert graph.profiles(project) == {"paper": "dvc.yaml", "small": "small/dvc.yaml"}


def test_a_training_is_found_by_noise_model_and_seed_and_overrides_files_that_its_stages_read(project):
    scratch.profiles(project)
    small = "small/dvc.yaml"
    assert graph.training(project, "dvc.yaml", "speckle", "cnn", 2, []) == ("train@speckle-cnn-2", [])
    known = graph.training(project, small, "gaussian-01", "deep-cnn", 0, [])
    assert known == (f"{small}:train@gaussian-01-deep-cnn-0", [])
    other = graph.training(project, small, "speckle", "cnn", 7, ["a=1"])
    assert other == (f"{small}:train@speckle-cnn-7", ["small/profile.yaml:seeds=[7]", "a=1"])
    for noise in ("rain", "01"):
        with pytest.raises(ValueError, match=f"training of 'cnn' on '{noise}'; there are gaussian-01-cnn, "):
            graph.training(project, "dvc.yaml", noise, "cnn", 0, [])
    for read in ("a=1", "params.yaml:a=1:2", "small/profile.yaml:a=1", "+a=b:c"):
        assert graph.training(project, small, "speckle", "cnn", 0, [read])[1] == [read]
    with pytest.raises(ValueError, match=r"reads params.yaml and small/profile.yaml, not profile\.yaml"):
        graph.training(project, small, "speckle", "cnn", 0, ["profile.yaml:train.cnn.epochs=2"])


def test_one_file_imports_dvc():
    found = [path.name for path in SOURCES if re.search(r"^ *(from|import) dvc\b", path.read_text(), re.M)]
    assert found == ["graph.py"]


def test_no_attribute_of_an_imported_module_or_class_is_replaced():
    for path in SOURCES:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {one.asname or one.name.partition(".")[0] for node in imports for one in node.names}
        targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
        attributes = [ast.unparse(one) for one in targets if isinstance(one, ast.Attribute)]
        assert [one for one in attributes if one.partition(".")[0] in names] == [], path.name
        assert "setattr" not in path.read_text()
