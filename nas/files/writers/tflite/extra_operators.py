"""What stands around a kernel that reads integers: gains, sums, parts, look-ups."""

import math
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nas.files.writers.tflite.constant_layout import IntegerConstant, quantize
from nas.files.writers.tflite.editable_file import File, shape, text
from nas.files.writers.tflite.find_weights import Place

_SAME = 2e-6  # of a gain's values: float32 after one multiplication and one division


class ExtraOperators:
    """Writes the operators around an operator of a file."""

    def __init__(self, file: File):
        self.file = file
        self._sums: dict[tuple[int, int], int] = {}
        self._gains: dict[tuple[int, int], list[tuple[np.ndarray, int]]] = {}

    def known_gain(self, place: Place, readers: list) -> tuple[np.ndarray, float] | None:
        """A gain that is there for the same input, and how many times it is the place's."""
        sources = {int(operator.inputs[0]) for operator, _ in readers}
        if len(sources) != 1 or place.gain is None:
            return None
        for gain, _ in self._gains.get((place.graph, sources.pop()), ()):
            at = np.abs(gain).argmax()
            factor = place.gain[at] / gain[at]
            if abs(factor - 1) <= _SAME:
                factor = np.float32(1)
            if factor > 0 and (np.abs(factor * gain - place.gain) <= _SAME * abs(place.gain)).all():
                return gain, float(factor)
        return None

    def multiply(self, graph: int, gain: np.ndarray, name: str, readers: list) -> None:
        """Multiplies the inputs of products by a gain, once for all that read the same."""
        operators, tensors = self.file.graphs[graph].operators, self.file.graphs[graph].tensors
        for operator, _ in readers:
            source = int(operator.inputs[0])
            known = self._gains.setdefault((graph, source), [])
            made = next((made for other, made in known if np.array_equal(other, gain)), None)
            if made is None:
                factor = self.file.constant(graph, gain, f"{name}/gain")
                made = self.file.tensor(graph, shape(tensors[source]), f"{name}/input")
                options = schema.MulOptionsT()
                # Right behind what makes the input: others that read it may come first.
                at = next((n + 1 for n, o in enumerate(operators) if source in o.outputs), 0)
                operators.insert(at, self.file.operator("MUL", [source, factor], [made], options))
                known.append((gain, made))
            operator.inputs = operator.inputs.copy()
            operator.inputs[0] = made

    def as_product(self, operator: schema.OperatorT) -> None:
        activation = operator.builtinOptions.fusedActivationFunction
        operator.opcodeIndex = self.file.opcode("FULLY_CONNECTED", 5)  # 5: keeps dimensions
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = schema.FullyConnectedOptionsT(
            fusedActivationFunction=activation, keepNumDims=True
        )

    def correct(self, graph: int, chosen: IntegerConstant, operator: schema.OperatorT) -> None:
        """Adds the offset's part: offset * scale of the channel * the sum of the inputs."""
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
        shift_by = (scale * np.float32(chosen.offset)).astype(np.float32)
        if len(made) != len(dims):
            total = self._reshaped(graph, total, (*made[:-1], 1), operators, at)
            at += 1
        name = text(rows.name)
        factor = self.file.constant(graph, shift_by, f"{name}/offset")
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

    def in_parts(
        self, place: Place, chosen: IntegerConstant, operator: schema.OperatorT, parts: int
    ) -> None:
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
            self.file.tensor(graph, (*dims[:-1], size), f"{place.name}/input{n}")
            for n in range(parts)
        ]
        options = schema.SplitOptionsT(numSplits=parts)
        new = [self.file.operator("SPLIT", [axis, source], pieces, options)]
        total, products = None, []
        for part, piece in enumerate(pieces):
            kernel = self.file.tensor(graph, (made[-1], size), f"{place.name}/{part}")
            quantize(self.file, graph, kernel, chosen.cut(part, parts), f"{place.name}/{part}")
            product = self.file.tensor(graph, made, f"{place.name}/product{part}")
            options = _copy(operator.builtinOptions)
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
            sum_ = output if last else self.file.tensor(graph, made, f"{place.name}/sum{part}")
            options = schema.AddOptionsT(fusedActivationFunction=activation if last else 0)
            new.append(self.file.operator("ADD", [total, product], [sum_], options))
            total = sum_
        at = next(n for n, o in enumerate(operators) if o is operator)
        operators[at : at + 1] = new
        if chosen.offset:
            for fully, constant in products:
                self.correct(graph, constant, fully)

    def lookup(self, place: Place, chosen: IntegerConstant, operator: schema.OperatorT) -> None:
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
        rows = self.file.tensor(graph, (count, width), f"{place.name}/rows")
        new = [self.file.operator("EMBEDDING_LOOKUP", [indices, table], [rows])]
        if chosen.offset:
            vocabulary = chosen.values.shape[0]
            scale = np.broadcast_to(chosen.scale.reshape(-1, 1), (vocabulary, 1))
            shift_by = np.ascontiguousarray(scale * np.float32(chosen.offset), np.float32)
            offsets = self.file.constant(graph, shift_by, f"{place.name}/offset")
            shift = self.file.tensor(graph, (count, 1), f"{place.name}/shift")
            moved = self.file.tensor(graph, (count, width), f"{place.name}/shifted")
            new.append(self.file.operator("EMBEDDING_LOOKUP", [indices, offsets], [shift]))
            options = schema.AddOptionsT()
            new.append(self.file.operator("ADD", [rows, shift], [moved], options))
            rows = moved
        target = self.file.constant(graph, np.array(made, np.int32), "dims")
        new.append(self.file.operator("RESHAPE", [rows, target], [output]))
        operators[at : at + 1] = new


def _copy(options: Any) -> Any:
    """A copy of an options table of the schema."""
    new = type(options)()
    vars(new).update(vars(options))
    return new
