"""Which integers LiteRT's kernels take beside float activations, and the graph around them.

The types that a kernel takes were found by running it (`tests/test_litert_writer.py`): CONV_2D with
INT2 runs and gives NaN, so a convolution has at least 4 bits, unless it is a product at each pixel.
"""

import dataclasses
import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nas.writers.flatfile import FLOAT32, INT32, TYPES, File, shape, text
from nas.writers.integers import Integers, packed
from nas.writers.places import Place

_MOST_PARTS = 64  # products that one is cut into
_TINY = np.float32(1e-30)  # XNNPACK refuses a scale of 0, of a channel that is all 0
# Bytes of tables: an operator with its tensor, and what describes a quantized tensor.
_OPERATOR_BYTES, _QUANTIZED_BYTES = 200, 80


@dataclasses.dataclass(frozen=True, eq=False)
class Laid:
    """A constant as integers in the file's layout: scale * (values + offset)."""

    bits: int
    values: np.ndarray  # int8
    scale: np.ndarray  # float32, of the rank of `values`, to be broadcast
    offset: float

    def bytes(self) -> int:
        """What a file needs for it."""
        scales = self.scale.size
        if self.scale.ndim == 2 and (parts := _parts(self.scale)):
            scales = len(self.scale) * parts
        return (
            self.values.size * self.bits // 8
            + scales * (8 if self.offset else 4)
            + _QUANTIZED_BYTES
        )

    def cut(self, part: int, parts: int) -> "Laid":
        """One of equal parts along the last axis."""
        size = self.values.shape[-1] // parts
        chosen = slice(part * size, (part + 1) * size)
        scale = self.scale[..., chosen] if self.scale.shape[-1] > 1 else self.scale
        return dataclasses.replace(self, values=self.values[..., chosen], scale=_reduced(scale))


def laid(form: Integers, place: Place, signed: bool = False) -> Laid | None:
    """A form of a weight as its constant has it; None where a negated value has no code.

    A channel that was multiplied by a negative number has its integers negated: scales are
    positive, unless they may be `signed`.
    """
    scale = place.laid(np.broadcast_to(form.scale, form.values.shape)) * place.factors
    scale, values = _reduced(scale), place.laid(form.values)
    if signed:
        return Laid(form.bits, values, np.where(scale == 0, _TINY, scale), form.offset)
    if (scale < 0).any():
        negated = -values.astype(np.int16) - round(2 * form.offset)
        if 2 * form.offset != round(2 * form.offset):
            return None
        values = np.where(scale < 0, negated, values)
        half = 2 ** (form.bits - 1)
        if values.min() < -half or values.max() >= half:
            return None
        values = values.astype(np.int8)
    return Laid(form.bits, values, np.maximum(np.abs(scale), _TINY), form.offset)


def _reduced(scale: np.ndarray) -> np.ndarray:
    """The same, with axes along which it does not change of size 1."""
    for axis in range(scale.ndim):
        first = scale.take([0], axis)
        if (scale == first).all():
            scale = first
    return scale


