"""Any Keras network as a flat Functional model of leaf layers, equal to the original.

Everything else in this toolkit rewrites, counts and converts flat models only.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from compress.rewriting import graph
from latency.networks.float32 import in_float32, other_precision, quantized
from latency.networks.random_inputs import random_inputs
from latency.tflite.same_network import difference
from latency.tflite.signature import names
from nas.files.given_shapes import Shapes, by_input
from nas.files.recurrent_state import from_rest, stateful_layer
from nas.files.traced_call import traced, training_of

_EXAMPLES = 2  # on which the two are compared
# Of the largest value of a channel, and a tenth of it of the output: both run the same operations.
_RELATIVE = 1e-5
_ROUNDED = 1e-4  # where one side computes in float64


@dataclasses.dataclass(frozen=True, eq=False)
class Flat:
    """A flat Functional model.

    model: a `keras.Model`; the original itself where that is flat already.
    opaque: name of a layer that hides others or is Python code -> what this means for compression.
    others: name of a layer that was in another precision, and is in float32 here -> its policy.
    """

    model: Any
    opaque: dict[str, str]
    others: dict[str, str] = dataclasses.field(default_factory=dict)


def flatten(model: keras.Model, shapes: Shapes = ()) -> Flat:
    """The same network as a flat Functional model; `model` itself is not changed.

    A Sequential model becomes Functional. Functional and Sequential models within the network give
    way to copies of their layers, which keep their names unless two would have the same one. Layers
    keep all their state: weights, and what they save by methods of their own (`Normalization`,
    look-up tables). Inputs and outputs keep their names, order and structure. What computes in
    half or double precision, or keeps its weights in it, is float32.

    shapes: of inputs, by name, or of the only one: sizes in place of open ones, a batch before
    them. A batch of 1 leaves an open one open.

    The result is compared with `model` on random inputs. Raises `ValueError` where they differ, for
    a Sequential model without an input shape, and for a subclassed model. One within the network
    gives way to its layers, too, where its code does no more than to call them.

    >>> inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="hidden")])
    >>> outer = keras.Sequential([inner, keras.layers.ReLU(name="relu")])
    >>> [layer.name for layer in flatten(outer).model.layers[1:]]
    ['hidden', 'relu']
    """
    check_graph(model)
    whole = _functional(model)
    others = other_precision(model)
    others |= {one.name: "float64" for one in whole.operations if _is_double(one)}
    nested = any(_functional(layer) is not None for layer in model.layers)
    lora = any(map(graph.has_lora, model.layers))  # copies have the product in their kernel
    if whole is model and not (nested or others or lora or shapes):
        return Flat(model, opaque(model))
    if lora:
        _refuse_codes(model)
    inputs = _inputs(whole, model)
    if shapes:
        inputs = _shaped(whole, inputs, shapes)
    flat = _on(model, whole, inputs, others)
    return Flat(flat, opaque(flat), others)


def with_open_batch(model: keras.Model) -> keras.Model:
    """The same network, built for batches of one size, for batches of any: training changes them.

    `model` is flat. Raises `ValueError` where it cannot be rebuilt: a layer is stateful, or a
    number of the batch is written into the graph.
    """
    if model.inputs[0].shape[0] is None:
        return model
    size = model.inputs[0].shape[0]
    if (layer := stateful_layer(model)) is not None:
        raise ValueError(
            f"layer {layer.name!r} ({type(layer).__name__}) is stateful: it takes batches of {size}"
            " in order, which training, judging and calibration do not keep; build it with"
            " stateful=False"
        )
    inputs = {
        key: keras.Input(old.shape[1:], dtype=old.dtype, name=old._keras_history.operation.name)
        for key, old in graph.inputs(model).items()
    }
    try:
        return _on(model, model, inputs, {})
    except ValueError as error:
        raise ValueError(
            f"{model.name} is built for batches of {size}, and not to be built for others: {error}"
        ) from error


def _on(model: Any, whole: Any, inputs: dict[int, Any], others: dict[str, str]) -> keras.Model:
    """Copies of the layers on new inputs, by the id of the old; checked to give the same."""
    copies = _Copies({tensor.name for tensor in inputs.values()}, float32=bool(others))
    tensors = _called(whole, dict(inputs), copies, "", None)
    flat = keras.Model(
        keras.tree.map_structure(lambda tensor: inputs[id(tensor)], whole.input),
        keras.tree.map_structure(lambda tensor: tensors[id(tensor)], whole.output),
        name=model.name,
    )
    double = "float64" in others.values()
    with in_float32(model):
        _check_equal(model, whole, flat, tensors, relative=_ROUNDED if double else _RELATIVE)
    return flat


def _is_double(operation: Any) -> bool:
    """Whether an operation, such as x / array, or an input is of double precision."""
    nodes = operation._inbound_nodes
    made = [tensor.dtype for node in nodes for tensor in node.output_tensors]
    return "float64" in made and not getattr(operation, "weights", ())


def check_graph(model: keras.Model) -> None:
    """`ValueError`, with the remedy, of a subclassed model."""
    if isinstance(model, keras.Sequential) or getattr(model, "_nodes_by_depth", None) is not None:
        return
    raise ValueError(
        f"{model.name}: {type(model).__name__} is a subclassed model, of which only its code "
        "knows the inputs and the order of its layers; expected a Functional or Sequential "
        "model. Make it one: inputs = keras.Input(SHAPE); "
        "model = keras.Model(inputs, model.call(inputs))"
    )


def opaque(model: keras.Model) -> dict[str, str]:
    """Name of a layer that hides others or is Python code -> what this means for compression."""
    found = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.RNN) and not isinstance(
            layer.cell, keras.layers.StackedRNNCells
        ):
            continue  # one cell, whose weights are the layer's
        parts = [part for part in layer._flatten_layers(include_self=False) if part.weights]
        names = ", ".join(dict.fromkeys(part.name for part in parts[:6]))
        kind = type(layer).__name__
        if isinstance(layer, keras.Model):
            found[layer.name] = (
                f"{kind} is a subclassed model: its code decides what its layers do ({names}); its "
                "weights can be changed where they are, its structure cannot"
            )
        elif isinstance(layer, keras.layers.Lambda):
            found[layer.name] = (
                "Lambda is Python code: nothing can be rewritten across it, and files that hold it "
                "are not loaded; a registered layer class can be"
            )
        elif parts:
            found[layer.name] = (
                f"{kind} holds layers of its own ({names}): their weights can be changed where "
                "they are, its structure cannot"
            )
    return found


def check_copies(model: keras.Model, inputs: Any = None) -> None:
    """`ValueError`, with a layer, unless copies of all layers compute what a flat model does.

    Methods rewrite networks by such copies. inputs: a few examples; None: random ones.
    """
    _refuse_codes(model)
    if inputs is None:
        inputs = random_inputs(model, model.inputs[0].shape[0] or _EXAMPLES)
    copies: dict[int, Any] = {}
    tensors: dict[int, Any] = {}

    def place(node: Any, now: dict[int, Any]) -> list:
        layer = node.operation
        if id(layer) not in copies:
            copies[id(layer)] = graph.copy(layer)
        outputs = graph.call(copies[id(layer)], node, now)
        tensors.update(zip(map(id, node.output_tensors), outputs, strict=True))
        return outputs

    copied = graph.rebuild(model, place)
    _check_equal(model, model, copied, tensors, inputs)


def _refuse_codes(model: keras.Model) -> None:
    """`ValueError` of a network whose weights are codes: adapters, or methods, change floats."""
    if codes := quantized(model):
        name, mode = next(iter(codes.items()))
        raise ValueError(
            f"{model.name}: layer {name!r} was quantized by Keras ({mode}), its weights are codes "
            "already; give the float network that it was made of"
        )


def _functional(layer: Any) -> Any:
    """The Functional model that a model is, or its code is; None for leaf layers and other code."""
    if isinstance(layer, keras.Sequential):
        first = layer.layers[0] if layer.layers else None
        if not layer.built and isinstance(first, keras.Model) and _functional(first) is not None:
            layer.build(first.input_shape)  # as its first call would
        if not layer.built or layer._functional is None:
            raise ValueError(
                f"{layer.name}: a Sequential model without an input shape; begin it with "
                "keras.Input(SHAPE), or call model.build((None, *SHAPE))"
            )
        return layer._functional
    if not isinstance(layer, keras.Model):
        return None
    return traced(layer) if getattr(layer, "_nodes_by_depth", None) is None else layer


def _inputs(whole: Any, model: keras.Model) -> dict[int, Any]:
    """Id of an input -> a new one of the same shape, type and name.

    A Sequential model that was built by its first batch has the size of that batch in its shape:
    it is left open again, unless a layer carries state from batch to batch.
    """
    stateful = any(getattr(layer, "stateful", False) for layer in model._flatten_layers())
    if not isinstance(model, keras.Sequential) or stateful:
        return {
            key: one if one.dtype != "float64" else _single(one)
            for key, one in graph.inputs(whole).items()
        }
    (tensor,) = whole.inputs
    name = tensor._keras_history.operation.name
    dtype = tensor.dtype if tensor.dtype != "float64" else "float32"
    return {id(tensor): keras.Input(tensor.shape[1:], dtype=dtype, name=name)}


def _single(tensor: Any) -> Any:
    name = tensor._keras_history.operation.name
    return keras.Input(batch_shape=tensor.shape, dtype="float32", name=name)


def _shaped(whole: Any, inputs: dict[int, Any], shapes: Shapes) -> dict[int, Any]:
    """Id of an input -> a new one of the given shape; `ValueError` where one does not fit."""
    called = names(whole)[0]
    by_name = by_input(called, shapes)
    made = {}
    for name, (key, old) in zip(called, inputs.items(), strict=True):
        shape = tuple(by_name.get(name, old.shape))
        pairs = list(zip(old.shape, shape, strict=False))
        if len(shape) != len(old.shape) or any(has not in (None, to) for has, to in pairs):
            raise ValueError(
                f"input {name!r}: got the shape {shape}; the network fixes it to {old.shape}, in"
                " which only sizes of None can be given"
            )
        if shape[:1] == (1,):
            shape = (old.shape[0], *shape[1:])
        made[key] = keras.Input(
            batch_shape=shape, dtype=old.dtype, name=old._keras_history.operation.name
        )
    return made


class _Copies:
    """One copy of each layer, under a name that no other has."""

    def __init__(self, names: set[str], float32: bool):
        self._names, self._float32 = names, float32
        self._copies: dict[int, Any] = {}

    def of(self, layer: Any, prefix: str) -> Any:
        if id(layer) not in self._copies:
            self._copies[id(layer)] = self._copied(layer, self._name(layer.name, prefix))
        return self._copies[id(layer)]

    def constant(self, value: Any) -> Any:
        """An argument that is no tensor: an array in float64 would make float64 of float32."""
        if self._float32 and isinstance(value, (np.ndarray, np.floating)):
            return value.astype(np.float32) if value.dtype == np.float64 else value
        return value

    def _name(self, plain: str, prefix: str) -> str:
        name, number = plain, 1
        while name in self._names:
            name = f"{prefix}{plain}" + (f"_{number}" if number > 1 or not prefix else "")
            number += 1
        self._names.add(name)
        return name

    def _copied(self, layer: Any, name: str) -> Any:
        if not isinstance(layer, keras.layers.Layer):  # an operation, such as x + 1
            return layer if name == layer.name else graph.copy_operation(layer, name)
        new = graph.copy(layer, float32=self._float32)
        if new is layer:
            return layer
        new.name = name
        for weight in new.weights:  # without the names of the models around the layer
            weight._path = name + weight.path.removeprefix(layer.path)
        return new


def _called(
    model: Any, tensors: dict[int, Any], copies: _Copies, prefix: str, training: bool | None
) -> dict[int, Any]:
    """Calls copies of the layers of a Functional model; adds what its tensors become to `tensors`.

    tensors: id of a tensor of `model` -> the new one. prefix: of layers whose name is in use.
    """
    for node in graph.calls(model):
        layer = node.operation
        args, kwargs = keras.tree.map_structure(
            lambda x: tensors.get(id(x), copies.constant(x)),
            (node.arguments.args, node.arguments.kwargs),
        )
        inner = _functional(layer)
        if inner is None:
            new = copies.of(layer, prefix)
            if training is not None and getattr(new, "_call_has_training_arg", False):
                kwargs["training"] = training
            outputs = graph.called(new, args, kwargs)
        else:  # one that was called with training=False keeps it: frozen statistics
            given = _given(inner, args[0] if args else kwargs["inputs"], layer.name)
            inner_training = training_of(layer, kwargs) if training is None else training
            name = f"{prefix}{layer.name}_"
            found = _called(inner, given, copies, name, inner_training)
            outputs = [found[id(tensor)] for tensor in inner.outputs]
        for before, after in zip(node.output_tensors, keras.tree.flatten(outputs), strict=True):
            tensors[id(before)] = after
    return tensors


def _given(inner: Any, inputs: Any, name: str) -> dict[int, Any]:
    """Id of an input of a model within the network -> the tensor that it is called with."""
    if isinstance(inputs, dict) and isinstance(inner.input, dict):
        inputs = {key: inputs[key] for key in inner.input}
    elif isinstance(inputs, dict):
        inputs = [inputs[tensor.name] for tensor in inner.inputs]
    flat = keras.tree.flatten(inputs)
    if len(flat) != len(inner.inputs):
        raise ValueError(f"{name}: called with {len(flat)} inputs; it has {len(inner.inputs)}")
    return {
        id(own): tensor if tensor.dtype == own.dtype else keras.ops.cast(tensor, own.dtype)
        for own, tensor in zip(inner.inputs, flat, strict=True)
    }


def _check_equal(
    model: keras.Model,
    whole: Any,
    flat: keras.Model,
    tensors: dict,
    inputs: Any = None,
    relative: float = _RELATIVE,
) -> None:
    """`ValueError`, with the first layer that differs, unless both give the same outputs."""
    if inputs is None:
        inputs = random_inputs(flat, whole.inputs[0].shape[0] or _EXAMPLES)

    def apart(first: Any, second: Any) -> list[bool]:
        sides = []
        for one in (first, second):
            with from_rest(one):
                outputs = keras.tree.flatten(one(inputs, training=False))
            sides.append([keras.ops.convert_to_numpy(x) for x in outputs])
        return [_differs(one, other, relative) for one, other in zip(*sides, strict=True)]

    if not any(apart(model, flat)) or any(apart(model, model)):  # it draws random numbers itself
        return
    nodes = [node for node in graph.calls(whole) if len(node.output_tensors) == 1]
    old = [node.output_tensors[0] for node in nodes]
    parts = (
        keras.Model(whole.input, old),
        keras.Model(flat.input, [tensors[id(tensor)] for tensor in old]),
    )
    differing = (node.operation for node, it in zip(nodes, apart(*parts), strict=True) if it)
    layer = next(differing, whole)
    raise ValueError(
        f"{model.name}: rewritten, layer {layer.name!r} ({type(layer).__name__}) gives other "
        "outputs: a part of it keeps state that is neither a weight, nor in its get_config(), nor "
        "written by its save_own_variables()"
    )


def _differs(first: np.ndarray, second: np.ndarray, relative: float) -> bool:
    sides = {"": first}, {"": second}
    return difference(*sides, relative=relative, floor=relative / 10) is not None
