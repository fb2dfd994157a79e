"""What compression knows of a network's weights, for the files that are written of it.

A file format takes from it what it can store; the network itself holds the same values in float32.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Weight:
    """One weight in few values: scale * levels[group][codes], and 0 where `mask` is False.

    codes: uint8, of the weight's shape, below 2**bits; None of a weight that is only sparse.
    levels: float32 (groups, up to 2**bits), ascending; the weight's `axis` is cut into `groups`
        equal parts with a table each.
    scale: float32, of the weight's rank, to be broadcast: all axes but those with a scale are 1.
    mask: bool, of the weight's shape, False where a value was pruned; None: nothing was.
    """

    bits: int = 32
    codes: np.ndarray | None = None
    levels: np.ndarray | None = None
    scale: np.ndarray | None = None
    mask: np.ndarray | None = None
    axis: int = -1

    def dense(self) -> np.ndarray:
        """The float32 values that this stands for; `ValueError` where there are no codes.

        >>> codes, levels = np.array([0, 1], np.uint8), np.array([[-1.0, 1.0]], np.float32)
        >>> Weight(1, codes, levels, np.float32([0.5])).dense().tolist()
        [-0.5, 0.5]
        """
        if self.codes is None or self.levels is None or self.scale is None:
            raise ValueError("a weight that is only sparse has no codes to take values from")
        groups = len(self.levels)
        codes = np.moveaxis(self.codes, self.axis, 0)
        size = len(codes) // groups
        parts = [self.levels[g][codes[g * size : (g + 1) * size]] for g in range(groups)]
        values = np.moveaxis(np.concatenate(parts), 0, self.axis) * self.scale
        return values if self.mask is None else np.where(self.mask, values, np.float32(0))

    def on_groups(self, axis: int) -> bool:
        """Whether this is the axis that is cut into groups, each with a table of its own."""
        return self.codes is not None and (axis - self.axis) % self.codes.ndim == 0

    def take(self, indices: np.ndarray, axis: int) -> "Weight":
        """What is left of it when only these `indices` of an axis stay; for one group only."""
        if self.levels is not None and len(self.levels) > 1 and self.on_groups(axis):
            raise ValueError(f"cannot cut an axis with {len(self.levels)} tables of levels")
        parts = {name: getattr(self, name) for name in ("codes", "scale", "mask")}
        cut = {
            name: array if array is None or array.shape[axis] == 1 else array.take(indices, axis)
            for name, array in parts.items()
        }
        return dataclasses.replace(self, **cut)


@dataclasses.dataclass
class Record:
    """What was done to a network.

    original: the `keras.Model` before any method, for those that compare with it.
    weights: by path of the weight in the finished network.
    untouched: name of a layer that holds weights -> why no method changed it.
    details: what a method did, by its repr: JSON values, for the report.
    activations: bits of the activations when they run as integers, None: float (files may still
        quantize them on the fly, as LiteRT's hybrid kernels do). io: "int8", "uint8" or "int16"
        where inputs and outputs are integers, too; None: as they were.
    floats: bits in which files keep weights that are no codes.
    variants: name -> `keras.Model` of other forms of the network that share its weights and go
        into the same file, such as its levels of sparsity; the network itself comes first.
    """

    original: Any = None
    weights: dict[str, Weight] = dataclasses.field(default_factory=dict)
    untouched: dict[str, str] = dataclasses.field(default_factory=dict)
    details: dict[str, dict] = dataclasses.field(default_factory=dict)
    activations: int | None = None
    io: str | None = None
    floats: int = 32
    variants: dict = dataclasses.field(default_factory=dict)

    def check(self, model: Any) -> Iterator[str]:
        """What in `model`, a `keras.Model`, is not what this says, in words."""
        found = {weight.path: np.asarray(weight.value) for weight in model.weights}
        for path, weight in self.weights.items():
            if path not in found:
                yield f"{path}: no such weight"
                continue
            value = found[path]
            if weight.codes is not None and not np.allclose(value, weight.dense(), atol=1e-6):
                yield f"{path}: differs from its codes by {np.abs(value - weight.dense()).max():g}"
            if weight.mask is not None and np.any(value[~weight.mask]):
                yield f"{path}: {np.count_nonzero(value[~weight.mask])} pruned values are not 0"
