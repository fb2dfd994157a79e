"""Which integers LiteRT's kernels take beside float activations, and the graph around them.

The types that a kernel takes were found by running it (`tests/test_litert_writer.py`): CONV_2D with
INT2 runs and gives NaN, so a convolution has at least 4 bits, unless it is a product at each pixel.
"""

import dataclasses

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nas.files.writers.tflite.constant_layout import (
    IntegerConstant,
    integer_constant,
    parts_of,
    quantize,
)
from nas.files.writers.tflite.editable_file import FLOAT32, INT32, File, shape
from nas.files.writers.tflite.extra_operators import ExtraOperators
from nas.files.writers.tflite.find_weights import Place
from nas.files.writers.tflite.integer_codes import Integers

_OPERATOR_BYTES = 200  # of an operator and the tensor that it makes


class Kernels:
    """Rewrites a file so that its kernels read integers.

    prefer: "size", the narrowest type; "speed", the one that runs fastest here.
    """

    def __init__(self, file: File, prefer: str):
        self.file = file
        self.prefer = prefer
        self.extra = ExtraOperators(file)

    def store(self, place: Place, forms: list[Integers]) -> tuple[str, str | None]:
        """Puts integers where a float constant was; the type, and why it is not the narrowest.

        "float32" with the reason where there is no better type.
        """
        readers = self.file.readers(place.graph, place.index)
        gain, added = None, 0
        if place.gain is not None and all(
            self.file.name(operator) == "FULLY_CONNECTED"
            and position == 1
            and self._keeps(operator, place.gain.size)
            for operator, position in readers
        ):
            known = self.extra.known_gain(place, readers)
            gain, factor = known or (place.gain, 1.0)
            added = 0 if known else len(readers) * (_OPERATOR_BYTES + gain.nbytes)
            place = place.without_gain(factor)
        options = [
            option for form in forms if (option := integer_constant(form, place)) is not None
        ]
        refusal = (
            "a channel was multiplied by a negative number, and the least code has no negative"
        )
        chosen, narrowest = None, forms[0].bits
        for option in options:
            fits = [self._refused(place, option, *reader) for reader in readers]
            refused = next((fit for fit in fits if fit), None)
            if refused is None:
                chosen = option
                break
            refusal = refused
        if chosen is None:
            return self._unpacked(place, forms, refusal, gain, added)
        reason = refusal if chosen.bits > narrowest else None
        if self.prefer == "speed":
            faster = self._faster(place, options, readers)
            if faster is not None and faster is not chosen:
                chosen, reason = faster, "prefer=speed: this kernel is faster with wider integers"
        before = 4 * chosen.values.size
        if chosen.bytes() + self._extra_bytes(place, chosen, readers) + added >= before:
            return "float32", f"its {chosen.values.size} values take less as they are"
        if gain is not None:
            self.extra.multiply(place.graph, gain, place.name, readers)
        for operator, position in readers:
            self._adapt(place, chosen, operator, position)
        return f"int{chosen.bits}", reason

    # What each kernel takes.

    def _refused(
        self, place: Place, option: IntegerConstant, operator: schema.OperatorT, position: int
    ) -> str | None:
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

    def _refused_product(
        self, place: Place, option: IntegerConstant, operator: schema.OperatorT
    ) -> str | None:
        _, inputs = option.values.shape
        parts = parts_of(option.scale)
        if parts is None or parts > 1 and not self._keeps(operator, inputs):
            return "FULLY_CONNECTED takes one scale per output channel"
        each = inputs // parts
        if each % (8 // option.bits):
            return f"FULLY_CONNECTED with INT{option.bits} needs rows of whole bytes"
        if option.offset and not self._keeps(operator, inputs):
            return "FULLY_CONNECTED with levels between integers needs its input in rows"
        return None

    def _keeps(self, operator: schema.OperatorT, inputs: int) -> bool:
        """Whether the rows of the operator's input are what is multiplied."""
        graph = next(g for g in self.file.graphs if any(operator is o for o in g.operators))
        dims = shape(graph.tensors[operator.inputs[0]])
        return bool(dims) and dims[-1] == inputs

    def _refused_convolution(
        self, place: Place, option: IntegerConstant, operator: schema.OperatorT
    ) -> str | None:
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

    def _pointwise(self, place: Place, operator: schema.OperatorT) -> bool:
        """Whether a convolution is one product at every pixel: FULLY_CONNECTED does the same."""
        options = operator.builtinOptions
        graph = self.file.graphs[place.graph]
        dims = place.shape  # the constant's own may be a product's by now, for another reader
        inputs = shape(graph.tensors[operator.inputs[0]])
        return (
            dims[1:3] == (1, 1)
            and options.strideH == options.strideW == 1
            and inputs[-1] == dims[-1]
        )

    def _refused_lookup(
        self, place: Place, option: IntegerConstant, operator: schema.OperatorT
    ) -> str | None:
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

    def _faster(
        self, place: Place, options: list[IntegerConstant], readers: list
    ) -> IntegerConstant | None:
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

    def _extra_bytes(self, place: Place, option: IntegerConstant, readers: list) -> int:
        """Bytes of the operators that `_adapt` adds."""
        count = 0
        for operator, _ in readers:
            if self.file.name(operator) == "GATHER":
                count += 4 if option.offset else 2
            elif option.offset:
                count += 3
            if len(option.values.shape) == 2:
                count += 3 * ((parts_of(option.scale) or 1) - 1)
        return count * _OPERATOR_BYTES

    # What is written around the kernel.

    def _adapt(
        self, place: Place, chosen: IntegerConstant, operator: schema.OperatorT, position: int
    ) -> None:
        name = self.file.name(operator)
        if name == "GATHER":
            quantize(self.file, place.graph, place.index, chosen, place.name)
            self.extra.lookup(place, chosen, operator)
            return
        narrow = chosen.bits < 8 or chosen.offset  # no kernel of CONV_2D takes these
        if name == "CONV_2D" and narrow and self._pointwise(place, operator):
            chosen = dataclasses.replace(
                chosen,
                values=chosen.values.reshape(chosen.values.shape[0], -1),
                scale=chosen.scale.reshape(-1, 1),
            )
            self.extra.as_product(operator)
            name = "FULLY_CONNECTED"
        parts = (parts_of(chosen.scale) or 1) if name == "FULLY_CONNECTED" else 1
        if parts > 1:
            self.extra.in_parts(place, chosen, operator, parts)
            return
        channel = place.channel % chosen.values.ndim
        quantize(self.file, place.graph, place.index, chosen, place.name, channel)
        if name == "FULLY_CONNECTED":
            # Of builtin kernels; XNNPACK always does.
            operator.builtinOptions.asymmetricQuantizeInputs = True
            if chosen.offset:
                self.extra.correct(place.graph, chosen, operator)

    def _unpacked(
        self,
        place: Place,
        forms: list[Integers],
        reason: str,
        gain: np.ndarray | None,
        added: int,
    ) -> tuple[str, str]:
        """Integers that LiteRT makes floats of when it loads the file: smaller, not faster.

        XNNPACK does so with INT8 and then runs as with floats; others make its kernels slower.
        """
        readers, graph = self.file.readers(place.graph, place.index), place.graph
        slow = self.prefer == "size" and not any(
            self.file.name(operator) == "DEPTHWISE_CONV_2D" for operator, _ in readers
        )
        whole = [form for form in forms if not form.offset and (slow or form.bits == 8)]
        if not whole:
            return "float32", reason
        chosen = integer_constant(whole[0], place) or integer_constant(whole[0], place, signed=True)
        assert chosen is not None  # with signed scales there always is one
        several = sum(size > 1 for size in chosen.scale.shape) > 1
        added += 2 * _OPERATOR_BYTES
        if chosen.bytes() + added >= 4 * chosen.values.size:
            return "float32", f"its {chosen.values.size} values take less as they are; {reason}"
        if gain is not None:
            self.extra.multiply(graph, gain, place.name, readers)
        tensors, operators = (
            self.file.graphs[graph].tensors,
            self.file.graphs[graph].operators,
        )
        ones = dataclasses.replace(chosen, scale=np.ones((1,) * chosen.scale.ndim, np.float32))
        quantize(self.file, graph, place.index, ones if several else chosen, place.name)
        floats = self.file.tensor(graph, chosen.values.shape, f"{place.name}/floats")
        new = [
            self.file.operator("DEQUANTIZE", [place.index], [floats], schema.DequantizeOptionsT())
        ]
        if several:
            scale = self.file.constant(graph, chosen.scale, f"{place.name}/scale")
            scaled = self.file.tensor(graph, chosen.values.shape, f"{place.name}/scaled")
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
        return f"int{chosen.bits}", f"{reason}: unpacked to float32 when it is loaded"
