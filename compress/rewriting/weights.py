"""Which weights of a network multiply activations: kernels and embeddings, by what they are.

Biases, norms, scalars, positions and the routers of experts are not among them: they are few of the
bytes and decide much. A layer that is not of Keras says by a method `kernels` which are its own.
"""

import dataclasses
import math
import re
from typing import Any

import keras
import numpy as np
from keras import layers

from compress.rewriting import graph
from compress.rewriting.parametrized import Parametrization, Parametrized, functions
from compress.rewriting.record import Record

KINDS = ("dense", "conv", "depthwise", "embedding", "experts", "recurrent", "other")
RECURRENT = (layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One such weight of a flat model.

    layer: the name of the layer that holds it. kind: of `KINDS`.
    input_axes: over which products are summed; each index of the others is an output, or an expert,
        with a scale of its own. output_axis: the one that counts outputs (of embeddings: rows).
    """

    path: str
    layer: str
    kind: str
    shape: tuple[int, ...]
    output_axis: int
    input_axes: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """The shape of one number an output, to be broadcast: 1 on the input axes."""
        return tuple(1 if axis in self.input_axes else n for axis, n in enumerate(self.shape))


def kernels(model: keras.Model, which: str | None = None) -> list[Kernel]:
    """All of a flat model, `Parametrized` layers included, in order of its layers.

    `which`: a regular expression that a path must match somewhere; None: all.

    >>> inputs = keras.Input((8,))
    >>> model = keras.Model(inputs, keras.layers.Dense(4, name="head")(inputs))
    >>> [(kernel.path, kernel.kind, kernel.input_axes) for kernel in kernels(model)]
    [('head/kernel', 'dense', (0,))]
    """
    graph.check_flat(model)
    found: dict[str, Kernel] = {}
    for layer in model.layers:
        holder = layer.layer if isinstance(layer, Parametrized) else layer
        for owner, weight in _owned(holder):
            axes = _axes(owner, weight)
            if axes is None or weight.path in found:
                continue
            kind, output_axis, input_axes = axes
            shape = tuple(weight.shape)
            rank = len(shape)
            found[weight.path] = Kernel(
                weight.path,
                layer.name,
                kind,
                shape,
                output_axis % rank,
                tuple(sorted(axis % rank for axis in input_axes)),
            )
    return [k for k in found.values() if which is None or re.search(which, k.path)]


def kernel_values(model: keras.Model) -> dict[str, np.ndarray]:
    """Path -> value of every kernel, as its layer sees it now: masked, quantized."""
    paths = {kernel.path for kernel in kernels(model)}
    found = {}
    for layer in model.layers:
        for weight in layer.weights:
            if weight.path in paths:
                read = layer.read(weight) if isinstance(layer, Parametrized) else weight.value
                found[weight.path] = keras.ops.convert_to_numpy(read)
    return found


def masks(model: keras.Model) -> dict[str, np.ndarray]:
    """Path of a kernel that has been masked -> False where it is 0 and stays."""
    chains, values = functions(model, Parametrization), kernel_values(model)
    return {
        path: value != 0
        for path, value in values.items()
        if any(function.last for function in chains.get(path, ()))
    }


def assign(model: keras.Model, values: dict[str, np.ndarray]) -> None:
    """Give the weights of these paths these values; others stay."""
    for weight in model.weights:
        if weight.path in values:
            weight.assign(values[weight.path])


def plain_copy(model: keras.Model) -> keras.Model:
    """A copy of stock layers only, to try things on: its weights are those that are seen now.

    >>> inputs = keras.Input((8,))
    >>> model = keras.Model(inputs, keras.layers.Dense(4, name="head")(inputs))
    >>> plain_copy(model).get_layer("head") is model.get_layer("head")
    False
    """

    def change(layer, copy):
        if not isinstance(layer, Parametrized):
            return copy
        new = graph.copy(layer.layer)
        for weight, source in zip(new.weights, layer.layer.weights, strict=True):
            weight.assign(layer.read(source))
        return new

    return graph.rewrite(model, change)


def record_untouched(model: keras.Model, touched: Any, record: Record, reason: str) -> None:
    """Say in `record` why layers that hold weights, but none of the paths `touched`, are left.

    `reason` is that of layers that have kernels; the others have none, which is said of them.
    """
    touched = set(touched)
    having = {kernel.layer for kernel in kernels(model)}
    for layer in model.layers:
        if layer.weights and not touched & {weight.path for weight in layer.weights}:
            why = reason if layer.name in having else "no kernel: biases, norms, positions stay"
            record.untouched.setdefault(layer.name, why)


def _owned(layer):
    """(leaf layer, its own weight) of all weights of a layer; of cells within it, too."""
    for part in layer._flatten_layers():
        for weight in [*part._trainable_variables, *part._non_trainable_variables]:
            yield part, weight


def _axes(layer: keras.layers.Layer, weight: Any) -> tuple[str, int, tuple[int, ...]] | None:
    """(kind, output axis, input axes) of a weight, None of one that is not a kernel."""
    shape, name = tuple(weight.shape), weight.name
    if len(shape) < 2 or "float" not in str(weight.dtype):
        return None
    if (own := graph.own_method(layer, "kernels")) is not None:
        return own().get(name)
    if name == "reverse_embeddings":  # (width, vocabulary): a projection
        return "dense", 1, (0,)
    if isinstance(layer, keras.layers.Embedding):
        return ("embedding", 0, (1,)) if name == "embeddings" else None
    if not name.endswith("kernel"):
        return None
    if isinstance(layer, RECURRENT):
        return "recurrent", 1, (0,)
    if name == "pointwise_kernel":  # of separable convolutions
        return "conv", -1, tuple(range(len(shape) - 1))
    if name == "depthwise_kernel" or isinstance(layer, DEPTHWISE):
        return "depthwise", -2, tuple(range(len(shape) - 2))  # (..., channels, multiplier)
    if isinstance(layer, TRANSPOSED):
        return "conv", -2, (*range(len(shape) - 2), -1)
    if isinstance(layer, CONVOLUTIONS):
        return "conv", -1, tuple(range(len(shape) - 1))
    if isinstance(layer, keras.layers.EinsumDense):
        return "dense", *_einsum(layer.equation)
    if isinstance(layer, keras.layers.Dense):
        return "dense", -1, tuple(range(len(shape) - 1))
    return "other", -1, tuple(range(len(shape) - 1))


def _einsum(equation: str) -> tuple[int, tuple[int, ...]]:
    """(output axis, input axes) of the second operand: what the result does not have is summed."""
    operands, result = equation.replace(" ", "").split("->")
    letters = operands.split(",")[1]
    inputs = tuple(axis for axis, letter in enumerate(letters) if letter not in result)
    outputs = [axis for axis, letter in enumerate(letters) if letter in result]
    return outputs[-1] if outputs else -1, inputs
