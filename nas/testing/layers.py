"""The contract of a leaf layer, and of the methods by which it says what only it knows."""

import inspect
from typing import Any

import keras
import numpy as np

from compress.channels.channel_graph import Channels
from compress.channels.layer_rules import rule
from compress.rewriting.graph import own_method
from compress.rewriting.weights import KINDS
from latency.tflite import convert
from latency.tflite.signature import names
from nas.testing.expectations import (
    as_trained,
    expect,
    expect_close,
    expect_flat,
    expect_saved,
    outputs,
)

_OF_KERAS = {"self", "args", "kwargs", "name", "dtype", "trainable", "activity_regularizer"}


def check_layer(layer: Any, *inputs: Any) -> None:
    """What every leaf holds: registered, saved with all its options, true to its own methods.

    inputs: arrays that the layer is called with, two or more examples each; their integers are
    taken as they are.

    Where it defines `macs`, `kernels`, `channels` or `litert` (families/layers/__init__.py), these
    have the form that is asked of them, and the LiteRT file computes what the layer does. Raises
    `AssertionError` at the first promise that is not kept.

    >>> from families.layers import Fusion
    >>> check_layer(Fusion(), np.ones((2, 4, 8), "float32"), np.ones((2, 4, 8), "float32"))
    """
    kind = type(layer)
    name = kind.__name__
    registered = keras.saving.get_custom_objects()
    expect(
        kind in registered.values() or kind.__module__.startswith("keras."),
        f"{name} is not registered: put @keras.saving.register_keras_serializable('mine') on it",
    )
    expect(kind.__module__ != "__main__", f"{name} is defined in a script; put it into a file")
    config = _check_config(layer, name)
    fresh = kind.from_config(config)
    tensors = [keras.Input(one.shape[1:], dtype=str(one.dtype)) for one in inputs]
    model = keras.Model(tensors, fresh(*_arguments(fresh, tensors)))
    expect_flat(model, name)
    as_trained(model)
    arrays = [np.asarray(one) for one in inputs]
    found = outputs(model, arrays)
    factor = getattr(layer, "batch_factor", 1)
    for symbolic, output in zip(model.outputs, found, strict=True):
        batch = symbolic.shape[0] or round(len(arrays[0]) * factor)
        shape = (batch, *symbolic.shape[1:])
        fits = len(shape) == output.ndim and all(
            said in (None, real) for said, real in zip(shape, output.shape, strict=True)
        )
        expect(fits, f"{name}: compute_output_shape says {shape}, call gives {output.shape}")
    expect_saved(model, arrays, name)
    node = fresh._inbound_nodes[-1]
    _check_macs(fresh, node, name)
    _check_kernels(fresh, name)
    _check_channels(fresh, model, name)
    if own_method(fresh, "litert") is not None and factor >= 1:  # a file takes one example
        _check_litert(model, arrays, found, name, factor)


def _arguments(layer: Any, tensors: list[Any]) -> list[Any]:
    """What `call` takes: each tensor as an argument, or all of them as one list."""
    kinds = [one.kind for one in inspect.signature(layer.call).parameters.values()]
    places = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    variadic = inspect.Parameter.VAR_POSITIONAL in kinds
    return tensors if variadic or places >= len(tensors) else [tensors]


def _check_config(layer: Any, name: str) -> dict[str, Any]:
    config = layer.get_config()
    options = {
        parameter
        for owner in type(layer).__mro__
        if not owner.__module__.startswith("keras.") and "__init__" in vars(owner)
        for parameter in inspect.signature(vars(owner)["__init__"]).parameters
    }
    lost = sorted(options - _OF_KERAS - set(config))
    expect(not lost, f"{name}: get_config lacks {', '.join(lost)}: a file of it loses them")
    again = type(layer).from_config(config).get_config()
    changed = sorted(key for key in config if again.get(key) != config[key])
    expect(not changed, f"{name}: from_config(get_config()) changes {', '.join(changed)}")
    return config


def _check_macs(layer: Any, node: Any, name: str) -> None:
    macs = own_method(layer, "macs") or getattr(layer, "macs", None)
    if not callable(macs):
        return
    shapes = [tuple(size or 1 for size in tensor.shape) for tensor in node.input_tensors]
    found = macs(*shapes)
    expect(
        isinstance(found, (int, np.integer)) and found >= 0,
        f"{name}.macs{tuple(shapes)} gave {found!r}; expected a whole number of multiply-adds",
    )


def _check_kernels(layer: Any, name: str) -> None:
    kernels = own_method(layer, "kernels")
    if kernels is None:
        return
    for weight, row in kernels().items():
        variable = getattr(layer, weight, layer)
        if variable is None:  # with other options the layer has it
            continue
        known = any(variable is one for one in layer.weights)
        expect(known, f"{name}.kernels names {weight!r}, which is no weight of the layer")
        kind, output, axes = row
        expect(kind in KINDS, f"{name}.kernels: kind {kind!r}; expected one of {', '.join(KINDS)}")
        rank = len(variable.shape)
        sound = all(isinstance(axis, int) and -rank <= axis < rank for axis in (output, *axes))
        expect(
            sound and output % rank not in {axis % rank for axis in axes} and axes,
            f"{name}.kernels: {weight!r} {tuple(variable.shape)} with output axis {output} and"
            f" input axes {axes}; expected axes of it, the output's not among the inputs'",
        )


def _check_channels(layer: Any, model: Any, name: str) -> None:
    if own_method(layer, "channels") is None:
        return
    graph = Channels(model, rule)
    for tensor in model.outputs:
        labels = graph.tensors[id(tensor)]
        expect(
            labels.shape == (tensor.shape[-1],),
            f"{name}.channels gave labels {labels.shape} of an output {tensor.shape}; expected one"
            " label for each channel of its last axis",
        )
    for slot in graph.slots:
        shape = layer.weights[slot.weight].shape
        sizes = tuple(shape[axis] for axis in slot.axes)
        given = np.shape(slot.labels)
        expect(
            given == sizes,
            f"{name}.channels: labels {given} along axes {slot.axes} of a weight {tuple(shape)}",
        )


def _check_litert(
    model: Any, arrays: list[Any], expected: list[Any], name: str, factor: float
) -> None:
    takes, gives = names(model)
    found = convert.run(convert.assemble(model), dict(zip(takes, arrays, strict=True)))
    for output, theirs in zip(gives, expected, strict=True):
        ours = found[output]
        if factor != 1:  # what an example became is apart in it
            ours = ours.reshape(-1, *ours.shape[2:])
        expect_close(ours, theirs, f"{name}.litert: output {output!r} of the file")
