"""A `.tflite` file taken apart, to be changed and packed again; several files made one.

Format: https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from latency.tflite.graph import AlignedBuilder

FLOAT32, FLOAT16, INT64, INT32, INT8 = (
    getattr(schema.TensorType, name) for name in ("FLOAT32", "FLOAT16", "INT64", "INT32", "INT8")
)
TYPES = {2: schema.TensorType.INT2, 4: schema.TensorType.INT4, 8: INT8}  # by bits
BITS = {kind: bits for bits, kind in TYPES.items()} | {schema.TensorType.INT16: 16}
_DTYPES = {
    FLOAT32: np.float32,
    FLOAT16: np.float16,
    INT32: np.int32,
    INT64: np.int64,
    schema.TensorType.BOOL: np.bool_,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.UINT8: np.uint8,
}
_OPERATORS = {code: n for n, code in vars(schema.BuiltinOperator).items() if n.isupper()}

_SHARED_BYTES = 1 << 20  # constants are compared in `File.pack`


class File:
    """The tables of a `.tflite` file; operators and tensors are the schema's own objects."""

    def __init__(self, tflite: bytes):
        self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite))
        # What the converter says of itself: nothing that runs reads it.
        self.model.metadata, self.model.metadataBuffer = None, None
        for code in self.model.operatorCodes:  # files of before 2020 have the narrow one only
            code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
        for graph in self.graphs:
            graph.operators = list(graph.operators or ())

    @property
    def graphs(self) -> list[schema.SubGraphT]:
        return self.model.subgraphs

    def name(self, operator: schema.OperatorT) -> str:
        """What an operator does, such as FULLY_CONNECTED."""
        return _OPERATORS[self.model.operatorCodes[operator.opcodeIndex].builtinCode]

    def data(self, tensor: schema.TensorT) -> np.ndarray | None:
        """The bytes of a constant; None of others."""
        data = self.model.buffers[tensor.buffer].data
        return None if data is None or isinstance(data, int) or not len(data) else data

    def constants(self) -> Iterator[tuple[int, int, schema.TensorT]]:
        """(graph, index, tensor) of all constants."""
        for number, graph in enumerate(self.graphs):
            for index, tensor in enumerate(graph.tensors):
                if tensor.buffer and self.data(tensor) is not None:
                    yield number, index, tensor

    def value(self, tensor: schema.TensorT) -> np.ndarray:
        """The array of a constant of whole bytes."""
        return self.raw(tensor).view(_DTYPES[tensor.type]).reshape(shape(tensor))

    def raw(self, tensor: schema.TensorT) -> np.ndarray:
        """The bytes of a constant; `ValueError` of other tensors."""
        data = self.data(tensor)
        if data is None:
            raise ValueError(f"tensor {text(tensor.name)!r} is not a constant")
        return data

    def readers(self, graph: int, index: int) -> list[tuple[schema.OperatorT, int]]:
        """The operators that read a tensor, and as which of their inputs."""
        return [
            (operator, position)
            for operator in self.graphs[graph].operators
            for position, read in enumerate(() if operator.inputs is None else operator.inputs)
            if read == index
        ]

    def buffer(self, data: np.ndarray) -> int:
        """A new buffer of these bytes; its number."""
        self.model.buffers.append(schema.BufferT(data=data.reshape(-1).view(np.uint8)))
        return len(self.model.buffers) - 1

    def tensor(self, graph: int, dims: tuple[int, ...], name: str, kind: int = FLOAT32) -> int:
        """A new tensor of a graph; its number."""
        tensor = schema.TensorT(
            shape=np.array(dims, np.int32), type=kind, buffer=0, name=name, hasRank=True
        )
        self.graphs[graph].tensors.append(tensor)
        return len(self.graphs[graph].tensors) - 1

    def constant(self, graph: int, value: np.ndarray, name: str) -> int:
        """A new float32 or int32 constant of a graph; its number."""
        value = np.ascontiguousarray(value)
        index = self.tensor(graph, value.shape, name, INT32 if value.dtype == np.int32 else FLOAT32)
        self.graphs[graph].tensors[index].buffer = self.buffer(value)
        return index

    def operator(
        self, name: str, inputs: list[int], outputs: list[int], options: Any = None
    ) -> schema.OperatorT:
        """An operator, not yet part of a graph."""
        union = type(options).__name__.removesuffix("T") if options is not None else "NONE"
        return schema.OperatorT(
            opcodeIndex=self.opcode(name),
            inputs=np.array(inputs, np.int32),
            outputs=np.array(outputs, np.int32),
            builtinOptionsType=getattr(schema.BuiltinOptions, union),
            builtinOptions=options,
        )

    def opcode(self, name: str, version: int = 1) -> int:
        """The number of a kind of operator in the file's table, added if it is not there."""
        code = getattr(schema.BuiltinOperator, name)
        for number, known in enumerate(self.model.operatorCodes):
            if known.builtinCode == code and known.version == version:
                return number
        self.model.operatorCodes.append(
            schema.OperatorCodeT(
                deprecatedBuiltinCode=min(code, 127), version=version, builtinCode=code
            )
        )
        return len(self.model.operatorCodes) - 1

    def pack(self) -> bytes:
        """The file: each different constant once, what nobody reads left out."""
        for number, graph in enumerate(self.graphs):
            kept = _drop_unread(graph)
            for signature in self.model.signatureDefs or ():
                if signature.subgraphIndex == number:
                    for entry in [*(signature.inputs or ()), *(signature.outputs or ())]:
                        entry.tensorIndex = int(kept[entry.tensorIndex])
        buffers = [schema.BufferT()]
        numbers = {b"": 0}
        for _, _, tensor in [(0, 0, t) for graph in self.graphs for t in graph.tensors]:
            data = self.data(tensor) if tensor.buffer else None
            key = b"" if data is None else data.tobytes()
            if key not in numbers:
                numbers[key] = len(buffers)
                buffers.append(schema.BufferT(data=data))
            # An empty buffer of its own is what a tensor without constant may have.
            tensor.buffer = numbers[key]
        for entry in self.model.metadata or ():
            buffers.append(self.model.buffers[entry.buffer])
            entry.buffer = len(buffers) - 1
        self.model.buffers = buffers
        size = sum(len(buffer.data) + 128 for buffer in buffers[1:])
        count = sum(len(graph.tensors) + len(graph.operators) for graph in self.graphs)
        builder = _Sharing(size + 512 * count + 4096)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


