"""Keras model to `.tflite` bytes in milliseconds: the file is written directly, layer by layer.

BatchNormalization is folded and activations are fused as the official converter does
(`latency.tflite.convert.convert`), so the file costs the same to run. Needs no TensorFlow and works
with every Keras backend: it reads `layer.get_weights()` and never runs the model.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from latency.tflite.graph import SAME, VALID, Graph
from latency.tflite.signature import names

_BUILTIN = {"sigmoid": "LOGISTIC", "tanh": "TANH", "relu": "RELU", "relu6": "RELU6"}
Shape = tuple[int, ...]
Writer = Callable[[Graph, Any, list[int], Shape], int]  # layer, its inputs, shape: the output
_ACTIVATIONS = (*_BUILTIN, "silu", "hard_silu", "hard_sigmoid", "softmax", "linear")


def assemble(model: Any) -> bytes:
    """The `.tflite` file of `model`: float32, batch 1, static shapes, builtin operations only.

    Raises `ValueError` naming the layer that this writer does not know.

    >>> import keras
    >>> inputs = keras.Input((8, 8, 3))
    >>> outputs = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    >>> assemble(keras.Model(inputs, outputs))[4:8]
    b'TFL3'
    """
    nodes_by_depth = getattr(model, "_nodes_by_depth", None)
    if nodes_by_depth is None:
        raise ValueError(f"expected a Functional keras.Model, got {type(model).__name__}")
    for tensor in model.inputs:
        if tensor.dtype != "float32":
            raise ValueError(f"input {tensor.name!r}: only float32 is written, got {tensor.dtype}")
    from latency.networks.count import samples  # noqa: PLC0415 (it imports Keras)

    named = names(model)
    graph = Graph()
    tensors = {id(t): graph.tensor(_batch_one(t.shape, t.name), t.name) for t in model.inputs}
    inputs = list(tensors.values())
    nodes = [node for depth in sorted(nodes_by_depth)[::-1] for node in nodes_by_depth[depth]]
    held = samples(nodes)
    for node in nodes:
        layer = node.operation
        if not node.input_tensors:
            continue  # an InputLayer: its tensor is among model.inputs
        if len(node.output_tensors) != 1:
            raise _unsupported(layer, f"{len(node.output_tensors)} outputs", "one")
        read = _inputs(graph, layer, node, tensors)
        made = node.output_tensors[0]
        shape = _batch_one(made.shape, layer.name)
        shape = (held.get(id(made), 1), *shape[1:])
        tensors[id(made)] = _writer(layer)(graph, layer, read, shape)
    outputs = graph.fuse(inputs, [tensors[id(tensor)] for tensor in model.outputs])
    return graph.serialize(inputs, outputs, named)


def _batch_one(shape: Sequence[int | None], name: str) -> tuple[int, ...]:
    if any(size is None for size in shape[1:]) or shape[0] not in (None, 1):
        raise ValueError(f"layer {name!r}: expected a static shape at batch 1, got {tuple(shape)}")
    return (1, *(int(size) for size in shape[1:] if size is not None))


def _unsupported(layer: Any, came: str, supported: str) -> ValueError:
    return ValueError(
        f"layer {layer.name!r}: {came} cannot be written directly (supported: {supported}); "
        "use latency.tflite.convert.convert"
    )


def _inputs(graph: Graph, layer: Any, node: Any, tensors: dict[int, int]) -> list[int]:
    """What a call reads: tensors; of arithmetic (`x * 2 + 1`) numbers and arrays, too."""
    read = [tensors[id(tensor)] for tensor in node.input_tensors]
    if type(layer) not in _arithmetic():
        _check_call(layer, node)
        return read
    both = [*node.arguments.args, *node.arguments.kwargs.values()]
    if len(both) != 2:
        raise _unsupported(layer, f"{len(both)} operands", "two")
    if len(read) == 2:
        return read
    values = [operand for operand in both if operand is not node.input_tensors[0]]
    dtypes = {tensor.dtype for tensor in (*node.input_tensors, *node.output_tensors)}
    if dtypes != {"float32"} or len(values) != 1:
        raise _unsupported(layer, f"operands {both!r:.100}", "float32")
    value = graph.constant(np.asarray(values[0]), f"{layer.name}/constant")
    return [*read, value] if both[0] is node.input_tensors[0] else [value, *read]


def _check_call(layer: Any, node: Any) -> None:
    """A call may ask for more than the layer says: a mask, an initial state."""
    read = {id(tensor) for tensor in node.input_tensors}
    more = [
        name
        for name, value in node.arguments.kwargs.items()
        if id(value) not in read and value is not None and name not in ("inputs", "training")
    ]
    if more:
        raise _unsupported(layer, f"a call with {', '.join(more)}", "calls on tensors alone")


def _writer(layer: Any) -> Writer:
    """A layer's own method `litert`, or the writer of a stock Keras layer.

    A subclass that overrides `call` may compute something else: it is not trusted.
    """
    kind = type(layer)
    for owner in kind.__mro__:
        if "litert" in vars(owner):
            return lambda graph, layer, inputs, shape: layer.litert(graph, inputs, shape)
        if "call" in vars(owner):
            break
    writers = _writers() | _arithmetic()
    if kind not in writers:
        known = ", ".join(sorted(_WRITERS))
        raise _unsupported(layer, f"{kind.__module__}.{kind.__name__}", known)
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise _unsupported(layer, f"data_format {layer.data_format!r}", "channels_last")
    return writers[kind]


@functools.cache
def _writers() -> dict[type, Writer]:
    """By class: an operation of the same name, such as that of `x * 2`, is another kind."""
    import keras  # noqa: PLC0415 (whoever has a model has imported it)

    return {getattr(keras.layers, name): writer for name, writer in _WRITERS.items()}


@functools.cache
def _arithmetic() -> dict[type, Writer]:
    """By class: operations on two operands, of which one may be a number or an array."""
    import keras  # noqa: PLC0415

    found = {}
    for function, writer in _ARITHMETIC.items():
        x = keras.KerasTensor((1, 1), "float32")
        made = getattr(keras.ops, function)(x, x)
        found[type(made._keras_history.operation)] = writer
    return found


def _padding(layer: Any) -> int:
    if layer.padding not in ("same", "valid"):
        raise _unsupported(layer, f"padding {layer.padding!r}", "same, valid")
    return SAME if layer.padding == "same" else VALID


def _activate(graph: Graph, layer: Any, tensor: int, function: Any = None) -> int:
    """Keras' activation of `layer` (or `function`) applied to `tensor`."""
    function = function or layer.activation
    name = getattr(function, "__name__", str(function))
    shape = graph.shapes[tensor]
    if name == "linear":
        return tensor
    if name in _BUILTIN:
        return graph.add(_BUILTIN[name], [tensor], shape, layer.name)
    if name == "silu":
        gate = graph.add("LOGISTIC", [tensor], shape, layer.name)
        return graph.add("MUL", [tensor, gate], shape, layer.name, schema.MulOptionsT())
    if name == "hard_silu":
        options = schema.HardSwishOptionsT()
        return graph.add("HARD_SWISH", [tensor], shape, layer.name, options)
    if name == "hard_sigmoid":  # relu6(x + 3) / 6
        tensor = _with_constant(graph, layer, "ADD", tensor, 3.0)
        tensor = graph.add("RELU6", [tensor], shape, layer.name)
        return _with_constant(graph, layer, "MUL", tensor, np.float32(1) / np.float32(6))
    if name == "softmax":
        return graph.add("SOFTMAX", [tensor], shape, layer.name, schema.SoftmaxOptionsT(beta=1.0))
    raise _unsupported(layer, f"activation {name!r}", ", ".join(_ACTIVATIONS))


