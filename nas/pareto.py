"""Non-dominated sets, hypervolume and the pick of a winner, for any number of objectives.

Losses: every column is minimised (negate what is maximised). Points are (quality, *costs).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike


def front(losses: ArrayLike) -> np.ndarray:
    """Boolean mask (n,) of the rows of `losses` (n, m) that no other row dominates.

    Of equal rows all are kept.

    >>> front([[1, 3], [2, 2], [3, 3]])
    array([ True,  True, False])
    """
    rows = _matrix(losses)
    mask = np.zeros(len(rows), bool)
    if not len(rows):
        return mask
    if rows.shape[1] == 2:
        order = np.lexsort((rows[:, 1], rows[:, 0]))
        first, second = rows[order].T
        best = np.minimum.accumulate(second)
        # Dominated: an earlier row is at least as good in the second and better in one of both.
        start = np.searchsorted(first, first, side="left")
        before = np.where(start > 0, best[np.maximum(start - 1, 0)], np.inf)
        mask[order] = (second < before) & (second == best)
        return mask
    distinct, inverse = np.unique(rows, axis=0, return_inverse=True)
    kept = np.zeros(len(distinct), bool)
    for i, row in enumerate(distinct):  # sorted: only an earlier row can dominate a later one
        kept[i] = not (distinct[:i][kept[:i]] <= row).all(axis=1).any()
    return kept[inverse.ravel()]


def hypervolume(losses: ArrayLike, reference: ArrayLike) -> float:
    """Volume that `losses` (n, m) dominate below `reference` (m,); rows beyond it add nothing.

    >>> hypervolume([[1, 3], [2, 2]], [4, 4])
    5.0
    """
    rows, corner = _matrix(losses), np.asarray(reference, float)
    if rows.shape[1] != len(corner):
        raise ValueError(f"{rows.shape[1]} objectives, but a reference of {len(corner)}")
    rows = rows[(rows < corner).all(axis=1)]
    if not len(rows):
        return 0.0
    rows = np.unique(rows[front(rows)], axis=0)
    if rows.shape[1] == 2:  # by falling second objective
        above = np.append(corner[1], rows[:-1, 1])
        return float(((corner[0] - rows[:, 0]) * (above - rows[:, 1])).sum())
    from optuna._hypervolume import compute_hypervolume

    return float(compute_hypervolume(rows, corner, assume_pareto=True))


def losses(points: ArrayLike) -> np.ndarray:
    """Points (n, 1 + m) of (quality, *costs) as losses."""
    return _matrix(points) * np.append(-1.0, np.ones(_matrix(points).shape[1] - 1))


def hypervolumes(points: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, float]:
    """Hypervolume of each named set of (quality, *costs), as a share of that of all together.

    The reference is the worst value of each objective among all points.
    """
    sets = {name: losses(rows) for name, rows in points.items() if len(rows)}
    if not sets:
        return {name: 0.0 for name in points}
    union = np.concatenate(list(sets.values()))
    reference = union.max(axis=0)
    whole = hypervolume(union, reference)
    if whole == 0:  # one point, or all on the reference: nothing to tell them apart by
        return {name: float(name in sets) for name in points}
    return {
        name: hypervolume(sets[name], reference) / whole if name in sets else 0.0 for name in points
    }


def winner(
    quality: ArrayLike,
    costs: ArrayLike,
    budgets: ArrayLike,
    tolerance: float = 0.03,
    slack: float = 0.003,
) -> int:
    """Index of the network that lands: every cost in ((1 - tolerance) * budget, budget].

    The best quality among those that land, if it is within `slack` (in the unit of quality; 0.003:
    proxy noise) of the best within the budgets; else that best one. If none is within the budgets,
    the one that exceeds them least. `quality` (n,), `costs` (n, m) and `budgets` (m,) in one unit,
    infinite where there is none; of equals the cheaper.

    >>> winner([0.90, 0.95, 0.97], [[1.98], [1.2], [2.5]], [2.0])
    1
    """
    score, limits = np.asarray(quality, float), np.atleast_1d(np.asarray(budgets, float))
    ratio = np.asarray(costs, float).reshape(len(score), len(limits)) / limits
    if not len(score):
        raise ValueError("no networks to choose from")
    excess = np.maximum(ratio - 1, 0).max(axis=1)
    within = excess == 0
    landed = within & ((ratio > 1 - tolerance) | np.isinf(limits)).all(axis=1)
    if within.any():
        landed &= score >= score[within].max() - slack
    first = landed if landed.any() else within
    rank = (~first, -score, ratio.sum(axis=1)) if first.any() else (excess, -score)
    return int(np.lexsort(rank[::-1])[0])


def _matrix(values: ArrayLike) -> np.ndarray:
    matrix = np.asarray(values, float)
    if matrix.ndim != 2:
        raise ValueError(f"expected one row a point, but the shape is {matrix.shape}")
    return matrix
