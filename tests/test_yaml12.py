import pytest

from lambdanet import yaml12


@pytest.mark.parametrize(("text", "value"), [
    ("010", 10), ("0o17", 15), ("2e-05", 2e-05), (".5", 0.5), ("-.inf", float("-inf")), ("TRUE", True),
    ("~", None), ("", None), ("yes", "yes"), ("off", "off"), ("1:30", "1:30"), ("'010'", "010"),
])  # fmt: skip
def test_a_value_is_what_yaml_1_2_says(text, value):
    found = yaml12.load(f"a: {text}")["a"]
    assert (type(found), found) == (type(value), value)


def test_merged_keys_give_way_to_those_that_stand_there():
    text = "x: &x {b: 1, c: 1}\ny: &y {<<: *x, b: 2}\nz: {<<: [*y], c: 3}\n"
    assert yaml12.load(text) == {"x": {"b": 1, "c": 1}, "y": {"b": 2, "c": 1}, "z": {"b": 2, "c": 3}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", '^line 3: found duplicate key "a"'),
        ("a: &a {b: 1}\nc: {<<: *a, d: 1,\n  d: 2}", '^line 3: found duplicate key "d"$'),
        ("a:\n- {<<: &a {b: 1, b: 2}, c: 3}", '^line 2: found duplicate key "b"$'),
        ("a: 0\n<<<<<<< HEAD\nb: 1\n=======\nb: 2\n>>>>>>> x\n", "^line 2: it is in a merge conflict$"),
        ("a: {b: 1\n", "^line 2: did not find expected"),
        ("a: !!timestamp x", "^line 1: failed to construct timestamp"),
        ("a: !!python/object/apply:os.system [ls]", "^line 1: could not determine a constructor for the tag"),
        ("a: 1\n---\nb: 2", "^line 2: but found another document"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("a: \x07", "special characters are not allowed|control characters"),
    ],
)
def test_what_is_not_valid_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        yaml12.load(text)
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xef\xbb\xbfepochs: 010\n")
    assert yaml12.read(path) == {"epochs": 10}
    path.write_bytes("epochs: 1\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"params.yaml is not valid YAML: 'utf-8' codec can't decode"):
        yaml12.read(path)
