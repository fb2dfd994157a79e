"""The graph in the code of a subclassed model, found by calling it on symbolic tensors."""

import inspect
import weakref
from typing import Any

import keras

from compress.rewriting import graph

_found: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # model -> its graph, or None


def traced(model: keras.Model) -> Any:
    """A Functional model of the layers that `model.call` calls; None where its code hides more.

    The inputs are as in its first call in a network. Its code hides more where it fails on symbolic
    tensors, does something else in training, adds losses, or uses weights that are in none of its
    layers.

    >>> class Block(keras.Model):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.first, self.second = keras.layers.Dense(4), keras.layers.Dense(2)
    ...
    ...     def call(self, inputs):
    ...         return self.second(self.first(inputs))
    >>> block = Block()
    >>> outputs = block(keras.Input((3,)))
    >>> [type(layer).__name__ for layer in traced(block).layers]
    ['InputLayer', 'Dense', 'Dense']
    """
    if model not in _found:
        _found[model] = _traced(model)
    return _found[model]


def training_of(model: keras.Model, kwargs: dict[str, Any]) -> bool | None:
    """What a call asks of a traced model; the default of `call(..., training=False)` asks nothing.

    Keras writes defaults into the calls of a network, and lets the network's training overrule it.
    """
    default = inspect.signature(model.call).parameters.get("training")
    asked = kwargs.get("training")
    return None if default is not None and asked == default.default else asked


def _traced(model: keras.Model) -> Any:
    called_with = _called_with(model)
    if called_with is None or model._trainable_variables or model._non_trainable_variables:
        return None
    options: list[dict[str, Any]] = [{}]
    if "training" in inspect.signature(model.call).parameters:
        options = [{"training": None}, {"training": True}]
    found = []
    try:
        for option in options:
            inputs = keras.tree.map_structure(_input, called_with)
            found.append(keras.Model(inputs, model.call(inputs, **option), name=model.name))
    except Exception:  # whatever the code of the model raises on symbolic tensors
        return None
    kinds = [[type(node.operation) for node in graph.calls(one)] for one in found]
    if any(one != kinds[0] for one in kinds) or model._losses:
        model._losses.clear()
        return None
    return found[0]


def _called_with(model: keras.Model) -> Any:
    """The symbolic tensors of the first call; None where there is none, or in other arguments."""
    if not model._inbound_nodes:
        return None
    given = model._inbound_nodes[0].arguments
    return given.args[0] if len(given.args) == 1 and not _tensors(given.kwargs) else None


def _tensors(tree: Any) -> list[Any]:
    return [one for one in keras.tree.flatten(tree) if isinstance(one, keras.KerasTensor)]


def _input(tensor: Any) -> Any:
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype)
