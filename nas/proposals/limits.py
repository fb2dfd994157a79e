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
RECENT = 16  # where half of the last ones fit, nothing need be done
FEWEST = 4  # trials that can be learned from
RIDGE = 0.1
ORDERS = 24  # of decisions, that are tried
NEAREST = 2  # trials to the limits, of which neighbours are tried, too
LEAST, MOST = 0.02, 0.2  # of the margin, the standard error of the model
FLOOR = 1e-3  # of a cost relative to its limit


def repaired(
    codes: np.ndarray,
    trials: Sequence[FrozenTrial],
    *,
    sizes: np.ndarray,
    encode: Callable[[dict[str, Any]], np.ndarray],
    seen: Callable[[np.ndarray], bool],
    rng: np.random.Generator,
) -> np.ndarray:
    """Codes (d,) that probably keep to the limits, as near to these as chance will have it.

    These themselves where they do, where no trial has limits, and where most fit anyway. trials:
    the finished ones. sizes: choices (d,) of each decision. encode: parameters -> codes. seen:
    whether codes were proposed before.
    """
    limited, over = _exceeded(trials)
    if len(limited) < FEWEST or (over[-RECENT:].max(axis=1) <= 0).mean() >= 0.5:
        return codes
    known = np.array([encode(trial.params) for trial in limited])
    model = _Model(sizes, known, over)
    if model.worst(codes[None])[0] <= 0 and not seen(codes):
        return codes
    nearest = known[np.argsort(over.max(axis=1), kind="stable")[:NEAREST]]
    found = [model.repaired(codes, rng) for _ in range(ORDERS)]
    found += [_mutated(one, sizes, rng) for one in nearest for _ in range(ORDERS)]
    new = np.array([one for one in found if not seen(one)] or found)
    worst = model.worst(new)
    fitting = np.flatnonzero(worst <= 0)
    found_one = (over.max(axis=1) <= 0).any()
    return new[int(fitting[0]) if found_one and len(fitting) else int(np.argmin(worst))]


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

    def __init__(self, sizes: np.ndarray, codes: np.ndarray, over: np.ndarray) -> None:
        self._sizes = sizes
        features = self._features(codes)
        self._mean = over.mean(axis=0)
        gram = features.T @ features + RIDGE * np.eye(features.shape[1])
        self._weights = np.linalg.solve(gram, features.T @ (over - self._mean))
        error = (features @ self._weights + self._mean - over).std(axis=0)
        self._margin = np.clip(error, LEAST, MOST)

    def _features(self, codes: np.ndarray) -> np.ndarray:
        columns = [codes[:, i, None] == np.arange(size) for i, size in enumerate(self._sizes)]
        return np.concatenate(columns, axis=1).astype(float)

    def worst(self, codes: np.ndarray) -> np.ndarray:
        """By how much (n,) the worst limit is exceeded, with a margin; at most 0: it fits."""
        return (self._features(codes) @ self._weights + self._mean + self._margin).max(axis=1)

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
