"""`lambdanet doctor`: what it says of an installation, with faults made on purpose."""

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from lambdanet import cli, doctor


def test_this_installation_is_well():
    lines = list(doctor.installation(Path()))
    assert not [line for line in lines if line.level == doctor.BAD]
    text = "\n".join(map(str, lines))
    for part in (
        "ok    Python 3.",
        "torch with torchvision: ",
        "Prefect's server: 3.",
        "device: CPU",
        "GiB free",
        "LambdaNet and DnCNN on the CPU: compiled kernels on vectors of",
    ):
        assert part in text


def test_a_package_that_is_missing_and_a_bad_pair_are_named(monkeypatch):
    versions = dict.fromkeys(doctor.PACKAGES, "1.0") | {"prefect": "3.8.8", "fastapi": "0.154.0"}
    del versions["dvc"]

    def version(name):
        try:
            return versions[name]
        except KeyError:
            raise doctor.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(doctor.metadata, "version", version)
    bad = [line for line in doctor._packages() if line.level == doctor.BAD]
    assert [line.what for line in bad] == [
        "dvc is not installed",
        "prefect 3.8.8 with fastapi 0.154.0 does not work",
    ]
    versions["fastapi"] = "0.150.0"
    assert [line.what for line in doctor._packages() if line.level == doctor.BAD] == ["dvc is not installed"]


def test_what_does_not_load_is_named_with_its_last_line(monkeypatch):
    trials = {
        "torch with torchvision": ("raise RuntimeError('operator torchvision::nms does not exist')", "do")
    }
    monkeypatch.setattr(doctor, "TRIALS", trials)
    (line,) = [line for line in doctor.installation(Path()) if line.level == doctor.BAD]
    assert str(line) == (
        "BAD   torch with torchvision does not load "
        "(RuntimeError: operator torchvision::nms does not exist): do"
    )


class Slow:
    """A process that ends, in its own time, after so many looks."""

    pid, returncode = 1, 0

    def __init__(self, looks):
        self.looks = looks

    def communicate(self, timeout=None):
        self.looks -= 1
        if timeout is not None and self.looks >= 0:
            raise subprocess.TimeoutExpired("", timeout)
        return "2.11 with 0.26", ""

    def kill(self):
        self.returncode = -9


@pytest.mark.parametrize(
    ("computing", "said"),
    [
        ([1, 2, 2.01, 50], "ok    torch: 2.11 with 0.26"),
        ([1, 2, 2, 2], "BAD   torch stands still, after 2 s of computing: do"),
    ],
)
def test_what_loads_slowly_is_no_fault_and_what_stands_still_is(monkeypatch, computing, said):
    seconds = iter(computing)
    monkeypatch.setattr(doctor, "_computing_seconds", lambda _pid: next(seconds))
    assert str(doctor._end("torch", Slow(4), "do")) == said


def test_a_process_that_only_sleeps_stands_still(monkeypatch):
    monkeypatch.setattr(doctor, "TRIALS", {"torch": ("import time; time.sleep(600)", "do")})
    monkeypatch.setattr(doctor, "STILL_SECONDS", 0.5)
    (line,) = [line for line in doctor.installation(Path()) if line.level == doctor.BAD]
    assert line.what.startswith("torch stands still, after 0 s of computing")


def test_other_systems_than_the_supported_are_named(monkeypatch):
    monkeypatch.setattr(doctor, "TRIALS", {})
    monkeypatch.setattr(doctor.platform, "system", lambda: "Windows")
    assert "note  the system is Windows: supported are Linux and macOS; on Windows use one in WSL" in map(
        str, doctor.installation(Path())
    )


def test_invalid_parameters_are_bad():
    def check():
        raise ValueError("train: unknown key 'x'")

    line = doctor.parameters(check)
    assert (line.level, line.advice) == (doctor.BAD, "train: unknown key 'x'")


@pytest.mark.parametrize(("level", "status"), [(doctor.OK, 0), (doctor.NOTE, 0), (doctor.BAD, 1)])
def test_its_exit_status_says_whether_something_is_bad(monkeypatch, level, status):
    finding = doctor.Finding(level, "something", "do this")
    monkeypatch.setattr(doctor, "installation", lambda _folder: [finding])
    monkeypatch.setattr(doctor, "project", lambda _folder, _fix: [])
    monkeypatch.setattr(doctor, "parameters", lambda _check: finding)
    result = CliRunner().invoke(cli.main, ["doctor"])
    assert result.exit_code == status
    assert f"{level:<5} something: do this" in result.output


def test_outside_of_a_project_only_the_installation_is_looked_at(tmp_path):
    assert list(doctor.project(tmp_path, fix=False)) == []


def test_an_unpacked_archive_is_told_what_it_lacks(tmp_path):
    (tmp_path / "dvc.yaml").touch()
    (line,) = doctor.project(tmp_path, fix=False)
    assert str(line) == (
        "BAD   this is no clone, and DVC works in git repositories only: `git init` here, or clone"
    )
