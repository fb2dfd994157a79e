"""Rewards: one number from quality and costs, to be maximised.

`quality` is (n,) in 0..1 and `costs`, in the unit of `budgets`, is (n, m) for m targets; the result
is (n,). With several targets the factors multiply and the penalties add up.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

# What a target without a budget weighs, "as fast as possible": MnasNet's exponent (section 3.1),
# by which half the latency is worth 5 % more quality.
AS_FAST_AS_POSSIBLE = -0.07


def soft(
    quality: Any, costs: Any, budgets: Any, alpha: float = -0.07, beta: float = -0.07
) -> np.ndarray:
    """MnasNet's quality * (cost / budget) ** (alpha if within budget else beta).

    MnasNet (arXiv 1807.11626), equation 2. With alpha == beta every budget only rescales the reward
    by a constant, so the budget has no influence on which network is best: see `steers`.
    """
    ratio = _ratio(costs, budgets)
    return np.asarray(quality) * np.prod(ratio ** np.where(ratio <= 1, alpha, beta), axis=1)


def hard(quality: Any, costs: Any, budgets: Any, beta: float = -1.0) -> np.ndarray:
    """MnasNet's hard constraint: `soft` with alpha 0 (section 3.1, figure 3)."""
    return soft(quality, costs, budgets, alpha=0.0, beta=beta)


def absolute(quality: Any, costs: Any, budgets: Any, beta: float = -0.1) -> np.ndarray:
    """TuNAS' quality + beta * |cost / budget - 1| (arXiv 2008.06120, equation 3)."""
    return np.asarray(quality) + beta * np.abs(_ratio(costs, budgets) - 1).sum(axis=1)


def relu(quality: Any, costs: Any, budgets: Any, beta: float = -0.5) -> np.ndarray:
    """Single-sided: quality + beta * max(0, cost / budget - 1), free below the budget (H2O-NAS)."""
    return np.asarray(quality) + beta * np.maximum(_ratio(costs, budgets) - 1, 0).sum(axis=1)


SCALAR: dict[str, Callable[..., np.ndarray]] = {
    "soft": soft,
    "hard": hard,
    "absolute": absolute,
    "relu": relu,
}


@dataclasses.dataclass(frozen=True)
class Reward:
    """A scalar reward with its budgets and exponent; callable on (quality, costs).

    A target whose budget is infinite is to be as fast as possible: relative to its `scales` entry,
    e.g. the base network's latency, its cost multiplies the quality (`discounted`).
    """

    name: str
    budgets: tuple[float, ...]
    beta: float | None = None  # None: the function's own default
    scales: tuple[float, ...] | None = None

    def __call__(self, quality: Any, costs: Any) -> np.ndarray:
        options = {} if self.beta is None else {"beta": self.beta}
        if self.name == "soft" and self.beta is not None:
            options["alpha"] = self.beta
        limited = np.isfinite(self.budgets)
        quality, costs = self.discounted(quality, costs), _columns(costs)[:, limited]
        if not limited.any():
            return quality
        return SCALAR[self.name](quality, costs, np.asarray(self.budgets)[limited], **options)

    def discounted(self, quality: Any, costs: Any) -> np.ndarray:
        """Quality (n,) times what the costs (n, m) of the targets without a budget make of it."""
        free = ~np.isfinite(self.budgets)
        if not free.any():
            return np.asarray(quality)
        scales = np.ones(len(free)) if self.scales is None else np.asarray(self.scales)
        ratio = _ratio(_columns(costs)[:, free], scales[free])
        return np.asarray(quality) * np.prod(ratio**AS_FAST_AS_POSSIBLE, axis=1)

    @property
    def steers(self) -> bool:
        """Whether the budget influences which network is best."""
        return self.name != "soft"


def calibrate(name: str, quality: Any, costs: Any, budgets: Any) -> float:
    """The exponent that makes the reward indifferent along the front near the budget.

    A fixed beta is right for one space and one device only (slopes from -0.035 to -0.58 on measured
    fronts). Here d(quality) / d(log cost) is fitted on the networks at hand, the non-dominated ones
    counting most, weighted towards the budget. Needs at least four measured networks of different
    cost, else ValueError.
    """
    from nas import pareto

    quality, limited = np.asarray(quality, float), np.isfinite(budgets)
    if not limited.any():
        raise ValueError("calibrating beta needs a budget")
    ratio = _ratio(_columns(costs)[:, limited], np.asarray(budgets)[limited])
    relative = np.log(ratio).mean(axis=1)
    if len(quality) < 4 or np.ptp(relative) < 1e-3:
        raise ValueError("calibrating beta needs at least four networks of different cost")
    front = pareto.front(np.column_stack([-quality, relative]))
    weight = np.exp(-0.5 * relative**2) * np.where(front, 4.0, 1.0)
    slope = float(np.polyfit(relative, quality, 1, w=np.sqrt(weight))[0])
    level = max(float(np.average(quality, weights=weight)), 1e-3)
    # Quality that falls with cost says nothing about what latency is worth: stay near MnasNet's.
    floor = 0.07 if name in ("soft", "hard") else 0.07 * level
    steepness = max(slope / level if name in ("soft", "hard") else slope, floor)
    # One-sided rewards must outweigh the gain of overshooting, not merely balance it.
    if name in ("hard", "relu"):
        steepness *= 4
    return -min(round(steepness, 4), 2.0)


def _columns(costs: Any) -> np.ndarray:
    costs = np.asarray(costs, float)
    return costs[:, None] if costs.ndim == 1 else costs


def _ratio(costs: Any, budgets: Any) -> np.ndarray:
    costs = _columns(costs)
    budgets = np.atleast_1d(np.asarray(budgets, float))
    if costs.shape[1] != budgets.size:
        raise ValueError(f"{costs.shape[1]} costs a network, but {budgets.size} budgets")
    if not (np.isfinite(costs).all() and (costs > 0).all() and (budgets > 0).all()):
        raise ValueError("costs and budgets must be positive and finite")
    return costs / budgets
