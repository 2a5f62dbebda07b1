import math

import pytest

from lambdanet import yaml12


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("[010]", [10]), ("-010", -10), ("+7", 7), ("08", 8), ("0o17", 15), ("0x1F", 31),
        ("2e-05", 2e-05), ("1e3", 1000.0), (".5", 0.5), ("-5.", -5.0), ("010.5", 10.5), ("-.inf", -math.inf),
        ("true", True), ("FALSE", False), ("~", None), ("Null", None), ("", None),
        ("yes", "yes"), ("off", "off"), ("1:30", "1:30"), ("1.0.0", "1.0.0"), ("'010'", "010"),
        ("1_000", "1_000"), ("0b1", "0b1"), ("2020-01-01", "2020-01-01"),
    ],
)  # fmt: skip
def test_a_value_is_what_yaml_1_2_says(text, value):
    found = yaml12.load(f"a: {text}")["a"]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    "text",
    [
        "010",
        "-010",
        "0o17",
        "0x1F",
        "1e3",
        "2e-05",
        "1E+3",
        ".5",
        "5.",
        "010.5",
        ".inf",
        "-.INF",
        "yes",
        "no",
        "on",
        "off",
        "y",
        "true",
        "TRUE",
        "tRUE",
        "~",
        "NULL",
        "nul",
        "1:30",
        "12:30:45",
        "1.0.0",
        "0o8",
        "+1",
        "-0",
        "00",
        "_1",
        "1.e3",
        "e3",
    ],
)
def test_a_value_is_what_dvc_reads(text):
    ruamel = pytest.importorskip("ruamel.yaml")
    ours, theirs = yaml12.load(f"a: {text}")["a"], ruamel.YAML(typ="safe").load(f"a: {text}")["a"]
    assert (type(ours), ours) == (type(theirs), theirs)


def test_not_a_number_is_read_as_such():
    assert math.isnan(yaml12.load("a: .nan")["a"])


def test_merged_keys_give_way_to_those_that_stand_there():
    text = "x: &x {b: 1, c: 1}\ny: &y {<<: *x, b: 2}\nz: {<<: [*y], c: 3}\n"
    assert yaml12.load(text) == {"x": {"b": 1, "c": 1}, "y": {"b": 2, "c": 1}, "z": {"b": 2, "c": 3}}
    nested = "a: {k: &y {<<: {b: 1}, b: 2}}\nz: {<<: *y}\n"  # merged before it is itself made
    assert yaml12.load(nested) == {"a": {"k": {"b": 2}}, "z": {"b": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' stands twice, in the lines 1 and 3"),
        ("a: {b: 1, b: 1}", "the key 'b' stands twice, in the lines 1 and 1"),
        ("- a: &x {b: 1}\n- c: {<<: *x, d: 1, d: 2}", "the key 'd' stands twice, in the lines 2 and 2"),
        ("a: 0\n<<<<<<< HEAD\nb: 1\n=======\nb: 2\n>>>>>>> x\n", "line 2: it is in a merge conflict"),
        ("- " * 5000 + "1", "it is nested too deeply"),
        ("a: !!timestamp x", "'NoneType' object has no attribute 'groupdict'"),
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
