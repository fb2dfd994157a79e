"""What a `.tflite` file holds of a network's weights, and the same file in float32 to compare."""

import dataclasses
import pathlib

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nas.writers.flatfile import BITS, FLOAT32, File, shape
from nas.writers.integers import unpacked


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """A constant as a file keeps it: scale * values, in the file's layout.

    kind: "int2", "int4", "int8", "float32", or "sparse" (float32 values that are not 0).
    """

    kind: str
    values: np.ndarray
    scale: np.ndarray

    def dense(self) -> np.ndarray:
        """float32 values."""
        return self.values.astype(np.float32) * self.scale


def read_codes(path: pathlib.Path | bytes) -> dict[str, Stored]:
    """Name of a tensor -> the constant in it; the writer gives it the path of its weight.

    A weight that was cut into parts is there as "path/0", "path/1", ...
    """
    file = File(path if isinstance(path, bytes) else pathlib.Path(path).read_bytes())
    found = {}
    for _, _, tensor in file.constants():
        if tensor.type == FLOAT32 or _quantized(tensor):
            found[tensor.name.decode()] = stored(file, tensor)
    return found


def stored(file: File, tensor: schema.TensorT) -> Stored:
    """A constant of a file."""
    dims = shape(tensor)
    if tensor.sparsity is not None:
        return Stored("sparse", _spread(file, tensor), np.float32(1))
    if tensor.type == FLOAT32:
        return Stored("float32", file.value(tensor), np.float32(1))
    bits = BITS[tensor.type]
    values = unpacked(file.data(tensor), bits, dims)
    scale = np.asarray(tensor.quantization.scale, np.float32)
    if scale.size > 1:
        around = [1] * len(dims)
        around[tensor.quantization.quantizedDimension] = -1
        scale = scale.reshape(around)
    return Stored(f"int{bits}", values, scale)


def _quantized(tensor: schema.TensorT) -> bool:
    quantization = tensor.quantization
    return tensor.type in BITS and quantization is not None and quantization.scale is not None


def _spread(file: File, tensor: schema.TensorT) -> np.ndarray:
    """The dense array of a sparse constant: see `nas.writers.sparse`."""
    dims, values = shape(tensor), file.data(tensor).view(np.float32)
    levels = tensor.sparsity.dimMetadata
    block = dims[-1] if len(levels) == len(dims) else None
    del block
    compressed = next(level for level in levels if level.format)
    segments = np.asarray(compressed.arraySegments.values, np.int64)
    indices = np.asarray(compressed.arrayIndices.values, np.int64)
    size = 4 if len(levels) > len(dims) else 1
    rows = np.repeat(np.arange(len(segments) - 1), np.diff(segments))
    dense = np.zeros((len(segments) - 1, dims[-1] // size, size), np.float32)
    dense[rows, indices] = values.reshape(-1, size)
    return dense.reshape(dims)


def in_floats(tflite: bytes) -> bytes:
    """The file with all constants as dense float32: the same network without activations' noise."""
    file = File(tflite)
    for _, _, tensor in list(file.constants()):
        if _quantized(tensor) or tensor.sparsity is not None:
            dense = np.ascontiguousarray(stored(file, tensor).dense(), np.float32)
            tensor.type, tensor.buffer = FLOAT32, file.buffer(dense)
            tensor.quantization = tensor.sparsity = None
    for graph in file.graphs:
        same = {
            int(o.outputs[0]): int(o.inputs[0])
            for o in graph.operators
            if file.name(o) in ("DEQUANTIZE", "DENSIFY")
        }
        graph.operators = [o for o in graph.operators if int(o.outputs[0]) not in same]
        for operator in graph.operators:
            read = [same.get(int(index), int(index)) for index in operator.inputs]
            operator.inputs = np.array(read, np.int32)
    return file.pack()
