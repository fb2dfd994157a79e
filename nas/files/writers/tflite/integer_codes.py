"""Weights of few values as integers: value = scale * (integer + offset), in 2, 4 or 8 bits."""

import dataclasses

import numpy as np

from compress.rewriting.record import Weight

WIDTHS = (2, 4, 8)
UNEVEN: str | None = "its levels are not evenly spaced"
_TOLERANCE = 1e-3  # of a step: levels are float32, and 255 of them reach 127 steps
_FRACTIONS = (1, 2, 3, 4)  # a step may be so many times smaller than the distance of two levels


@dataclasses.dataclass(frozen=True, eq=False)
class Integers:
    """A weight as signed integers of `bits`: scale * (values + offset).

    values: int8, of the weight's shape; scale: float32, of its rank, to be broadcast.
    """

    bits: int
    values: np.ndarray
    scale: np.ndarray
    offset: float = 0.0

    def dense(self) -> np.ndarray:
        """The float32 values that this stands for."""
        return self.scale * (self.values.astype(np.float32) + np.float32(self.offset))


def forms(weight: Weight) -> list[Integers]:
    """All exact ways to write a weight in integers, narrowest first; none where levels are uneven.

    With an offset only where it saves bits: levels such as +-.5, +-1.5 lie between integers.
    """
    if weight.codes is None or weight.levels is None:
        return []
    zero = weight.mask is not None and not weight.mask.all()
    tables = [np.asarray(table, np.float64) for table in weight.levels]
    found = []
    if not zero and (offset := _offset_form(weight, tables)) is not None:
        found.append(offset)
    whole = _whole_form(weight, tables)
    if whole is not None:
        wider = [bits for bits in WIDTHS if bits >= whole.bits]
        found = [form for form in found if form.bits < whole.bits]
        found += [dataclasses.replace(whole, bits=bits) for bits in wider]
    return found


def _whole_form(weight: Weight, tables: list[np.ndarray]) -> Integers | None:
    steps, integers = [], []
    for table in tables:
        step = _step(table)
        if step is None:
            return None
        steps.append(step)
        integers.append(np.round(table / step).astype(int))
    low, high = min(i.min() for i in integers), max(i.max() for i in integers)
    bits = next((b for b in WIDTHS if -(2 ** (b - 1)) <= low and high < 2 ** (b - 1)), None)
    return None if bits is None else _made(weight, bits, integers, steps, 0.0)


def _offset_form(weight: Weight, tables: list[np.ndarray]) -> Integers | None:
    steps, integers, offsets = [], [], []
    spans = []
    for table in tables:
        if len(table) < 2:
            return None
        step = np.diff(np.unique(table)).min()
        away = (table - table.min()) / step
        if step <= 0 or np.abs(away - np.round(away)).max() > _TOLERANCE:
            return None
        steps.append(step)
        spans.append(np.round(away).astype(int))
        offsets.append(table.min() / step)
    bits = next((b for b in WIDTHS if max(s.max() for s in spans) < 2**b), None)
    if bits is None or np.ptp(offsets) > _TOLERANCE:
        return None
    middle = 2 ** (bits - 1)
    integers = [span - middle for span in spans]
    # Exact for halves, as levels are; the rest keeps what float32 tells.
    offset = np.round(2 * (offsets[0] + middle)) / 2
    if abs(offset - offsets[0] - middle) > _TOLERANCE:
        offset = offsets[0] + middle
    return _made(weight, bits, integers, steps, float(offset))


def _step(table: np.ndarray) -> float | None:
    """The largest step of which all levels are multiples."""
    levels = np.unique(table)
    distances = np.append(np.diff(levels), np.abs(levels[levels != 0]))
    if not distances.size:
        return 1.0  # all is 0
    for fraction in _FRACTIONS:
        step = distances.min() / fraction
        multiples = levels / step
        if np.abs(multiples - np.round(multiples)).max() < _TOLERANCE:
            # From the largest level: its rounding weighs least.
            far = np.abs(multiples).argmax()
            return float(levels[far] / np.round(multiples[far]))
    return None


def _made(weight: Weight, bits: int, integers: list, steps: list[float], offset: float) -> Integers:
    assert weight.codes is not None
    axis, groups = weight.axis % weight.codes.ndim, len(integers)
    codes = np.moveaxis(weight.codes, axis, 0)
    size = len(codes) // groups
    parts = [integers[g][codes[g * size : (g + 1) * size]] for g in range(groups)]
    values = np.moveaxis(np.concatenate(parts), 0, axis).astype(np.int8)
    if weight.mask is not None:
        values = np.where(weight.mask, values, np.int8(0))
    step = np.asarray(steps, np.float64)
    if groups > 1:
        shape = [1] * weight.codes.ndim
        shape[axis] = -1
        step = np.repeat(step, size).reshape(shape)
    scale = (np.asarray(weight.scale, np.float64) * step).astype(np.float32)
    if scale.ndim != weight.codes.ndim:
        scale = scale.reshape((1,) * (weight.codes.ndim - scale.ndim) + scale.shape)
    return Integers(bits, values, scale, offset)


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Bytes of signed integers, the first in the lowest bits, as LiteRT's INT2, INT4 and INT8."""
    flat = np.ascontiguousarray(values, np.int8).reshape(-1).view(np.uint8)
    if bits == 8:
        return flat
    per_byte = 8 // bits
    flat = np.concatenate([flat, np.zeros(-len(flat) % per_byte, np.uint8)])
    flat = (flat & (2**bits - 1)).reshape(-1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    return np.bitwise_or.reduce(flat << shifts, axis=1)


def unpack(data: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """The integers that `pack` made `data` of; of 16 bits those that others wrote."""
    count = int(np.prod(shape))
    if bits >= 8:
        return data.view(np.int8 if bits == 8 else np.int16)[:count].reshape(shape)
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    values = ((data[:, None] >> shifts) & np.uint8(2**bits - 1)).reshape(-1)[:count]
    half = 2 ** (bits - 1)
    return ((values ^ np.uint8(half)).astype(np.int8) - np.int8(half)).reshape(shape)
