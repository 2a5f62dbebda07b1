"""Read YAML 1.2, as DVC does: PyYAML alone reads version 1.1, where 010 is 8, 1e-5 text and `no` false.

Not a dependency in DVC: the values reach DVC as params.
"""

import re
from pathlib import Path

import yaml

_TAG = "tag:yaml.org,2002:"
# Of the core schema, https://yaml.org/spec/1.2.2/#1032-tag-resolution: the tag, the text, how it may begin.
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),  # of version 1.1, which everybody kept
)
_CONFLICT = re.compile(r"^(<{7}|>{7})( |$)", re.MULTILINE)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    yaml_implicit_resolvers = {}  # noqa: RUF012, as PyYAML has it

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})$"), _first)
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_yaml_int)


def read(path: Path) -> object:
    """Read a YAML file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is no YAML, or has a key twice in one place; names the file and the line.
        OSError: it cannot be read.
    """
    try:
        return load(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def load(text: str) -> object:
    """Read one YAML document.

    Raises:
        ValueError: it is no YAML, or has a key twice in one place; names the line.
    """
    if conflict := _CONFLICT.search(text):
        raise ValueError(f"line {text.count(chr(10), 0, conflict.start()) + 1}: it is in a merge conflict")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _refuse_double_keys(node, set())
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (
        yaml.YAMLError,
        AttributeError,
        TypeError,
        KeyError,
    ) as error:
        raise ValueError(str(error)) from None  # not YAML's own of tags such as !!timestamp


def _refuse_double_keys(node: yaml.Node | None, seen: set[yaml.Node]) -> None:
    if node in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(node)
    lines = {}
    for child in node.value:
        key, value = child if isinstance(node, yaml.MappingNode) else (None, child)
        _refuse_double_keys(value, seen)
        if isinstance(key, yaml.ScalarNode):
            first, line = lines.get((key.tag, key.value)), key.start_mark.line + 1
            if first:
                raise ValueError(f"the key {key.value!r} stands twice, in the lines {first} and {line}")
            lines[key.tag, key.value] = line
