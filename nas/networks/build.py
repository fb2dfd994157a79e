"""From a Config to its network: the model, the form that runs on a device, its key."""

import dataclasses
import hashlib
import sys
from typing import Any


def key(config: Any) -> str:
    """Name of a network: equal configs, equal networks, equal keys."""
    return digest(f"{type(config).__module__}.{config!r}")


def digest(text: str) -> str:
    """A short name for what a text says."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build(config: Any, seed: int | None = None):
    """The `keras.Model` of a family's Config, weights drawn from `seed`, or from one of its own."""
    import keras

    keras.utils.set_random_seed(int(key(config)[:7], 16) if seed is None else seed)
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


def suited(config: Any, fields: dict[str, Any], task: str) -> Any:
    """A Config with the fields that the data of a task decides; `ValueError` where it lacks one."""
    has = [field.name for field in dataclasses.fields(config)]
    lacking = sorted(fields.keys() - set(has))
    if lacking:
        family = type(config).__module__.rpartition(".")[2]
        raise ValueError(
            f"{family} networks cannot take task {task}: it decides {', '.join(sorted(fields))},"
            f" and their Config has no {', '.join(lacking)} (it has {', '.join(has)})"
        )
    return dataclasses.replace(config, **fields)


def name_of(config: Any) -> str:
    """What a network of a search is called where its figures are listed."""
    return f"{type(config).__module__.rpartition('.')[2]}:{key(config)}"


def at_other_size(config: Any, trained_config: Any, model):
    """The trained network at the size it is deployed at, on which its weights do not depend."""
    if config == trained_config:
        return model
    from families.layers import copy_weights

    resized = build(config)
    copy_weights(model, resized)
    return resized
