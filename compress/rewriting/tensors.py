"""Tensors of a Functional network, and the layers that make them."""

from typing import Any

import keras

from compress.rewriting.parametrized import inner


def maker(tensor: Any) -> Any:
    """The layer that made a tensor, not one that wraps or looks at it."""
    layer = tensor._keras_history.operation
    return inner(layer)


def sources(tensor: Any) -> list[Any]:
    """What the layer that made a tensor was called on."""
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index].input_tensors


def output(model: keras.Model, name: str) -> Any:
    """The only output of the layer of that name; a Parametrized one was called in others, too."""
    nodes = [node for nodes in model._nodes_by_depth.values() for node in nodes]
    found = [node.output_tensors for node in nodes if node.operation.name == name]
    if not found:
        raise ValueError(f"{model.name} has no layer {name!r}; which= names layers")
    if len(found) > 1 or len(found[0]) > 1 or "float" not in found[0][0].dtype:
        raise ValueError(f"layer {name} does not give one array of numbers")
    return found[0][0]