def _with_constant(graph: Graph, layer: Any, name: str, tensor: int, value: Any) -> int:
    """ADD or MUL of a tensor and a constant."""
    options = schema.AddOptionsT() if name == "ADD" else schema.MulOptionsT()
    inputs = [tensor, graph.constant(value, f"{layer.name}/{name.lower()}/constant")]
    return graph.add(name, inputs, graph.shapes[tensor], layer.name, options)


def _affine(
    graph: Graph,
    layer: Any,
    name: str,
    tensor: int,
    kernel: Callable[[np.ndarray], np.ndarray],
    options: Any,
    shape: Shape,
    version: int = 1,
) -> int:
    weights = layer.get_weights()
    bias = weights[1] if layer.use_bias else np.zeros(shape[-1], np.float32)
    inputs = [
        tensor,
        graph.constant(kernel(weights[0]), f"{layer.name}/kernel"),
        graph.constant(bias, f"{layer.name}/bias"),
    ]
    return _activate(graph, layer, graph.add(name, inputs, shape, layer.name, options, version))


def _convolution(graph: Graph, layer: Any, inputs: list[int], shape: Shape) -> int:
    if layer.groups != 1:
        raise _unsupported(layer, f"groups={layer.groups}", "groups=1")
    options = schema.Conv2DOptionsT(
        padding=_padding(layer),
        strideH=layer.strides[0],
        strideW=layer.strides[1],
        dilationHFactor=layer.dilation_rate[0],
        dilationWFactor=layer.dilation_rate[1],
    )

    def kernel(
        weights: np.ndarray,
    ) -> np.ndarray:  # Keras: (height, width, in, out); LiteRT: (out, height, width, in)
        return weights.transpose(3, 0, 1, 2)

    return _affine(graph, layer, "CONV_2D", inputs[0], kernel, options, shape)


