"""What each kind of Keras layer does with channels: one rule a kind.

A rule (channels, layer, node, labels of the inputs) -> labels of the outputs says where the
channels are in the weights, which are tied and which must stay; None: it does not know. Other
layers have theirs as a method `channels` (families/layers/__init__.py).
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from compress.channels.channel_graph import Channels, channels_last, elementwise
from compress.rewriting import graph


def rule(layer: keras.layers.Layer) -> Callable | None:
    """The rule for a layer: its own method, or that of exactly its class if Keras has it.

    None: no rule; a subclass of a Keras layer may do anything.
    """
    own = graph.own_method(layer, "channels")
    if own is not None:
        return lambda channels, _, node, labels: own(channels, node, labels)
    return _RULES.get(type(layer))


def _made(
    channels: Channels, layer: keras.layers.Layer, count: int, *, keep_if: bool = False
) -> Any:
    """New channels of a layer, which stay where its activation sees them all."""
    made = channels.fresh(count, layer.name)
    if keep_if or not elementwise(getattr(layer, "activation", None)):
        channels.keep(made, f"{layer.name} has an activation over all channels")
    return made


def _dense(channels, layer, node, labels):
    outputs = _made(channels, layer, layer.units)
    channels.slot(layer, "kernel", 0, labels[0], "in", node.input_tensors[0])
    channels.slot(layer, "kernel", 1, outputs, "out")
    channels.slot(layer, "bias", 0, outputs, "other")
    channels.size(layer, units=lambda count: count(outputs))
    return [outputs]


def _convolution(channels, layer, node, labels, read=-2, made=-1):
    """`read` and `made`: the axes of the kernel that count inputs and outputs."""
    if not channels_last(layer) or getattr(layer, "groups", 1) != 1:
        return None
    outputs = _made(channels, layer, layer.filters)
    channels.slot(layer, "kernel", read, labels[0], "in", node.input_tensors[0])
    channels.slot(layer, "kernel", made, outputs, "out")
    channels.slot(layer, "bias", 0, outputs, "other")
    channels.size(layer, filters=lambda count: count(outputs))
    return [outputs]


def _transposed(channels, layer, node, labels):
    return _convolution(channels, layer, node, labels, read=-1, made=-2)


def _depthwise(channels, layer, node, labels):
    if not channels_last(layer) or not elementwise(layer.activation):
        return None
    outputs = np.repeat(labels[0], layer.depth_multiplier)
    channels.slot(layer, "kernel", -2, labels[0], "scale")
    channels.slot(layer, "bias", 0, outputs, "other")
    return [outputs]


def _separable(channels, layer, node, labels):
    if not channels_last(layer):
        return None
    between = np.repeat(labels[0], layer.depth_multiplier)
    outputs = _made(channels, layer, layer.filters)
    channels.slot(layer, "depthwise_kernel", -2, labels[0], "scale")
    source = node.input_tensors[0] if layer.depth_multiplier == 1 else None
    channels.slot(layer, "pointwise_kernel", -2, between, "in", source)
    channels.slot(layer, "pointwise_kernel", -1, outputs, "out")
    channels.slot(layer, "bias", 0, outputs, "other")
    channels.size(layer, filters=lambda count: count(outputs))
    return [outputs]


def _batch_normalization(channels, layer, node, labels):
    if layer.axis not in (-1, len(node.input_tensors[0].shape) - 1):
        return None
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        channels.slot(layer, name, 0, labels[0], "scale" if name == "gamma" else "other")
    return [labels[0]]


def _over_all(channels, layer, node, labels):
    channels.stay(layer, "it is over all channels")
    channels.keep(labels[0], f"{layer.name} ({type(layer).__name__}) is over all channels")
    return [labels[0]]


def _passed(channels, layer, node, labels):
    """Places and values change, channels do not."""
    if not channels_last(layer):
        return None
    return [labels[0]]


def _activation(channels, layer, node, labels):
    if not elementwise(layer.activation):
        return _over_all(channels, layer, node, labels)
    return [labels[0]]


def _rescaling(channels, layer, node, labels):
    return [labels[0]] if np.ndim(layer.scale) == np.ndim(layer.offset) == 0 else None


def _slopes(channels, layer, node, labels):
    """PReLU."""
    if layer.alpha.shape[-1] == len(labels[0]):
        channels.slot(layer, "alpha", -1, labels[0], "other")
    return [labels[0]]


def _merge(channels, layer, node, labels):
    shapes = [tensor.shape for tensor in node.input_tensors]
    if len({len(shape) for shape in shapes}) != 1 or len(shapes) != len(labels):
        return None
    widest = max(labels, key=len)
    for one in labels:
        if len(one) == len(widest):
            channels.tie(widest, one)
        else:  # one value for all channels
            channels.keep(one, f"{layer.name} gives it to all channels")
    return [widest]


def _concatenate(channels, layer, node, labels):
    rank = len(node.input_tensors[0].shape)
    if layer.axis % rank == rank - 1:
        return [np.concatenate(labels)]
    channels.tie(*labels)
    return [labels[0]]


def _reshape(channels, layer, node, labels):
    before, after = node.input_tensors[0].shape[1:], node.output_tensors[0].shape[1:]
    if not channels_last(layer) or None in before or None in after or not before:
        return None
    rows = np.broadcast_to(labels[0], before).reshape(-1, after[-1])
    if not (rows == rows[0]).all():  # channels ended up in different places
        return None
    outputs = rows[0]
    if isinstance(layer, layers.Reshape):
        shape = tuple(after[:-1])
        channels.size(layer, target_shape=lambda count: (*shape, count(outputs)))
    return [outputs]


def _permute(channels, layer, node, labels):
    return [labels[0]] if layer.dims[-1] == len(layer.dims) else None


def _recurrent(channels, layer, node, labels):
    """Keras's LSTM, GRU and SimpleRNN."""
    gates = {layers.LSTM: 4, layers.GRU: 3, layers.SimpleRNN: 1}[type(layer)]
    inner = (layer.activation, getattr(layer, "recurrent_activation", None))
    if len(labels) > 1 or not all(elementwise(one) for one in inner) or layer.stateful:
        return None
    outputs = channels.fresh(layer.units, layer.name)
    _gates(channels, layer, node, labels[0], outputs, outputs, gates=gates)
    channels.size(layer, units=lambda count: count(outputs))
    return [outputs] * len(node.output_tensors)


