"""Hidden units that can go: the layers that make them, carry them one by one, and read them.

In a flat graph such a bundle is closed: what its producers put out is seen by its consumers alone.
So a bundle may lose units, or be cut into blocks, without anything else noticing.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from compress.rewriting import graph
from compress.rewriting.parametrized import inner

layers = keras.layers
CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
# Of one input, and each unit of the output depends on the same unit of the input only.
CARRIERS = (
    layers.Activation,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.BatchNormalization,
    layers.Dropout,
    layers.ELU,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.LeakyReLU,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.ReLU,
    layers.Rescaling,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.UpSampling2D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
)


JOINT = ("softmax", "log_softmax", "sparsemax", "glu")  # activations that see all units at once


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Names of layers around `size` hidden units; `tensors`: ids of what carries them.

    producers: their kernels' last axis counts the units. carriers: in order, with weights of a
    value (or filter) for each unit. consumers: their kernels' last axis but one counts the units.
    """

    size: int
    producers: tuple[str, ...]
    carriers: tuple[str, ...]
    consumers: tuple[str, ...]
    tensors: frozenset[int] = dataclasses.field(repr=False)


def bundles(model: keras.Model) -> list[Bundle]:
    """All of a flat model, in order; a layer may consume one and produce another.

    >>> inputs = keras.Input((8,))
    >>> x = keras.layers.Dense(32, "relu", name="expand")(inputs)
    >>> bundles(keras.Model(inputs, keras.layers.Dense(8, name="project")(x)))
    [Bundle(size=32, producers=('expand',), carriers=(), consumers=('project',))]
    """
    graph.check_flat(model)
    walk = _Walk(model)
    found: list[Bundle] = []
    seen: set[int] = set()
    for node in walk.nodes:
        if is_matrix(node.operation) and id(node.output_tensors[0]) not in seen:
            bundle = walk.bundle(node)
            if bundle is not None:
                found.append(bundle)
                seen |= bundle.tensors
    return found


def is_matrix(layer: keras.layers.Layer) -> bool:
    """Whether a layer multiplies channels with a kernel (..., inputs, outputs)."""
    layer = inner(layer)
    if type(layer) is layers.Dense:
        return True
    plain = type(layer) in CONVOLUTIONS and layer.groups == 1
    return plain and layer.data_format == "channels_last"


def is_dense(layer: keras.layers.Layer) -> bool:
    """Whether a layer is Keras's Dense, perhaps with weights read through functions."""
    return type(inner(layer)) is layers.Dense


