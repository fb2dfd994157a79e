"""A Config as a Python file: config.py of a search; nas/files/readers/config_file.py reads it."""

import dataclasses
import pathlib
import pprint
import sys
import sysconfig
from typing import Any


def as_python(config: Any) -> str:
    """A Config as Python to be pasted into the VARIANTS of its family.

    A family in a file of the user's, outside any package, is imported from that file.

    >>> from families import mnasnet
    >>> print(as_python(mnasnet.VARIANTS["tiny"]).splitlines()[0])
    from families.mnasnet import Block, Config
    """
    module = type(config).__module__
    names = ", ".join(sorted(_types_in(config)))
    file = _file_of(module)
    load = ""
    if file is not None:
        load = f"from nas.registry import load_file\n\nload_file({str(file)!r})\n"
    return f"{load}from {module} import {names}\n\nconfig = {pprint.pformat(config, width=99)}\n"


def _types_in(thing: Any) -> set[str]:
    if isinstance(thing, tuple):
        return set().union(*map(_types_in, thing))
    if not dataclasses.is_dataclass(thing):
        return set()
    values = (getattr(thing, field.name) for field in dataclasses.fields(thing))
    return {type(thing).__name__}.union(*map(_types_in, values))


def _file_of(module: str) -> pathlib.Path | None:
    """The file of a module that is neither in a package nor installed."""
    path = getattr(sys.modules.get(module), "__file__", None)
    if "." in module or path is None:
        return None
    file = pathlib.Path(path).resolve()
    installed = [pathlib.Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "stdlib")]
    return None if any(file.is_relative_to(folder) for folder in installed) else file
