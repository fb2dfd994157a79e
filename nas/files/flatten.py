"""Whatever way a network was put together: the same one as a flat Functional model of leaf layers.

Methods rewrite such models. Layers that hide others stay as they are and are named, with a reason.
"""

from typing import Any

import keras

from compress.rewriting import graph


def flattened(model: keras.Model) -> tuple[keras.Model, dict[str, str]]:
    """A flat model with the same weights and outputs, and its layers that hide others: why.

    A Sequential model becomes Functional; Functional and Sequential models within it give way to
    their layers, under their names unless two would have one. `model` itself is not changed.
    """
    whole = _functional(model)
    if whole is None:
        whole = _wrapped(model)
    if whole is model and not any(_functional(layer) is not None for layer in model.layers):
        return model, opaque(model)
    made: dict[int, Any] = {}
    taken: set[str] = set()
    inputs = graph.inputs(whole)
    taken |= {tensor._keras_history.operation.name for tensor in whole.inputs}
    tensors = _run(whole, dict(inputs), made, taken, "", None)
    flat = keras.Model(
        keras.tree.map_structure(lambda tensor: inputs[id(tensor)], whole.input),
        keras.tree.map_structure(lambda tensor: tensors[id(tensor)], whole.output),
        name=model.name,
    )
    return flat, opaque(flat)


def opaque(model: keras.Model) -> dict[str, str]:
    """Name of a layer that hides others -> what that means for compression."""
    found = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.RNN) and not isinstance(
            layer.cell, keras.layers.StackedRNNCells
        ):
            continue  # one cell, whose weights are the layer's
        parts = [one for one in layer._flatten_layers(include_self=False) if one.weights]
        names = ", ".join(dict.fromkeys(part.name for part in parts[:6]))
        kind = type(layer).__name__
        if isinstance(layer, keras.Model):
            found[layer.name] = (
                f"{kind} is a subclassed model: its code decides what its layers do ({names}); its "
                "weights can be changed where they are, its structure cannot"
            )
        elif parts:
            found[layer.name] = (
                f"{kind} holds layers of its own ({names}): their weights can be changed where "
                "they are, its structure cannot"
            )
    return found


def _functional(layer) -> Any:
    """The Functional model that a model is; None of leaf layers and subclassed models."""
    if isinstance(layer, keras.Sequential):
        if not layer.built or layer._functional is None:
            raise ValueError(f"{layer.name}: a Sequential model of unknown input shape")
        return layer._functional
    known = isinstance(layer, keras.Model) and getattr(layer, "_nodes_by_depth", None) is not None
    return layer if known else None


def _wrapped(model: keras.Model) -> keras.Model:
    """A Functional model whose one layer is a subclassed model."""
    shapes = (model.get_build_config() or {}).get("input_shape")
    if not isinstance(shapes, (list, tuple)) or not all(
        size is None or isinstance(size, int) for size in shapes
    ):
        raise ValueError(
            f"{model.name}: {type(model).__name__} is a subclassed model of unknown or several "
            "inputs; put it together as keras.Model(inputs, outputs)"
        )
    inputs = keras.Input(tuple(shapes[1:]))
    return keras.Model(inputs, model(inputs), name=f"{model.name}_whole")


def _run(model, tensors: dict, made: dict, taken: set[str], prefix: str, training) -> dict:
    """Calls the layers of a Functional model on `tensors`, by id of its own ones; adds to them."""
    for node in graph.calls(model):
        layer = node.operation
        args, kwargs = keras.tree.map_structure(
            lambda x: tensors.get(id(x), x), (node.arguments.args, node.arguments.kwargs)
        )
        inner = _functional(layer)
        if inner is None:
            if id(layer) not in made:
                made[id(layer)] = _copied(layer, taken, prefix)
            new = made[id(layer)]
            if training is not None and getattr(new, "_call_has_training_arg", False):
                kwargs.setdefault("training", training)
            outputs = new(*args, **kwargs)
        else:  # one with training=False keeps it: frozen statistics
            given = keras.tree.flatten((args, kwargs.get("inputs", ())))
            begun = {id(old): x for old, x in zip(inner.inputs, given, strict=True)}
            said = kwargs.get("training")
            said = training if said is None else said
            done = _run(inner, begun, made, taken, f"{prefix}{layer.name}_", said)
            outputs = [done[id(tensor)] for tensor in inner.outputs]
        for before, after in zip(node.output_tensors, keras.tree.flatten(outputs), strict=True):
            tensors[id(before)] = after
    return tensors


def _copied(layer, taken: set[str], prefix: str):
    """A copy with the layer's weights, of a name that no other has."""
    if not isinstance(layer, keras.layers.Layer):  # an operation, such as x + 1
        return layer
    name, number = layer.name, 1
    while name in taken:
        name = f"{prefix}{layer.name}" + (f"_{number}" if number > 1 or not prefix else "")
        number += 1
    taken.add(name)
    new = graph.copy(layer)
    new.name = name
    for weight in new.weights:  # without the names of the models around the layer
        weight._path = name + weight.path.removeprefix(layer.path)
    return new
