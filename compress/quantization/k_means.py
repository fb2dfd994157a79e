"""Few values for many numbers: k-means in one dimension, where the best is almost in reach.

Wang and Song, "Ckmeans.1d.dp", R Journal 3(2), 2011: sorted numbers, cut into runs by dynamic
programming at up to `POINTS` places; Lloyd's steps on all numbers do the rest.
"""

from typing import Any

import numpy as np

POINTS = (150, 600)  # at least, at most
POINTS_A_VALUE = 20
LLOYD = 100  # steps at most


def tables(rows: np.ndarray, count: int, mask: np.ndarray | None = None) -> np.ndarray:
    """float32 (rows, count): ascending values that stand for the numbers of each row best.

    rows: (rows, numbers); mask: bool, of that shape, False where a number does not count. Values
    are those of float16, as files hold them, and never worse than `count` equal steps from the
    smallest to the largest number.

    >>> tables(np.array([[0.0, 0.25, 1.0, 1.5]]), 2).tolist()
    [[0.125, 1.25]]
    """
    found = np.empty((len(rows), count), np.float32)
    for number, row in enumerate(rows):
        counted = row if mask is None else row[mask[number]]
        found[number] = _table(np.sort(counted.astype(np.float64)), count)
    return found


def nearest(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """uint8 (rows, numbers): which of the row's values is nearest to each number."""
    found = np.empty(rows.shape, np.uint8)
    for number, (row, table) in enumerate(zip(rows, values, strict=True)):
        found[number] = np.searchsorted((table[1:] + table[:-1]) / 2, row)
    return found


def _table(numbers: np.ndarray, count: int) -> np.ndarray:
    if not len(numbers):
        return np.zeros(count, np.float32)
    sums = [np.concatenate([[0.0], np.cumsum(numbers**power)]) for power in (1, 2)]
    grid = np.linspace(numbers[0], numbers[-1], count)
    tried = [_lloyd(numbers, sums, start) for start in (_runs(numbers, sums, count), grid)]
    tried = [_in_float16(one) for one in [*tried, grid]]
    return min(tried, key=lambda one: _error(numbers, one)).astype(np.float32)


def _in_float16(values: np.ndarray) -> np.ndarray:
    return np.sort(values.astype(np.float16).astype(np.float64))


def _error(numbers: np.ndarray, values: np.ndarray) -> float:
    chosen = values[np.searchsorted((values[1:] + values[:-1]) / 2, numbers)]
    return float(np.square(numbers - chosen).sum())


def _lloyd(numbers: Any, sums: Any, values: Any) -> np.ndarray:
    """Each value becomes the mean of the numbers nearest to it, until nothing moves."""
    ends = None
    for _ in range(LLOYD):
        inner = np.searchsorted(numbers, (values[1:] + values[:-1]) / 2)
        now = np.concatenate([[0], inner, [len(numbers)]])
        if ends is not None and np.array_equal(now, ends):
            break
        ends = now
        counts = np.diff(ends)
        means = np.diff(sums[0][ends]) / np.maximum(counts, 1)
        values = np.sort(np.where(counts > 0, means, values))
    return values


def _runs(numbers: Any, sums: Any, count: Any) -> np.ndarray:
    """Means of the `count` runs of least squared error, cut at some places only."""
    cuts = _cuts(numbers, int(np.clip(POINTS_A_VALUE * count, *POINTS)))
    size, first, second = cuts.astype(float), sums[0][cuts], sums[1][cuts]
    n = len(cuts)
    width = np.maximum(size[None] - size[:, None], 1e-12)
    cost = second[None] - second[:, None] - (first[None] - first[:, None]) ** 2 / width
    cost = np.where(np.arange(n)[:, None] < np.arange(n), cost, np.inf)  # of the run start..end
    best, back = np.where(np.arange(n) > 0, cost[0], 0.0), []
    for _ in range(count - 1):
        # One more run at most: where numbers are few, runs stay empty.
        total = best[:, None] + np.where(np.eye(n, dtype=bool), 0.0, cost)
        back.append(total.argmin(0))
        best = total.min(0)
    ends = [n - 1]
    for starts in reversed(back):
        ends.append(int(starts[ends[-1]]))
    bounds = np.concatenate([[0], cuts[ends[::-1]]])
    counts = np.diff(bounds)
    means = np.diff(sums[0][bounds]) / np.maximum(counts, 1)
    filled = counts > 0
    # An empty run takes the value of its neighbour: the table keeps its size.
    return np.sort(np.concatenate([means[filled], np.full((~filled).sum(), means[filled][-1])]))


def _cuts(numbers: Any, points: Any) -> np.ndarray:
    """Where runs may end: as many numbers between two, or as far apart, or in between.

    The best values are as dense as the cube root of the numbers' density (Panter and Dite, 1951).
    """
    total = len(numbers)
    if total <= points:
        return np.arange(total + 1)
    histogram, edges = np.histogram(numbers, 4 * points)
    density = np.cumsum(np.cbrt(histogram))
    shares = np.linspace(0, 1, points // 3 + 1)
    dense = np.interp(shares * density[-1], np.concatenate([[0], density]), edges)
    wide = numbers[0] + shares * (numbers[-1] - numbers[0])
    inner = np.searchsorted(numbers, np.concatenate([dense, wide]))
    return np.unique(np.concatenate([[0, total], inner, (shares * total).astype(int)]))
