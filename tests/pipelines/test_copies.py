"""Checkpoints and logs beside a DVC remote, here a folder."""

import subprocess
import sys

import pytest
import yaml

from pipelines.copies import Copies

STAGES = {
    "train": {
        "cmd": "python train.py data checkpoints/a/b logs/a/b.json out",
        "deps": ["data"],
        "outs": ["out"],
    },
    "other": {"cmd": "echo checkpoint", "deps": ["data"], "outs": ["else"]},
}


def make(folder, remote):
    folder.mkdir()
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    for words in (["init", "-q", "--no-scm"], ["remote", "add", "-q", "-d", "there", str(remote)]):
        subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, check=True)
    (folder / "checkpoints/a/b").mkdir(parents=True)
    (folder / "logs/a").mkdir(parents=True)
    return folder


@pytest.fixture
def two(tmp_path):
    return [make(tmp_path / name, tmp_path / "remote") for name in ("one", "two")]


def test_another_machine_goes_on_from_them(two, tmp_path, monkeypatch):
    one, other = two
    (one / "checkpoints/a/b/000000010.pt").write_bytes(b"ten")
    (one / "checkpoints/a/b/lock").touch()
    (one / "checkpoints/a/b/.000000020.pt.part").write_bytes(b"half")
    (one / "logs/a/b.json").write_text("[1]")
    (one / "logs/a/unrelated.json").write_text("[]")
    monkeypatch.chdir(one)
    with Copies() as copies:
        assert copies.paths("train") == ["checkpoints/a/b", "logs/a/b.json"]
        assert copies.paths("other") == []
        assert copies.push("train") == 2
        assert copies.push("other") == 0
    stored = tmp_path / "remote-state/train"
    files = sorted(path.relative_to(stored).as_posix() for path in stored.rglob("*") if path.is_file())
    assert files == ["checkpoints/a/b/000000010.pt", "logs/a/b.json"]
    monkeypatch.chdir(other)
    with Copies() as copies:
        assert copies.fetch("train") == 2
        assert copies.fetch("train") == 0
        assert copies.fetch("other") == 0
    assert (other / "checkpoints/a/b/000000010.pt").read_bytes() == b"ten"
    assert (other / "logs/a/b.json").read_text() == "[1]"
    assert not list(other.rglob("*.part"))


def test_what_is_gone_here_goes_there_and_the_longer_log_counts(two, monkeypatch):
    one, other = two
    monkeypatch.chdir(one)
    folder = one / "checkpoints/a/b"
    with Copies() as copies:
        for steps in (10, 20, 30):
            (folder / f"{steps:09d}.pt").write_bytes(b"x" * steps)
            for old in sorted(folder.glob("*.pt"))[:-2]:
                old.unlink()
            (one / "logs/a/b.json").write_text("[" + "1," * steps + "1]")
            copies.push("train")
        monkeypatch.chdir(other)
        (other / "logs/a/b.json").write_text("[1]")
    with Copies() as copies:
        assert copies.fetch("train", "checkpoints") == 2
        assert (other / "logs/a/b.json").read_text() == "[1]"
        assert copies.fetch("train") == 1
    assert len((other / "logs/a/b.json").read_text()) == 63
    assert sorted(path.name for path in (other / "checkpoints/a/b").iterdir()) == [
        "000000020.pt",
        "000000030.pt",
    ]
    for path in (other / "checkpoints/a/b").iterdir():
        path.unlink()
    with Copies() as copies:
        copies.push("train")
        (other / "logs/a/b.json").unlink()
        assert copies.fetch("train") == 1  # the log stays


def test_an_experiment_has_all_of_its_folder(two, monkeypatch):
    one, other = two
    (one / "checkpoints/a/b/000000010.pt").write_bytes(b"ten")
    (one / "logs/a/b.json").write_text("[1]")
    monkeypatch.chdir(one)
    with Copies(whole=True) as copies:
        assert copies.push("bold-try") == 2
    monkeypatch.chdir(other)
    with Copies(whole=True) as copies:
        assert copies.fetch("bold-try") == 2
    assert (other / "checkpoints/a/b/000000010.pt").read_bytes() == b"ten"


def test_without_a_remote_it_says_so(tmp_path, monkeypatch):
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^there is no default DVC remote.*dvc remote add"):
        Copies()


def test_after_a_failure_it_connects_anew(two, monkeypatch):
    one, _ = two
    (one / "logs/a/b.json").write_text("[1]")
    monkeypatch.chdir(one)
    with Copies() as copies:
        dead = copies.fs

        def exists(_path):
            raise OSError("Connection not open")

        monkeypatch.setattr(dead, "exists", exists)
        for call in (copies.reach, lambda: copies.push("train"), lambda: copies.fetch("train")):
            copies.fs = dead
            with pytest.raises(OSError, match="Connection not open"):
                call()
            assert copies.fs is not dead
        assert copies.push("train") == 1
