"""Where names become objects: `name[:value][,key=value...]`, and the folder is the registry.

A name is looked up in this order: a file (`./my_board.py:Board,factor=2`), a module
(`my_package.boards:Board,factor=2`), an entry point of an installed package (groups `nas.families`,
`nas.spaces`, `nas.tasks`, `nas.targets`, `nas.controllers`, `nas.methods`, and `nas.layers` for
Keras layers that files name), a file of our own folder. An entry is imported only when it is named,
so that listing costs nothing, and to add an entry is to add a file.
"""

import dataclasses
import difflib
import functools
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import pathlib
import pkgutil
import sys
import traceback
import typing
from collections.abc import Callable
from types import ModuleType
from typing import Any

from nas.spec import Spec, accepts, call, is_outside, parse


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of thing that has names: our folder, the group of entry points, how it is defined.

    mark: the text that makes a module of the folder an entry. function: what a module of this kind
    offers under a fixed name; None where it is a class.
    """

    package: str
    group: str
    mark: str
    function: str | None = None

    def defined_in(self, source: str) -> bool:
        """Whether a module is an entry: the mark is in a definition, not in an example."""
        lines = (line for line in source.splitlines() if line.startswith(("def ", "class ")))
        return any(self.mark in line for line in lines)


KINDS = {
    "family": Kind("families", "nas.families", "def build(", "build"),
    "space": Kind("search_spaces", "nas.spaces", "def sample(", "sample"),
    "task": Kind("nas.tasks", "nas.tasks", "def load(", "load"),
    "target": Kind("latency", "nas.targets", "(Target)"),
    "controller": Kind("nas.controllers", "nas.controllers", "Sampler):"),
    "method": Kind("compress", "nas.methods", "(Method)"),
}
LAYERS = "nas.layers"  # entry points of modules that register Keras layers
OURS = {kind.package.partition(".")[0] for kind in KINDS.values()}  # packages


def listing(kind: str) -> dict[str, str]:
    """The names of a kind and the first line of each docstring, read without importing anything.

    Entry points of installed packages come first, with the name of their package.
    """
    found = {}
    for name, entry in _entry_points(KINDS[kind].group).items():
        line = _first_line(_source(entry.module))
        package = entry.dist.name if entry.dist is not None else entry.module
        found[name] = f"{line} [{package}]".lstrip()
    package = KINDS[kind].package
    # find_spec of a dotted name imports its parent: `nas` only, which is nearly empty.
    found_package = importlib.util.find_spec(package)
    assert found_package is not None and found_package.origin is not None
    folder = pathlib.Path(found_package.origin).parent
    for module in pkgutil.iter_modules([str(folder)]):
        source = (folder / f"{module.name}.py").read_text() if not module.ispkg else ""
        if KINDS[kind].defined_in(source):
            found.setdefault(module.name, _first_line(source))
    return found


_installed = functools.cache(importlib.metadata.entry_points)  # reads what all packages declare


def _entry_points(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in _installed().select(group=group)}


def _source(module: str) -> str:
    """The text of a module; neither it nor the packages that it is in are imported."""
    top, *parts = module.split(".")
    try:
        found = importlib.util.find_spec(top)
        for part in parts:
            folders = None if found is None else found.submodule_search_locations
            found = importlib.machinery.PathFinder.find_spec(part, folders or [])
        return pathlib.Path((found and found.origin) or "").read_text()
    except (ImportError, OSError, ValueError):
        return ""


def _first_line(source: str) -> str:
    text = source.lstrip()
    if not text.startswith('"""'):
        return ""
    return text[3:].splitlines()[0].removesuffix('"""').strip()


def known(kind: str, name: str) -> None:
    """Raise `ValueError`, with the names there are, unless `name` is one of a kind.

    >>> known("target", "cpy")
    Traceback (most recent call last):
    ValueError: no target 'cpy'; did you mean 'cpu'? (there is: android, cpu, gpu, ...)
    """
    if is_outside(name):
        if name.endswith(".py") and not pathlib.Path(name).expanduser().is_file():
            raise ValueError(f"no file {name}; expected a Python file with a {kind}")
        return
    names = listing(kind)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"no {kind} {name!r}{hint} (there is: {', '.join(names)}; or a file ./{name}.py)"
        )


def module(kind: str, name: str) -> ModuleType:
    """The module of `name`; `ValueError` with the names there are where there is none."""
    known(kind, name)
    if name.endswith(".py"):
        return load_file(name)
    if "." in name:
        return _imported(name)
    entry = _entry_points(KINDS[kind].group).get(name)
    return _imported(entry.module if entry is not None else f"{KINDS[kind].package}.{name}")