def _depthwise(graph: Graph, layer: Any, inputs: list[int], shape: Shape) -> int:
    options = schema.DepthwiseConv2DOptionsT(
        padding=_padding(layer),
        strideH=layer.strides[0],
        strideW=layer.strides[1],
        dilationHFactor=layer.dilation_rate[0],
        dilationWFactor=layer.dilation_rate[1],
        depthMultiplier=layer.depth_multiplier,
    )
    version = 2 if max(layer.dilation_rate) > 1 else 1

    def kernel(
        weights: np.ndarray,
    ) -> np.ndarray:  # Keras: (height, width, in, multiplier); LiteRT: (1, height, width, out)
        return weights.reshape(1, *weights.shape[:2], -1)

    return _affine(graph, layer, "DEPTHWISE_CONV_2D", inputs[0], kernel, options, shape, version)


def _dense(graph: Graph, layer: Any, inputs: list[int], shape: Shape) -> int:
    keep = len(shape) > 2
    options = schema.FullyConnectedOptionsT(keepNumDims=keep)
    version = 5 if keep else 1  # 5: the first that keeps dimensions
    return _affine(
        graph, layer, "FULLY_CONNECTED", inputs[0], np.transpose, options, shape, version
    )


def _batch_normalization(graph: Graph, layer: Any, inputs: list[int], shape: Shape) -> int:
    if layer.axis not in (-1, len(shape) - 1):
        raise _unsupported(layer, f"axis={layer.axis}", "the last axis")
    weights = layer.get_weights()
    mean, variance = weights[-2:]
    scale = 1 / np.sqrt(variance + np.float32(layer.epsilon))
    if layer.scale:
        scale = scale * weights[0]
    shift = -mean * scale
    if layer.center:
        shift = shift + weights[1 if layer.scale else 0]
    return _with_constant(
        graph, layer, "ADD", _with_constant(graph, layer, "MUL", inputs[0], scale), shift
    )


def _relu(graph: Graph, layer: Any, inputs: list[int], shape: Shape) -> int:
    names = {None: "RELU", 6: "RELU6"}
    if layer.max_value not in names or layer.negative_slope or layer.threshold:
        raise _unsupported(layer, f"{layer.get_config()}", "ReLU(), ReLU(max_value=6)")
    return graph.add(names[layer.max_value], inputs, shape, layer.name)


def _softmax(graph: Graph, layer: Any, inputs: list[int], shape: Shape) -> int:
    if layer.axis not in (-1, len(shape) - 1):
        raise _unsupported(layer, f"axis={layer.axis}", "the last axis")
    return graph.add("SOFTMAX", inputs, shape, layer.name, schema.SoftmaxOptionsT(beta=1.0))


def _merge(name: str, options_type: Callable[[], Any]) -> Writer:
    def write(graph: Graph, layer: Any, inputs: list[int], shape: Shape) -> int:
        result = inputs[0]
        for tensor in inputs[1:]:
            shapes = graph.shapes[result], graph.shapes[tensor]
            if len(shapes[0]) != len(shapes[1]):
                raise _unsupported(layer, f"shapes {shapes}", "inputs of equal rank")
            result_shape = np.broadcast_shapes(*shapes)
            result = graph.add(name, [result, tensor], result_shape, layer.name, options_type())
        return result

    return write


