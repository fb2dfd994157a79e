"""A Config read back from the Python that a search writes (config.py); nothing of it is run."""

import ast
import dataclasses
import pathlib
from typing import Any

from nas import registry

EXPECTED = (
    "expected what a search writes: from families.FAMILY import ..., then config = Config(...)"
)


def read(path: pathlib.Path) -> Any:
    """The Config in a file, or in the config.py of a search's folder.

    Raises `ValueError`, one line, where it holds anything else. Loads the family: choose the Keras
    backend before.
    """
    file = path
    if path.is_dir():
        file = path / "config.py"
        if not file.is_file():
            raise ValueError(f"{path} has no config.py: expected the folder of a finished search")
    if file.name == "result.json":
        file = file.with_name("config.py")
    try:
        tree = ast.parse(file.read_text())
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {error}; {EXPECTED}") from error
    match [node for node in tree.body if not _is_docstring(node)]:
        case [
            ast.ImportFrom(module=str(module), level=0),
            ast.Assign(targets=[ast.Name(id="config")], value=value),
        ] if module.startswith("families."):
            family = registry.module("family", module.removeprefix("families."))
        case _:
            raise ValueError(f"{file}: {EXPECTED}")
    try:
        config = _value(value, family)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(config, family.Config):
        raise ValueError(f"{file}: {EXPECTED}")
    return config


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _value(node: ast.expr, family: Any) -> Any:
    """A literal, or a call of one of the family's dataclasses with such arguments."""
    if isinstance(node, ast.Tuple):
        return tuple(_value(part, family) for part in node.elts)
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    kind = getattr(family, node.func.id, None) if isinstance(node.func, ast.Name) else None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ValueError(f"cannot read {ast.unparse(node.func)}(...); {EXPECTED}")
    named = {keyword.arg: _value(keyword.value, family) for keyword in node.keywords}
    if None in named:
        raise ValueError(EXPECTED)
    return kind(*(_value(part, family) for part in node.args), **named)
