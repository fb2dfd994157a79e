"""From a Config to its network: the model, the form that runs on a device, its key."""

import dataclasses
import functools
import hashlib
import pathlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from nas import registry


def key(config: Any) -> str:
    """Name of a network: equal configs, equal networks, equal keys.

    It changes with the code of a family that is not in our package: see `identity_of`.
    """
    return digest(f"{type(config).__module__}.{identity_of(config)}")


def digest(text: str) -> str:
    """A short name for what a text says."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity_of(thing: Any) -> str:
    """The repr of a Config, method or target; with a digest of its source where it is not ours.

    Caches and checkpoints go by it: what was computed by a file of the user's that was edited since
    is computed anew.

    >>> from latency.cpu import CPU
    >>> identity_of(CPU(threads=1))
    'CPU(threads=1)'
    """
    source = source_digest(type(thing))  # type: ignore[arg-type]
    return f"{thing!r} source={source}" if source else repr(thing)


@functools.cache
def source_digest(kind: type) -> str:
    """A digest of the module of a class and of what it imports from beside it; "" for ours.

    Beside it: of the same package, or in the same folder where it is in no package. Read once, when
    it is asked for first.
    """
    found: dict[str, bytes] = {}
    ahead = [kind.__module__]
    while ahead:
        name = ahead.pop()
        module = sys.modules.get(name)
        if name in found or not _beside(name, kind.__module__):
            continue
        assert module is not None
        found[name] = pathlib.Path(str(module.__file__)).read_bytes()
        for value in vars(module).values():
            owner = value.__name__ if isinstance(value, ModuleType) else _module_of(value)
            ahead.append(owner)
    parts = [name.encode() + b"\0" + source for name, source in sorted(found.items())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16] if parts else ""


def _module_of(value: Any) -> str:
    name = getattr(value, "__module__", None)
    return name if isinstance(name, str) else ""


def _beside(name: str, first: str) -> bool:
    """Whether a module is in the user's package or folder that module `first` is in."""
    top = name.partition(".")[0]
    files = [getattr(sys.modules.get(one), "__file__", None) for one in (name, first)]
    if top in registry.OURS or None in files:
        return False
    if top == first.partition(".")[0]:
        return True
    folders = {pathlib.Path(str(file)).parent for file in files}
    return "." not in name + first and len(folders) == 1


def build(config: Any, seed: int | None = None) -> Any:
    """The `keras.Model` of a family's Config, weights drawn from `seed`, or from one of its own."""
    import keras

    if seed is None:  # of the Config alone: the edit of a comment draws no other weights
        seed = int(digest(f"{type(config).__module__}.{config!r}")[:7], 16)
    keras.utils.set_random_seed(seed)
    return sys.modules[type(config).__module__].build(config)


def deploy(config: Any) -> Any:
    """The Config of the form that runs on a device: by the family's `deploy`, else as it is."""
    family = sys.modules[type(config).__module__]
    return family.deploy(config) if hasattr(family, "deploy") else config


def deployed(model: Any, config: Any) -> Any:
    """The form of a trained network that runs on a device, with its weights."""
    form = deploy(config)
    if form == config:
        return model
    from families.layers import copy_weights

    built = build(form)
    copy_weights(model, built)
    return built


def for_task(config: Any, fields: Mapping[str, Any], task: str) -> Any:
    """A Config with the fields that the data of a task decides; `ValueError` where it lacks one.

    >>> from families import mnasnet
    >>> for_task(mnasnet.VARIANTS["tiny"], {"classes": 7}, "mine").classes
    7
    """
    has = [field.name for field in dataclasses.fields(config)]
    lacking = sorted(fields.keys() - set(has))
    if lacking:
        family = type(config).__module__.rpartition(".")[2]
        raise ValueError(
            f"{family} networks cannot take task {task}: it decides {', '.join(sorted(fields))},"
            f" and their Config has no {', '.join(lacking)} (it has {', '.join(has)})"
        )
    return dataclasses.replace(config, **fields)


def check_importable(config: Any) -> None:
    """`ValueError` where no other program could import the class of a Config."""
    module = type(config).__module__
    if module == "__main__":
        name = type(config).__name__
        raise ValueError(
            f"{name} is defined in the script or notebook itself, from where config.py of what is"
            f" found could not import it: put {name} and build into a file, as my_family.py, and"
            f" import {name} from it"
        )


def name_of(config: Any) -> str:
    """What a network of a search is called where its figures are listed."""
    return f"{type(config).__module__.rpartition('.')[2]}:{key(config)}"


def at_other_size(config: Any, trained_config: Any, model: Any) -> Any:
    """The trained network at the size it is deployed at, on which its weights do not depend."""
    if config == trained_config:
        return model
    from families.layers import copy_weights

    resized = build(config)
    copy_weights(model, resized)
    return resized


def digest_of(model: Any) -> str:
    """A short name for a `keras.Model`: its architecture and its weights."""
    found = hashlib.sha256(model.to_json().encode())
    for array in model.get_weights():
        found.update(array.tobytes())
    return found.hexdigest()[:16]
