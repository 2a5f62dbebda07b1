import math

import pytest

from lambdanet import yaml12


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("-010", -10), ("+7", 7), ("0o17", 15), ("0x1F", 31), ("0o8", "0o8"), ("1_000", "1_000"),
        ("2e-05", 2e-05), ("1e3", 1000.0), (".5", 0.5), ("-5.", -5.0), ("010.5", 10.5), ("-.inf", -math.inf),
        ("true", True), ("FALSE", False), ("tRUE", "tRUE"), ("~", None), ("Null", None), ("", None),
        ("yes", "yes"), ("off", "off"), ("1:30", "1:30"), ("1.0.0", "1.0.0"), ("'010'", "010"),
        ("2020-01-01", "2020-01-01"), ("e3", "e3"),
    ],
)  # fmt: skip
def test_a_value_is_what_yaml_1_2_says_and_dvc_reads(text, value):
    found = yaml12.load(f"a: {text}")["a"]
    assert (type(found), found) == (type(value), value)
    if text not in ("-5.", "1_000"):
        ruamel = pytest.importorskip("ruamel.yaml").YAML(typ="safe").load(f"a: {text}")["a"]
        assert str(ruamel) == str(found)


def test_merged_keys_give_way_to_those_that_stand_there():
    text = "w: {v: &x {b: 1, c: 1}}\ny: &y {<<: *x, b: 2}\nz: {<<: [*y], c: 3}\n"
    assert yaml12.load(text) == {
        "w": {"v": {"b": 1, "c": 1}}, "y": {"b": 2, "c": 1}, "z": {"b": 2, "c": 3}
    }  # fmt: skip
    nested = "a: {k: &y {<<: {b: 1}, b: 2}}\nz: {<<: *y}\n"  # merged before it is itself made
    assert yaml12.load(nested) == {"a": {"k": {"b": 2}}, "z": {"b": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' stands twice, the second time in line 3"),
        ("a: {b: 1, b: 1}", "the key 'b' stands twice, the second time in line 1"),
        ("- a: &x {b: 1}\n- c: {<<: *x, d: 1, d: 2}", "the key 'd' stands twice, the second time in line 2"),
        ("a: 0\n<<<<<<< HEAD\nb: 1\n=======\nb: 2\n>>>>>>> x\n", "line 3"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
        ("a: *x", "found undefined alias"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
    ],
)
def test_what_is_not_valid_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        yaml12.load(text)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xef\xbb\xbfepochs: 010\n")
    assert yaml12.read(path) == {"epochs": 10}
    path.write_bytes("epochs: 1\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"params.yaml is not valid YAML: 'utf-8' codec can't decode"):
        yaml12.read(path)