def _gates(
    channels: Channels,
    layer: keras.layers.Layer,
    node: Any,
    inputs: Any,
    cells: Any,
    outputs: Any,
    gates: int,
) -> None:
    made = np.tile(cells, gates)
    channels.slot(layer, "kernel", 0, inputs, "in", node.input_tensors[0])
    channels.slot(layer, "kernel", 1, made, "out")
    channels.slot(layer, "recurrent_kernel", 0, outputs, "in", node.output_tensors[0])
    channels.slot(layer, "recurrent_kernel", 1, made, "out")
    channels.slot(layer, "bias", -1, made, "other")


def _embedding(channels, layer, node, labels):
    if node.arguments.kwargs.get("reverse"):
        return None
    outputs = channels.fresh(layer.output_dim, layer.name)
    channels.slot(layer, "embeddings", 1, outputs, "out")
    channels.size(layer, output_dim=lambda count: count(outputs))
    return [outputs]


_UNARY = (
    *(layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Dropout, layers.Identity),
    *(layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D),
    *(layers.GaussianNoise, layers.GaussianDropout, layers.ActivityRegularization),
    *(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D),
    *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
    *(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D, layers.RepeatVector),
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D),
    *(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D),
    *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D),
    layers.GlobalAveragePooling3D,
)
_MERGES = (
    *(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum),
    layers.Minimum,
)
_RULES = {
    **dict.fromkeys(_UNARY, _passed),
    **dict.fromkeys(_MERGES, _merge),
    **dict.fromkeys((layers.Conv1D, layers.Conv2D, layers.Conv3D), _convolution),
    **dict.fromkeys(
        (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), _transposed
    ),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), _depthwise),
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), _separable),
    **dict.fromkeys((layers.LSTM, layers.GRU, layers.SimpleRNN), _recurrent),
    **dict.fromkeys(
        (layers.LayerNormalization, layers.RMSNormalization, layers.GroupNormalization), _over_all
    ),
    **dict.fromkeys((layers.UnitNormalization, layers.Softmax, layers.Masking), _over_all),
    **dict.fromkeys((layers.Reshape, layers.Flatten), _reshape),
    layers.Dense: _dense,
    layers.BatchNormalization: _batch_normalization,
    layers.Activation: _activation,
    layers.Rescaling: _rescaling,
    layers.PReLU: _slopes,
    layers.Concatenate: _concatenate,
    layers.Permute: _permute,
    layers.Embedding: _embedding,
}
