import subprocess
import sys
from pathlib import Path

import helpers
import pytest
import yaml

from pipelines import profiles

ROOT = Path(__file__).resolve().parents[2]
PARAMS = "# a comment\nprofile: sample   # sample | quick\nprofiles:\n  sample: {}\n  quick: {}\n"
SHOW = [sys.executable, "-c", "print(open('params.yaml').readlines()[1].split()[1])"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(project, *words):
    command = [sys.executable, "-m", "pipelines.profiles", *words]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})


def test_command_sees_the_other_profile_and_the_file_comes_back(project):
    done = run(project, "run", "quick", *SHOW)
    assert done.stdout == "quick\n"
    assert (project / "params.yaml").read_text() == PARAMS


def test_a_failing_command_keeps_its_status_and_the_file_comes_back(project):
    assert run(project, "run", "quick", sys.executable, "-c", "raise SystemExit(7)").returncode == 7
    assert (project / "params.yaml").read_text() == PARAMS


@pytest.mark.parametrize("words", [[], ["run"], ["run", "quick"], ["table"], ["push", "now"], ["nonsense"]])
def test_wrong_words_are_one_line(project, words):
    done = run(project, *words)
    assert done.returncode == 1
    assert done.stderr.startswith("error: usage: ")
    assert done.stderr.count("\n") == 1


def test_unknown_profile_is_one_line(project):
    done = run(project, "run", "huge", *SHOW)
    assert done.returncode == 1
    assert done.stderr == "error: unknown profile 'huge'; params.yaml has sample, quick\n"


def test_interrupted_inside_the_file_comes_back(project):
    seen = []

    def command():
        with profiles.active_profile("quick"):
            seen.append(Path("params.yaml").read_text())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        command()
    assert "profile: quick " in seen[0]
    assert (project / "params.yaml").read_text() == PARAMS


def test_recorded_profiles_are_those_of_the_lock(project):
    assert profiles.recorded_profiles() == []
    Path("dvc.lock").write_text(
        "stages:\n  download@quick: {cmd: a}\n  train@quick-speckle-dncnn-0: {cmd: b}\n"
    )
    assert profiles.recorded_profiles() == ["quick"]
    for damaged in ("stages:\n  download@quick: {cmd: a}\n  train@quick-spe", "stages: {", "", "stages: 3"):
        Path("dvc.lock").write_text(damaged)
        with pytest.raises(ValueError, match=r"^dvc.lock is damaged: `lambdanet doctor --fix`$"):
            profiles.recorded_profiles()


def test_a_profile_brings_its_choice_of_the_studies_and_takes_it_away(project):
    text = (
        "studied: {few: &few {a: 1}, few-rivals: &few-rivals {}, all: &all {}, all-rivals: &all-rivals {}}\n"
        "profile: sample\nvariations: *few # some\nrivals: *all-rivals\n"
        "profiles:\n  sample: {studied: few}\n  quick: {studied: all}\n"
    )
    (project / "params.yaml").write_text(text)
    with profiles.active_profile("quick"):
        assert Path("params.yaml").read_text().splitlines()[1:4] == [
            "profile: quick", "variations: *all # some", "rivals: *all-rivals",
        ]  # fmt: skip
    assert (project / "params.yaml").read_text() == text  # also what was chosen by hand


# The last two as `dvc exp run -S` and PyYAML write them.
@pytest.mark.parametrize("seeds", [" [0, 4] # some", "   # some\n\n- 0\n- 4", "\n  - 0\n  - 4"])
def test_a_profile_brings_its_seeds_and_takes_them_away(project, seeds):
    text = f"profile: sample\nseeds:{seeds}\nprofiles:\n  sample: {{}}\n  quick: {{\n    seeds: [1, 2]}}\n"
    (project / "params.yaml").write_text(text)
    with profiles.active_profile("sample"):
        assert Path("params.yaml").read_text() == text
    with profiles.active_profile("quick"):
        found = yaml.safe_load(Path("params.yaml").read_text())
        assert found == yaml.safe_load(text) | {"profile": "quick", "seeds": [1, 2]}
    assert (project / "params.yaml").read_text() == text


@pytest.mark.parametrize("seeds", ["seeds: 3\n", ""])
def test_seeds_that_cannot_be_put_in_place_are_one_line(project, seeds):
    text = f"profile: sample\n{seeds}profiles:\n  sample: {{}}\n  quick: {{seeds: [1, 2]}}\n"
    (project / "params.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"^params\.yaml: `seeds:` must be a list at the start of a line"):
        profiles.make_active("quick")
    assert (project / "params.yaml").read_text() == text


def test_a_file_without_the_choice_s_anchors_stays_readable():
    raw = yaml.safe_load((helpers.ROOT / "params.yaml").read_text())
    text = profiles.with_profile(yaml.safe_dump(raw, sort_keys=False), "quick")  # with anchors of its own
    assert yaml.safe_load(text) == raw | {"profile": "quick"}
    text = profiles.with_profile(yaml.safe_dump(raw, sort_keys=False), "paper")
    assert yaml.safe_load(text) == raw | {"profile": "paper", "seeds": [0, 1, 2]}
    ours = yaml.safe_load(profiles.with_profile((helpers.ROOT / "params.yaml").read_text(), "quick"))
    assert ours["variations"] == raw["studied"]["all"]
    assert ours["rivals"] == raw["studied"]["all-rivals"]


def test_only_what_is_not_there_is_brought_back(project, monkeypatch):
    lock = {
        "download@quick": ["data/clean"],
        "train@quick-speckle-dncnn-0": ["models/a"],
        "evaluate@quick-speckle-dncnn-0": ["scores/a.json", "panels/a"],
        "compare@quick": ["scores/studies"],
        "train@quicker-speckle-dncnn-0": ["models/b"],
        "gone@quick": ["gone"],
        "plot@quick": ["results/quick"],
    }
    entries = {name: {"cmd": "", "outs": [{"path": out} for out in outs]} for name, outs in lock.items()}
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": entries}, sort_keys=False))
    stages = ("download", "train", "evaluate", "compare", "plot")
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {name: {} for name in stages}}))
    for there in ("scores/a.json", "scores/studies/one.json"):
        Path(there).parent.mkdir(parents=True, exist_ok=True)
        Path(there).write_text("put back by hand")
    calls, status = [], [0, 1]
    monkeypatch.setattr(subprocess, "call", lambda words: calls.append(words) or status[len(calls) - 1])
    profiles.bring_back("quick")
    assert calls == [["dvc", "checkout", "--quiet", "--allow-missing", "models/a", "panels/a"]]
    with pytest.raises(ValueError, match="`dvc checkout --allow-missing models/a` and the like failed"):
        profiles.bring_back("quick")
    for out in ("models/a", "panels/a"):
        Path(out).mkdir(parents=True)
    profiles.bring_back("quick")
    assert len(calls) == 2