def load_file(path: str | pathlib.Path) -> ModuleType:
    """The module in a Python file, imported under the name of the file, from then on as any other.

    Its folder (of a file in a package: the one that the package is in) joins `sys.path`, so that it
    finds what lies beside it, and other processes find it. Raises `ValueError` where the file
    cannot be imported or another module has its name.
    """
    file = pathlib.Path(path).expanduser().resolve()
    if not file.is_file():
        raise ValueError(f"no file {path}")
    folder, name = file.parent, file.stem
    while (folder / "__init__.py").is_file():
        folder, name = folder.parent, f"{folder.name}.{name}"
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(
            f"{path}: {name!r} is no name of a module; rename the file, as my_board.py"
        )
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()
    loaded = sys.modules.get(name)
    origin = getattr(loaded, "__file__", None)
    if loaded is None:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # another package of the same name has no such module
            found = None
        origin = None if found is None else found.origin
    if origin is None or pathlib.Path(origin).resolve() != file:
        raise ValueError(f"{path}: there is another module {name!r} ({origin}); rename the file")
    return _imported(name)


def _imported(name: str) -> ModuleType:
    """`importlib.import_module`; `ValueError`, one line, where that fails in the user's code."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        if name.partition(".")[0] in OURS:
            raise
        frames = traceback.extract_tb(error.__traceback__)
        at = "" if len(frames) < 2 else f" ({frames[-1].filename}, line {frames[-1].lineno})"
        said = " ".join(str(error).split())
        raise ValueError(f"cannot import {name}: {type(error).__name__}: {said}{at}") from error


def import_layers(text: str) -> None:
    """Import what registers Keras layers, from a file or module: networks in files may name them.

    >>> import_layers("families.layers")
    """
    from latency.networks import keras_file

    found = load_file(text) if text.endswith(".py") else _imported(text)
    keras_file.register_layers(found.__name__)


def installed_layers() -> list[str]:
    """The modules of the entry points of the group `nas.layers`, which are not imported."""
    return [entry.module for entry in _entry_points(LAYERS).values()]


def network(text: str) -> tuple[Any, Any]:
    """(module, Config) of `family[:variant][,field=value...]`; without a variant, its first.

    Choose the Keras backend before (nas/backend.py): this imports the family.
    """
    family, build, named = _thing("family", text)
    variants = getattr(family, "VARIANTS", None)
    if build is not getattr(family, "build", None) or not (isinstance(variants, dict) and variants):
        raise ValueError(
            f"{text}: expected a module with Config, VARIANTS and build, and one of its VARIANTS"
        )
    variant = next(iter(variants)) if named.value is None else str(named.value)
    if variant not in variants:
        raise ValueError(
            f"{named.name} has no variant {variant!r} (there is: {', '.join(variants)})"
        )
    config, options = variants[variant], dict(named.options)
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


def space(text: str) -> tuple[Callable[[Any], Any], Any]:
    """(what makes a trial a Config, the Config it begins from) of `space[:base][,option=value...]`.

    The Config is None where the module has no `baseline`. Choose the Keras backend before
    (nas/backend.py): this imports the space's family.
    """
    entry, sample, named = _thing("space", text)
    base = {} if named.value is None else {"base": named.value}
    baseline = getattr(entry, "baseline", None)
    call = functools.partial(sample, **base | dict(named.options))
    accepts(sample, base | dict(named.options), named.name)
    return call, None if baseline is None else baseline(**base)


def target(text: str) -> Any:
    """A `latency.target.Target`, such as `cpu:threads=1`.

    Where a target is made of others, as `ray:android:SERIAL1+SERIAL2` is, the name of these comes
    first, then what tells one from the other, and they take the options that the outer one has not.

    >>> target("cpu:threads=1")
    CPU(threads=1)
    """
    _, make, named = _thing("target", text)
    accepted = inspect.signature(make).parameters
    first = next(iter(accepted.values()), None)
    if (
        first is not None
        and typing.get_args(first.annotation) == (_contract("target"), ...)
        and isinstance(named.value, str)
    ):
        others = [f",{name}={value}" for name, value in named.options if name not in accepted]
        own = tuple((name, value) for name, value in named.options if name in accepted)
        kind, colon, devices = named.value.partition(":")
        specs = (kind + colon + one + "".join(others) for one in devices.split("+"))
        named = dataclasses.replace(named, value=tuple(map(target, specs)), options=own)
    return call(make, named)


def target_class(name: str) -> type:
    """The class of a target by its name, such as "cpu"."""
    return _thing("target", name)[1]


def task(text: str, **options: Any) -> Any:
    """Load a task, such as `image_folder:photos,size=64`; `options` win over those in the text.

    Where a task is made of another one, as `routed:digits,size=8` is, the name of that comes first,
    and it takes the options that the outer one has not.
    """
    named = parse(text)
    given = dict(named.options) | options
    _, load, named = _thing("task", dataclasses.replace(named, options=tuple(given.items())))
    accepted = inspect.signature(load).parameters
    first = next(iter(accepted.values()), None)
    if first is not None and first.annotation is _task_class() and isinstance(named.value, str):
        others = {name: value for name, value in named.options if name not in accepted}
        own = tuple((name, value) for name, value in named.options if name in accepted)
        named = dataclasses.replace(named, value=task(named.value, **others), options=own)
    return call(load, named)


def _task_class() -> type:
    from nas.tasks.task import Task

    return Task


def controller(text: str, **options: Any) -> Any:
    """An `optuna.samplers.BaseSampler`, such as `ppo:lr=3e-4`; `options` it lacks are left out."""
    return _called("controller", text, **options)


def method(text: str) -> Any:
    """A `compress.method.Method`, such as `prune:0.8`.

    >>> method("prune:0.8").sparsity
    0.8
    """
    return _called("method", text)


def _called(kind: str, text: str | Spec, **defaults: Any) -> Any:
    _, thing, named = _thing(kind, text)
    return call(thing, named, **defaults)


def _thing(kind: str, text: str | Spec) -> tuple[ModuleType, Any, Spec]:
    """The module that a spec names, the function or class that is meant in it, and what is left."""
    named = parse(text) if isinstance(text, str) else text
    entry = module(kind, named.name)
    attribute = named.attribute
    if attribute is None and is_outside(named.name) and isinstance(named.value, str):
        if callable(getattr(entry, named.value, None)):
            attribute, named = named.value, dataclasses.replace(named, value=None)
        elif KINDS[kind].function is None:
            _not_misspelled(named, entry)
    elif attribute is None and not is_outside(named.name):
        installed = _entry_points(KINDS[kind].group).get(named.name)
        attribute = installed.attr or None if installed is not None else None
    if attribute is not None:
        if not callable(getattr(entry, attribute, None)):
            there = ", ".join(_defined(entry)) or "nothing"
            raise ValueError(
                f"{named.name} defines no {attribute!r}; expected a {kind} (it defines: {there})"
            )
        return entry, getattr(entry, attribute), named
    function = KINDS[kind].function
    if function is None:
        return entry, _public_subclass(entry, _contract(kind)), named
    if not callable(getattr(entry, function, None)):
        raise ValueError(f"{named.name} is no {kind}: expected a function {function} in it")
    return entry, getattr(entry, function), named


def _defined(entry: ModuleType) -> list[str]:
    """The public classes and functions that a module defines itself."""
    own = {name for name, thing in vars(entry).items() if _module_of(thing) == entry.__name__}
    return sorted(name for name in own if not name.startswith("_"))


def _module_of(thing: Any) -> Any:
    return getattr(thing, "__module__", None)


def _not_misspelled(named: Spec, entry: ModuleType) -> None:
    """`ValueError` where a value that names nothing in the module looks like a name that is."""
    close = difflib.get_close_matches(named.value, _defined(entry), n=1, cutoff=0.75)
    if close:
        raise ValueError(f"{named.name} defines no {named.value!r}; did you mean {close[0]!r}?")


def _contract(kind: str) -> type:
    if kind == "target":
        from latency.target import Target

        return Target
    if kind == "method":
        from compress.method import Method

        return Method
    import optuna

    return optuna.samplers.BaseSampler


def _public_subclass(entry: ModuleType, contract: type) -> type:
    found = {
        name: thing
        for name, thing in vars(entry).items()
        if inspect.isclass(thing)
        and issubclass(thing, contract)
        and thing.__module__ == entry.__name__
        and not name.startswith("_")
    }
    if len(found) != 1:
        there = ", ".join(found) or "none"
        raise ValueError(
            f"{entry.__name__} must define one public {contract.__name__}; it has {there}"
            + (f": name one, as {entry.__name__}:{next(iter(found))}" if found else "")
        )
    (thing,) = found.values()
    return thing
