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
    if type(layer).__module__.startswith("keras.src.ops."):
        return _OPERATIONS.get(type(layer).__name__)
    return _RULES.get(type(layer))


def _made(channels: Channels, layer: keras.layers.Layer, count: int) -> Any:
    """New channels of a layer, which stay where its activation sees them all."""
    made = channels.fresh(count, layer.name)
    if not elementwise(getattr(layer, "activation", None)):
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
    if not channels_last(layer):
        return None
    if getattr(layer, "groups", 1) != 1:
        return _grouped(channels, layer, node, labels)
    outputs = _made(channels, layer, layer.filters)
    channels.slot(layer, "kernel", read, labels[0], "in", node.input_tensors[0])
    channels.slot(layer, "kernel", made, outputs, "out")
    channels.slot(layer, "bias", 0, outputs, "other")
    channels.size(layer, filters=lambda count: count(outputs))
    return [outputs]


def _grouped(channels, layer, node, labels):
    """A channel a group: depthwise. More: what is in the same place of all groups is one unit."""
    if len(labels[0]) % layer.groups or not len(labels[0]):
        return None
    rows = labels[0].reshape(layer.groups, -1)
    if rows.shape[1] > 1:
        channels.tie(*rows)
        outputs = _made(channels, layer, layer.filters)
        channels.tie(*outputs.reshape(layer.groups, -1))

        def read(value):
            return keras.ops.reshape(value, (-1, rows.shape[1]))

        channels.slot(layer, "kernel", -2, rows[0], "in", node.input_tensors[0], read)
        channels.slot(layer, "kernel", -1, outputs, "out")
    elif elementwise(layer.activation):
        outputs = np.repeat(labels[0], layer.filters // layer.groups)
        channels.slot(layer, "kernel", -1, outputs, "scale")
        channels.size(layer, groups=lambda count: count(labels[0]))
    else:
        return None
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


def _constants(node: Any) -> list[tuple[int, ...]]:
    """The shapes of the arrays and numbers that a call has beside tensors of the network."""
    given = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
    tensors = (keras.KerasTensor, str, type(None))
    return [tuple(np.shape(one)) for one in given if not isinstance(one, tensors)]


def _merge(channels, layer, node, labels):
    """Also x + 1; an array with a value for each channel is not cut."""
    shapes = [tensor.shape for tensor in node.input_tensors]
    rank = len(node.output_tensors[0].shape)
    if any(len(shape) > rank or shape[-1:] not in ((), (1,)) for shape in _constants(node)):
        return None
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
    if layer.axis is None or any(shape for shape in _constants(node)):
        return None
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
    if len(labels) > 1 or not _free_state(layer):
        return None
    outputs = channels.fresh(layer.units, layer.name)
    _gates(channels, layer, layer.cell, node, labels[0], outputs, node.output_tensors[0])
    channels.size(layer, units=lambda count: count(outputs))
    return [outputs] * len(node.output_tensors)


def _bidirectional(channels, layer, node, labels):
    """A unit is one of each direction: both have the same number left."""
    ways = {"layer": layer.forward_layer, "backward_layer": layer.backward_layer}
    known = all(type(way) in _GATES and _free_state(way) for way in ways.values())
    if len(labels) > 1 or not known or layer.forward_layer.return_state:
        return None
    made = [channels.fresh(way.units, layer.name) for way in ways.values()]
    if len(made[0]) != len(made[1]):
        return None
    channels.tie(*made)
    for (option, way), outputs in zip(ways.items(), made, strict=True):
        _gates(channels, layer, way.cell, node, labels[0], outputs, None)
        channels.size(layer, **{option: _with_units(way, outputs)})
    if layer.merge_mode == "concat":
        return [np.concatenate(made)]
    return made[: len(node.output_tensors)]


_GATES = (layers.LSTM, layers.GRU, layers.SimpleRNN)


def _free_state(layer: keras.layers.Layer) -> bool:
    """Whether units see each other through kernels alone, and no state outlives a call."""
    inner = (layer.activation, getattr(layer, "recurrent_activation", None))
    return all(elementwise(one) for one in inner) and not layer.stateful


def _gates(
    channels: Channels,
    layer: keras.layers.Layer,
    cell: keras.layers.Layer,
    node: Any,
    inputs: Any,
    outputs: Any,
    state: Any,
) -> None:
    """The weights of a cell. state: the tensor of its outputs; None where the graph has none."""
    gates = cell.kernel.shape[1] // cell.units
    made = np.tile(outputs, gates)
    channels.slot(layer, cell.kernel, 0, inputs, "in", node.input_tensors[0])
    channels.slot(layer, cell.kernel, 1, made, "out")
    channels.slot(layer, cell.recurrent_kernel, 0, outputs, "in", state)
    channels.slot(layer, cell.recurrent_kernel, 1, made, "out")
    channels.slot(layer, cell.bias, -1, made, "other")


def _with_units(layer: keras.layers.Layer, outputs: np.ndarray) -> Callable:
    """The configuration of a layer within a wrapper, with the units that are left."""

    def option(count: Callable) -> dict[str, Any]:
        whole = keras.saving.serialize_keras_object(layer)
        whole.pop("build_config", None)  # the shape of its inputs may change, too
        return whole | {"config": whole["config"] | {"units": count(outputs)}}

    return option


def _attention(channels, layer, node, labels):
    """Heads are units; what comes out is as wide as the query, unless `output_shape` says."""
    config = layer.get_config()
    given = list(node.arguments.args) + list(node.arguments.kwargs.values())
    width = config["output_shape"]
    if isinstance(width, (list, tuple)):
        (width,) = width if len(width) == 1 else (0,)
    if len(node.output_tensors) > 1 or config["use_gate"] or width == 0:
        return None
    number = {id(tensor): place for place, tensor in enumerate(node.input_tensors)}
    named = dict(zip(("query", "value", "key"), node.arguments.args, strict=False))
    named |= {k: v for k, v in node.arguments.kwargs.items() if k in ("query", "value", "key")}
    if named.get("key") is None:
        named["key"] = named["value"]
    if any(id(tensor) not in number for tensor in named.values()):
        return None
    used = {id(tensor) for tensor in named.values()}
    for tensor in given:  # masks
        if id(tensor) in number and id(tensor) not in used:
            channels.keep(labels[number[id(tensor)]], f"{layer.name} has it as a mask")
    heads = channels.fresh(config["num_heads"], layer.name)
    for name, tensor in named.items():
        dense = getattr(layer, f"_{name}_dense")
        channels.slot(layer, dense.kernel, 0, labels[number[id(tensor)]], "in", tensor)
        channels.slot(layer, dense.kernel, 1, heads, "out")
        channels.slot(layer, dense.bias, 0, heads, "other")
    channels.size(layer, num_heads=lambda count: count(heads))
    outputs = labels[number[id(named["query"])]]
    if width is not None:
        outputs = channels.fresh(width, layer.name)
        channels.size(layer, output_shape=lambda count: count(outputs))
    dense = layer._output_dense
    channels.slot(layer, dense.kernel, 0, heads, "in")
    channels.slot(layer, dense.kernel, -1, outputs, "out")
    channels.slot(layer, dense.bias, -1, outputs, "other")
    return [outputs]


def _embedding(channels, layer, node, labels):
    if node.arguments.kwargs.get("reverse"):
        return None
    outputs = channels.fresh(layer.output_dim, layer.name)
    channels.slot(layer, "embeddings", 1, outputs, "out")
    channels.size(layer, output_dim=lambda count: count(outputs))
    return [outputs]


def _reduction(channels, layer, node, labels):
    """Over other axes than that of the channels."""
    rank = len(node.input_tensors[0].shape)
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    if None in axes or any(axis % rank == rank - 1 for axis in axes):
        return None
    return [labels[0]]


def _same(channels, layer, node, labels):
    return [labels[0]] if len(labels) == 1 else None


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
    *(layers.GlobalAveragePooling3D, layers.Resizing),
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
    **dict.fromkeys(_GATES, _recurrent),
    **dict.fromkeys(
        (layers.LayerNormalization, layers.RMSNormalization, layers.GroupNormalization), _over_all
    ),
    **dict.fromkeys((layers.UnitNormalization, layers.Softmax, layers.Masking), _over_all),
    **dict.fromkeys((layers.Reshape, layers.Flatten), _reshape),
    layers.Bidirectional: _bidirectional,
    layers.MultiHeadAttention: _attention,
    layers.Dense: _dense,
    layers.BatchNormalization: _batch_normalization,
    layers.Activation: _activation,
    layers.Rescaling: _rescaling,
    layers.PReLU: _slopes,
    layers.Concatenate: _concatenate,
    layers.Permute: _permute,
    layers.Embedding: _embedding,
}
# Keras operations (x + 1, ops.relu(x)), by the names of their classes.
_OPERATIONS = {
    **dict.fromkeys(
        ("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum", "Power"),
        _merge,
    ),
    **dict.fromkeys(("Mean", "Sum", "Max", "Min"), _reduction),
    **dict.fromkeys(
        (
            *("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Silu", "Mish"),
            *("Sigmoid", "HardSigmoid", "HardSilu", "HardTanh", "Tanh", "Softplus", "Softsign"),
            *("Abs", "Negative", "Square", "Sqrt", "Rsqrt", "Reciprocal", "Exp", "Log", "Clip"),
            *("Erf", "Sin", "Cos"),
        ),
        _same,
    ),
    "Concatenate": _concatenate,
}
