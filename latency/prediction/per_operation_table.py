"""Times of operations that were timed one by one: a table, and a forest for those not in it.

The forest learns the logarithm of what a roofline of the operation's kind leaves over. The times of
a network's operations are scaled to its own time, so that the runtime's overhead is in them.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from latency.prediction import forest
from latency.prediction.operation_features import Work

_LEAST_MS = 5e-4  # profilers resolve a microsecond
_FOLDS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class PerOperationTable:
    """Fitted times of operations; plain arrays. `table` maps a work to its milliseconds."""

    table: dict[Work, float]
    kinds: np.ndarray  # (k,)
    rooflines: (
        np.ndarray
    )  # (k + 1, 3): of each kind, and of any: a mega-MAC, a mega-element, a call
    trees: forest.Forest
    correction: np.ndarray  # (3,): log time = log sum + c0 + c1 (log sum - c2)
    asked: dict[Work, tuple[float, float]] = dataclasses.field(default_factory=dict, repr=False)

    def works(self, works: Sequence[Work]) -> tuple[np.ndarray, np.ndarray]:
        """Milliseconds of each work, and how unsure the forest is of it: a standard deviation of
        the logarithm, 0 for what is in the table."""
        new = [work for work in works if work not in self.table and work not in self.asked]
        if new:
            logs = self.trees.predict(_features(new, self.kinds))
            ms = _roofline_ms(new, self.kinds, self.rooflines) * np.exp(logs.mean(axis=1))
            pairs = zip(ms.tolist(), logs.std(axis=1).tolist(), strict=True)
            self.asked.update(zip(new, pairs, strict=True))
        found = [
            (self.table[work], 0.0) if work in self.table else self.asked[work] for work in works
        ]
        return np.array([ms for ms, _ in found]), np.array([deviation for _, deviation in found])

    def networks(self, works: Sequence[Work], counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Milliseconds (k,) of networks with `counts` (k, w), and how unsure, relative."""
        ms, unsure = self.works(works)
        sums = counts @ ms
        scale, slope, middle = self.correction
        corrected = sums * np.exp(scale + slope * (np.log(sums) - middle))
        # Works of a kind err alike, kinds do not.
        kinds = np.array([work.kind for work in works])
        by_kind = [(counts @ (ms * unsure * (kinds == kind))) / sums for kind in np.unique(kinds)]
        return corrected, np.sqrt((np.stack(by_kind) ** 2).sum(axis=0))


def fit(
    networks: Sequence[Sequence[Work]], ms: np.ndarray, per_op: Sequence[np.ndarray]
) -> tuple[PerOperationTable, np.ndarray, np.ndarray]:
    """Fits the times of `networks` (n,), and of each of their works (nan: not timed).

    Also returns what was predicted of each network by a fit without it (n,), and how unsure.
    """
    order = np.random.default_rng(0).permutation(len(ms))
    left_out, unsure = np.zeros(len(ms)), np.zeros(len(ms))
    for fold in range(min(_FOLDS, len(ms))):
        out = order[fold :: min(_FOLDS, len(ms))]
        rest = np.setdiff1d(order, out)
        model = _fit([networks[i] for i in rest], ms[rest], [per_op[i] for i in rest])
        for i in out:
            of_work, doubt = model.works(networks[i])
            left_out[i] = of_work.sum()
            unsure[i] = (of_work * doubt).sum() / of_work.sum()
    logs, errors = np.log(left_out), np.log(ms / left_out)
    middle = logs.mean()
    spread = logs - middle
    robust = np.clip(errors, *np.quantile(errors, (0.1, 0.9)))
    # Drawn to nothing as by 20 networks more: a fit with few networks errs less than its folds do.
    scale = robust.sum() / (len(ms) + 20)
    slope = (spread * (robust - scale)).sum() / ((spread**2).sum() + 5)
    correction = np.array([scale, slope, middle])
    model = dataclasses.replace(_fit(networks, ms, per_op), correction=correction)
    left_out = left_out * np.exp(scale + slope * spread)
    return model, left_out, unsure


def _fit(
    networks: Sequence[Sequence[Work]], ms: np.ndarray, per_op: Sequence[np.ndarray]
) -> PerOperationTable:
    seen: dict[Work, list[float]] = {}
    for works, total, times in zip(networks, ms, per_op, strict=True):
        timed = ~np.isnan(times)
        if not timed.any():
            continue
        # What was not timed is taken to be small: it is what the profiler could not match.
        scaled = np.maximum(times * (total / np.nansum(times)), _LEAST_MS)
        for work, time, known in zip(works, scaled, timed, strict=True):
            if known:
                seen.setdefault(work, []).append(float(time))
    if not seen:
        raise ValueError("no operation of the probes has a time")
    works = list(seen)
    times = np.array([np.exp(np.mean(np.log(seen[work]))) for work in works])
    kinds = np.unique([work.kind for work in works])
    rooflines = np.array(
        [_coefficients([w for w in works if w.kind == kind], times, works) for kind in kinds]
        + [_coefficients(works, times, works)]
    )
    rest = np.log(times / _roofline_ms(works, kinds, rooflines))
    weights = np.sqrt([len(seen[work]) for work in works])
    trees = forest.grow(_features(works, kinds), rest, weights)
    table = dict(zip(works, times.tolist(), strict=True))
    return PerOperationTable(table, kinds, rooflines, trees, np.zeros(3))


def _counts(works: Sequence[Work]) -> np.ndarray:
    return np.array([[work.macs / 1e6, work.elements / 1e6, 1e-3] for work in works])


def _coefficients(works: Sequence[Work], times: np.ndarray, every: Sequence[Work]) -> np.ndarray:
    """Positive coefficients of the counts for `works` of `every`, drawn to equal parts."""
    from scipy import optimize

    index = {work: i for i, work in enumerate(every)}
    wanted = times[[index[work] for work in works]]
    table = _counts(works) / wanted[:, None]
    scale = table.mean(axis=0) + 1e-12
    matrix = np.concatenate([table / scale, 0.3 * np.eye(3)])
    return optimize.nnls(matrix, np.append(np.ones(len(works)), np.full(3, 0.1)))[0] / scale


def _roofline_ms(works: Sequence[Work], kinds: np.ndarray, rooflines: np.ndarray) -> np.ndarray:
    index = {str(kind): i for i, kind in enumerate(kinds)}
    mine = rooflines[[index.get(work.kind, -1) for work in works]]
    return np.maximum((_counts(works) * mine).sum(axis=1), _LEAST_MS)


def _features(works: Sequence[Work], kinds: np.ndarray) -> np.ndarray:
    own = np.array([work.features for work in works])
    kind = np.array([work.kind for work in works])[:, None] == kinds[None]
    return np.concatenate([own, kind], axis=1)
