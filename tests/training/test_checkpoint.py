import pickle

import helpers
import pytest
import torch

from lambdanet.training import checkpoint


def save(folder, *steps, key="key"):
    for step in steps:
        checkpoint.save(folder, key, step, {"step": step, "x": torch.full((3,), float(step))})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def newest(folder, key="key"):
    state = checkpoint.load_newest(folder, key)
    return state and state["step"]


def test_newest_two_are_kept(tmp_path):
    save(tmp_path, 1, 2, 10, 100)
    assert names(tmp_path) == ["000000010.pt", "000000100.pt"]


DAMAGE = {
    "empty": lambda content: b"",
    "one byte short": lambda content: content[:-1],
    "a byte": lambda content: content[:100] + bytes([content[100] ^ 255]) + content[101:],
    "a pickle": lambda content: pickle.dumps({"key": "key", "state": {"step": 7}}, 2),
}
OTHERS = ([1, 2], {"state": {"step": 3}}, 5, {"key": "key"})


@pytest.mark.parametrize("damage", [*DAMAGE, *OTHERS], ids=str)
def test_damaged_newest_gives_the_one_before(damage, tmp_path, caplog):
    save(tmp_path, 1, 2)
    path = tmp_path / "000000002.pt"
    if damage in OTHERS:
        torch.save(damage, path)
    else:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert newest(tmp_path) == 1
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{path} is damaged (")
    assert "\n" not in caplog.messages[0]


def test_foreign_key_is_passed_over(tmp_path, caplog):
    save(tmp_path, 1)
    save(tmp_path, 2, key="other")
    assert newest(tmp_path) == 1
    removed = tmp_path / "000000002.pt"
    assert caplog.messages == [f"{removed} belongs to other settings, data or code; not used, removed"]
    assert newest(tmp_path, "third") is None


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_bomb_is_not_executed(zipped, tmp_path):
    save(tmp_path, 1)
    content = {"key": "key", "state": helpers.Bomb(tmp_path / "marker")}
    torch.save(content, tmp_path / "000000002.pt", _use_new_zipfile_serialization=zipped)
    assert newest(tmp_path) == 1
    (tmp_path / "000000003.pt").write_bytes(pickle.dumps(content, 2))
    assert newest(tmp_path) == 1
    assert not (tmp_path / "marker").exists()


def test_parts_of_killed_writers_are_ignored_and_discarded(tmp_path):
    save(tmp_path, 1, 2)
    (tmp_path / ".000000003.pt.abcd.part").write_bytes(b"half")
    (tmp_path / "lock").write_text("")
    (tmp_path / "notes.pt").write_text("not ours")
    assert newest(tmp_path) == 2
    checkpoint.discard(tmp_path)
    assert names(tmp_path) == ["lock", "notes.pt"]
    checkpoint.discard(tmp_path / "none")
