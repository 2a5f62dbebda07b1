"""Read YAML as DVC does, by the same library: version 1.2, where 010 is 10, 1e-5 a number and `no` text.

Not a dependency in DVC: the values reach DVC as params.
"""

import re
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

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
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(where + " ".join(str(getattr(error, "problem", error)).split())) from None
