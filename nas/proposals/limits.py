"""Proposals that keep to limits: by how much finished trials exceeded them, and what mends that.

A trial says by Optuna's constraints (`Trial.set_constraint`: above 0 is too much) how far it is
from each limit, relative to it. Costs are nearly products of what each choice costs, so their
logarithms are fitted by ridge regression on the choices. A proposal that would exceed a limit is
repaired: one decision after the other, in random order, takes a cheaper choice until it fits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

BUDGET = "budget"  # how names of limits begin that a reward steers to, once there is a model of it
STARTUP = 10  # evaluated trials, until then
LAST = 200  # and that are
RECENT = 16  # where half of the last ones fit, nothing need be done
FEWEST = 3  # trials that can be learned from
RIDGE = 0.1
ORDERS = 24  # of decisions, that are tried
NEAREST = 2  # trials to the limits, of which neighbours are tried, too
LEAST, MOST = 0.02, 0.2  # of the margin, the standard error of the model
FLOOR = 1e-3  # of a cost relative to its limit


def repaired(
    codes: np.ndarray,
    trials: Sequence[FrozenTrial],
    *,
    evaluated: int,
    sizes: np.ndarray,
    encode: Callable[[dict[str, Any]], np.ndarray],
    seen: Callable[[np.ndarray], bool],
    rng: np.random.Generator,
) -> np.ndarray:
    """Codes (d,) that probably keep to the limits, as near to these as chance will have it.

    These themselves where they do, where no trial has limits, and where most fit anyway. trials:
    the last finished ones that have. evaluated: how many finished ones have values. sizes: choices
    (d,) of each decision. encode: parameters -> codes. seen: whether codes were proposed before.
    """
    if len(trials) < FEWEST:
        return codes
    limited, names = _limited(trials, evaluated)
    over = np.array(
        [max(trial.constraints[n] for n in names & set(trial.constraints)) for trial in limited]
    )
    if len(limited) < FEWEST or (over[-RECENT:] <= 0).mean() >= 0.5:
        return codes
    model = _Model(sizes, [encode(trial.params) for trial in limited], limited, names)
    if model.worst(codes[None])[0] <= 0 and not seen(codes):
        return codes
    nearest = [encode(limited[n].params) for n in np.argsort(over, kind="stable")[:NEAREST]]
    found = [model.repaired(codes, rng) for _ in range(ORDERS)]
    found += [_mutated(one, sizes, rng) for one in nearest for _ in range(ORDERS)]
    new = np.array([one for one in found if not seen(one)] or found)
    worst = model.worst(new)
    if (over <= 0).any() and (worst <= 0).any():  # what takes most of a limit is best, as a rule
        return new[int(np.argmax(np.where(worst <= 0, worst, -np.inf)))]
    return new[int(np.argmin(worst))]


def _limited(trials: Sequence[FrozenTrial], evaluated: int) -> tuple[list[FrozenTrial], set[str]]:
    """Trials that have limits, and the names of these."""
    names = {name for trial in trials for name in trial.constraints}
    if evaluated >= STARTUP:
        names = {name for name in names if not name.startswith(BUDGET)}
    return [trial for trial in trials if names & set(trial.constraints)], names


def _mutated(codes: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One or two decisions changed."""
    mutant = codes.copy()
    for column in rng.integers(len(sizes), size=rng.integers(1, 3)):
        mutant[column] = rng.integers(sizes[column])
    return mutant


def _exceeded(trials: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], np.ndarray]:
    """Trials that have limits, and by how much (n, m) of it each is exceeded, in log."""
    limited = [trial for trial in trials if trial.constraints]
    names = {name for trial in limited for name in trial.constraints}
    if sum(bool(trial.values) for trial in limited) >= STARTUP:
        names = {name for name in names if not name.startswith(BUDGET)}
    limited = [trial for trial in limited if names <= set(trial.constraints)]
    if not names or not limited:
        return [], np.zeros((0, 1))
    values = [[trial.constraints[name] for name in sorted(names)] for trial in limited]
    return limited, np.log(np.maximum(1 + np.array(values), FLOOR))


class _Model:
    """Logarithms of costs relative to their limits, linear in the choices."""

    def __init__(
        self,
        sizes: np.ndarray,
        codes: Sequence[np.ndarray],
        trials: Sequence[FrozenTrial],
        names: set[str],
    ) -> None:
        self._sizes = sizes
        features = self._features(np.array(codes))
        weights, self._beside = [], []
        for name in sorted(names):  # what exceeds one limit is not measured against the next
            rows = [n for n, trial in enumerate(trials) if name in trial.constraints]
            values = [trials[n].constraints[name] for n in rows]
            over, x = np.log(np.maximum(1 + np.array(values), FLOOR)), features[rows]
            gram = x.T @ x + RIDGE * np.eye(x.shape[1])
            weights.append(np.linalg.solve(gram, x.T @ (over - over.mean())))
            error = (x @ weights[-1] + over.mean() - over).std()
            self._beside.append(over.mean() + np.clip(error, LEAST, MOST))
        self._weights = np.stack(weights, axis=1)

    def _features(self, codes: np.ndarray) -> np.ndarray:
        columns = [codes[:, i, None] == np.arange(size) for i, size in enumerate(self._sizes)]
        return np.concatenate(columns, axis=1).astype(float)

    def worst(self, codes: np.ndarray) -> np.ndarray:
        """By how much (n,) the worst limit is exceeded, with a margin; at most 0: it fits."""
        return (self._features(codes) @ self._weights + self._beside).max(axis=1)

    def repaired(self, codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One decision after the other made cheaper, until it fits; at last as cheap as can be."""
        for last in (False, True):
            for column in rng.permutation(len(self._sizes)):
                now = self.worst(codes[None])[0]
                if now <= 0:
                    return codes
                others = np.repeat(codes[None], self._sizes[column], axis=0)
                others[:, column] = np.arange(self._sizes[column])
                worst = self.worst(others)
                cheaper = np.flatnonzero(worst < now)
                if len(cheaper):
                    codes = others[int(np.argmin(worst)) if last else int(rng.choice(cheaper))]
        return codes
