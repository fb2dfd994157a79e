"""Flags from the fields of a dataclass: its metadata says what each is for."""

import argparse
import dataclasses
import types
import typing
from typing import Any


def add(
    parser: Any, kind: type, *, leave_out: tuple[str, ...] = (), defaults: bool = False
) -> None:
    """One flag for each field of `kind` that has "help" in its metadata.

    parser: of argparse, or a group of its flags. leave_out: names of fields. defaults: let an
    absent flag give the field's default; else it gives None, which `given` drops.

    >>> @dataclasses.dataclass
    ... class Options:
    ...     size: int = dataclasses.field(default=3, metadata={"help": "of what is made"})
    >>> parser = argparse.ArgumentParser()
    >>> add(parser, Options)
    >>> given(parser.parse_args(["--size", "4"]), Options)
    {'size': 4}
    """
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if "help" not in field.metadata or field.name in leave_out:
            continue
        name = "--" + field.name.replace("_", "-")
        text = field.metadata["help"]
        default = field.default if defaults else None
        hint = hints[field.name]
        if hint is bool:
            parser.add_argument(name, action="store_true", default=default, help=text)
        else:
            options = {name: field.metadata[name] for name in _PASSED if name in field.metadata}
            parser.add_argument(name, type=_type(hint), default=default, help=text, **options)


_PASSED = ("choices", "metavar")  # what metadata may hold beside help, as argparse takes it


def _type(hint: Any) -> type:
    """What makes the text of a flag a value: of an optional type, what it is where it is given."""
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return hint


def given(arguments: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The fields of `kind` that flags gave a value."""
    found = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(kind)}
    return {name: value for name, value in found.items() if value is not None}
