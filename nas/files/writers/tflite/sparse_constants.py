"""Constants that are mostly zeros, without the zeros: LiteRT's sparse tensors.

FULLY_CONNECTED has a kernel for blocks of 1x4 (4 inputs of one output); all others get the dense
tensor, which DENSIFY makes once when the file is loaded.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nas.files.writers.tflite.editable_file import FLOAT32, File, shape, text

BLOCK = 4
# Shares of blocks and of values that may be left: above, the dense kernel of XNNPACK is as fast
# (`tools/bench_writers.py sparse`), and positions take what the zeros save.
MOST_BLOCKS, MOST_VALUES = 0.2, 0.6
_SPARSE_VERSION = 8  # of FULLY_CONNECTED; with less, LiteRT reads past the end of the values
_LARGER = 1.1  # zeros within blocks, at most, where the size counts
_SMALLEST = 1024  # values: below, tables weigh more
_TABLE_BYTES = 400  # of a sparse tensor, and of DENSIFY and what it makes
_KINDS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "GATHER")


def make_sparse(file: File, prefer: str) -> dict[tuple[int, int], str]:
    """Makes sparse what gets smaller by it; (graph, index) of constants -> how.

    "1x4": read by the kernel as it is; "sparse": made dense when loaded.
    """
    found = {}
    for graph, index, tensor in list(file.constants()):
        dims = shape(tensor)
        if tensor.type != FLOAT32 or tensor.sparsity is not None or len(dims) < 2:
            continue
        readers = file.readers(graph, index)
        names = {file.name(operator) for operator, _ in readers}
        if np.prod(dims) < _SMALLEST or not names or not names <= set(_KINDS):
            continue
        value = file.value(tensor)
        if _density(value, 1) > MOST_VALUES:
            continue
        blocks = (
            names == {"FULLY_CONNECTED"}
            and all(position == 1 for _, position in readers)
            and dims[-1] % BLOCK == 0
            and _density(value, BLOCK) <= MOST_BLOCKS
        )
        made = to_sparse(value, 1)
        if blocks:
            together = to_sparse(value, BLOCK)
            blocks = prefer == "speed" or _bytes(*together) < _LARGER * _bytes(*made)
            made = together if blocks else made
        if _bytes(*made) + _TABLE_BYTES >= value.nbytes:
            continue
        values, sparsity = made
        tensor.buffer, tensor.sparsity = file.buffer(values), sparsity
        found[graph, index] = "1x4" if blocks else "sparse"
        if blocks:
            for operator, _ in readers:
                operator.opcodeIndex = file.opcode("FULLY_CONNECTED", _SPARSE_VERSION)
        else:
            _densify(file, graph, index, readers)
    return found


def to_sparse(value: np.ndarray, block: int) -> tuple[np.ndarray, schema.SparsityParametersT]:
    """The values that stay and where they are: rows of blocks along the last axis."""
    rows = value.reshape(-1, value.shape[-1] // block, block)
    there = (rows != 0).any(-1)
    segments = np.concatenate([[0], np.cumsum(there.sum(1))])
    indices = np.nonzero(there)[1]
    outer = value.shape[:-1]
    levels = [
        schema.DimensionMetadataT(format=schema.DimensionType.DENSE, denseSize=int(size))
        for size in outer
    ]
    levels.append(
        schema.DimensionMetadataT(
            format=schema.DimensionType.SPARSE_CSR, **_vectors(segments, indices)
        )
    )
    order, blocked = list(range(value.ndim)), None
    if block > 1:
        levels.append(schema.DimensionMetadataT(format=schema.DimensionType.DENSE, denseSize=block))
        order.append(value.ndim)
        blocked = np.array([value.ndim - 1], np.int32)
    sparsity = schema.SparsityParametersT(
        traversalOrder=np.array(order, np.int32), blockMap=blocked, dimMetadata=levels
    )
    return np.ascontiguousarray(rows[there]), sparsity


def to_dense(value: np.ndarray, sparsity: schema.SparsityParametersT, dims: tuple) -> np.ndarray:
    """The dense array that `to_sparse` made `value` of."""
    level = next(level for level in sparsity.dimMetadata if level.format)
    segments = np.asarray(level.arraySegments.values, np.int64)
    indices = np.asarray(level.arrayIndices.values, np.int64)
    block = 1 if sparsity.blockMap is None else BLOCK
    rows = np.repeat(np.arange(len(segments) - 1), np.diff(segments))
    dense = np.zeros((len(segments) - 1, dims[-1] // block, block), value.dtype)
    dense[rows, indices] = value.reshape(-1, block)
    return dense.reshape(dims)


def _density(value: np.ndarray, block: int) -> float:
    return float((value.reshape(-1, block) != 0).any(-1).mean())


def _vectors(segments: np.ndarray, indices: np.ndarray) -> dict:
    made = {}
    for name, array in (("Segments", segments), ("Indices", indices)):
        most = int(array.max(initial=0))
        kind, dtype = next(
            (kind, dtype)
            for kind, dtype in (
                ("Uint8Vector", np.uint8),
                ("Uint16Vector", np.uint16),
                ("Int32Vector", np.int32),
            )
            if most <= np.iinfo(dtype).max
        )
        vector = getattr(schema, f"{kind}T")()
        vector.values = array.astype(dtype)
        made[f"array{name}"] = vector
        made[f"array{name}Type"] = getattr(schema.SparseIndexVector, kind)
    return made


def _bytes(values: np.ndarray, sparsity: schema.SparsityParametersT) -> int:
    level = next(level for level in sparsity.dimMetadata if level.format)
    return values.nbytes + level.arraySegments.values.nbytes + level.arrayIndices.values.nbytes


def _densify(file: File, graph: int, index: int, readers: list) -> None:
    tensor = file.graphs[graph].tensors[index]
    dense = file.tensor(graph, shape(tensor), f"{text(tensor.name)}/dense")
    operators = file.graphs[graph].operators
    first = min(next(n for n, o in enumerate(operators) if o is r) for r, _ in readers)
    for operator, position in readers:
        operator.inputs = operator.inputs.copy()
        operator.inputs[position] = dense
    options = schema.DensifyOptionsT()
    operators.insert(first, file.operator("DENSIFY", [index], [dense], options))