def _global_average(graph: Graph, layer: Any, inputs: list[int], shape: Shape) -> int:
    if graph.shapes[inputs[0]] == shape:
        return inputs[0]  # already 1 x 1
    axes = graph.constant([1, 2], f"{layer.name}/axes", np.int32)
    options = schema.ReducerOptionsT(keepDims=bool(layer.keepdims))
    return graph.add("MEAN", [inputs[0], axes], shape, layer.name, options)


def _pool(name: str) -> Writer:
    def write(graph: Graph, layer: Any, inputs: list[int], shape: Shape) -> int:
        options = schema.Pool2DOptionsT(
            padding=_padding(layer),
            strideH=layer.strides[0],
            strideW=layer.strides[1],
            filterHeight=layer.pool_size[0],
            filterWidth=layer.pool_size[1],
        )
        return graph.add(name, inputs, shape, layer.name, options)

    return write


def _zero_padding(graph: Graph, layer: Any, inputs: list[int], shape: Shape) -> int:
    around = graph.constant(((0, 0), *layer.padding, (0, 0)), f"{layer.name}/padding", np.int32)
    return graph.add("PAD", [inputs[0], around], shape, layer.name, schema.PadOptionsT())


def _reshape(graph: Graph, layer: Any, inputs: list[int], shape: Shape) -> int:
    target = graph.constant(shape, f"{layer.name}/shape", np.int32)
    return graph.add("RESHAPE", [inputs[0], target], shape, layer.name)


def _concatenate(graph: Graph, layer: Any, inputs: list[int], shape: Shape) -> int:
    options = schema.ConcatenationOptionsT(axis=layer.axis)
    return graph.add("CONCATENATION", inputs, shape, layer.name, options)


def _rescaling(graph: Graph, layer: Any, inputs: list[int], shape: Shape) -> int:
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        raise _unsupported(layer, "a scale or offset per channel", "scalars")
    tensor = _with_constant(graph, layer, "MUL", inputs[0], layer.scale)
    return _with_constant(graph, layer, "ADD", tensor, layer.offset) if layer.offset else tensor


def _operation(name: str, options_type: Callable[[], Any]) -> Writer:
    """An operation on two operands; x - c and x / c are written as the converter does."""

    def write(graph: Graph, layer: Any, inputs: list[int], shape: Shape) -> int:
        first, second = inputs
        value = graph.constants.get(second)
        if name in ("ADD", "MUL") and first in graph.constants:
            first, second = second, first
        elif name == "SUB" and value is not None:
            second = graph.constant(-value, f"{layer.name}/negative")
            return graph.add("ADD", [first, second], shape, layer.name, schema.AddOptionsT())
        elif name == "DIV" and value is not None and value.all():
            second = graph.constant(1 / value, f"{layer.name}/reciprocal")
            return graph.add("MUL", [first, second], shape, layer.name, schema.MulOptionsT())
        if first not in graph.constants and second not in graph.constants:
            shapes = graph.shapes[first], graph.shapes[second]
            if len(shapes[0]) != len(shapes[1]):
                raise _unsupported(layer, f"shapes {shapes}", "inputs of equal rank")
        return graph.add(name, [first, second], shape, layer.name, options_type())

    return write


_ARITHMETIC = {  # functions of `keras.ops`
    "add": _operation("ADD", schema.AddOptionsT),
    "subtract": _operation("SUB", schema.SubOptionsT),
    "multiply": _operation("MUL", schema.MulOptionsT),
    "true_divide": _operation("DIV", schema.DivOptionsT),
    "divide": _operation("DIV", schema.DivOptionsT),
}
_WRITERS = {
    "Activation": lambda graph, layer, inputs, shape: _activate(graph, layer, inputs[0]),
    "Add": _merge("ADD", schema.AddOptionsT),
    "AveragePooling2D": _pool("AVERAGE_POOL_2D"),
    "BatchNormalization": _batch_normalization,
    "Concatenate": _concatenate,
    "Conv2D": _convolution,
    "Dense": _dense,
    "DepthwiseConv2D": _depthwise,
    "Dropout": lambda graph, layer, inputs, shape: inputs[0],
    "Flatten": _reshape,
    "GlobalAveragePooling2D": _global_average,
    "MaxPooling2D": _pool("MAX_POOL_2D"),
    "Multiply": _merge("MUL", schema.MulOptionsT),
    "ReLU": _relu,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "Softmax": _softmax,
    "ZeroPadding2D": _zero_padding,
}
