"""Weights in Core ML's programs (MIL): found by their values, stored as codes, read back.

Passes of coremltools transpose, reshape and scale weights, under names of their own; what they
leave is recognized by its values, bit by bit in float16, up to a factor for each output channel.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from compress.rewriting.record import Weight
from nas.files.writers.find_by_value import FLOAT16, Match, WeightFinder

INDEX_BITS = (1, 2, 3, 4, 6, 8)  # of Core ML's look-up tables
INTEGER_BITS = (4, 8)  # of its affine integers
LEAST = 10  # smaller constants are text in the program


class CodedConstant:
    """One constant of a program as codes: of which weight, and what it stands for.

    codes: of the constant's shape. levels (tables, n), table and scale say its values, mask where
    it is not 0. `bits` are those of the file.
    """

    def __init__(self, match: Match, known: Weight, like: np.ndarray):
        def arranged(array: np.ndarray) -> np.ndarray:
            return match.arrange(array, like.shape)

        def spread(array: np.ndarray) -> np.ndarray:
            return arranged(np.broadcast_to(array, shape))

        array = known.codes if known.mask is None else known.mask
        assert array is not None  # otherwise there is nothing to find
        shape = array.shape
        self.path, self.like, self.known = match.path, like, known
        self.mask = None if known.mask is None or known.mask.all() else arranged(known.mask)
        self.codes = None if known.codes is None else arranged(known.codes)
        if self.codes is None or known.scale is None:
            return
        factor = match.factor.reshape([-1 if a == match.axis else 1 for a in range(like.ndim)])
        self.scale = spread(known.scale).astype(np.float32) * factor
        self.levels = np.asarray(known.levels, np.float32)
        count, axis = len(self.levels), known.axis % len(shape)
        groups = np.arange(shape[axis]) // (shape[axis] // count)
        self.table = spread(groups.reshape([-1 if a == axis else 1 for a in range(len(shape))]))
        self.blocks = [_blocks(axis, self.scale, self.table) for axis in range(like.ndim)]
        self.scale, self.table = self._corner(self.scale), self._corner(self.table)
        self.step, self.zero = self._affine()
        self.integers = self.step is not None and known.bits in INTEGER_BITS
        self.integers &= self.scale.size > 1 or known.bits == 8
        self.bits = next(b for b in INDEX_BITS if b >= known.bits)

    def _corner(self, array):
        """The value of each block, from its first element."""
        for axis, count in enumerate(self.blocks):
            array = array.take(np.arange(count) * (self.like.shape[axis] // count), axis)
        return array

    def _affine(self):
        """(step, zero) if all levels are step * (code - zero), else (None, None)."""
        row = self.levels[0]
        if len(row) < 2 or any(not np.array_equal(row, other) for other in self.levels):
            return None, None
        step = (row[-1] - row[0]) / (len(row) - 1)
        even = row[0] + step * np.arange(len(row))
        if step <= 0 or not np.allclose(row, even, rtol=0, atol=1e-6 * abs(row).max()):
            return None, None
        return float(step), float(-row[0] / step)

    @property
    def kind(self) -> str:
        """As `WrittenFile` names it."""
        of = "sparse " if self.mask is not None else ""
        return f"{of}float{8 * self.like.itemsize}" if self.codes is None else f"{of}int{self.bits}"

    @property
    def stored_bits(self) -> int:
        """What it takes in a file."""
        kept = self.like.size if self.mask is None else int(self.mask.sum())
        mask = 0 if self.mask is None else self.like.size
        width = 8 * self.like.itemsize
        if self.codes is None:
            return mask + kept * width
        if self.integers:
            return mask + kept * self.bits + 2 * self.scale.size * width
        return mask + kept * self.bits + math.prod(self.blocks) * 2**self.bits * width

    def lut(self) -> np.ndarray:
        """Tables (blocks of every axis, 2**bits, 1)."""
        tables = np.zeros((*self.scale.shape, 2**self.bits, 1), np.float32)
        tables[..., : self.levels.shape[1], 0] = self.levels[self.table] * self.scale[..., None]
        return tables.astype(self.like.dtype)

    def built(self, builder: Any, types: Any, name: str, before: Any) -> Any:
        """The variable in the program that has these values, before an operation."""
        place = {"before_op": before}
        codes = self.codes
        mask = None
        if self.mask is not None:
            mask = self.mask.astype(types.nptype_from_builtin(types.uint1))
            if codes is None:
                kept = self.like[self.mask]
                return builder.constexpr_sparse_to_dense(
                    nonzero_data=kept, mask=mask, name=name, **place
                )
            codes = codes[self.mask]
        kind = types.nptype_from_builtin(types.string_to_builtin(f"uint{self.bits}"))
        assert codes is not None  # without a mask there are codes
        codes = codes.astype(kind)
        if self.integers:
            scale = (self.scale * self.step).astype(self.like.dtype)
            options = {"scale": scale, "offset": np.full_like(scale, self.zero)}
            if mask is None:
                return builder.constexpr_blockwise_shift_scale(
                    data=codes, name=name, **options, **place
                )
            mask, values = builder.constexpr_sparse_blockwise_shift_scale(
                data_mask=mask, nonzero_data=codes, name=f"{name}_kept", **options, **place
            )
        elif mask is None:
            return builder.constexpr_lut_to_dense(indices=codes, lut=self.lut(), name=name, **place)
        else:
            mask, values = builder.constexpr_lut_to_sparse(
                indices_mask=mask,
                indices_nonzero_data=codes,
                lut=self.lut(),
                name=f"{name}_kept",
                **place,
            )
        return builder.constexpr_sparse_to_dense(nonzero_data=values, mask=mask, name=name, **place)


def _blocks(axis: int, *arrays: np.ndarray) -> int:
    """Into how few equal parts an axis can be cut so that the arrays do not change within any."""
    size = arrays[0].shape[axis]
    moved = [np.moveaxis(array, axis, 0) for array in arrays]
    for count in range(1, size + 1):
        if size % count:
            continue
        parts = [array.reshape(count, size // count, *array.shape[1:]) for array in moved]
        if all((part == part[:, :1]).all() for part in parts):
            return count
    return size


class KnownWeights:
    """Weights (path -> values and what is known of them) to be found among constants."""

    def __init__(self, weights: dict[str, tuple[np.ndarray, Weight]]):
        self._weights = {path: known for path, (_, known) in weights.items()}
        self._finder = WeightFinder({path: value for path, (value, _) in weights.items()}, FLOAT16)

    def codes_of(self, constant: np.ndarray) -> CodedConstant | None:
        """The codes of the weight that a constant holds; None: it holds none."""
        if constant.dtype not in (np.float16, np.float32) or constant.size < LEAST:
            return None
        match = self._finder.find(constant, range(constant.ndim))
        if match is None:
            return None
        return CodedConstant(match, self._weights[match.path], constant)


def constants(program: Any) -> Iterator[Any]:
    """All operations of a program that hold weights: constants, and those that unpack them."""
    for function in program.functions.values():
        yield from _within(function)


def _within(block: Any) -> Iterator[Any]:
    for operation in list(block.operations):
        for inner in operation.blocks:
            yield from _within(inner)
        if operation.op_type == "const" or operation.op_type.startswith("constexpr_"):
            yield operation


def bits_of(program: Any) -> int:
    """What the numbers in a program take; equal constants count once, as in the file."""
    seen: dict[bytes, int] = {}
    for operation in constants(program):
        if operation.op_type != "const":
            continue
        variable, value = operation.outputs[0], operation.outputs[0].val
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            width = 8 if value.dtype == bool else variable.dtype.get_bitwidth()
            seen[value.tobytes() + str((value.shape, width)).encode()] = value.size * width
    return sum(seen.values())


def packed_codes(operation: Any) -> tuple[np.ndarray, np.ndarray | None] | None:
    """(codes or values, mask) that a last unpacking operation gets to see; None of constants."""

    def value(variable):
        return np.asarray(variable.val)

    kind = operation.op_type
    if kind == "constexpr_lut_to_dense":
        return value(operation.indices), None
    if kind == "constexpr_blockwise_shift_scale":
        return value(operation.data), None
    if kind != "constexpr_sparse_to_dense":
        return None
    inner = operation.nonzero_data.op
    if inner is not None and inner.op_type == "constexpr_lut_to_sparse":
        return value(inner.indices_nonzero_data), value(inner.indices_mask).astype(bool)
    if inner is not None and inner.op_type == "constexpr_sparse_blockwise_shift_scale":
        return value(inner.nonzero_data), value(inner.data_mask).astype(bool)
    return value(operation.nonzero_data), value(operation.mask).astype(bool)
