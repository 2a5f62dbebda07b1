"""Stages run where there is no DVC, and taken back: a small real DVC project and a copy without it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from pipelines import elsewhere

# Of DVC's own use of pygtrie, when it looks for what an output's folder is part of.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")

STAGES = {
    "data": {"cmd": "mkdir data && echo 1 > data/a && echo 2 > data/b", "deps": ["code"], "outs": ["data"]},
    "one": {"cmd": "cat data/a > one && echo $DVC_STAGE >> one", "deps": ["data"], "outs": ["one"]},
    "two": {"cmd": "cat data/b > two", "deps": ["data"], "outs": ["two"]},
    "bad": {"cmd": "echo reason && exit 3", "deps": ["data"], "outs": ["bad"]},
    "after": {"cmd": "cat bad > after", "deps": ["bad"], "outs": ["after"]},
    "both": {"cmd": "cat one two > both", "deps": ["one", "two"], "outs": ["both"]},
}


def dvc(*words):
    subprocess.run([sys.executable, "-m", "dvc", *words], check=True, capture_output=True)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The current folder: a DVC project whose data is made and in dvc.lock, and nothing else."""
    monkeypatch.chdir(tmp_path)
    dvc("init", "-q", "--no-scm")
    Path("code").write_text("code")
    Path("params.yaml").write_text("profile: a\nepochs: 3\n")
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    dvc("repro", "-q", "data")
    return tmp_path


@pytest.fixture
def other(project, tmp_path_factory, monkeypatch):
    """The current folder: the same on a machine without DVC and data; with its plan of all but what fails."""
    elsewhere.main(["plan", "plan.json", "both", "two", "one"])
    folder = tmp_path_factory.mktemp("other")
    for name in ("code", "plan.json", "params.yaml"):
        shutil.copy(project / name, folder)
    monkeypatch.chdir(folder)
    return folder


def names(stages):
    return [stage.name for stage in stages]


def test_plan_has_what_is_needed_first_and_then_what_was_asked_for_as_asked(project):
    stages = elsewhere.plan(["both", "one", "two"]).stages
    assert [stage.asked for stage in stages] == [False, True, True, True]
    assert names(stages) == ["data", "both", "one", "two"]
    data, both, one, _two = stages
    lock = yaml.safe_load(Path("dvc.lock").read_text())["stages"]
    assert data.outs == {"data": lock["data"]["outs"][0]["md5"]}
    assert elsewhere.digest(Path("data")) == data.outs["data"]
    assert elsewhere.digest(Path("code")) == lock["data"]["deps"][0]["md5"]
    assert data.code == {"code": lock["data"]["deps"][0]["md5"]}
    assert (one.cmd, one.needs, one.outs) == (STAGES["one"]["cmd"], ["data"], {"one": None})
    assert one.code == {}
    assert both.needs == ["one", "two"]


def test_a_group_of_stages_is_asked_for_one_by_one(project):
    matrix = {"matrix": {"x": ["a", "b"]}, "cmd": "cp data/${item.x} ${item.x}"}
    matrix |= {"deps": ["data"], "outs": ["${item.x}"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES | {"many": matrix}}))
    stages = elsewhere.plan(["many"]).stages
    assert [(stage.name, stage.asked) for stage in stages] == [
        ("data", False), ("many@a", True), ("many@b", True),
    ]  # fmt: skip


@pytest.mark.parametrize("targets", [["one"], ["both"]])
def test_what_is_depended_on_has_to_be_known(project, targets):
    if targets == ["one"]:
        Path("code").write_text("other code")
    unknown = {"one": "data", "both": "one"}[targets[0]]
    with pytest.raises(
        ValueError, match=rf"^dvc.lock does not know what {unknown} makes .*`dvc repro {unknown}`"
    ):
        elsewhere.plan(targets)


def test_stages_run_there_and_come_back_into_the_lock(project, other, capsys, monkeypatch):
    assert elsewhere.main(["run", "plan.json", "--jobs", "2"]) == 0
    assert Path("both").read_text() == "1\none\n2\n"
    assert "both: done in" in capsys.readouterr().out
    for name in ("one", "two", "both"):
        shutil.copy(name, project)
    monkeypatch.chdir(project)
    assert elsewhere.main(["accept", "plan.json"]) == 0
    dvc("repro", "-q", "--dry", "both")
    done = subprocess.run([sys.executable, "-m", "dvc", "status", "both"], capture_output=True, text=True)
    assert "up to date" in done.stdout
    outs = yaml.safe_load(Path("dvc.lock").read_text())["stages"]["both"]["outs"]
    assert outs[0]["md5"] == elsewhere.digest(other / "both")


def test_what_is_there_is_not_run_again(other, capsys):
    assert elsewhere.main(["run", "plan.json"]) == 0
    before = Path("both").stat().st_mtime_ns
    Path("one").unlink()
    capsys.readouterr()
    assert elsewhere.main(["run", "plan.json"]) == 0
    assert Path("both").stat().st_mtime_ns == before
    said = capsys.readouterr().out
    assert "both: is there" in said
    assert "one: done in" in said


