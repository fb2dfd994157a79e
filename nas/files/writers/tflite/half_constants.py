"""Float constants in float16, which LiteRT makes float32 of when it loads the file.

Its GPU delegates compute with them as they are. Those of integer kernels stay: they read float32.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nas.files.writers.tflite.editable_file import BITS, FLOAT16, FLOAT32, File, shape, text

_SMALLEST = 100  # values: below, an operator and a tensor take what is saved


def halve(file: File) -> list[tuple[int, int]]:
    """Stores what can be in float16; (graph, index) of the constants."""
    floats = [
        (graph, index)
        for graph, index, tensor in file.constants()
        if tensor.type == FLOAT32 and tensor.sparsity is None
    ]
    return [where for where in floats if _halve(file, *where)]


def _halve(file: File, graph: int, index: int) -> bool:
    tensors, operators = file.graphs[graph].tensors, file.graphs[graph].operators
    tensor, readers = tensors[index], file.readers(graph, index)
    value = file.value(tensor)
    reads = {int(i) for operator, _ in readers for i in operator.inputs if i >= 0}
    if not readers or value.size < _SMALLEST or any(tensors[i].type in BITS for i in reads):
        return False
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    if not np.isfinite(half[np.isfinite(value)]).all():  # above 65504
        return False
    floats = file.tensor(graph, shape(tensor), f"{text(tensor.name)}/floats")
    tensor.type, tensor.buffer = FLOAT16, file.buffer(half)
    first = min(next(n for n, o in enumerate(operators) if o is reader) for reader, _ in readers)
    for reader, position in readers:
        reader.inputs = reader.inputs.copy()
        reader.inputs[position] = floats
    options = schema.DequantizeOptionsT()
    operators.insert(first, file.operator("DEQUANTIZE", [index], [floats], options))
    return True
