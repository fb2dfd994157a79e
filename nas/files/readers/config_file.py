"""A Config read back from the Python that a search writes (config.py); nothing of it is run."""

import ast
import dataclasses
import importlib
import importlib.util
import pathlib
import sys
from types import ModuleType
from typing import Any

EXPECTED = "expected what a search writes: from FAMILY import ..., then config = Config(...)"


def read(path: pathlib.Path, *, methods: bool = True) -> Any:
    """The Config in a file, or in the config.py of a search's folder.

    methods: whether it may be that of a compressed network, whose methods follow it. Raises
    `ValueError`, one line, where it holds anything else. Imports the family: choose the Keras
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
    nodes = [node for node in tree.body if not _is_docstring(node)]
    if len(nodes) > 3 and _loads_file(nodes[:2]):  # of a family that is in no package
        nodes = nodes[2:]
    match nodes[:2] if methods and _assigns_methods(nodes[2:]) else nodes:
        case [
            ast.ImportFrom(module=str(module), level=0),
            ast.Assign(targets=[ast.Name(id="config")], value=value),
        ]:
            pass
        case _:
            raise ValueError(f"{file}: {EXPECTED}")
    try:
        family = family_module(module)
        config = _value(value, family)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(config, family.Config):
        raise ValueError(f"{file}: {EXPECTED}")
    return config


def parse(text: str, family: ModuleType) -> Any:
    """The Config of a family that its repr describes; `ValueError` of another text.

    >>> from families import mnasnet
    >>> tiny = mnasnet.VARIANTS["tiny"]
    >>> parse(repr(tiny), mnasnet) == tiny
    True
    """
    return _value(ast.parse(text.strip(), mode="eval").body, family)


def family_module(name: str) -> ModuleType:
    """The module of a family, by its full name, or by the last part of it where it is one of ours.

    Only a module that is imported already, or whose source defines a family, is taken: files do not
    choose what code runs.

    >>> family_module("mnasnet").__name__
    'families.mnasnet'
    """
    for full in (name, f"families.{name}"):
        found = sys.modules.get(full)
        if found is None and _defines_a_family(full):
            found = importlib.import_module(full)
        config = getattr(found, "Config", None)
        if found is not None and hasattr(found, "build") and dataclasses.is_dataclass(config):
            return found
    raise ValueError(
        f"there is no family {name!r}; where it is a file of yours, name that: --import FILE.py"
    )


def _defines_a_family(module: str) -> bool:
    try:
        found = importlib.util.find_spec(module)
        source = pathlib.Path(found.origin or "").read_text() if found is not None else ""
    except (ImportError, OSError, UnicodeDecodeError, ValueError):
        return False
    return "\ndef build(" in source and "\nclass Config" in source


def _loads_file(nodes: list[ast.stmt]) -> bool:
    """Whether these are the lines that load a family from its file, before it is imported."""
    match nodes:
        case [ast.ImportFrom(module="nas.registry"), ast.Expr(ast.Call(ast.Name("load_file")))]:
            return True
    return False


def _assigns_methods(nodes: list[ast.stmt]) -> bool:
    match nodes:
        case [ast.Assign(targets=[ast.Name(id="methods")])]:
            return True
    return False


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _value(node: ast.expr, family: ModuleType) -> Any:
    """A literal, or a call of one of the family's dataclasses with such arguments."""
    if isinstance(node, ast.Tuple):
        return tuple(_value(part, family) for part in node.elts)
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    kind = getattr(family, node.func.id, None) if isinstance(node.func, ast.Name) else None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ValueError(f"cannot read {ast.unparse(node.func)}(...); {EXPECTED}")
    named = {one.arg: _value(one.value, family) for one in node.keywords if one.arg is not None}
    if len(named) < len(node.keywords):  # **others
        raise ValueError(EXPECTED)
    return kind(*(_value(part, family) for part in node.args), **named)
