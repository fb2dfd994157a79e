"""The effect of each choice: main effects over the trials, with uncertainty.

Bayesian linear regression on one-hot choices; the ridge strength maximises the marginal likelihood
(MacKay, Bayesian interpolation, 1992). Nothing is claimed that held-out trials do not bear out.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEAST_TRIALS = 20  # below this the interval of any effect spans the whole range seen in practice
MOST_CHOICES = 16  # a decision with more is a continuous one, which a bar per value cannot show
LEAST_EXPLAINED = 0.1  # leave-one-out R^2; below it the additive model is no better than the mean


@dataclasses.dataclass(frozen=True)
class Level:
    """One choice of a decision: its effect against the average trial, in the unit of the values."""

    choice: Any
    trials: int
    effect: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Decision:
    """One decision of the space; `share` of the values' variance its choices account for."""

    name: str
    share: float
    levels: tuple[Level, ...]


@dataclasses.dataclass(frozen=True)
class Effects:
    """All decisions, largest share first; `refusal` says why nothing is claimed, else it is ''."""

    decisions: tuple[Decision, ...]
    trials: int
    explained: float
    refusal: str


def effects(choices: Sequence[Mapping[str, Any]], values: Sequence[float]) -> Effects:
    """Main effect of every choice on the values, with 95 % credible intervals.

    Args:
        choices: The parameters of each trial; decisions missing in a trial are left out of the fit.
        values: One value per trial: quality, or the logarithm of a cost.
    """
    y = np.asarray(values, float)
    if len(y) < LEAST_TRIALS:
        return Effects((), len(y), 0.0, f"needs {LEAST_TRIALS} networks, there are {len(y)}")
    if np.ptp(y) <= 1e-12 * max(abs(float(y.max())), 1.0):
        return Effects((), len(y), 0.0, "every network has the same value")
    groups = _groups(choices)
    if not groups:
        return Effects((), len(y), 0.0, "no decision has been tried with more than one choice")
    hot = np.concatenate([member for _, _, member in groups], axis=1).astype(float)
    fit = _Fit(hot, y)
    decisions, start = [], 0
    for name, options, member in groups:
        columns = slice(start, start := start + len(options))
        weight = member.mean(axis=0)
        contrast = np.eye(len(options)) - weight  # each choice against the average trial
        mean = contrast @ fit.mean[columns]
        spread = np.sqrt(np.einsum("ij,jk,ik->i", contrast, fit.cov[columns, columns], contrast))
        levels = tuple(
            Level(option, int(n), float(m), float(m - 1.96 * s), float(m + 1.96 * s))
            for option, n, m, s in zip(options, member.sum(axis=0), mean, spread, strict=True)
        )
        decisions.append(Decision(name, float(weight @ mean**2 / y.var()), levels))
    decisions.sort(key=lambda decision: -decision.share)
    refusal = ""
    if fit.explained < LEAST_EXPLAINED:
        refusal = (
            f"single choices explain {max(fit.explained, 0):.0%} of the variance of held-out "
            f"networks, too little to credit any of them"
        )
    return Effects(tuple(decisions), len(y), fit.explained, refusal)


def _groups(choices: Sequence[Mapping[str, Any]]) -> list[tuple[str, list, np.ndarray]]:
    """(decision, its choices in sorted order, membership of each trial) where there is a choice."""
    groups = []
    for name in dict.fromkeys(name for row in choices for name in row):
        column = [row.get(name) for row in choices]
        options = sorted(set(column), key=_order)
        if 1 < len(options) <= MOST_CHOICES:
            index = {value: place for place, value in enumerate(options)}
            member = np.eye(len(options), dtype=bool)[[index[value] for value in column]]
            groups.append((name, options, member))
    return groups


def _order(value: Any) -> tuple:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, value, "") if number else (1, 0, str(value))


class _Fit:
    """Posterior of the coefficients (mean, cov) and leave-one-out R^2 (explained)."""

    def __init__(self, hot: np.ndarray, y: np.ndarray) -> None:
        n, width = hot.shape
        x, centered = hot - hot.mean(axis=0), y - y.mean()
        square, v = np.linalg.eigh(x.T @ x)  # a hundred columns, maybe 10,000 rows: no SVD of x
        rank = square > 1e-10 * square[-1]
        square, v = square[rank], v[:, rank]
        scores = x @ v
        z = scores.T @ centered / np.sqrt(square)
        rest = max(float(centered @ centered - z @ z), 1e-12 * float(centered @ centered))

        def evidence(ridge: float) -> float:
            scale = 1 + square / ridge
            return -n / 2 * np.log((z**2 / scale).sum() + rest) - np.log(scale).sum() / 2

        ridge = max(np.logspace(-4, 5, 91), key=evidence)
        noise = ((z**2 / (1 + square / ridge)).sum() + rest) / n
        self.mean = v @ (np.sqrt(square) / (square + ridge) * z)
        self.cov = (
            noise / ridge * np.eye(width) + (v * (noise / (square + ridge) - noise / ridge)) @ v.T
        )
        leverage = (scores**2 / (square + ridge)).sum(axis=1) + 1 / n
        residual = (centered - x @ self.mean) / np.maximum(1 - leverage, 1e-9)
        alone = centered * n / (n - 1)  # the leave-one-out error of the plain mean
        self.explained = float(1 - (residual**2).sum() / (alone**2).sum())
