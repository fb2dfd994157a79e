"""Which weight a constant of a file holds: found by value, in whatever layout and however scaled.

Converters transpose and reshape weights under names of their own. A batch normalization that was
folded into a kernel multiplied each output channel by a number, the gain of a norm before a product
each input: a constant is a weight up to one factor for each index of one axis.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Precision:
    """How a file's numbers were rounded.

    unscaled, scaled: how far values may be from those of a weight as it is, and of one that was
    multiplied, of the largest with the same factor. evidence: how many values other than 0 there
    must be for each factor, so that rounding does not make strangers alike.
    """

    unscaled: float
    scaled: float
    evidence: int

    def alike(self, rows: np.ndarray, others: np.ndarray, tolerance: float) -> bool:
        """Whether rows of numbers are the same but for rounding."""
        largest = tolerance * np.abs(rows).max(1, keepdims=True)
        return bool((np.abs(rows - others) <= largest).all())


FLOAT32 = Precision(unscaled=0, scaled=1e-5, evidence=0)
FLOAT16 = Precision(unscaled=2e-3, scaled=2e-3, evidence=2)


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
    """A constant is factor * weight.transpose(axes).reshape(shape of the constant).

    factor: (n,) float32, one for each index of the constant's axis `axis`; 0 where all is 0.
    """

    path: str
    axes: tuple[int, ...]
    axis: int
    factor: np.ndarray

    def arrange(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """An array of the weight's shape in the constant's `shape`, not multiplied."""
        return array.transpose(self.axes).reshape(shape)


class WeightFinder:
    """Finds weights (path -> float32 array) by their values; each first where it was not yet.

    >>> kernel = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    >>> match = WeightFinder({"dense/kernel": kernel}).find(2 * kernel.T, scaled=[0])
    >>> match.path, match.axes, match.factor.tolist()
    ('dense/kernel', (1, 0), [2.0, 2.0, 2.0, 2.0])
    """

    def __init__(self, weights: Mapping[str, np.ndarray], precision: Precision = FLOAT32):
        self.weights = weights
        self.precision = precision
        self._by_size: dict[int, list[str]] = {}
        self._found: set[str] = set()
        for path, array in weights.items():
            self._by_size.setdefault(array.size, []).append(path)

    def find(self, constant: np.ndarray, scaled: Sequence[int]) -> Match | None:
        """The weight that a constant holds; None: none of them.

        scaled: axes of the constant along which factors may change, tried in this order.
        """
        paths = self._by_size.get(constant.size, [])
        if not paths or not constant.any():
            return None
        paths = sorted(paths, key=lambda path: path in self._found)  # many have one shape
        constant = constant.astype(np.float32)
        for axis in scaled:
            rows = _rows(constant, axis)
            for path in paths:
                weight = self.weights[path]
                for axes in _orders(weight.shape, constant.shape):
                    arranged = _rows(weight.transpose(axes).reshape(constant.shape), axis)
                    factor = self._factor(rows, arranged)
                    if factor is not None:
                        self._found.add(path)
                        return Match(path, axes, axis, factor)
        return None

    def _factor(self, rows: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
        """What each row of `weight` is multiplied by to give `rows`; None where no number does."""
        precision = self.precision
        if precision.alike(rows, weight, precision.unscaled):
            return np.ones(len(rows), np.float32)
        if rows.shape[1] == 1:  # any number is a multiple of any other
            return None
        if np.count_nonzero(weight) <= precision.evidence * len(rows):
            return None
        if self._ratio(rows[:2], weight[:2]) is None:  # where most fail
            return None
        return self._ratio(rows, weight)

    def _ratio(self, rows: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
        wide = weight.astype(np.float64)
        length = (wide * wide).sum(1)
        product = (wide * rows).sum(1)
        ratio = np.divide(product, length, out=np.zeros(len(rows)), where=length != 0)
        ratio = ratio.astype(np.float32)
        same = self.precision.alike(rows, ratio[:, None] * weight, self.precision.scaled)
        return ratio if same and not np.any(rows[weight == 0]) else None


def _rows(array: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def _orders(shape: tuple[int, ...], wanted: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Orders of the axes of a weight; those that give a constant's shape by themselves first.

    Orders that differ in axes of size 1 only are one.
    """
    orders = list(itertools.permutations(range(len(shape))))
    sizes = [size for size in wanted if size > 1]
    fits = [[shape[a] for a in order if shape[a] > 1] == sizes for order in orders]
    seen = set()
    for fitting in (True, False):
        for order, fit in zip(orders, fits, strict=True):
            real = tuple(axis for axis in order if shape[axis] > 1)
            if fit is fitting and real not in seen:
                seen.add(real)
                yield order
