"""What each operation of a `.tflite` file computes and moves: multiply-adds and bytes, on paper."""

import math
import re
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from latency.roofline.kernel_times import Kernel
from latency.tflite.graph import Operation, operations

_COPIES = {
    *("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "PAD", "PADV2", "CONCATENATION", "SLICE"),
    *("STRIDED_SLICE", "SPLIT", "SPLIT_V", "PACK", "UNPACK", "TILE", "GATHER", "SPACE_TO_DEPTH"),
    *("DEPTH_TO_SPACE", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "CAST", "QUANTIZE", "DEQUANTIZE"),
    *("BROADCAST_TO", "DYNAMIC_UPDATE_SLICE", "EMBEDDING_LOOKUP", "MIRROR_PAD"),
}
_REDUCTIONS = {"MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "ARG_MAX", "ARG_MIN"}
_NORMALIZATIONS = {"SOFTMAX", "LOG_SOFTMAX", "L2_NORMALIZATION", "LOCAL_RESPONSE_NORMALIZATION"}
_LOOK_UPS = {"GATHER", "EMBEDDING_LOOKUP"}
_TYPES = {code: name for name, code in vars(schema.TensorType).items() if name.isupper()}


def read(tflite: bytes) -> list[Kernel]:
    """The operations of a file's main graph in their order, each named as its first output.

    Multiply-adds of convolutions and matrix products, by the convention of
    `latency.networks.count`. Bytes of all that goes in, weights too, and out; of a table that is
    looked up in, the rows. Raises `ValueError` where the file is damaged.
    """
    try:
        graph = operations(tflite)
        called, moved = _tensors(tflite)
    except Exception as error:  # flatbuffers raises what it likes on a truncated file
        raise ValueError(f"not a readable LiteRT file: {error}") from error
    return [
        Kernel(name, one.name, op_class(one), float(macs(one)), size)
        for one, name, size in zip(graph, called, moved, strict=True)
    ]


def op_class(operation: Operation) -> str:
    """One of `roofline.CLASSES`, or "copy" of what moves values only."""
    name = operation.name
    if name == "CONV_2D":
        kernel = operation.inputs[1]
        if kernel[-1] == 1 and operation.inputs[0][-1] > 1:
            return "depthwise"  # as many groups as channels
        return "matmul" if math.prod(kernel[1:3]) == 1 else "conv"
    if name == "DEPTHWISE_CONV_2D":
        return "depthwise"
    if name in ("TRANSPOSE_CONV", "CONV_3D"):
        return "conv"
    if name in ("FULLY_CONNECTED", "BATCH_MATMUL") or "LSTM" in name or "RNN" in name:
        return "matmul"
    if name in _COPIES:
        return "copy"
    if name in _NORMALIZATIONS:
        return "normalization"
    return "reduction" if "POOL" in name or name in _REDUCTIONS else "elementwise"


def macs(operation: Operation) -> int:
    """The multiply-adds of an operation: 0 but for convolutions and matrix products."""
    name, shapes = operation.name, operation.inputs
    written = math.prod(operation.outputs[0]) if operation.outputs else 0
    if name in ("CONV_2D", "FULLY_CONNECTED"):
        return written * math.prod(shapes[1][1:])
    if name == "DEPTHWISE_CONV_2D":
        return written * math.prod(shapes[1][1:3])
    if name == "TRANSPOSE_CONV":
        return math.prod(shapes[2][:-1]) * math.prod(shapes[1])
    if name == "BATCH_MATMUL":
        return written * shapes[0][-2 if operation.options.get("adjX") else -1]
    return 0


def _tensors(tflite: bytes) -> tuple[list[str], list[float]]:
    """Of each operation the name of its first output, and the bytes of all it reads and writes."""
    model: Any = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite))
    graph = model.subgraphs[0]
    names, moved = [], []
    for operator in graph.operators or ():
        code = model.operatorCodes[operator.opcodeIndex].builtinCode
        looks_up = {getattr(schema.BuiltinOperator, one) for one in _LOOK_UPS}
        inputs = [graph.tensors[i] for i in operator.inputs if i >= 0]
        outputs = [graph.tensors[i] for i in operator.outputs]
        written = sum(map(_bytes, outputs))
        read = written if code in looks_up else sum(map(_bytes, inputs))
        moved.append(float(read + written))
        name = outputs[0].name if outputs else b""
        names.append((name or b"").decode("utf-8", "replace").split(";")[0])
    return names, moved


def _bytes(tensor: Any) -> float:
    shape = () if tensor.shape is None else tensor.shape
    kind = _TYPES[tensor.type]
    bits = int((re.search(r"\d+", kind) or ["8"])[0])  # BOOL, STRING: a byte
    return math.prod(map(int, shape)) * bits / 8
