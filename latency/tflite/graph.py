"""LiteRT graphs: writing a `.tflite` flatbuffer operator by operator, and reading one's operations.

`Graph.fuse` makes of naive operators what the official converter makes of them: the same operations
in the same order, with the same shapes and fused activations (`tests/test_litert.py`). Format:
https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

_ALIGNMENT = 64  # bytes; the runtime uses constants in place, and XNNPACK reads whole vectors
_ABSENT = -1  # an optional input that is not there
SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
# Operators that absorb a scale and a shift, and the output channel axis of their kernel.
_OUTPUT_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": -1, "FULLY_CONNECTED": 0}
_FUSES = (*_OUTPUT_AXIS, "ADD", "MUL", "AVERAGE_POOL_2D", "MAX_POOL_2D")  # may carry an activation
_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
_FUSED = {
    "RELU": schema.ActivationFunctionType.RELU,
    "RELU6": schema.ActivationFunctionType.RELU6,
}


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a LiteRT graph: its name, the shapes that go in and out, and its options."""

    name: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    options: dict[str, Any]


def operations(tflite: bytes) -> list[Operation]:
    """The operations of a `.tflite` file (its main graph) in the order in which they run."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite))
    graph = model.subgraphs[0]

    def shapes(indices: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        found = [graph.tensors[i].shape if i != _ABSENT else None for i in indices]
        return tuple(() if shape is None else tuple(map(int, shape)) for shape in found)

    def plain(options: Any) -> dict[str, Any]:
        found = vars(options).items() if options else ()
        return {key: v.tolist() if isinstance(v, np.ndarray) else v for key, v in found}

    # Files of before 2020 have the narrow code only.
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    return [
        Operation(
            name=_NAMES[codes[operator.opcodeIndex]],
            inputs=shapes(operator.inputs),
            outputs=shapes(operator.outputs),
            options=plain(operator.builtinOptions),
        )
        for operator in graph.operators or ()
    ]


def signature(graph: schema.SubGraphT, inputs: list[str], outputs: list[str]) -> list:
    """The signatures of a file with names for the inputs and outputs of its graph, in order."""

    def maps(names: list[str], tensors: np.ndarray) -> list:
        pairs = zip(names, tensors, strict=True)
        return [schema.TensorMapT(name=name, tensorIndex=int(index)) for name, index in pairs]

    return [
        schema.SignatureDefT(
            maps(inputs, graph.inputs),
            maps(outputs, graph.outputs),
            signatureKey="serving_default",  # what TensorFlow calls a model's one signature
        )
    ]


@dataclasses.dataclass(eq=False)
class Operator:
    """An operator that is being written; it names tensors by their number in its `Graph`."""

    name: str
    label: str  # the layer that it comes from
    inputs: list[int]
    output: int
    options: Any = None
    version: int = 1


class Graph:
    """A LiteRT graph that is being written: add operators in order, `fuse`, then `serialize`."""

    def __init__(self):
        self.shapes: list[tuple[int, ...]] = []
        self.names: list[str] = []
        self.constants: dict[int, np.ndarray] = {}
        self.operators: list[Operator] = []

    def tensor(self, shape: tuple[int, ...], name: str) -> int:
        """A new tensor; its number."""
        self.shapes.append(tuple(shape))
        self.names.append(name)
        return len(self.shapes) - 1

    def constant(self, value: Any, name: str, dtype: Any = np.float32) -> int:
        """A new constant tensor; its number."""
        value = np.asarray(value, dtype)
        index = self.tensor(value.shape, name)
        self.constants[index] = value
        return index

    def add(
        self,
        name: str,
        inputs: Sequence[int],
        shape: tuple[int, ...],
        label: str,
        options: Any = None,
        version: int = 1,
    ) -> int:
        """A new operator that reads the tensors `inputs`; the number of its output tensor."""
        output = self.tensor(shape, f"{label}/{name.lower()}")
        if isinstance(options, dict):  # from a leaf, which knows no schema
            kind = name.title().replace("_", "")  # STRIDED_SLICE -> StridedSlice
            options = getattr(schema, f"{kind}OptionsT")(**options)
        self.operators.append(Operator(name, f"{label}_1/", list(inputs), output, options, version))
        return output

    def fuse(self, inputs: list[int], outputs: list[int]) -> list[int]:
        """Rewrites the operators as the official converter does; the new numbers of `outputs`."""
        outputs = _Fusion(self).run(outputs)
        self.operators = _converter_order(self.operators, inputs)
        for operator in self.operators:
            if operator.name == "FULLY_CONNECTED" and not self.constants[operator.inputs[2]].any():
                operator.inputs[2] = _ABSENT
        return outputs

    def serialize(
        self,
        inputs: list[int],
        outputs: list[int],
        names: tuple[list[str], list[str]] | None = None,
    ) -> bytes:
        """The bytes of the file; with names for inputs and outputs, it has a signature."""
        ends = {t for o in self.operators for t in (*o.inputs, o.output)}
        used = sorted((ends | {*inputs, *outputs}) - {_ABSENT})
        index = {_ABSENT: _ABSENT} | {tensor: position for position, tensor in enumerate(used)}
        buffers, tensors = [schema.BufferT()], []  # buffer 0 is empty by convention
        for tensor in used:
            shape = np.array(self.shapes[tensor], np.int32)
            kind, buffer = schema.TensorType.FLOAT32, 0
            if tensor in self.constants:
                value = np.ascontiguousarray(self.constants[tensor])
                kind = schema.TensorType.INT32 if value.dtype == np.int32 else kind
                value = value.astype(np.float32) if value.dtype == np.float64 else value
                buffer = len(buffers)
                buffers.append(schema.BufferT(data=value.reshape(-1).view(np.uint8)))
            tensors.append(
                schema.TensorT(
                    shape=shape, type=kind, buffer=buffer, name=self.names[tensor], hasRank=True
                )
            )
        codes: dict[tuple[str, int], int] = {}
        operators = []
        for operator in self.operators:
            options = operator.options
            union = type(options).__name__.removesuffix("T") if options is not None else "NONE"
            operators.append(
                schema.OperatorT(
                    opcodeIndex=codes.setdefault((operator.name, operator.version), len(codes)),
                    inputs=np.array([index[t] for t in operator.inputs], np.int32),
                    outputs=np.array([index[operator.output]], np.int32),
                    builtinOptionsType=getattr(schema.BuiltinOptions, union),
                    builtinOptions=options,
                )
            )
        opcodes = [
            schema.OperatorCodeT(
                deprecatedBuiltinCode=min(getattr(schema.BuiltinOperator, name), 127),
                version=version,
                builtinCode=getattr(schema.BuiltinOperator, name),
            )
            for name, version in codes
        ]
        graph = schema.SubGraphT(
            tensors=tensors,
            inputs=np.array([index[t] for t in inputs], np.int32),
            outputs=np.array([index[t] for t in outputs], np.int32),
            operators=operators,
            name="main",
        )
        model = schema.ModelT(
            version=3,
            operatorCodes=opcodes,
            subgraphs=[graph],
            description="nas",
            buffers=buffers,
            signatureDefs=signature(graph, *names) if names else None,
        )
        size = sum(value.nbytes + 2 * _ALIGNMENT for value in self.constants.values())
        builder = AlignedBuilder(size + 512 * (len(tensors) + len(operators)) + 4096)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


class AlignedBuilder(flatbuffers.Builder):
    """A builder whose byte vectors (the weights) start at a multiple of `_ALIGNMENT`."""

    def CreateNumpyVector(self, x: Any) -> Any:  # noqa: N802 (the name is flatbuffers')
        if x.dtype != np.uint8:
            return super().CreateNumpyVector(x)
        self.StartVector(1, x.size, _ALIGNMENT)
        self.head -= x.size
        self.Bytes[self.head : self.head + x.size] = x.tobytes()
        return self.EndVector()


class _Fusion:
    """One forward walk over a graph that merges each operator into its producer where it can."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.constants = graph.constants
        self.producer: dict[int, Operator] = {}
        self.replaced: dict[int, int] = {}
        self.readers: collections.Counter = collections.Counter()
        self.kept: list[Operator] = []

    def run(self, outputs: list[int]) -> list[int]:
        operators = self.graph.operators
        self.readers.update(tensor for operator in operators for tensor in operator.inputs)
        self.readers.update(outputs)
        for operator in operators:
            operator.inputs = [self.replaced.get(tensor, tensor) for tensor in operator.inputs]
            rule = getattr(self, f"_{operator.name.lower()}", None)
            if rule and rule(operator):
                source = operator.inputs[0]  # whose producer does the operator's work now
                self.replaced[operator.output] = source
                self.readers[source] = self.readers[operator.output]
            else:
                self.kept.append(operator)
                self.producer[operator.output] = operator
        self.graph.operators = self.kept
        return [self.replaced.get(tensor, tensor) for tensor in outputs]

    def _source(self, tensor: int, *names: str) -> Operator | None:
        """The producer of `tensor`: one of `names`, without activation, without other readers."""
        operator = self.producer.get(tensor)
        if operator is None or operator.name not in names or self.readers[tensor] != 1:
            return None
        return None if getattr(operator.options, "fusedActivationFunction", 0) else operator

    def _drop(self, operator: Operator, reader: Operator) -> None:
        """Takes `operator` out in front of `reader`."""
        self.kept.remove(operator)
        self.readers[operator.inputs[0]] = 1
        reader.inputs[0] = operator.inputs[0]

    def _relu(self, operator: Operator) -> bool:
        source = self._source(operator.inputs[0], *_FUSES)
        if source:
            source.options.fusedActivationFunction = _FUSED[operator.name]
        return source is not None

    _relu6 = _relu

    def _mul(self, operator: Operator) -> bool:
        source, value = self._absorbs(operator)
        if source:
            kernel, bias = source.inputs[1:]
            axes = [1] * self.constants[kernel].ndim
            axes[_OUTPUT_AXIS[source.name]] = -1
            scale = value.reshape(axes) if value.ndim else value
            self.constants[kernel] = self.constants[kernel] * scale
            self.constants[bias] = self.constants[bias] * value
        return source is not None

    def _add(self, operator: Operator) -> bool:
        source, value = self._absorbs(operator)
        if source:
            bias = source.inputs[2]
            self.constants[bias] = self.constants[bias] + value
        return source is not None

    def _absorbs(self, operator: Operator) -> tuple[Operator | None, Any]:
        """The affine operator in front of `operator`, and the constant to take into its weights."""
        value = self.constants.get(operator.inputs[1])
        if value is None or (source := self._source(operator.inputs[0], *_OUTPUT_AXIS)) is None:
            return None, value
        shapes = self.graph.shapes
        channels = shapes[source.output][-1]
        if shapes[operator.output] != shapes[source.output] or value.size not in (1, channels):
            return None, value
        if value.shape[-1:] not in ((), (1,), (channels,)):
            return None, value  # one number for each place, not for each channel
        return source, value.reshape(() if value.size == 1 else (channels,))

    def _conv_2d(self, operator: Operator) -> bool:
        """Takes in a scalar ADD and MUL in front of it, and a PAD that amounts to SAME."""
        axis, kernel, bias = _OUTPUT_AXIS[operator.name], *operator.inputs[1:]
        padded = getattr(operator.options, "padding", VALID) == SAME
        for name in ("ADD", "MUL"):
            source = self._source(operator.inputs[0], name)
            value = self.constants.get(source.inputs[1]) if source else None
            if source is None or value is None or value.ndim or (name == "ADD" and padded):
                continue
            weights = self.constants[kernel]
            if name == "ADD":
                axes = tuple(a for a in range(weights.ndim) if a != axis % weights.ndim)
                self.constants[bias] = self.constants[bias] + value * weights.sum(axes)
            else:
                self.constants[kernel] = weights * value
            self._drop(source, operator)
        source = self._source(operator.inputs[0], "PAD")
        slides = hasattr(operator.options, "strideH")  # a product of matrices does not
        if source and slides and not padded and self._is_same(operator, source):
            operator.options.padding = SAME
            self._drop(source, operator)
        return False

    _depthwise_conv_2d = _conv_2d

    def _fully_connected(self, operator: Operator) -> bool:
        self._conv_2d(operator)
        source = self._source(operator.inputs[0], "RESHAPE")
        shapes = self.graph.shapes
        if source is None or operator.options.keepNumDims:
            return False
        if shapes[source.inputs[0]][-1] == shapes[source.output][-1]:
            self._drop(source, operator)  # FULLY_CONNECTED flattens by itself
        return False

    def _is_same(self, operator: Operator, pad: Operator) -> bool:
        """Whether the padding is what SAME would add to the unpadded input."""
        kernel, options = self.graph.shapes[operator.inputs[1]], operator.options
        sizes = self.graph.shapes[pad.inputs[0]][1:3]
        strides = options.strideH, options.strideW
        dilations = options.dilationHFactor, options.dilationWFactor
        before_after = self.constants[pad.inputs[1]][1:3]
        for size, width, stride, dilation, around in zip(
            sizes, kernel[1:3], strides, dilations, before_after, strict=True
        ):
            total = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
            if tuple(around) != (total // 2, total - total // 2):
                return False
        return True

    def _reshape(self, operator: Operator) -> bool:
        source = self._source(operator.inputs[0], "RESHAPE")
        if source:
            self._drop(source, operator)
        shapes, target = self.graph.shapes, self.graph.shapes[operator.output]
        source = self._source(operator.inputs[0], "MEAN")
        if source and not source.options.keepDims and target == (target[0], 1, 1, target[-1]):
            source.options.keepDims = True
            shapes[source.output] = target
        return shapes[operator.inputs[0]] == target


def _converter_order(operators: list[Operator], inputs: list[int]) -> list[Operator]:
    """Reverse post-order from the inputs, branches by name (TensorFlow's GetReversePostOrder)."""
    readers: dict[int, list[Operator]] = {}
    for operator in operators:
        for tensor in operator.inputs:
            readers.setdefault(tensor, []).append(operator)

    def following(tensor: int) -> list[tuple[Operator, bool]]:
        return [(o, False) for o in sorted(readers.get(tensor, ()), key=lambda o: o.label)]

    finished, seen = [], set()
    stack = [entry for tensor in inputs for entry in following(tensor)]
    while stack:
        operator, left = stack.pop()
        if left:
            finished.append(operator)
        elif operator not in seen:
            seen.add(operator)
            stack.append((operator, True))
            stack.extend(following(operator.output))
    return finished[::-1]