class _Walk:
    """Who makes and who reads each tensor of a model."""

    def __init__(self, model: keras.Model):
        self.nodes = list(graph.calls(model))
        self.maker = {id(tensor): node for node in self.nodes for tensor in node.output_tensors}
        self.users: dict[int, list] = {}
        self.calls: dict[int, int] = {}
        for node in self.nodes:
            self.calls[id(node.operation)] = self.calls.get(id(node.operation), 0) + 1
            for tensor in {id(tensor): tensor for tensor in node.input_tensors}.values():
                self.users.setdefault(id(tensor), []).append(node)
        self.outputs = {id(tensor) for tensor in model.outputs}

    def bundle(self, start: Any) -> Bundle | None:
        """The bundle of a producer's units, None where they are seen by other layers."""
        producers, carriers, consumers = {id(start): start}, {}, {}
        tensors, waiting = set(), [start.output_tensors[0]]
        size = waiting[0].shape[-1]
        while waiting:
            tensor = waiting.pop()
            if id(tensor) in tensors:
                continue
            tensors.add(id(tensor))
            if id(tensor) in self.outputs:
                return None
            for node in self.users.get(id(tensor), ()):
                if self.calls[id(node.operation)] > 1 or node.input_tensors[0].shape[-1] is None:
                    return None
                if is_matrix(node.operation):
                    consumers[id(node)] = node
                    continue
                if not self._carries(node, tensor):
                    return None
                others = [
                    other
                    for other in node.input_tensors
                    if other is not tensor and other.shape[-1] == size and _merges(node.operation)
                ]
                for other in others:
                    found = self._back(other)
                    if found is None:
                        return None
                    producers |= {id(node): node for node in found}
                    waiting += [node.output_tensors[0] for node in found]
                carriers[id(node)] = node
                waiting.append(node.output_tensors[0])
        alone = all(
            self.calls[id(node.operation)] == 1 and _by_units(inner(node.operation))
            for node in producers.values()
        )
        if not consumers or not alone or set(producers) & set(consumers):
            return None
        order = {id(node): place for place, node in enumerate(self.nodes)}

        def names(found: dict[int, Any]) -> tuple[str, ...]:
            return tuple(found[key].operation.name for key in sorted(found, key=order.__getitem__))

        return Bundle(
            size,
            producers=names(producers),
            carriers=names(carriers),
            consumers=names(consumers),
            tensors=frozenset(tensors),
        )

    def _carries(self, node: Any, tensor: Any) -> bool:
        layer = inner(node.operation)
        if _merges(layer):
            same = [x for x in node.input_tensors if x.shape[-1] == tensor.shape[-1]]
            return all(x.shape[-1] == 1 or any(x is s for s in same) for x in node.input_tensors)
        if node.input_tensors[0] is not tensor or sum(x is tensor for x in node.input_tensors) > 1:
            return False
        if isinstance(layer, layers.BatchNormalization):
            return layer.axis in (-1, len(tensor.shape) - 1)
        if isinstance(layer, layers.Activation):
            return _by_units(layer)
        if type(layer) in DEPTHWISE:
            return layer.depth_multiplier == 1 and layer.data_format == "channels_last"
        last = getattr(layer, "data_format", "channels_last") == "channels_last"
        return type(layer) in CARRIERS and last

    def _back(self, tensor: Any) -> list | None:
        """The producers of a tensor of units, through what carries them."""
        node = self.maker.get(id(tensor))
        if node is None:
            return None
        if is_matrix(node.operation):
            return [node]
        if not self._carries(node, node.input_tensors[0]):
            return None
        found = []
        units = [x for x in node.input_tensors if x.shape[-1] == tensor.shape[-1]]
        for source in units if _merges(node.operation) else node.input_tensors[:1]:
            more = self._back(source)
            if more is None:
                return None
            found += more
        return found


def _by_units(layer: keras.layers.Layer) -> bool:
    """Whether the activation of a layer sees each unit alone, unlike a softmax."""
    return getattr(layer.activation, "__name__", "") not in JOINT


def _merges(layer: keras.layers.Layer) -> bool:
    return type(inner(layer)) is layers.Multiply


def chooser(model: keras.Model) -> keras.layers.Layer | None:
    """The layer of a model that chooses hidden units of others, None: units are free to choose."""
    return next((layer for layer in model.layers if getattr(layer, "chooses_units", False)), None)


def importance(model: keras.Model, bundle: Bundle) -> np.ndarray:
    """Of each unit, the product of the norms of what makes it and of what reads it.

    >>> inputs = keras.Input((2,))
    >>> x = keras.layers.Dense(3, kernel_initializer="ones", name="expand")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(8, kernel_initializer="ones")(x))
    >>> importance(model, bundles(model)[0]).tolist()
    [4.0, 4.0, 4.0]
    """
    found = {layer.name: inner(layer) for layer in model.layers}
    made = sum(_squares(found[name].kernel, -1) for name in bundle.producers)
    read = sum(_squares(found[name].kernel, -2) for name in bundle.consumers)
    return np.sqrt(made * read)


def _squares(kernel: Any, axis: int) -> np.ndarray:
    kernel = keras.ops.convert_to_numpy(kernel).astype(np.float64)
    return np.square(np.moveaxis(kernel, axis, 0)).reshape(kernel.shape[axis], -1).sum(1)
