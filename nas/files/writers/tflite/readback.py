"""What a `.tflite` file holds of a network's weights, and the same file in float32 to compare."""

import dataclasses
import pathlib

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nas.files.writers.tflite.editable_file import BITS, FLOAT16, FLOAT32, File, shape, text
from nas.files.writers.tflite.integer_codes import unpack
from nas.files.writers.tflite.sparse_constants import to_dense

_ONE = np.ones((), np.float32)
_FLOATS: dict[int, type] = {FLOAT32: np.float32, FLOAT16: np.float16}


@dataclasses.dataclass(frozen=True, eq=False)
class StoredWeight:
    """A weight as a file keeps it: scale * values + offset, in the file's layout.

    kind: "int2", "int4", "int8", "float32", "float16", "sparse" or "1x4" (without zeros).
    values: int8, float32 or float16; scale, offset: float32, to be broadcast.
    gain: what a product's inputs are multiplied by before, for the norm whose gain it is.
    """

    kind: str
    values: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    gain: np.ndarray | np.float32 = np.float32(1)

    def dense(self) -> np.ndarray:
        """float32 values."""
        return self.values.astype(np.float32) * self.scale + self.offset


def read_codes(path: pathlib.Path | str | bytes, graph: int = 0) -> dict[str, StoredWeight]:
    """Name of a tensor -> the constant in it; the writer names it by the path of its weight.

    graph: of which of the file's graphs; signatures and bodies of loops have their own.
    """
    file = File(path if isinstance(path, bytes) else pathlib.Path(path).read_bytes())
    return stored_weights(file, graph)


def stored_weights(file: File, graph: int) -> dict[str, StoredWeight]:
    """As `read_codes`, of an open file; parts that a weight was cut into are one again."""
    found = {
        text(tensor.name): stored_constant(file, tensor)
        for number, _, tensor in file.constants()
        if number == graph and (tensor.type in _FLOATS or _quantized(tensor))
    }
    for name in [name for name in found if name.endswith("/offset")]:
        path, offset = name.removesuffix("/offset"), found.pop(name).values
        if path in found:
            rows = offset.reshape(-1, *[1] * (found[path].values.ndim - 1))
            found[path] = dataclasses.replace(found[path], offset=rows)
    for name in [name for name in found if name.endswith("/scale")]:
        path = name.removesuffix("/scale")
        if path in found:
            found[path] = dataclasses.replace(found[path], scale=found.pop(name).values)
    for path, gain in _gains(file, graph).items():
        found[path] = dataclasses.replace(found[path], gain=gain)
    for path in [name.removesuffix("/0") for name in found if name.endswith("/0")]:
        parts: list[StoredWeight] = []
        while (name := f"{path}/{len(parts)}") in found:
            parts.append(found.pop(name))
        whole = {
            field: np.concatenate(
                [np.broadcast_to(getattr(part, field), part.values.shape) for part in parts], -1
            )
            for field in ("values", "scale", "offset", "gain")
        }
        found[path] = StoredWeight(parts[0].kind, **whole)
    return found


def _gains(file: File, graph: int) -> dict[str, np.ndarray]:
    """Name of a kernel -> what its inputs are multiplied by, as `Around.multiply` wrote it."""
    tensors, found = file.graphs[graph].tensors, {}
    for operator in file.graphs[graph].operators:
        if file.name(operator) != "MUL":
            continue
        factor = tensors[operator.inputs[1]]
        if not text(factor.name).endswith("/gain") or file.data(factor) is None:
            continue
        inputs = {int(operator.outputs[0]): file.value(factor)}
        for reader, _ in file.readers(graph, int(operator.outputs[0])):
            if file.name(reader) == "SPLIT":
                pieces = np.split(file.value(factor), len(reader.outputs))
                inputs |= dict(zip(map(int, reader.outputs), pieces, strict=True))
        for index, gain in inputs.items():
            for reader, _ in file.readers(graph, index):
                if file.name(reader) == "FULLY_CONNECTED":
                    name = text(tensors[reader.inputs[1]].name)
                    found[name.removesuffix("/scaled").removesuffix("/floats")] = gain
    return found


def stored_constant(file: File, tensor: schema.TensorT) -> StoredWeight:
    """A constant of a file."""
    dims, one, none = shape(tensor), _ONE, np.zeros((), np.float32)
    if tensor.sparsity is not None:
        values = to_dense(file.raw(tensor).view(_FLOATS[tensor.type]), tensor.sparsity, dims)
        return StoredWeight(
            "sparse" if tensor.sparsity.blockMap is None else "1x4", values, one, none
        )
    if tensor.type in _FLOATS:
        return StoredWeight(_FLOATS[tensor.type].__name__, file.value(tensor), one, none)
    bits = BITS[tensor.type]
    values = unpack(file.raw(tensor), bits, dims)
    scale = np.asarray(tensor.quantization.scale, np.float32)
    if scale.size > 1:
        around = [1] * len(dims)
        around[tensor.quantization.quantizedDimension] = -1
        scale = scale.reshape(around)
    zero = np.asarray(tensor.quantization.zeroPoint, np.float32).reshape(scale.shape)
    return StoredWeight(f"int{bits}", values, scale, -zero * scale if zero.any() else none)


def _quantized(tensor: schema.TensorT) -> bool:
    quantization = tensor.quantization
    return tensor.type in BITS and quantization is not None and quantization.scale is not None


def in_floats(tflite: bytes) -> bytes:
    """The file with all constants as dense float32: the same network without activations' noise."""
    file = File(tflite)
    for _, _, tensor in list(file.constants()):
        if _quantized(tensor) or tensor.sparsity is not None or tensor.type == FLOAT16:
            dense = np.ascontiguousarray(stored_constant(file, tensor).dense(), np.float32)
            tensor.type, tensor.buffer = FLOAT32, file.buffer(dense)
            tensor.quantization = tensor.sparsity = None
    for number, graph in enumerate(file.graphs):
        constant = {index for where, index, _ in file.constants() if where == number}
        same: dict[int, int] = {}
        for operator in graph.operators:
            if file.name(operator) in ("DEQUANTIZE", "DENSIFY"):
                source, made = int(operator.inputs[0]), int(operator.outputs[0])
                if source in constant or source in same:
                    same[made] = same.get(source, source)
        graph.operators = [o for o in graph.operators if int(o.outputs[0]) not in same]
        for operator in graph.operators:
            read = [same.get(int(index), int(index)) for index in operator.inputs]
            operator.inputs = np.array(read, np.int32)
    return file.pack()
