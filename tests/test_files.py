import os
import resource
from unittest.mock import Mock

import helpers
import numpy as np
import pytest

from lambdanet import files


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()], ids=repr)
def test_failed_write_leaves_the_old_content_alone(tmp_path, monkeypatch, step, error):
    files.write_bytes(tmp_path / "f", b"old")
    monkeypatch.setattr(os, step, Mock(side_effect=error))
    with pytest.raises(type(error)):
        files.write_bytes(tmp_path / "f", b"new")
    assert helpers.contents(tmp_path) == {"f": b"old"}


def mode(path):
    return oct(path.stat().st_mode & 0o7777)


@pytest.fixture(params=[0o077, 0o022, 0o002], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_modes_are_those_of_the_umask_or_of_what_was_there(tmp_path, umask):
    files.write_bytes(tmp_path / "f", b"new")
    assert mode(tmp_path / "f") == oct(0o666 & ~umask)
    with files.new_folder(tmp_path / "out") as new:
        files.write_bytes(new / "f", b"new")
    assert [mode(tmp_path / "out"), mode(tmp_path / "out/f")] == [oct(0o777 & ~umask), oct(0o666 & ~umask)]
    for kept in (0o600, 0o640, 0o664):
        (tmp_path / "f").chmod(kept)
        (tmp_path / "out").chmod(kept | 0o100)
        files.write_bytes(tmp_path / "f", b"newer")
        with files.new_folder(tmp_path / "out"):
            pass
        assert [mode(tmp_path / "f"), mode(tmp_path / "out")] == [oct(kept), oct(kept | 0o100)]


def test_parts_that_a_killed_process_left_are_discarded_and_no_others(tmp_path):
    left = tmp_path / ".a[1].0123abcd.part"
    names = ("a[1]", ".a1.0123abcd.part", ".a[1].b.0123abcd.part", ".b.0123abcd.part")
    others = [tmp_path / name for name in names]
    for path in (left, *others):
        path.mkdir()
    files.discard_parts(tmp_path / "a[1]")
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_json_is_indented_and_finite(tmp_path):
    files.write_json(tmp_path / "f", {"b": 1, "a": [0.1]})
    assert (tmp_path / "f").read_text() == '{\n  "b": 1,\n  "a": [\n    0.1\n  ]\n}\n'
    for value in (float("nan"), float("inf")):
        assert "not JSON compliant" in helpers.refusal(files.write_json, tmp_path / "f", {"a": value})


@pytest.mark.parametrize("array", [helpers.patches(3), helpers.patches(3)[:, ::2].astype(np.float16)])
def test_array_is_written_as_numpy_saves_it(array, tmp_path):
    files.write_array(tmp_path / "f.npy", array)
    np.save(tmp_path / "g.npy", np.ascontiguousarray(array))
    written = helpers.contents(tmp_path)
    assert written["f.npy"] == written["g.npy"]


def test_array_that_does_not_fit_is_an_error(tmp_path):
    """Numpy's own way of writing to a file says nothing for these numbers."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))
    try:
        with pytest.raises(OSError, match=rf"^\[Errno 27\] File too large: '{tmp_path}/f\.npy'$"):
            files.write_array(tmp_path / "f.npy", np.zeros(10_000, np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert helpers.contents(tmp_path) == {}


def test_csv_keeps_full_precision(tmp_path):
    files.write_csv(tmp_path / "f", [{"x": 0.1 + 0.2, "y": 1}, {"x": 1e-17, "y": 2}])
    assert (tmp_path / "f").read_bytes() == b"x,y\n0.30000000000000004,1\n1e-17,2\n"


def test_new_folder_takes_the_place_of_the_old(tmp_path):
    helpers.folder(tmp_path, {"out/old": b"old"})
    with files.new_folder(tmp_path / "out") as new:
        (new / "f").write_text("new")
        assert helpers.contents(tmp_path / "out") == {"old": b"old"}
    assert helpers.contents(tmp_path) == {"out/f": b"new"}


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), SystemExit(143)], ids=repr)
def test_new_folder_that_fails_leaves_the_old(tmp_path, error):
    helpers.folder(tmp_path, {"out/old": b"old"})
    with pytest.raises(type(error)):  # noqa: PT012, SIM117
        with files.new_folder(tmp_path / "out") as new:
            (new / "f").touch()
            raise error
    assert helpers.contents(tmp_path) == {"out/old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["x" * 251 + ".txt", "\N{CAT FACE}" * 63 + "abc", "\N{EURO SIGN}" * 85])
def test_names_may_have_as_many_bytes_as_the_file_system_permits(tmp_path, name):
    assert len(name.encode()) == 255
    files.write_text(tmp_path / name, "one")
    files.write_text(tmp_path / name, "two")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "two")]
