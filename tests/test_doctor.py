"""`lambdanet doctor`: what it says of an installation, with faults made on purpose."""

import functools
import os
import sys

import pytest
from helpers import lambdanet

from lambdanet import doctor


def lines(tmp_path, monkeypatch, begin=lambda _: None, **trials):
    monkeypatch.chdir(tmp_path)
    if trials:
        monkeypatch.setattr(doctor, "TRIALS", [{name: (trial, "do") for name, trial in trials.items()}])
    return list(map(str, doctor.diagnose(False, begin)))


def test_this_installation_is_well(tmp_path, monkeypatch):
    begun = []
    text = "\n".join(lines(tmp_path, monkeypatch, begun.append))
    assert "BAD" not in text
    for part in ("ok    Python 3.", "torch: 2.", "Prefect's server: 3.", " on CPU, ", "GiB free",
                 "LambdaNet and DnCNN on the CPU: compiled kernels on vectors of"):  # fmt: skip
        assert part in text
    assert begun == [name for group in doctor.TRIALS for name in group]


def test_of_the_library_alone_it_wants_nothing_of_the_pipeline(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.setitem(sys.modules, "pipelines", None)
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr(doctor, "OF_PIPELINE", ("no-such-server",))
    trials = {"part": functools.partial(str, "well")}, {"server": os.abort}
    monkeypatch.setattr(doctor, "TRIALS", [{name: (one[name], "do") for name in one} for one in trials])
    said = lines(tmp_path, monkeypatch)
    bad = [line for line in said if line.startswith("BAD")]
    assert bad == ["BAD   no-such-package is not installed: pip install no-such-package"]
    assert "ok    part: well" in said


def test_kernels_that_cannot_be_compiled_are_a_note(tmp_path, monkeypatch):
    (tmp_path / "llvmlite.py").write_text("raise ImportError('no llvmlite')")
    monkeypatch.syspath_prepend(tmp_path)
    said = lines(tmp_path, monkeypatch, kernels=doctor._cpu)
    assert "note  kernels: no llvmlite; the networks run without, which is slower: do" in said


def test_what_is_missing_fails_crashes_or_comes_after_a_crash_is_named(tmp_path, monkeypatch):
    trials = {"bad": functools.partial(int, "x"), "crash": os.abort, "after": functools.partial(str, "1")}
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    said = lines(tmp_path, monkeypatch, **trials)
    assert "BAD   no-such-package is not installed: `make setup`" in said
    assert "BAD   bad: invalid literal for int() with base 10: 'x': do" in said
    assert "BAD   crash: the process that tried it was killed: do" in said
    assert not [line for line in said if "after" in line]


@pytest.mark.parametrize(("level", "status"), [(doctor.OK, 0), (doctor.NOTE, 0), (doctor.BAD, 1)])
def test_its_exit_status_says_whether_something_is_bad(monkeypatch, level, status):
    found = doctor.Finding(level, "something", "do this")
    monkeypatch.setattr(doctor, "diagnose", lambda _fix, _begin: iter([found]))
    result = lambdanet("doctor")
    assert (result.exit_code, result.output) == (status, f"{level:<5} something: do this\n")


def test_invalid_parameters_and_an_unpacked_archive_are_bad(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").touch()
    said = lines(tmp_path, monkeypatch, part=functools.partial(str, "well"))
    assert said[-2:] == [
        "BAD   parameters: profile.yaml is missing; run this in the project's folder",
        "BAD   the clone: it is not in git, and DVC works in git repositories only; `git init`, or clone",
    ]
