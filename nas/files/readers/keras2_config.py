"""Networks as Keras 2 described them, in .h5 files and SavedModels: JSON of layers, no code.

What Keras 3 does not take of it is brought to its form, or refused in one line.
"""

import importlib
import inspect
import json
from typing import Any

from latency.networks import keras_file
from nas.files.readers import keras2_operations

CODE = {"Lambda", "__lambda__", "function"}
GROUPED = {"Conv1D", "Conv2D", "Conv3D", "Convolution1D", "Convolution2D", "Convolution3D"}
# What Keras 2 said of layers and Keras 3 knows by itself or has not, with the harmless values;
# None: any.
GONE = {
    "fused": (True, False),
    "query_shape": None,
    "key_shape": None,
    "value_shape": None,
}
INNER = {"layer", "backward_layer", "cell"}  # layers in layers, which Keras 3 finds by module
# What every layer takes, and what Keras 3's reader of old files takes out.
COMMON = {"name", "trainable", "dtype", "activity_regularizer", "autocast", "axis"}
_CONFIG_MB = 100


def parsed(text: str | bytes, source: str) -> dict[str, Any]:
    """The description of a network, looked at; `ValueError` where it is none or holds code."""
    if len(text) > _CONFIG_MB * 2**20:
        raise ValueError(f"{source}: an architecture of more than {_CONFIG_MB} MB")
    try:
        config = _modern(json.loads(text), source)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{source}: its architecture cannot be read: {error}") from None
    if not isinstance(config, dict) or not {"class_name", "config"} <= config.keys():
        raise ValueError(f"{source}: its architecture is no description of a Keras network")
    return config


def _modern(value: Any, source: str) -> Any:
    """The same for Keras 3."""
    if isinstance(value, list):
        return [_modern(one, source) for one in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("class_name")
    if kind in CODE:
        raise ValueError(
            f"{source}: layer {_name(value)!r} is Python code ({kind}), which is never run; build "
            "the network with a layer of a class of its own"
        )
    module = value.get("module")
    if isinstance(module, str) and not _known(module):
        raise ValueError(f"{source}: {_name(value)!r} is of module {module!r}, not of Keras")
    if isinstance(module, str) and module.startswith("tf_keras"):
        value = {n: one for n, one in value.items() if n not in ("module", "registered_name")}
    value = {n: one for n, one in value.items() if n != "build_config"}
    if kind in ("__tuple__", "TensorShape") and "items" in value:
        return _modern(value["items"], source)
    if kind in keras2_operations.MODELS and isinstance(config := value.get("config"), dict):
        layers = config.get("layers")
        if isinstance(layers, list) and all(isinstance(one, dict) for one in layers):
            if all("inbound_nodes" in one for one in layers):
                config = keras2_operations.plain(_untupled(config), source)
            value = value | {"config": config}
    return {name: _modern(one, source) for name, one in _kept(value, kind, source).items()}


def _untupled(value: Any) -> Any:
    """The same with lists for tuples."""
    if isinstance(value, list):
        return [_untupled(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") == "__tuple__" and "items" in value:
        return _untupled(value["items"])
    return {name: _untupled(one) for name, one in value.items()}


def _kept(value: dict, kind: Any, source: str) -> dict:
    """A description of one thing, without what Keras 3 has no more."""
    config = value.get("config")
    if not isinstance(kind, str) or not isinstance(config, dict):
        return value
    config = {
        # All weights are read: how they began says nothing, in words that have changed.
        name: one
        for name, one in config.items()
        if not name.endswith("_initializer")
    }
    dtype = config.get("dtype")
    if isinstance(dtype, dict):
        dtype = dtype.get("config", {}).get("name")
    if dtype is not None:
        config["dtype"] = str(dtype).removeprefix("mixed_")
        if "float16" in config["dtype"]:  # computed in it; the weights are float32
            config["dtype"] = "float32"
    if kind not in GROUPED and config.get("groups") == 1 and "Normalization" not in kind:
        del config["groups"]
    known = _options(kind)
    for name in list(config):
        if known is None or name in known:
            continue
        if config[name] in (None, False) or (name in GONE and _any(GONE[name], config[name])):
            del config[name]
    if isinstance(config.get("name"), str):
        config["name"] = keras2_operations.named(config["name"])
    for name in INNER & config.keys():
        inner = config[name]
        if isinstance(inner, dict) and "module" not in inner and _options(inner.get("class_name")):
            config[name] = inner | {"module": "keras.layers", "registered_name": None}
    axis = config.get("axis")
    if isinstance(axis, dict):  # a tuple, or a list that was tracked
        axis = config["axis"] = axis.get("items", axis.get("config"))
    if isinstance(axis, list) and len(axis) > 1 and "module" not in value:
        raise ValueError(f"{source}: {_name(value)!r} has several axes {axis}; Keras 3 takes one")
    return value | {"config": config}


def _any(values: tuple | None, value: Any) -> bool:
    return values is None or value in values


def _options(kind: Any) -> set[str] | None:
    """What a layer class of Keras 3 takes; None where it is no such class."""
    import keras

    layer = getattr(keras.layers, str(kind), None)
    if not inspect.isclass(layer):
        return None
    methods = [vars(one)["__init__"] for one in layer.__mro__ if "__init__" in vars(one)]
    names = {name for method in methods for name in inspect.signature(method).parameters}
    return names | COMMON


def _known(module: str) -> bool:
    """Whether files may name what is in this module."""
    own = {name.split(".")[0] for name in keras_file.registered()}
    return module.split(".")[0] in {"keras", "builtins", "tf_keras", *own}


def _name(value: dict) -> str:
    config = value.get("config")
    return str(value.get("name") or (isinstance(config, dict) and config.get("name")) or "?")[:80]


def built(config: dict[str, Any], stored: int, source: str) -> Any:
    """The `keras.Model` of a description; `stored` numbers are there to fill it."""
    from families.layers.shapes import shapes_only

    with shapes_only():
        params = _built(config, source).count_params()
    if params > stored:
        raise ValueError(f"{source}: its layers have {params:,} weights, the file {stored:,}")
    return _bare(_built(config, source))


def _built(config: dict[str, Any], source: str) -> Any:
    import copy

    from keras.src.legacy.saving import saving_utils
    from keras.src.saving import serialization_lib

    for module in keras_file.registered():
        importlib.import_module(module)
    try:
        with serialization_lib.SafeModeScope(True):
            model = saving_utils.model_from_config(copy.deepcopy(config))  # it takes things out
    except Exception as error:  # whatever a damaged or foreign description makes Keras raise
        raise ValueError(f"{source}: Keras cannot build it: {keras_file.cause(error)}") from error
    if not getattr(model, "built", False) or not hasattr(model, "layers"):
        raise ValueError(f"{source}: it holds no network of known input shape")
    return model


def _bare(model: Any) -> Any:
    """The same network with its one input not in a list of one, as Keras 2 had it."""
    import keras

    if isinstance(model, keras.Sequential):
        return model
    lists = [isinstance(side, list) and len(side) == 1 for side in (model.input, model.output)]
    if not any(lists):
        return model
    sides = [
        side[0] if alone else side
        for side, alone in zip((model.input, model.output), lists, strict=True)
    ]
    return keras.Model(*sides, name=model.name)
