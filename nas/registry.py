"""Where strings become objects: `name[:value][,key=value...]`, and the folder is the registry.

A package is listed with pkgutil and an entry is imported only when it is named, so listing costs
nothing and adding an entry is adding a file.
"""

import ast
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import pathlib
import pkgutil
from collections.abc import Callable
from typing import Any

PACKAGES = {
    "family": "families",
    "space": "search_spaces",
    "task": "nas.tasks",
    "target": "latency",
    "controller": "nas.controllers",
    "method": "compress",
}
# What makes a module of the folder an entry: the text that defines its public thing.
ENTRY_MARKS = {
    "family": "def build(",
    "space": "def sample(",
    "task": "def load(",
    "target": "(Target)",
    "controller": "Sampler):",
    "method": "(Method)",
}


@dataclasses.dataclass(frozen=True)
class Spec:
    """One parsed `name[:value][,key=value...]`."""

    name: str
    value: Any = None
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        parts = [] if self.value is None else [str(self.value)]
        parts += [f"{key}={value}" for key, value in self.options]
        return self.name + (":" + ",".join(parts) if parts else "")


def parse(text: str) -> Spec:
    """Parse a spec; values that read as Python literals become them.

    >>> parse("mnasnet:a1")
    Spec(name='mnasnet', value='a1', options=())
    >>> parse("cpu:threads=1")
    Spec(name='cpu', value=None, options=(('threads', 1),))
    """
    name, colon, rest = text.strip().partition(":")
    if not name or (colon and not rest):
        raise ValueError(f"cannot read {text!r}; expected name[:value][,key=value...]")
    value, options = None, []
    for position, part in enumerate(rest.split(",") if rest else []):
        key, equals, option = part.partition("=")
        if equals and key.isidentifier():
            options.append((key, _literal(option)))
        elif position == 0:
            value = _literal(part)
        else:
            raise ValueError(f"cannot read {part!r} in {text!r}; expected key=value")
    return Spec(name, value, tuple(options))


def _literal(text: str) -> Any:
    if text in ("true", "false"):  # as many write them; as texts both would count as true
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def listing(kind: str) -> dict[str, str]:
    """Names of a kind and the first line of each docstring, read without importing anything."""
    package = PACKAGES[kind]
    # find_spec of a dotted name imports its parent: `nas` only, which is empty.
    folder = pathlib.Path(importlib.util.find_spec(package).origin).parent
    found = {}
    for module in pkgutil.iter_modules([str(folder)]):
        source = (folder / f"{module.name}.py").read_text() if not module.ispkg else ""
        if ENTRY_MARKS[kind] in source:
            docstring = source.lstrip().removeprefix('"""')
            found[module.name] = docstring.splitlines()[0].removesuffix('"""').strip()
    return found


def known(kind: str, name: str) -> None:
    """Raise ValueError, with the names there are, unless `name` is one of them."""
    names = listing(kind)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no {kind} {name!r}{hint} (there is: {', '.join(names)})")


def module(kind: str, name: str):
    """Import the entry `name` of a kind; an unknown name raises ValueError with the known ones."""
    known(kind, name)
    return importlib.import_module(f"{PACKAGES[kind]}.{name}")


def network(text: str) -> tuple[Any, Any]:
    """(module, Config) of `family[:variant][,field=value...]`; without a variant, its first.

    Choose the Keras backend before (nas/backend.py): this imports the family.
    """
    named = parse(text)
    family = module("family", named.name)
    variant = next(iter(family.VARIANTS)) if named.value is None else str(named.value)
    if variant not in family.VARIANTS:
        there = ", ".join(family.VARIANTS)
        raise ValueError(f"{named.name} has no variant {variant!r} (there is: {there})")
    config, options = family.VARIANTS[variant], dict(named.options)
    fields = [field.name for field in dataclasses.fields(config)]
    for name in options:
        if name not in fields:
            raise ValueError(
                f"{named.name} has no field {name!r} (its Config has: {', '.join(fields)})"
            )
    try:
        return family, dataclasses.replace(config, **options)
    except TypeError as error:
        raise ValueError(f"{text}: {error}") from error


def space(text: str) -> tuple[Callable, Any]:
    """(what makes a trial a Config, the Config it surrounds) of `space[:base][,option=value...]`.

    Choose the Keras backend before (nas/backend.py): this imports the space's family.
    """
    named = parse(text)
    base = {} if named.value is None else {"base": named.value}
    entry = module("space", named.name)
    return functools.partial(entry.sample, **base | dict(named.options)), entry.baseline(**base)


def target(text: str):
    """A `latency.Target`, e.g. `cpu:threads=1`."""
    spec = parse(text)
    return _call(target_class(spec.name), spec)


def target_class(name: str) -> type:
    """The class of a target by its name, e.g. "cpu"."""
    from latency.target import Target

    return _public_subclass(module("target", name), Target)


def task(text: str, **options):
    """Load a task, e.g. `image_folder:photos,size=64`; `options` win over those in the text."""
    spec = parse(text)
    spec = dataclasses.replace(spec, options=tuple((dict(spec.options) | options).items()))
    return _call(module("task", spec.name).load, spec)


def controller(text: str, **options):
    """An `optuna.samplers.BaseSampler`, e.g. `ppo:lr=3e-4`; `options` it lacks are left out."""
    import optuna

    spec = parse(text)
    sampler = _public_subclass(module("controller", spec.name), optuna.samplers.BaseSampler)
    return _call(sampler, spec, **options)


def method(text: str):
    """A `compress.method.Method`, e.g. `prune:0.8`."""
    from compress.method import Method

    spec = parse(text)
    return _call(_public_subclass(module("method", spec.name), Method), spec)


def _public_subclass(entry, base: type) -> type:
    found = [
        thing
        for name, thing in vars(entry).items()
        if inspect.isclass(thing)
        and issubclass(thing, base)
        and thing.__module__ == entry.__name__
        and not name.startswith("_")
    ]
    if len(found) != 1:
        raise TypeError(f"{entry.__name__} must define one public {base.__name__}, not {found}")
    return found[0]


def _call(function: Callable, spec: Spec, **defaults):
    """Call `function` with the options of a spec, and with those `defaults` that it accepts."""
    accepted = dict(inspect.signature(function).parameters)
    kinds = {name: parameter.kind for name, parameter in accepted.items()}
    others = next((name for name in kinds if kinds[name] is inspect.Parameter.VAR_KEYWORD), None)
    accepted.pop(others, None)  # **others are for what `function` calls in turn
    unknown = [key for key, _ in spec.options if key not in accepted and others is None]
    if unknown:
        raise ValueError(
            f"{spec.name} has no option {unknown[0]!r} (it has: {', '.join(accepted) or 'none'})"
        )
    options = {key: value for key, value in defaults.items() if key in accepted}
    options.update(spec.options)
    if spec.value is not None:
        if not accepted:
            raise ValueError(f"{spec.name} takes no value, but {spec.value!r} was given")
        first = next(iter(accepted))
        options[first] = spec.value
    try:
        return function(**options)
    except TypeError as error:
        missing = [
            name
            for name, parameter in accepted.items()
            if parameter.default is parameter.empty and name not in options
        ]
        if missing:
            raise ValueError(f"{spec.name} needs {missing[0]}: write {spec.name}:VALUE") from error
        raise
