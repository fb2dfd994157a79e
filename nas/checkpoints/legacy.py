"""Networks as Keras 2 described them, in .h5 files and SavedModels: JSON of layers, no code.

What Keras 3 does not take of it is brought to its form, or refused in one line.
"""

import importlib
import json
from typing import Any

from latency import keras_file

CODE = {"Lambda", "__lambda__", "function"}
OPERATIONS = {"TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"}
GROUPED = {"Conv1D", "Conv2D", "Conv3D", "Convolution1D", "Convolution2D", "Convolution3D"}
# What Keras 2 said of layers and Keras 3 does not, with the values that mean what 3 does anyway.
GONE = {
    "time_major": (False,),
    "ragged": (False, None),
    "renorm": (False,),
    "fused": (None, True, False),
    "virtual_batch_size": (None,),
    "query_shape": None,  # None: any value; of attention, known again when it is called
    "key_shape": None,
    "value_shape": None,
}
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
    if kind in OPERATIONS:
        function = value["config"].get("function", kind) if "config" in value else kind
        raise ValueError(
            f"{source}: {_name(value)!r} is the TensorFlow operation {function}, which Keras 3 has "
            "not; use a layer for it (keras.layers.Add, ReLU, Rescaling, ...)"
        )
    module = value.get("module")
    if isinstance(module, str) and not _known(module):
        raise ValueError(f"{source}: {_name(value)!r} is of module {module!r}, not of Keras")
    if kind in ("__tuple__", "TensorShape") and "items" in value:
        return _modern(value["items"], source)
    return {name: _modern(one, source) for name, one in _kept(value, kind, source).items()}


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
    for name, equal in GONE.items():
        if name in config and (equal is None or config[name] in equal):
            del config[name]
    axis = config.get("axis")
    if isinstance(axis, dict):  # a tuple, or a list that was tracked
        axis = config["axis"] = axis.get("items", axis.get("config"))
    if isinstance(axis, list) and len(axis) > 1 and "module" not in value:
        raise ValueError(f"{source}: {_name(value)!r} has several axes {axis}; Keras 3 takes one")
    return value | {"config": config}


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
    return _built(config, source)


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
