"""Which names a registry in the source has, and what they take, without the seconds that torch takes to load.

Not a dependency in DVC: it only refuses what `create_model` or `create_noise` would refuse.
"""

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Signature:
    """What a registered name stands for.

    Attributes:
        file: where it is defined, relative to the package, such as `models/dncnn.py`.
        parameters: the keyword arguments that it takes, by name.
    """

    file: str
    parameters: tuple[str, ...]


def models() -> dict[str, Signature]:
    """The registry `MODELS` of `lambdanet.models`."""
    return _registry(PACKAGE / "models" / "__init__.py", "MODELS")


def noises() -> dict[str, Signature]:
    """The registry `NOISES` of `lambdanet.data.noise`."""
    return _registry(PACKAGE / "data/noise.py", "NOISES")


@functools.cache
def _registry(path: Path, variable: str) -> dict[str, Signature]:
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and node.target.id == variable
        ):
            items = zip(node.value.keys, node.value.values, strict=True)
            return {key.value: _definition(path, tree, value.id) for key, value in items}
    raise AssertionError(f"{path} has no {variable}")


def _definition(path: Path, tree: ast.Module, name: str) -> Signature:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            module = PACKAGE.parent.joinpath(*node.module.split("."))
            file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
            return _definition(file, ast.parse(file.read_text()), name)
        if isinstance(node, ast.ClassDef) and node.name == name:
            (node,) = (each for each in node.body if getattr(each, "name", "") == "__init__")
            taken = [*node.args.args[1:], *node.args.kwonlyargs]
            return Signature(path.relative_to(PACKAGE).as_posix(), tuple(each.arg for each in taken))
        if isinstance(node, ast.FunctionDef) and node.name == name:
            taken = tuple(each.arg for each in node.args.kwonlyargs)
            return Signature(path.relative_to(PACKAGE).as_posix(), taken)
    raise AssertionError(f"{path} does not define {name}")
