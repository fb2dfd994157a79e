"""While a network is being compressed: layers whose weights pass through functions before use.

As torch.nn.utils.parametrize, for Keras layers of any kind: the layer runs its own `call`, on other
values of its weights. Ends with `fold`, which leaves the layers as they were.
"""

from typing import Any

import keras
import numpy as np

from compress.rewriting import graph
from compress.rewriting.record import Record, Weight


class Parametrization(keras.layers.Layer):
    """A function of one weight, with variables of its own; the same shape comes out.

    Subclasses have `call(weight)`, differentiable where training is to see through it. `last` ones
    (masks) come after the others, whatever the order of the methods.
    """

    last = False

    def describe(self, value: np.ndarray, before: Weight | None) -> Weight | None:
        """How `value`, which came out, can be stored; `before` is what earlier ones said."""
        return before


class Parametrized(keras.layers.Layer):
    """A built `layer` whose weights are read through functions: path of the weight -> functions.

    Takes what the layer takes and has its name; its variables are those of the layer, under their
    own paths, and those of the functions. Never saved: `fold` comes before.
    """

    def __init__(self, layer: keras.layers.Layer):
        super().__init__(name=layer.name, trainable=layer.trainable, dtype=layer.dtype_policy)
        self.layer = layer
        self.parametrizations: dict[str, list[Parametrization]] = {}
        self._tracked: list[Parametrization] = []
        self.supports_masking = layer.supports_masking
        self.built = True

    def parametrize(self, path: str, function: Parametrization) -> None:
        """Read the weight of this path through `function`, after those it has already."""
        weight = next((w for w in self.layer.weights if w.path == path), None)
        if weight is None:
            raise ValueError(f"layer {self.name} has no weight {path!r}")
        if not function.built:
            function.build(weight.shape)
            function.built = True
        self._tracked.append(function)
        functions = [*self.parametrizations.get(path, ()), function]
        self.parametrizations[path] = sorted(functions, key=lambda function: function.last)

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        values = {id(weight): self.read(weight) for weight in self._parametrized()}
        variables = self.layer.variables
        mapping = [(v, values.get(id(v), v.value)) for v in variables]
        if self.layer._call_has_training_arg:
            kwargs["training"] = training
        scope = keras.StatelessScope(state_mapping=mapping, collect_losses=True)
        before = [scope.get_current_value(variable) for variable in variables]
        with scope:
            outputs = self.layer.call(*args, **kwargs)
        for variable, value in zip(variables, before, strict=True):
            now = scope.get_current_value(variable)
            if now is not value:  # a seed, a moving average
                variable.assign(now)
        for loss in scope.losses:
            self.add_loss(loss)
        return outputs

    def compute_output_spec(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """The layer's own shapes and types: functions change none."""
        if self.layer._call_has_training_arg:
            kwargs["training"] = training
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def read(self, weight: Any) -> Any:
        """The value of a weight of the layer as its `call` sees it."""
        value = weight.value
        for function in self.parametrizations.get(weight.path, ()):
            value = function(value)
        return value

    def _parametrized(self) -> list:
        return [weight for weight in self.layer.weights if weight.path in self.parametrizations]

    def fold(self, record: Record) -> None:
        """The weights of the layer become what its `call` saw; how is noted in `record`."""
        for weight in self._parametrized():
            value, known = weight.value, record.weights.get(weight.path)
            for function in self.parametrizations[weight.path]:
                value = function(value)
                known = function.describe(keras.ops.convert_to_numpy(value), known)
            weight.assign(value)
            if known is not None:
                record.weights[weight.path] = known


def inner(layer: keras.layers.Layer) -> keras.layers.Layer:
    """The layer itself, whether its weights are read through functions or not."""
    return layer.layer if isinstance(layer, Parametrized) else layer


def parametrize(model: keras.Model, functions: dict[str, Parametrization]) -> keras.Model:
    """A new model in which the weights of these paths are read through these functions."""
    owners = {weight.path: layer.name for layer in model.layers for weight in layer.weights}
    unknown = [path for path in functions if path not in owners]
    if unknown:
        raise ValueError(f"no weight {unknown[0]!r} in {model.name}")
    names = {owners[path] for path in functions}

    def change(layer, copy):
        if layer.name not in names:
            return copy
        new = copy if isinstance(copy, Parametrized) else Parametrized(copy)
        for path, function in functions.items():
            if owners[path] == layer.name:
                new.parametrize(path, function)
        return new

    return graph.rewrite(model, change)


def functions(model: keras.Model, kind: type) -> dict[str, list]:
    """Path of a weight -> its parametrizations of a kind, over all layers of a model.

    >>> from compress.quantization.quantizers import LearnedClip
    >>> inputs = keras.Input((8,))
    >>> model = keras.Model(inputs, keras.layers.Dense(4, name="head")(inputs))
    >>> quantizer = LearnedClip(np.ones((1, 4)), bits=4)
    >>> list(functions(parametrize(model, {"head/kernel": quantizer}), LearnedClip))
    ['head/kernel']
    """
    found = {}
    for layer in model.layers:
        for path, chain in getattr(layer, "parametrizations", {}).items():
            mine = [function for function in chain if isinstance(function, kind)]
            if mine:
                found[path] = mine
    return found


def fold(model: keras.Model, record: Record) -> keras.Model:
    """The model with its own layers again, with the weights as they were read.

    How each can be stored is noted in `record`.
    """
    if not any(isinstance(layer, Parametrized) for layer in model.layers):
        return model
    for layer in model.layers:
        if isinstance(layer, Parametrized):
            layer.fold(record)
    return graph.rewrite(
        model, lambda _, copy: copy.layer if isinstance(copy, Parametrized) else copy
    )
