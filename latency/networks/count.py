"""What a network costs by counting: parameters, multiply-adds and bytes, layer by layer.

Conventions of the mobile papers: one multiply-add (MAC) per weight use in convolutions and matrix
products; normalization, activations, pooling and additions are free. Only shapes are read.
"""

import dataclasses
import math
import re
from typing import Any

import keras

from latency.networks.functional import functional

# Layers that hold weights and multiply element by element, or only look up: no MACs by convention.
_FREE_WITH_WEIGHTS = (
    keras.layers.BatchNormalization,
    keras.layers.Embedding,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.Normalization,
    keras.layers.PReLU,
    keras.layers.RMSNormalization,
)
_RECURRENT = (keras.layers.GRU, keras.layers.LSTM, keras.layers.SimpleRNN)
# Keras operations without weights that may multiply matrices in ways not counted here.
_OPAQUE = {
    *("Lambda", "CDist", "Inner", "Vdot", "Kron", "Conv", "DepthwiseConv"),
    *("SeparableConv", "ConvTranspose", "Cond", "Switch", "WhileLoop", "ForiLoop", "Map", "Scan"),
    *("AssociativeScan", "VectorizedMap", "FFT", "FFT2", "IFFT2", "RFFT", "IRFFT", "STFT", "ISTFT"),
}


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One call of one layer; a layer that is called again has its weights in the first row only."""

    name: str
    type: str
    params: int
    macs: int
    weight_bytes: int
    input_bytes: int
    output_bytes: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """Counts for one sample (for the batch, where the model fixes its size)."""

    trainable_params: int
    total_params: int
    macs: int
    output_bytes: int  # of all layers: the activations written when nothing is fused
    layers: tuple[LayerCost, ...]
    uncounted: tuple[str, ...]  # layers that may multiply and are in `macs` with 0: "name (Type)"


def count(model: keras.Model) -> Cost:
    """Count a flat Functional model; ValueError for other models and for open sizes.

    >>> inputs = keras.Input((8, 8, 3))
    >>> count(keras.Model(inputs, keras.layers.Conv2D(4, 3, padding="same")(inputs))).macs
    6912
    """
    rows, uncounted, seen = [], [], set()
    nodes = calls(model)
    times = samples(nodes)
    for node in nodes:
        operation = node.operation
        macs = _macs(node)
        if macs is None:
            uncounted.append(f"{operation.name} ({type(operation).__name__})")
        new = operation not in seen
        seen.add(operation)
        weights = getattr(operation, "weights", ()) if new else ()
        rows.append(
            LayerCost(
                name=operation.name,
                type=type(operation).__name__,
                params=sum(math.prod(weight.shape) for weight in weights),
                macs=(macs or 0) * times.get(id(node.outputs[0]), 1),
                weight_bytes=sum(_bytes(weight) for weight in weights),
                input_bytes=sum(_bytes(t) * times.get(id(t), 1) for t in node.input_tensors),
                output_bytes=sum(_bytes(t) * times.get(id(t), 1) for t in node.outputs),
            )
        )
    return Cost(
        trainable_params=sum(math.prod(weight.shape) for weight in model.trainable_weights),
        total_params=sum(math.prod(weight.shape) for weight in model.weights),
        macs=sum(row.macs for row in rows),
        output_bytes=sum(row.output_bytes for row in rows),
        layers=tuple(rows),
        uncounted=tuple(dict.fromkeys(uncounted)),
    )


def calls(model: keras.Model) -> list:
    """The calls (Keras nodes) of a flat Functional or Sequential model in order.

    One for each row of `count`; `ValueError` for other models.
    """
    model = functional(model)
    nodes_by_depth = getattr(model, "_nodes_by_depth", None)
    if not isinstance(model, keras.Model) or nodes_by_depth is None:
        raise ValueError(
            f"count: expected a Functional or Sequential keras.Model, got {type(model).__name__}"
        )
    depths = sorted(nodes_by_depth, reverse=True)
    nodes = [node for depth in depths for node in nodes_by_depth[depth] if not node.is_input]
    for node in nodes:
        if isinstance(node.operation, keras.Model):
            name = node.operation.name
            raise ValueError(
                f"count: expected a flat model, but {name!r} is a model; nas.open(model).model "
                "is the same network without models in it"
            )
    return nodes


def samples(nodes: list) -> dict[int, int]:
    """By the id of each tensor of `calls`: how many samples it holds for one of the model.

    1, but where layers with a `batch_factor` move pixels into an open batch, whose size shapes do
    not say.
    """
    found: dict[int, int] = {}
    for node in nodes:
        held = max((found.get(id(tensor), 1) for tensor in node.input_tensors), default=1)
        held = round(held * getattr(node.operation, "batch_factor", 1))
        found |= {id(t): held for t in node.outputs if held > 1 and t.shape[:1] == (None,)}
    return found


def _macs(node: Any) -> int | None:
    """Multiply-adds of one call, None where they are not known."""
    operation = node.operation
    if isinstance(operation, keras.layers.Layer):
        if callable(getattr(type(operation), "macs", None)):  # a layer that knows itself
            return operation.macs(*(_shape(tensor) for tensor in node.input_tensors))
        if type(operation) is keras.layers.MultiHeadAttention:
            return _multi_head_attention(node)
        for kinds, macs in _LAYERS:
            if isinstance(operation, kinds):
                return macs(operation, node.input_tensors, node.outputs[0])
    elif type(operation).__module__.startswith("keras.src.ops"):
        known_macs = _OPERATIONS.get(type(operation).__name__)
        if known_macs is not None:
            return known_macs(operation, node.arguments.args, node.outputs[0])
    # Stock layers without matrices do not multiply; a layer of another package may do anything.
    known = type(operation).__module__.startswith("keras.src.")
    opaque = type(operation).__name__ in _OPAQUE or ".linalg" in type(operation).__module__
    matrices = any(len(weight.shape) > 1 for weight in getattr(operation, "weights", ()))
    return 0 if known and not opaque and not matrices else None


def _convolution(layer: keras.layers.Layer, inputs: Any, output: Any) -> int:
    channels = _shape(inputs[0])[_channel_axis(layer)]
    return _size(output) * math.prod(layer.kernel_size) * channels // layer.groups


def _depthwise(layer: keras.layers.Layer, inputs: Any, output: Any) -> int:
    return _size(output) * math.prod(layer.kernel_size)


def _separable(layer: keras.layers.Layer, inputs: Any, output: Any) -> int:
    channels = _shape(inputs[0])[_channel_axis(layer)] * layer.depth_multiplier
    positions = _size(output) // _shape(output)[_channel_axis(layer)]
    return positions * channels * math.prod(layer.kernel_size) + _size(output) * channels


def _transposed(layer: keras.layers.Layer, inputs: Any, output: Any) -> int:
    return _size(inputs[0]) * math.prod(layer.kernel_size) * layer.filters


def _dense(layer: keras.layers.Layer, inputs: Any, output: Any) -> int:
    return _size(output) * _shape(inputs[0])[-1]


def _einsum_dense(layer: keras.layers.Layer, inputs: Any, output: Any) -> int:
    return _einsum(layer.equation, [_shape(inputs[0]), tuple(layer.kernel.shape)])


def _recurrent(layer: keras.layers.Layer, inputs: Any, output: Any) -> int:
    steps = math.prod(_shape(inputs[0])[:2])
    weights = (layer.cell.kernel, layer.cell.recurrent_kernel)
    return steps * sum(math.prod(weight.shape) for weight in weights)


def _bidirectional(layer: keras.layers.Layer, inputs: Any, output: Any) -> int | None:
    ways = (layer.forward_layer, layer.backward_layer)
    if not all(isinstance(way, _RECURRENT) for way in ways):
        return None
    return sum(_recurrent(way, inputs, output) for way in ways)


def _multi_head_attention(node: Any) -> int | None:
    layer = node.operation
    config = layer.get_config()
    given = dict(zip(("query", "value"), node.arguments.args, strict=False)) | node.arguments.kwargs
    query, value = _shape(given["query"]), _shape(given["value"])
    if len(query) != 3 or len(value) != 3 or config.get("use_gate"):
        return None
    batch, steps, memory = query[0], query[1], value[1]
    made = (layer._query_dense, layer._output_dense), (layer._key_dense, layer._value_dense)
    products = sum(
        count * sum(math.prod(dense.kernel.shape) for dense in pair)
        for count, pair in zip((steps, memory), made, strict=True)
    )
    width = layer._query_dense.kernel.shape[2] + layer._value_dense.kernel.shape[2]
    return batch * (products + steps * memory * config["num_heads"] * width)


def _attention(layer: keras.layers.Layer, inputs: Any, output: Any) -> int:
    query, value = _shape(inputs[0]), _shape(inputs[1])
    return math.prod(query[:-1]) * value[-2] * (query[-1] + value[-1])


def _dot_layer(layer: keras.layers.Layer, inputs: Any, output: Any) -> int:
    axis = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    return _size(output) * _shape(inputs[0])[axis]


def _matmul(operation: Any, operands: Any, output: Any) -> int:
    return _size(output) * _shape(operands[0])[-1]


def _tensordot(operation: Any, operands: Any, output: Any) -> int:
    shape, axes = _shape(operands[0]), operation.axes
    if isinstance(axes, int):
        contracted = list(shape[len(shape) - axes :])
    else:
        first = (axes[0],) if isinstance(axes[0], int) else axes[0]
        contracted = [shape[axis] for axis in first]
    return _size(output) * math.prod(contracted)


def _einsum_operation(operation: Any, operands: Any, output: Any) -> int:
    return _einsum(operation.subscripts, [_shape(operand) for operand in operands])


def _dot_product_attention(operation: Any, operands: Any, output: Any) -> int:
    (batch, queries, heads, width), keys = _shape(operands[0]), _shape(operands[1])[1]
    return batch * queries * heads * keys * (width + _shape(operands[2])[-1])


def _einsum(equation: str, shapes: list[tuple[int, ...]]) -> int:
    """Product of the sizes of all indices: exact for two operands, the unfactored sum for more."""
    sizes: dict[str, int] = {}
    terms = equation.replace(" ", "").split("->")[0].split(",")
    for term, shape in zip(terms, shapes, strict=True):
        before, dots, after = term.partition("...")
        sizes.update(zip(before, shape, strict=False))
        if dots:
            end = len(shape) - len(after)
            sizes["..."] = max(sizes.get("...", 1), math.prod(shape[len(before) : end]))
            sizes.update(zip(after, shape[end:], strict=True))
    return math.prod(sizes.values())


def _channel_axis(layer: keras.layers.Layer) -> int:
    return 1 if layer.data_format == "channels_first" else -1


def _shape(tensor: Any) -> tuple[int, ...]:
    """Sizes of a tensor, an open batch counted as one sample."""
    sizes = tuple(tensor.shape)
    if sizes and sizes[0] is None:
        sizes = (1, *sizes[1:])
    if None in sizes:
        raise ValueError(
            f"count: {getattr(tensor, 'name', 'a tensor')} has open sizes {tuple(tensor.shape)}; "
            "build the model with fixed sizes (only the batch may be open)"
        )
    return sizes


def _size(tensor: Any) -> int:
    return math.prod(_shape(tensor))


def _bytes(tensor: Any) -> int:
    bits = re.search(r"\d+", keras.backend.standardize_dtype(tensor.dtype))  # float8_e4m3fn is 8
    return math.ceil(_size(tensor) * (int(bits.group()) if bits else 8) / 8)  # bool has no digits


_LAYERS = (
    ((keras.layers.SeparableConv1D, keras.layers.SeparableConv2D), _separable),
    ((keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D), _depthwise),
    (
        (
            keras.layers.Conv1DTranspose,
            keras.layers.Conv2DTranspose,
            keras.layers.Conv3DTranspose,
        ),
        _transposed,
    ),
    ((keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D), _convolution),
    (keras.layers.Dense, _dense),
    (keras.layers.EinsumDense, _einsum_dense),
    (_RECURRENT, _recurrent),
    (keras.layers.Bidirectional, _bidirectional),
    (keras.layers.AdditiveAttention, lambda layer, inputs, output: None),
    (keras.layers.Attention, _attention),
    (keras.layers.Dot, _dot_layer),
    (_FREE_WITH_WEIGHTS, lambda layer, inputs, output: 0),
)
_OPERATIONS = {
    "Matmul": _matmul,
    "Dot": _matmul,
    "Einsum": _einsum_operation,
    "Tensordot": _tensordot,
    "DotProductAttention": _dot_product_attention,
}