class _Sharing(AlignedBuilder):
    """Writes equal names, shapes and zero points once: tables may point to the same vector."""

    def __init__(self, size: int):
        super().__init__(size)
        self._known: dict[Any, Any] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> Any:  # noqa: N802 (the name is flatbuffers')
        if x.nbytes > _SHARED_BYTES:
            return super().CreateNumpyVector(x)
        key = x.dtype.str, x.tobytes()
        if key not in self._known:
            self._known[key] = super().CreateNumpyVector(x)
        return self._known[key]

    def CreateString(self, s: str | bytes, *arguments: Any) -> Any:  # noqa: N802
        if s not in self._known:
            self._known[s] = super().CreateString(s, *arguments)
        return self._known[s]


def shape(tensor: schema.TensorT) -> tuple[int, ...]:
    """The dimensions of a tensor."""
    return () if tensor.shape is None else tuple(map(int, tensor.shape))


def text(name: bytes | str | None) -> str:
    """A name, which is bytes where it was read."""
    return name.decode() if isinstance(name, bytes) else name or ""


def merge(files: dict[str, bytes]) -> File:
    """One file of several: the first is the main one, the others are signatures of their names.

    Constants that are equal are stored once when it is packed.
    """
    (first, tflite), *others = files.items()
    whole = File(tflite)
    whole.model.signatureDefs[0].signatureKey = first
    for name, tflite in others:
        part = File(tflite)
        model, added = whole.model, part.model
        graphs, buffers = len(model.subgraphs), len(model.buffers)
        codes = [
            whole.opcode(_OPERATORS[code.builtinCode], code.version) for code in added.operatorCodes
        ]
        for graph in added.subgraphs:
            for tensor in graph.tensors:
                tensor.buffer = tensor.buffer + buffers if tensor.buffer else 0
            for operator in graph.operators:
                operator.opcodeIndex = codes[operator.opcodeIndex]
                options = operator.builtinOptions
                for option in () if options is None else vars(options):
                    if option.endswith("SubgraphIndex"):
                        setattr(options, option, getattr(options, option) + graphs)
        model.subgraphs += added.subgraphs
        model.buffers += added.buffers
        signature = added.signatureDefs[0]
        signature.signatureKey, signature.subgraphIndex = name, graphs
        model.signatureDefs.append(signature)
    return whole


def _drop_unread(graph: schema.SubGraphT) -> np.ndarray:
    """Leaves out tensors that no operator names; the new numbers of the old ones."""
    sides = [graph.inputs, graph.outputs]
    sides += [side for o in graph.operators for side in (o.inputs, o.outputs, o.intermediates)]
    used = sorted({int(i) for side in sides if side is not None for i in side} - {-1})
    numbers = np.full(len(graph.tensors) + 1, -1, np.int32)  # the last stands for -1, absent
    numbers[used] = np.arange(len(used))
    for holder, name in [(graph, "inputs"), (graph, "outputs")] + [
        (o, name) for o in graph.operators for name in ("inputs", "outputs", "intermediates")
    ]:
        side = getattr(holder, name)
        if side is not None:
            setattr(holder, name, numbers[np.asarray(side, np.int64)])
    graph.tensors = [graph.tensors[index] for index in used]
    return numbers
