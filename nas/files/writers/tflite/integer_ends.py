"""Inputs and outputs in integers: their scales and zero points, and uint8 in place of int8."""

import dataclasses
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nas.files.writers.tflite.editable_file import FLOAT32, File

_UINT8 = schema.TensorType.UINT8
_TYPES = {
    schema.TensorType.INT8: "int8",
    _UINT8: "uint8",
    schema.TensorType.INT16: "int16",
}
_SHIFT = 128  # from int8 to uint8


@dataclasses.dataclass(frozen=True)
class End:
    """An input or output in integers: it is scale * (integer - zero_point)."""

    dtype: str
    scale: float
    zero_point: int


def ends(file: File) -> dict[str, dict[str, End]]:
    """{"inputs": {name: End}, "outputs": ...} of those that are integers, by the main signature."""
    signature = file.model.signatureDefs[0]
    return {
        name: found
        for name, side in (("inputs", signature.inputs), ("outputs", signature.outputs))
        if (found := _of_side(file, signature.subgraphIndex, side))
    }


def floating(file: File) -> list[str]:
    """The inputs and outputs that are float32, by the main signature."""
    signature = file.model.signatureDefs[0]
    tensors = file.graphs[signature.subgraphIndex].tensors
    return [
        f"{kind} {bytes(entry.name).decode()!r}"
        for kind, side in (("input", signature.inputs), ("output", signature.outputs))
        for entry in side or ()
        if tensors[entry.tensorIndex].type == FLOAT32
    ]


def _of_side(file: File, graph: int, side: Any) -> dict[str, End]:
    found = {}
    for entry in side or ():
        tensor = file.graphs[graph].tensors[entry.tensorIndex]
        known = tensor.quantization
        if tensor.type in _TYPES and known is not None and known.scale is not None:
            scale, zero = float(known.scale[0]), int(known.zeroPoint[0])
            found[bytes(entry.name).decode()] = End(_TYPES[tensor.type], scale, zero)
    return found


def unsigned(file: File) -> None:
    """Inputs and outputs of int8 become uint8: one QUANTIZE operator each, at the ends."""
    for number, graph in enumerate(file.graphs):
        for side in ("inputs", "outputs"):
            changed = getattr(graph, side).copy()
            for position, index in enumerate(map(int, changed)):
                if graph.tensors[index].type == schema.TensorType.INT8:
                    changed[position] = _beside(file, number, index, side == "inputs")
            setattr(graph, side, changed)


def _beside(file: File, number: int, index: int, first: bool) -> int:
    """A tensor of uint8 with the values of one of int8, and what converts between them."""
    graph = file.graphs[number]
    tensor = graph.tensors[index]
    made = file.tensor(number, tuple(map(int, tensor.shape)), tensor.name, _UINT8)
    graph.tensors[made].shapeSignature = tensor.shapeSignature
    graph.tensors[made].quantization = schema.QuantizationParametersT(
        scale=tensor.quantization.scale,
        zeroPoint=np.asarray(tensor.quantization.zeroPoint) + _SHIFT,
    )
    ends_of_it = ([made], [index]) if first else ([index], [made])
    operator = file.operator("QUANTIZE", *ends_of_it, schema.QuantizeOptionsT())
    graph.operators.insert(0 if first else len(graph.operators), operator)
    for signature in file.model.signatureDefs or ():
        if signature.subgraphIndex == number:
            for entry in signature.inputs if first else signature.outputs:
                if int(entry.tensorIndex) == index:
                    entry.tensorIndex = made
    tensor.name = f"{number}/{'input' if first else 'output'}/{index}/int8"
    return made
