"""What is written instead of DVC's own dvc.lock is what DVC would have written."""

import contextlib
import copy
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import dpath
import pytest
from dvc.fs import LocalFileSystem
from dvc.lock import LockError
from dvc.rwlock import rwlock
from dvc.utils.serialize import YAMLFileCorruptedError, modify_yaml, parse_yaml
from helpers import ROOT

from pipelines.lockfile import (
    Entries,
    Hashes,
    claimed_once,
    found_by_keys,
    loaded_once,
    modify_lock,
    parsed_once,
)

LOCK = (ROOT / "dvc.lock").read_text()
AWKWARD = {
    "cmd": "python stages/train.py " + " ".join(f"--word-{n}" for n in range(40)),
    "deps": [{"path": "a: b", "hash": "md5", "md5": "0123", "size": 12}, {"path": "00", "md5": "1e5"}],
    "params": {
        "params.yaml": {
            "rate": 1e-05, "large": 2e22, "whole": 3.0, "no": None, "on": "yes", "flag": True, "text": "0.1",
            "title": "the encoder's output channels d, with \u03bb", "empty": {}, "list": [1, [2, {"a": 3}]],
            "lines": "one\n two\n", "nested": {"a": {"b": {"c": "#"}}},
        }
    },
}  # fmt: skip


def both(text, change, folder):
    """The files that DVC and we write after the same change."""
    written = []
    for name, modify in (("a", modify_yaml), ("b", modify_lock)):
        (folder / name).mkdir()
        path = folder / name / "dvc.lock"
        path.write_bytes(text.encode())
        with modify(str(path)) as data:
            change(data, copy.deepcopy)
        assert [one.name for one in path.parent.iterdir()] == ["dvc.lock"]
        written.append(path.read_text())
    return written


def test_changed_new_and_removed_stages_are_written_as_dvc_writes_them(tmp_path):
    names = list(Entries(LOCK))

    def change(data, new):
        data["stages"].update({names[3]: new(AWKWARD), "new@of-it": new(AWKWARD)})
        data["stages"].update({names[-1]: new(data["stages"][names[0]])})
        del data["stages"][names[5]]

    dvc, ours = both(LOCK, change, tmp_path)
    assert ours == dvc
    assert "new@of-it" in ours
    assert names[5] not in Entries(ours)


def test_entries_are_what_dvc_reads_and_nothing_is_lost():
    entries = Entries(LOCK)
    assert str(entries) == LOCK
    assert "plot@quick" in entries
    assert [out["path"] for out in entries["plot@quick"]["outs"]] == ["results/quick"]
    assert entries.get("none", {}) == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "schema: '2.0'\n",
        "schema: '2.0'\nstages: {}\n",
        "# mine\nschema: '2.0'\nstages:\n  a:\n    cmd: b\n",
        "schema: '2.0'\nstages:\n  '12':\n    cmd: b\n",
        "schema: '2.0'\nstages:\n  a: {cmd: b}\n",
        "stages:\n  a:\n    cmd: b\nschema: '2.0'\n",
        "schema: '2.0'\nstages:\n  a:\n    cmd: b\ndatasets: []\n",
        "schema: '2.0'\nstages:\n  a:\n    deps: &id001\n    - c\n  d:\n    deps: *id001\n",
    ],
)
def test_another_form_is_left_to_dvc(text, tmp_path):
    def change(data, _new):
        data["stages"] = data.get("stages", {})
        data["stages"].update({"new": AWKWARD})

    dvc, ours = both(text, change, tmp_path)
    assert ours == dvc
    assert "new:" in ours


def test_what_is_shared_is_written_out(tmp_path):
    path = tmp_path / "dvc.lock"
    path.write_text(LOCK)
    shared = {"name": "gaussian", "sigma": [0.1]}
    with modify_lock(str(path)) as data:
        for name in ("one", "two"):
            data["stages"][name] = {"cmd": name, "params": {"params.yaml": {"a": shared, "b": [shared]}}}
    text = path.read_text()
    assert "&id" not in text
    read = parse_yaml(text, "dvc.lock")["stages"]
    assert read["one"]["params"] == read["two"]["params"] == {"params.yaml": {"a": shared, "b": [shared]}}


