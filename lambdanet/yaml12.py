"""Read YAML as DVC does, by the same library: version 1.2, where 010 is 10, 1e-5 a number and `no` text.

Not a dependency in DVC: the values reach DVC as params.
"""

import re
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node

_CONFLICT = re.compile(r"^(<{7}|>{7})( |$)", re.MULTILINE)


def read(path: Path) -> object:
    """Read a YAML file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is no YAML, or has a key twice in one place; names the file and the line.
        OSError: it cannot be read.
    """
    try:
        return load(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None


def load(text: str) -> object:
    """Read one YAML document.

    Raises:
        ValueError: it is no YAML, or has a key twice in one place; names the line.
    """
    if conflict := _CONFLICT.search(text):
        raise ValueError(f"line {text.count(chr(10), 0, conflict.start()) + 1}: it is in a merge conflict")
    try:
        value = YAML(typ="safe").load(text)
        _check_keys(YAML(typ="safe").compose(text))
    except YAMLError as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(where + " ".join(str(getattr(error, "problem", error)).split())) from None
    return value


def _check_keys(root: Node | None) -> None:
    """Refuse a key that stands twice beside `<<`, or in what `<<` merges: ruamel.yaml takes the last one."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, CollectionNode) or node in seen:
            continue
        seen.add(node)
        if not isinstance(node, MappingNode):
            waiting += node.value
            continue
        keys = [(key.tag, key.value) for key, _ in node.value]
        for place, (key, value) in enumerate(node.value):
            if keys[place] in keys[:place]:
                raise ValueError(f'line {key.start_mark.line + 1}: found duplicate key "{key.value}"')
            waiting.append(value)
