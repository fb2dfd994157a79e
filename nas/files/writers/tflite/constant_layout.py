"""A weight as integers in the layout of its constant in a `.tflite` file."""

import dataclasses
import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nas.files.writers.tflite.editable_file import TYPES, File
from nas.files.writers.tflite.find_weights import Place
from nas.files.writers.tflite.integer_codes import Integers, pack

_MOST_PARTS = 64  # products that one is cut into
_TINY = np.float32(1e-30)  # XNNPACK refuses a scale of 0, of a channel that is all 0
_QUANTIZED_BYTES = 80  # what a file has to say of a quantized tensor


@dataclasses.dataclass(frozen=True, eq=False)
class IntegerConstant:
    """A constant as integers in the file's layout: scale * (values + offset)."""

    bits: int
    values: np.ndarray  # int8
    scale: np.ndarray  # float32, of the rank of `values`, to be broadcast
    offset: float

    def bytes(self) -> int:
        """What a file needs for it."""
        scales = self.scale.size
        if self.scale.ndim == 2 and (parts := parts_of(self.scale)):
            scales = len(self.scale) * parts
        return (
            self.values.size * self.bits // 8
            + scales * (8 if self.offset else 4)
            + _QUANTIZED_BYTES
        )

    def cut(self, part: int, parts: int) -> "IntegerConstant":
        """One of equal parts along the last axis."""
        size = self.values.shape[-1] // parts
        chosen = slice(part * size, (part + 1) * size)
        scale = self.scale[..., chosen] if self.scale.shape[-1] > 1 else self.scale
        return dataclasses.replace(self, values=self.values[..., chosen], scale=_reduced(scale))


def integer_constant(form: Integers, place: Place, signed: bool = False) -> IntegerConstant | None:
    """A form of a weight as its constant has it; None where a negated value has no code.

    A channel that was multiplied by a negative number has its integers negated: scales are
    positive, unless they may be `signed`.
    """
    scale = place.arrange(np.broadcast_to(form.scale, form.values.shape)) * place.factors
    scale, values = _reduced(scale), place.arrange(form.values)
    if signed:
        return IntegerConstant(form.bits, values, np.where(scale == 0, _TINY, scale), form.offset)
    if (scale < 0).any():
        negated = -values.astype(np.int16) - round(2 * form.offset)
        if 2 * form.offset != round(2 * form.offset):
            return None
        values = np.where(scale < 0, negated, values)
        half = 2 ** (form.bits - 1)
        if values.min() < -half or values.max() >= half:
            return None
        values = values.astype(np.int8)
    return IntegerConstant(form.bits, values, np.maximum(np.abs(scale), _TINY), form.offset)


def _reduced(scale: np.ndarray) -> np.ndarray:
    """The same, with axes along which it does not change of size 1."""
    for axis in range(scale.ndim):
        first = scale.take([0], axis)
        if (scale == first).all():
            scale = first
    return scale


def quantize(
    file: File, graph: int, index: int, chosen: IntegerConstant, name: str, channel: int = 0
) -> None:
    """Makes a constant of integers of the tensor."""
    tensor = file.graphs[graph].tensors[index]
    scale = chosen.scale
    axis = next((axis for axis, size in enumerate(scale.shape) if size > 1), channel)
    tensor.type = TYPES[chosen.bits]
    tensor.shape = np.array(chosen.values.shape, np.int32)
    tensor.buffer = file.buffer(pack(chosen.values, chosen.bits))
    tensor.name = name
    if scale.size == 1:  # XNNPACK wants a scale per channel
        scale = np.repeat(scale.reshape(-1), chosen.values.shape[axis])
    tensor.quantization = schema.QuantizationParametersT(
        scale=scale.reshape(-1).astype(np.float32),
        zeroPoint=np.zeros(scale.size, np.int64),
        quantizedDimension=axis,
    )


def parts_of(scale: np.ndarray) -> int | None:
    """Into how many equal parts the inputs of (outputs, inputs) must be cut to have one scale."""
    inputs = scale.shape[-1]
    if inputs == 1:
        return 1
    changes = np.flatnonzero((scale[:, 1:] != scale[:, :-1]).any(0)) + 1
    size = math.gcd(inputs, *map(int, changes))
    return inputs // size if inputs // size <= _MOST_PARTS else None
