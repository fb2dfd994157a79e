"""The grammar of names, `name[:value][,key=value...]`, and calls with what it says."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Spec:
    """One parsed `name[:value][,key=value...]`; `attribute` is what is meant of a file or module.

    Where a file or module is followed by one value only, its author's names decide whether that is
    an attribute (`./boards.py:Board`) or a value (`./my_space.py:small`).
    """

    name: str
    value: Any = None
    options: tuple[tuple[str, Any], ...] = ()
    attribute: str | None = None

    def __str__(self) -> str:
        parts = [str(part) for part in (self.attribute, self.value) if part is not None]
        parts += [f"{key}={value}" for key, value in self.options]
        return self.name + (":" + ",".join(parts) if parts else "")


def parse(text: str) -> Spec:
    """The parts of a spec; values that read as Python literals become them.

    >>> parse("mnasnet:a1")
    Spec(name='mnasnet', value='a1', options=(), attribute=None)
    >>> parse("cpu:threads=1").options
    (('threads', 1),)
    >>> parse("./rounding.py:Tiny,0.2")
    Spec(name='./rounding.py', value=0.2, options=(), attribute='Tiny')
    """
    parts = _PARTS.fullmatch(text.strip())
    assert parts is not None  # it matches any text
    name, separator, rest = parts.groups()
    if not name or (separator and not rest):
        raise ValueError(f"cannot read {text!r}; expected name[:value][,key=value...]")
    values: list[Any] = []
    options: list[tuple[str, Any]] = []
    for part in rest.split(",") if rest else []:
        key, equals, option = part.partition("=")
        if equals and key.isidentifier():
            options.append((key, _literal(option)))
        elif not options and len(values) < (2 if is_outside(name) else 1):
            values.append(_literal(part))
        else:
            raise ValueError(f"cannot read {part!r} in {text!r}; expected key=value")
    attribute = values.pop(0) if len(values) == 2 else None
    if attribute is not None and not str(attribute).isidentifier():
        raise ValueError(f"cannot read {text!r}: {attribute!r} is no name of a class or function")
    return Spec(name, values[0] if values else None, tuple(options), attribute)


_PARTS = re.compile(r"([^:,]*)([:,]?)(.*)", re.DOTALL)


def _literal(text: str) -> Any:
    if text in ("true", "false"):  # as many write them; as texts both would count as true
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def is_outside(name: str) -> bool:
    """Whether a name is that of a file or a module rather than an entry's."""
    return name.endswith(".py") or "." in name


def accepts(function: Callable, options: dict[str, Any], name: str) -> dict[str, Any]:
    """The parameters of a function; `ValueError` for an option that it has not."""
    accepted = dict(inspect.signature(function).parameters)
    rest = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    others = [name for name, parameter in accepted.items() if parameter.kind == rest[1]]
    for other in [name for name, parameter in accepted.items() if parameter.kind in rest]:
        accepted.pop(other)  # **others are for what `function` calls in turn
    unknown = [key for key in options if key not in accepted and not others]
    if unknown:
        raise ValueError(
            f"{name} has no option {unknown[0]!r} (it has: {', '.join(accepted) or 'none'})"
        )
    return accepted


def call(function: Callable, named: Spec, **defaults: Any) -> Any:
    """Call `function` with the options of a spec, and with those `defaults` that it accepts."""
    accepted = accepts(function, dict(named.options), named.name)
    options = {key: value for key, value in defaults.items() if key in accepted}
    options.update(named.options)
    if named.value is not None:
        if not accepted:
            raise ValueError(f"{named.name} takes no value, but {named.value!r} was given")
        first = next(iter(accepted))
        if first in dict(named.options):
            raise ValueError(f"{named}: {first} is given twice, as {named.value!r} too")
        options[first] = named.value
    try:
        return function(**options)
    except TypeError as error:
        missing = [
            name
            for name, parameter in accepted.items()
            if parameter.default is parameter.empty and name not in options
        ]
        if missing:
            raise ValueError(
                f"{named.name} needs {missing[0]}: write {named.name}:VALUE"
            ) from error
        raise
