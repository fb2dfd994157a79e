"""Rewriting flat Functional models layer by layer: each time a new model, the old one stays."""

from collections.abc import Callable

import keras

Change = Callable[[keras.layers.Layer, keras.layers.Layer], keras.layers.Layer | None]


def flat(model: keras.Model) -> None:
    """`ValueError` unless `model` is Functional, of leaf layers only."""
    if not isinstance(model, keras.Model) or getattr(model, "_nodes_by_depth", None) is None:
        raise ValueError(
            f"{getattr(model, 'name', model)} is a {type(model).__name__}, not a Functional model: "
            "its layers cannot be rewritten; build it as keras.Model(inputs, outputs)"
        )
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            raise ValueError(f"layer {layer.name} is a model itself; expected leaf layers only")


def rewritten(model: keras.Model, change: Change) -> keras.Model:
    """A new model: `change(layer, copy)` gives what stands in for each layer.

    `copy` is a new layer with the same configuration and weights; what `change` returns (the copy,
    perhaps changed; another, built or not; None: the layer is left out, its one input goes on) is
    called where the layer was. Weights keep their paths as long as layers keep their names.
    """
    flat(model)
    made: dict[int, keras.layers.Layer | None] = {}
    tensors = {}
    for tensor in model.inputs:
        old = tensor._keras_history.operation
        new = keras.Input(batch_shape=old.batch_shape, dtype=old.dtype, name=old.name)
        tensors[id(tensor)] = new
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            layer = node.operation
            if not node.input_tensors:
                continue
            if id(layer) not in made:
                made[id(layer)] = change(layer, copy(layer))
            new = made[id(layer)]
            if new is None:
                outputs = [tensors[id(node.input_tensors[0])]]
            else:
                args, kwargs = keras.tree.map_structure(
                    lambda x: tensors.get(id(x), x), (node.arguments.args, node.arguments.kwargs)
                )
                outputs = keras.tree.flatten(new(*args, **kwargs))
            for before, after in zip(node.output_tensors, outputs, strict=True):
                tensors[id(before)] = after
    inputs, outputs = keras.tree.map_structure(
        lambda tensor: tensors[id(tensor)], (model.input, model.output)
    )
    return keras.Model(inputs, outputs, name=model.name)


def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A layer of the same configuration and weights, under the same paths."""
    # A Parametrized layer is not copied: its variables belong to the methods that made them.
    if hasattr(layer, "parametrizations"):
        return layer
    if not isinstance(layer, keras.layers.Layer):  # an operation, such as x + 1
        return layer
    new = type(layer).from_config(layer.get_config())
    if layer.built and (config := layer.get_build_config()):
        new.build_from_config(config)
        new.built = True
    if layer.weights:
        new.set_weights(layer.get_weights())
        for weight, source in zip(new.weights, layer.weights, strict=True):
            weight._path = source.path  # what is read within a wrapper would lack its name
    return new