def test_a_link_and_its_file_s_mode_stay(tmp_path):
    (tmp_path / "shared.lock").write_text(LOCK)
    (tmp_path / "shared.lock").chmod(0o664)
    (tmp_path / "dvc.lock").symlink_to("shared.lock")
    with modify_lock(str(tmp_path / "dvc.lock")) as data:
        data["stages"]["new"] = {"cmd": "new"}
    assert (tmp_path / "dvc.lock").is_symlink()
    assert (tmp_path / "shared.lock").stat().st_mode & 0o777 == 0o664
    assert "new" in Entries((tmp_path / "shared.lock").read_text())


def test_error_while_it_is_changed_leaves_the_file(tmp_path):
    path = tmp_path / "dvc.lock"
    path.write_text(LOCK)

    def fail():
        with modify_lock(str(path)) as data:
            data["stages"].clear()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == LOCK


@pytest.fixture
def python(tmp_path):
    """Runs this Python with words, in a repository of DVC at `tmp_path`."""
    shutil.copytree(ROOT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def run(*words):
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def test_dvc_runs_with_its_words_and_status(tmp_path, python):
    stage = "stages:\n  one:\n    cmd: echo said > out\n    outs: [out]\n  two:\n    cmd: exit 3\n"
    (tmp_path / "dvc.yaml").write_text(stage)

    def run(*words):
        return python("-m", "pipelines.lockfile", *words)

    files = set()
    for _ in range(2):  # DVC's file first, then ours in its place
        assert run("dvc", "repro", "-f", "one").returncode == 0
        files.add((tmp_path / "dvc.lock").stat().st_ino)
    assert len(files) == 2
    assert (tmp_path / "out").read_text() == "said\n"
    assert list(Entries((tmp_path / "dvc.lock").read_text())) == ["one"]
    failed = run("dvc", "repro", "two")
    assert failed.returncode == 255
    assert "failed to reproduce 'two'" in failed.stderr
    assert run("repro").stderr == "usage: python -m pipelines.lockfile [--jobs N] dvc COMMAND...\n"


def test_the_same_text_is_parsed_once_and_each_gets_a_copy_of_its_own():
    parsed = []

    def parse(text, path, typ="safe"):
        parsed.append((text, typ))
        return parse_yaml(text, path, typ)

    once = parsed_once(parse)
    first, second = (once("a: {b: [1, 0.5, null, 2026-11-21]}", "params.yaml") for _ in range(2))
    assert first == second == parse_yaml("a: {b: [1, 0.5, null, 2026-11-21]}", "params.yaml")
    first["a"]["b"].append(3)
    assert first != second
    assert once("a: 2", "params.yaml") == {"a": 2}
    assert once("a: 1 # one", "params.yaml", typ="rt").ca.items  # with its comments, for DVC to write back
    assert [typ for _, typ in parsed] == ["safe", "safe", "rt"]
    with pytest.raises(YAMLFileCorruptedError):
        once("a: [", "params.yaml")


def test_dvc_parses_params_once_for_all_stages(tmp_path, python):
    (tmp_path / "params.yaml").write_text("a: {x: 1}\nb: {x: 2}\nc: {x: 3}\n")
    stages = {
        name: {"cmd": f"echo {name} > {name}", "params": [f"{name}.x"], "outs": [name]} for name in "abc"
    }
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    code = """
import sys
from pathlib import Path
from pipelines import lockfile
parse, parsed = lockfile.parse_yaml, []
lockfile.parse_yaml = lambda text, path, *more: parsed.append(Path(path).name) or parse(text, path, *more)
status = lockfile.main(sys.argv[1:])
print("parsed", status, parsed.count("params.yaml"), parsed.count("dvc.lock"))
"""

    def run(*words):
        return python("-c", code, *words).stdout.splitlines()[-1]

    run("repro")
    assert run("repro") == "parsed 0 1 3"  # each stage's lines, where DVC parses the whole file twice
    (tmp_path / "params.yaml").write_text("a: {x: 1}\nb: {x: 5}\nc: {x: 3}\n")
    told = python("-m", "pipelines.lockfile", "dvc", "status", "--json")
    assert told.returncode == 0
    assert list(json.loads(told.stdout)) == ["b"]


def test_digests_are_taken_once_until_something_runs(tmp_path):
    class Output:
        hash_name, use_cache, repo = "md5", True, SimpleNamespace(root_dir=str(tmp_path))

        def __init__(self, path, protocol="local"):
            self.fs_path, self.fs = path, SimpleNamespace(protocol=protocol)

    content, taken, hashes = {"a": 1, "b": 2}, [], Hashes()
    get = hashes.once(lambda output: taken.append(output.fs_path) or content[output.fs_path])
    assert [get(Output(path)) for path in "aabba"] == [1, 1, 2, 2, 1]
    assert taken == ["a", "b"]
    assert [get(Output("a", "s3")) for _ in range(2)] == [1, 1]  # what is far away is left to DVC
    assert taken == ["a", "b", "a", "a"]
    (tmp_path / "dvc.lock").write_text("by another DVC")
    content["a"] = 5
    assert [get(Output("a")) for _ in range(2)] == [5, 5]
    taken[4:] = []
    assert hashes.until(lambda *words, **options: (words, options))(1, two=2) == ((1,), {"two": 2})
    content["a"] = 3
    assert [get(Output(path)) for path in "aa"] == [3, 3]
    assert taken == ["a", "b", "a", "a", "a", "a"]


def test_dvc_yaml_is_loaded_once_and_other_files_each_time():
    loaded = []
    load = loaded_once(lambda repo, path, **options: loaded.append((path, options)) or object())
    repo, other = object(), object()
    assert load(repo, "x/dvc.yaml") is load(repo, "x/dvc.yaml")
    assert load(repo, "x/dvc.yaml") is not load(repo, "y/dvc.yaml")
    assert load(repo, "x/dvc.yaml") is not load(other, "x/dvc.yaml")
    assert load(repo, "x/one.dvc") is not load(repo, "x/one.dvc")
    assert load(repo, "x/dvc.yaml", verify=False) is not load(repo, "x/dvc.yaml")
    assert [path for path, _ in loaded] == [
        "x/dvc.yaml",
        "y/dvc.yaml",
        "x/dvc.yaml",
        *["x/one.dvc"] * 2,
        "x/dvc.yaml",
    ]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_what_a_stage_changes_is_seen_by_the_next(tmp_path, python, jobs):
    """`two` and `three` were looked at, and are up to date, when `one` runs and changes what they need."""
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n"
        "  zero:\n    cmd: cp source copy\n    deps: [source]\n    outs: [copy]\n"
        "  one:\n    cmd: sort extra source > all\n    deps: [source, extra]\n    outs: [all]\n"
        "  two:\n    cmd: cat source all > two.txt\n    deps: [source, all]\n    outs: [two.txt]\n"
        "  three:\n    cmd: cat two.txt copy > three.txt\n    deps: [two.txt, copy]\n    outs: [three.txt]\n"
    )
    (tmp_path / "source").write_text("s\n")

    def run(extra):
        (tmp_path / "extra").write_text(extra)
        done = python("-m", "pipelines.lockfile", "--jobs", jobs, "dvc", "repro")
        assert done.returncode == 0, done.stderr
        return [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]

    assert sorted(run("a\n")) == ["one", "three", "two", "zero"]
    assert run("a\n") == []
    assert run("b\n") == ["one", "two", "three"]
    assert (tmp_path / "three.txt").read_text() == "s\nb\ns\ns\n"
    assert run("b\n") == []
    again = subprocess.run(
        [sys.executable, "-m", "dvc", "status"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "up to date" in again.stdout
    assert run("a\n") == []  # from DVC's run-cache
    assert (tmp_path / "three.txt").read_text() == "s\na\ns\ns\n"
    for name in ("all", "two.txt"):  # which the cache may share with this folder
        (tmp_path / name).unlink()
    (tmp_path / "two.txt").write_text("changed by hand\n")
    assert run("a\n") == []
    assert (tmp_path / "three.txt").read_text() == "s\na\ns\ns\n"
    assert (tmp_path / "two.txt").read_text() == "s\na\ns\n"


@pytest.mark.parametrize("line", ["deps: 3", 'cmd: "a'])
def test_a_broken_entry_is_refused_as_dvc_refuses_it_when_it_is_read(tmp_path, python, line):
    stages = {name: {"cmd": f"echo {name} > {name}", "outs": [name]} for name in ("good", "bad")}
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    assert python("-m", "dvc", "repro").returncode == 0
    with (tmp_path / "dvc.lock").open("a") as file:
        file.write(f"    {line}\n  of-another-profile:\n    {line}\n")
    before = (tmp_path / "dvc.lock").read_text()
    assert list(Entries(before)) == ["good", "bad", "of-another-profile"]
    found = [python(*command, "status") for command in (["-m", "dvc"], ["-m", "pipelines.lockfile", "dvc"])]
    assert found[0].stderr == found[1].stderr
    assert found[1].stderr.startswith("'./dvc.lock' ")
    assert found[0].returncode == found[1].returncode != 0
    assert (tmp_path / "dvc.lock").read_text() == before


def test_an_entry_that_stands_twice_is_left_to_dvc(tmp_path, python):
    (tmp_path / "dvc.yaml").write_text("stages:\n  a:\n    cmd: echo a > a\n    outs: [a]\n")
    assert python("-m", "dvc", "repro").returncode == 0
    text = (tmp_path / "dvc.lock").read_text()
    (tmp_path / "dvc.lock").write_text(text + text.removeprefix("schema: '2.0'\nstages:\n"))
    found = [python(*command, "status") for command in (["-m", "dvc"], ["-m", "pipelines.lockfile", "dvc"])]
    assert found[0].stderr == found[1].stderr
    assert "duplicate key" in found[0].stderr
    assert found[0].returncode == found[1].returncode == 1


def test_files_that_this_process_holds_are_not_claimed_again(tmp_path):
    claimed = []

    def counting(*arguments):
        claimed.append(arguments[3:5])
        return rwlock(*arguments)

    claim = claimed_once(counting)

    def on(read, write, claim=claim):
        return claim(str(tmp_path), LocalFileSystem(), "dvc repro", read, write, False)

    def held():
        return json.loads((tmp_path / "rwlock").read_text())

    with on(["a", "b"], ["c"]):
        before = held()
        assert set(before["read"]) == {"a", "b"}
        assert set(before["write"]) == {"c"}
        with on(["a"], []), on(["c"], ["c"]):
            assert held() == before
        assert held() == before
        assert len(claimed) == 1
        with on([], ["d"]):  # not within what is held
            assert set(held()["write"]) == {"c", "d"}
        with contextlib.suppress(ZeroDivisionError), on(["d"], []):
            assert set(held()["read"]) == {"a", "b", "d"}
            raise ZeroDivisionError
    assert held() == {}
    assert claimed == [(["a", "b"], ["c"]), ([], ["d"]), (["d"], [])]
    with on(["a"], []):
        assert len(claimed) == 4


def test_files_that_another_process_holds_are_refused(tmp_path):
    claim = claimed_once(rwlock)
    other = {"pid": 1, "cmd": "dvc repro elsewhere"}  # there is always a process 1
    (tmp_path / "rwlock").write_text(json.dumps({"write": {"a": other}}))
    with (
        pytest.raises(LockError, match="dvc repro elsewhere"),
        claim(str(tmp_path), LocalFileSystem(), "dvc repro", ["a"], [], False),
    ):
        pytest.fail("it was let in")


PARAMS = {"a": {"b": {"c": 1}, "x.y": 2, "n": None}, "l": [5, {"m": 6}], "e": {}, "q*": 7}


@pytest.mark.parametrize("key", ["a", "a.b", "a.b.c", "a.n", "l", "l.0", "l.1.m", "e", "a.b.?", "q*"])
def test_parameters_are_those_that_dvc_finds(key):
    assert found_by_keys(PARAMS, key, separator=".") == dpath.get(PARAMS, key, separator=".")


@pytest.mark.parametrize("key", ["z", "a.z", "a.b.c.d", "l.2", "a.x.y", "e.f", "a.n.b"])
def test_parameters_that_are_not_there_are_missed_as_dvc_misses_them(key):
    for get in (found_by_keys, dpath.get):
        with pytest.raises(KeyError):
            get(PARAMS, key, separator=".")


def test_ambiguous_parameters_are_refused_as_dvc_refuses_them():
    for get in (found_by_keys, dpath.get):
        with pytest.raises(ValueError, match="must match only one leaf"):
            get(PARAMS, "a.*", separator=".")