def test_other_data_than_planned_stops_what_needs_it(other, capsys):
    Path("data").mkdir()
    Path("data/a").write_text("other")
    assert elsewhere.main(["run", "plan.json"]) == 1
    found = elsewhere.digest(Path("data"))
    planned = elsewhere.read(Path("plan.json")).stages[0].outs["data"]
    assert f"data: data is {found}, planned was {planned}" in capsys.readouterr().out
    assert not Path("one").exists()
    Path("one").write_text("made of it all the same")
    with pytest.raises(ValueError, match="planned was"):
        elsewhere.main(["accept", "plan.json"])


@pytest.mark.parametrize("changed", ["code", "params.yaml"])
@pytest.mark.parametrize("command", ["run", "accept"])
def test_other_code_or_parameters_than_planned_are_refused(other, changed, command):
    elsewhere.main(["run", "plan.json"])
    Path(changed).write_text("epochs: 4\n")
    says = "params.yaml is not the one" if changed == "params.yaml" else "data: code is .*, planned was"
    with pytest.raises(ValueError, match=says):
        elsewhere.main([command, "plan.json"])


def test_another_active_profile_is_the_same_plan(other):
    Path("params.yaml").write_text("profile: b\nepochs: 3\n")
    assert elsewhere.main(["run", "plan.json"]) == 0


def test_only_what_was_asked_for_is_accepted(project, other, monkeypatch):
    monkeypatch.chdir(project)
    with pytest.raises(ValueError, match="none of the planned outputs is here"):
        elsewhere.main(["accept", "plan.json"])
    before = yaml.safe_load(Path("dvc.lock").read_text())["stages"]
    Path("two").write_text("2\n")
    elsewhere.main(["accept", "plan.json"])
    after = yaml.safe_load(Path("dvc.lock").read_text())["stages"]
    assert after.keys() - before.keys() == {"two"}
    assert after["data"] == before["data"]


def test_a_failure_is_one_line_and_stops_only_what_needs_it(project, capsys):
    planned = elsewhere.plan(["after", "bad", "two"])
    assert elsewhere.run(planned, jobs=1) == 2  # bad, and after
    said = capsys.readouterr().out
    assert "bad: failed with 3, reason (all of it in logs/elsewhere/bad.log)" in said
    assert Path("two").read_text() == "2\n"
    assert not Path("after").exists()


def test_a_stage_without_its_output_has_failed(project, capsys):
    stage = elsewhere.Stage("one", "true", [], {}, {"one": None}, True)
    assert elsewhere.run(elsewhere.Plan(elsewhere.parameters(), [stage]), jobs=1) == 1
    assert "one: ended without its outputs; see logs/elsewhere/one.log" in capsys.readouterr().out


def test_sigterm_reaches_the_stages(tmp_path, monkeypatch):
    trap = "trap 'echo saved > saved; exit 143' TERM; touch begun; while true; do sleep 0.1; done"
    (tmp_path / "params.yaml").write_text("profile: a\n")
    monkeypatch.chdir(tmp_path)
    stage = elsewhere.Stage("long", trap, [], {}, {"out": None}, True)
    (tmp_path / "plan.json").write_text(json.dumps(asdict(elsewhere.Plan(elsewhere.parameters(), [stage]))))
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.elsewhere", "run", "plan.json"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    end = time.monotonic() + 30
    while not (tmp_path / "begun").exists() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert (tmp_path / "saved").read_text() == "saved\n"


STAGE = {"name": "a", "cmd": "true", "needs": [], "code": {}, "outs": {}, "asked": True}


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", '{"stages": []}', '{"parameters": "", "stages": [{"name": "a"}]}', None,
        json.dumps({"parameters": "", "stages": [STAGE | {"cmd": 5}]}),
        json.dumps({"parameters": "", "stages": [STAGE | {"outs": ["a"]}]}),
        json.dumps({"parameters": "", "stages": [STAGE | {"needs": ["b"]}]}),
    ],
)  # fmt: skip
def test_what_is_no_plan_is_refused(tmp_path, content):
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"plan.json is not a plan \(.*\); write one with `plan`"):
        elsewhere.main(["run", str(path)])


@pytest.mark.parametrize(
    "words", [[], ["plan", "p"], ["run"], ["run", "p", "--jobs", "0"], ["run", "p", "2"]]
)
def test_wrong_words_are_named(words):
    with pytest.raises(ValueError, match=r"^usage: python -m pipelines\.elsewhere"):
        elsewhere.main(words)


def test_unknown_stage_is_one_line(project):
    with pytest.raises(ValueError, match=r"^DVC: "):
        elsewhere.main(["plan", "plan.json", "nothing"])
    assert not Path("plan.json").exists()