class Kernels:
    """Rewrites a file so that its kernels read integers.

    prefer: "size", the narrowest type; "speed", the one that runs fastest here.
    """

    def __init__(self, file: File, prefer: str):
        self.file = file
        self.prefer = prefer
        self._sums: dict[tuple[int, int], int] = {}

    def store(self, place: Place, forms: list[Integers]) -> tuple[str, str | None]:
        """Puts integers where a float constant was; the type, and why it is not the narrowest.

        "float32" with the reason where there is no better type.
        """
        readers = self.file.readers(place.graph, place.index)
        options = [option for form in forms if (option := laid(form, place)) is not None]
        why = "a channel was multiplied by a negative number, and the least code has no negative"
        chosen, narrowest = None, forms[0].bits
        for option in options:
            fits = [self._refused(place, option, *reader) for reader in readers]
            refused = next((reason for reason in fits if reason), None)
            if refused is None:
                chosen = option
                break
            why = refused
        if chosen is None:
            return self._unpacked(place, forms, why)
        reason = why if chosen.bits > narrowest else None
        if self.prefer == "speed":
            faster = self._faster(place, options, readers)
            if faster is not None and faster is not chosen:
                chosen, reason = faster, "prefer=speed: this kernel is faster with wider integers"
        before = 4 * chosen.values.size
        if chosen.bytes() + self._around(place, chosen, readers) >= before:
            return "float32", f"its {chosen.values.size} values take less as they are"
        for operator, position in readers:
            self._adapt(place, chosen, operator, position)
        return f"int{chosen.bits}", reason

    def quantize(self, graph: int, index: int, chosen: Laid, name: str, channel: int = 0) -> None:
        """Makes a constant of integers of the tensor."""
        tensor = self.file.graphs[graph].tensors[index]
        scale = chosen.scale
        axis = next((axis for axis, size in enumerate(scale.shape) if size > 1), channel)
        tensor.type = TYPES[chosen.bits]
        tensor.shape = np.array(chosen.values.shape, np.int32)
        tensor.buffer = self.file.buffer(packed(chosen.values, chosen.bits))
        tensor.name = name
        if scale.size == 1:  # XNNPACK wants a scale per channel
            scale = np.repeat(scale.reshape(-1), chosen.values.shape[axis])
        tensor.quantization = schema.QuantizationParametersT(
            scale=scale.reshape(-1).astype(np.float32),
            zeroPoint=np.zeros(scale.size, np.int64),
            quantizedDimension=axis,
        )

    # What each kernel takes.

    def _refused(self, place: Place, option: Laid, operator, position: int) -> str | None:
        """Why an operator cannot read these integers; None: it can."""
        name = self.file.name(operator)
        rule = {
            "FULLY_CONNECTED": self._refused_product,
            "CONV_2D": self._refused_convolution,
            "GATHER": self._refused_lookup,
        }.get(name)
        at = 0 if name == "GATHER" else 1
        if name == "DEPTHWISE_CONV_2D":
            return "DEPTHWISE_CONV_2D runs slower on integer weights than on floats"
        if rule is None or position != at:
            return f"{name} has no kernel for integer weights"
        return rule(place, option, operator)

    def _refused_product(self, place: Place, option: Laid, operator) -> str | None:
        _, inputs = option.values.shape
        parts = _parts(option.scale)
        if parts is None or parts > 1 and not self._keeps(operator, inputs):
            return "FULLY_CONNECTED takes one scale per output channel"
        each = inputs // parts
        if each % (8 // option.bits):
            return f"FULLY_CONNECTED with INT{option.bits} needs rows of whole bytes"
        if option.offset and not self._keeps(operator, inputs):
            return "FULLY_CONNECTED with levels between integers needs its input in rows"
        return None

    def _keeps(self, operator, inputs: int) -> bool:
        """Whether the rows of the operator's input are what is multiplied."""
        graph = next(g for g in self.file.graphs if any(operator is o for o in g.operators))
        dims = shape(graph.tensors[operator.inputs[0]])
        return bool(dims) and dims[-1] == inputs

    def _refused_convolution(self, place: Place, option: Laid, operator) -> str | None:
        if option.scale.size > 1 and option.scale.size != option.scale.shape[0]:
            return "CONV_2D takes one scale per output channel"
        if self._pointwise(place, operator):
            inputs = option.values.shape[-1]
            if inputs % (8 // option.bits) == 0:
                return None
        if option.bits < 4:
            return "CONV_2D with INT2 gives NaN in LiteRT"
        if option.offset:
            return "CONV_2D has no integers for levels between integers"
        graph = self.file.graphs[place.graph]
        if shape(graph.tensors[operator.inputs[0]])[-1] != option.values.shape[-1]:
            return "CONV_2D in groups has no kernel for integer weights"
        return None

    def _pointwise(self, place: Place, operator) -> bool:
        """Whether a convolution is one product at every pixel: FULLY_CONNECTED does the same."""
        options = operator.builtinOptions
        graph = self.file.graphs[place.graph]
        dims = shape(graph.tensors[operator.inputs[1]])
        inputs = shape(graph.tensors[operator.inputs[0]])
        return (
            dims[1:3] == (1, 1)
            and options.strideH == options.strideW == 1
            and inputs[-1] == dims[-1]
        )

    def _refused_lookup(self, place: Place, option: Laid, operator) -> str | None:
        options = operator.builtinOptions
        graph = self.file.graphs[place.graph]
        if len(option.values.shape) != 2 or options.axis or options.batchDims:
            return "GATHER has no kernel for integers with a scale per channel"
        if graph.tensors[operator.inputs[1]].type != INT32:
            return "EMBEDDING_LOOKUP takes int32 only"
        if option.scale.size > 1 and option.scale.size != option.scale.shape[0]:
            return "EMBEDDING_LOOKUP takes one scale per row"
        if option.values.shape[1] % (8 // option.bits):
            return f"EMBEDDING_LOOKUP with INT{option.bits} needs whole bytes in a row"
        return None

    def _faster(self, place: Place, options: list[Laid], readers: list) -> Laid | None:
        """The option that runs fastest: INT4 products on x86, INT8 convolutions."""
        names = {self.file.name(operator) for operator, _ in readers}
        wanted = 8 if names & {"CONV_2D"} else 4 if names == {"FULLY_CONNECTED"} else 0
        return next(
            (
                option
                for option in options
                if option.bits == wanted
                and not option.offset
                and not any(self._refused(place, option, *reader) for reader in readers)
            ),
            None,
        )

    def _around(self, place: Place, option: Laid, readers: list) -> int:
        """Bytes of the operators that `_adapt` adds."""
        count = 0
        for operator, _ in readers:
            if self.file.name(operator) == "GATHER":
                count += 4 if option.offset else 2
            elif option.offset:
                count += 3
            if len(option.values.shape) == 2:
                count += 3 * ((_parts(option.scale) or 1) - 1)
        return count * _OPERATOR_BYTES

    # What is written around the kernel.

    def _adapt(self, place: Place, chosen: Laid, operator, position: int) -> None:
        name = self.file.name(operator)
        if name == "GATHER":
            self.quantize(place.graph, place.index, chosen, place.path)
            self._lookup(place, chosen, operator)
            return
        if name == "CONV_2D" and chosen.bits < 8 and self._pointwise(place, operator):
            chosen = dataclasses.replace(
                chosen,
                values=chosen.values.reshape(chosen.values.shape[0], -1),
                scale=chosen.scale.reshape(-1, 1),
            )
            self._as_product(operator)
            name = "FULLY_CONNECTED"
        parts = _parts(chosen.scale) if name == "FULLY_CONNECTED" else 1
        if parts > 1:
            self._in_parts(place, chosen, operator, parts)
            return
        channel = place.channel % chosen.values.ndim
        self.quantize(place.graph, place.index, chosen, place.path, channel)
        if name == "FULLY_CONNECTED":
            # Of builtin kernels; XNNPACK always does.
            operator.builtinOptions.asymmetricQuantizeInputs = True
            if chosen.offset:
                self._correct(place.graph, chosen, operator)

    def _as_product(self, operator) -> None:
        activation = operator.builtinOptions.fusedActivationFunction
        operator.opcodeIndex = self.file.opcode("FULLY_CONNECTED", 5)  # 5: keeps dimensions
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = schema.FullyConnectedOptionsT(
            fusedActivationFunction=activation, keepNumDims=True
        )

    def _correct(self, graph: int, chosen: Laid, operator) -> None:
        """Adds what the offset is worth: offset * scale of the channel * the sum of the inputs."""
        tensors = self.file.graphs[graph].tensors
        source, output = int(operator.inputs[0]), int(operator.outputs[0])
        dims, made = shape(tensors[source]), shape(tensors[output])
        operators = self.file.graphs[graph].operators
        at = next(n for n, o in enumerate(operators) if o is operator)
        total = self._sums.get((graph, source))
        if total is None:
            total = self.file.tensor(graph, (*dims[:-1], 1), f"{text(tensors[source].name)}/sum")
            last = self.file.constant(graph, np.array([-1], np.int32), "last")
            options = schema.ReducerOptionsT(keepDims=True)
            added = self.file.operator("SUM", [source, last], [total], options)
            operators.insert(at, added)
            at += 1
            self._sums[graph, source] = total
        rows = self.file.graphs[graph].tensors[int(operator.inputs[1])]
        scale = np.broadcast_to(chosen.scale.reshape(-1), chosen.values.shape[:1])
        worth = (scale * np.float32(chosen.offset)).astype(np.float32)
        if len(made) != len(dims):
            total = self._reshaped(graph, total, (*made[:-1], 1), operators, at)
            at += 1
        name = text(rows.name)
        factor = self.file.constant(graph, worth, f"{name}/offset")
        shift = self.file.tensor(graph, made, f"{name}/shift")
        product = self.file.tensor(graph, made, f"{name}/product")
        multiply = self.file.operator("MUL", [total, factor], [shift], schema.MulOptionsT())
        activation = operator.builtinOptions.fusedActivationFunction
        operator.builtinOptions.fusedActivationFunction = 0
        operator.outputs = np.array([product], np.int32)
        options = schema.AddOptionsT(fusedActivationFunction=activation)
        add = self.file.operator("ADD", [product, shift], [output], options)
        operators[at + 1 : at + 1] = [multiply, add]

    def _reshaped(self, graph: int, source: int, dims: tuple, operators: list, at: int) -> int:
        target = self.file.constant(graph, np.array(dims, np.int32), "dims")
        kind = self.file.graphs[graph].tensors[source].type
        name = f"{text(self.file.graphs[graph].tensors[source].name)}/reshaped"
        made = self.file.tensor(graph, dims, name, kind)
        operators.insert(at, self.file.operator("RESHAPE", [source, target], [made]))
        return made

    def _in_parts(self, place: Place, chosen: Laid, operator, parts: int) -> None:
        """A product as a sum of products over parts of the inputs, each with its scales."""
        graph = place.graph
        tensors, operators = (
            self.file.graphs[graph].tensors,
            self.file.graphs[graph].operators,
        )
        source, bias = int(operator.inputs[0]), [int(i) for i in operator.inputs[2:]]
        output = int(operator.outputs[0])
        dims, made = shape(tensors[source]), shape(tensors[output])
        size = dims[-1] // parts
        activation = operator.builtinOptions.fusedActivationFunction
        axis = self.file.constant(graph, np.array(len(dims) - 1, np.int32), "axis")
        pieces = [
            self.file.tensor(graph, (*dims[:-1], size), f"{place.path}/input{n}")
            for n in range(parts)
        ]
        options = schema.SplitOptionsT(numSplits=parts)
        new = [self.file.operator("SPLIT", [axis, source], pieces, options)]
        total, products = None, []
        for part, piece in enumerate(pieces):
            kernel = self.file.tensor(graph, (made[-1], size), f"{place.path}/{part}")
            self.quantize(graph, kernel, chosen.cut(part, parts), f"{place.path}/{part}")
            product = self.file.tensor(graph, made, f"{place.path}/product{part}")
            options = dataclass_copy(operator.builtinOptions)
            options.fusedActivationFunction = 0
            options.asymmetricQuantizeInputs = True
            given = [piece, kernel, *(bias if part == 0 else [-1] * len(bias))]
            fully = self.file.operator("FULLY_CONNECTED", given, [product], options)
            fully.opcodeIndex = operator.opcodeIndex
            new.append(fully)
            products.append((fully, chosen.cut(part, parts)))
            if total is None:
                total = product
                continue
            last = part == parts - 1
            sum_ = output if last else self.file.tensor(graph, made, f"{place.path}/sum{part}")
            options = schema.AddOptionsT(fusedActivationFunction=activation if last else 0)
            new.append(self.file.operator("ADD", [total, product], [sum_], options))
            total = sum_
        at = next(n for n, o in enumerate(operators) if o is operator)
        operators[at : at + 1] = new
        if chosen.offset:
            for fully, part in products:
                self._correct(graph, part, fully)

    def _lookup(self, place: Place, chosen: Laid, operator) -> None:
        """GATHER of rows as EMBEDDING_LOOKUP, whose indices have one axis."""
        graph = place.graph
        tensors, operators = (
            self.file.graphs[graph].tensors,
            self.file.graphs[graph].operators,
        )
        table, indices = int(operator.inputs[0]), int(operator.inputs[1])
        output = int(operator.outputs[0])
        dims, made = shape(tensors[indices]), shape(tensors[output])
        count, width = math.prod(dims), made[-1]
        at = next(n for n, o in enumerate(operators) if o is operator)
        if len(dims) != 1:
            indices = self._reshaped(graph, indices, (count,), operators, at)
            at += 1
        rows = self.file.tensor(graph, (count, width), f"{place.path}/rows")
        new = [self.file.operator("EMBEDDING_LOOKUP", [indices, table], [rows])]
        if chosen.offset:
            vocabulary = chosen.values.shape[0]
            worth = np.broadcast_to(chosen.scale.reshape(-1, 1), (vocabulary, 1))
            worth = np.ascontiguousarray(worth * np.float32(chosen.offset), np.float32)
            offsets = self.file.constant(graph, worth, f"{place.path}/offset")
            shift = self.file.tensor(graph, (count, 1), f"{place.path}/shift")
            moved = self.file.tensor(graph, (count, width), f"{place.path}/shifted")
            new.append(self.file.operator("EMBEDDING_LOOKUP", [indices, offsets], [shift]))
            options = schema.AddOptionsT()
            new.append(self.file.operator("ADD", [rows, shift], [moved], options))
            rows = moved
        target = self.file.constant(graph, np.array(made, np.int32), "dims")
        new.append(self.file.operator("RESHAPE", [rows, target], [output]))
        operators[at : at + 1] = new

    def _unpacked(self, place: Place, forms: list[Integers], why: str) -> tuple[str, str]:
        """Integers that LiteRT makes floats of when it loads the file: smaller, not faster.

        XNNPACK does so with INT8 and then runs as with floats; others make its kernels slower.
        """
        readers, graph = self.file.readers(place.graph, place.index), place.graph
        slow = self.prefer == "size" and not any(
            self.file.name(operator) == "DEPTHWISE_CONV_2D" for operator, _ in readers
        )
        whole = [form for form in forms if not form.offset and (slow or form.bits == 8)]
        if not whole:
            return "float32", why
        chosen = laid(whole[0], place) or laid(whole[0], place, signed=True)
        several = sum(size > 1 for size in chosen.scale.shape) > 1
        added = 2 * _OPERATOR_BYTES
        if chosen.bytes() + added >= 4 * chosen.values.size:
            return "float32", f"its {chosen.values.size} values take less as they are; {why}"
        tensors, operators = (
            self.file.graphs[graph].tensors,
            self.file.graphs[graph].operators,
        )
        ones = dataclasses.replace(chosen, scale=np.ones((1,) * chosen.scale.ndim, np.float32))
        self.quantize(graph, place.index, ones if several else chosen, place.path)
        floats = self.file.tensor(graph, chosen.values.shape, f"{place.path}/floats")
        new = [
            self.file.operator("DEQUANTIZE", [place.index], [floats], schema.DequantizeOptionsT())
        ]
        if several:
            scale = self.file.constant(graph, chosen.scale, f"{place.path}/scale")
            scaled = self.file.tensor(graph, chosen.values.shape, f"{place.path}/scaled")
            new.append(self.file.operator("MUL", [floats, scale], [scaled], schema.MulOptionsT()))
            floats = scaled
        first = min(
            next(n for n, o in enumerate(operators) if o is operator) for operator, _ in readers
        )
        for operator, position in readers:
            operator.inputs = operator.inputs.copy()
            operator.inputs[position] = floats
        operators[first:first] = new
        assert tensors[floats].type == FLOAT32
        return f"int{chosen.bits}", f"{why}: unpacked to float32 when it is loaded"


def dataclass_copy(options):
    """A copy of an options table of the schema."""
    new = type(options)()
    vars(new).update(vars(options))
    return new


def _parts(scale: np.ndarray) -> int | None:
    """Into how many equal parts the inputs of (outputs, inputs) must be cut to have one scale."""
    inputs = scale.shape[-1]
    if inputs == 1:
        return 1
    changes = np.flatnonzero((scale[:, 1:] != scale[:, :-1]).any(0)) + 1
    size = math.gcd(inputs, *map(int, changes))
    return inputs // size if inputs // size <= _MOST_PARTS else None
