"""How much a candidate is expected to improve a search: one number from quality and cost models.

Expected improvement of a value or reward, and expected hypervolume improvement (Emmerich et al.
2006). Costs come from a model, or, once profiled, are exact.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import ndtr

from nas.proposals.gaussian_process import Choices, GaussianProcess, Posterior

# Quantiles of the normal distribution: quality is integrated over the first, cost over the second.
QUALITY_NODES = np.linspace(-3, 3, 13)
QUALITY_WEIGHTS = np.exp(-0.5 * QUALITY_NODES**2) / np.exp(-0.5 * QUALITY_NODES**2).sum()
COST_NODES = np.linspace(-2, 2, 9)
COST_WEIGHTS = np.exp(-0.5 * COST_NODES**2) / np.exp(-0.5 * COST_NODES**2).sum()
HYPERVOLUME_NODES = 64  # places in cost space at which the front's gain is looked at, one cost
OVER_BUDGET = 1.0  # as bad as losing all quality, and more the further beyond
ROUNDING = 1e-6  # a known cost went through its log
AT_ONCE = 64  # proposals that take account of one another
# Headroom above the best seen value in the scale of quality, in units of (best - median).
HEADROOM = 0.3
# So many times (best - median) below the best, all networks are equally bad.
HOPELESS = 5.0


class Quality:
    """The quality model. Learns -log(best + headroom - quality): what is bad differs in log."""

    def __init__(self, choices: Choices, codes: np.ndarray, values: np.ndarray) -> None:
        self._best = values.max()
        self._span = max(self._best - np.median(values), 1e-9 * max(1.0, abs(self._best)))
        logs = self._log(values)
        self._mean, self._std = logs.mean(), max(logs.std(), 1e-9)
        self.process = GaussianProcess(choices, codes, (logs - self._mean) / self._std)

    def _log(self, values: np.ndarray) -> np.ndarray:
        return -np.log(np.minimum((self._best - values) / self._span, HOPELESS) + HEADROOM)

    def values(self, standardised: np.ndarray) -> np.ndarray:
        """Back to the unit of quality."""
        logs = standardised * self._std + self._mean
        return self._best - self._span * (np.exp(-logs) - HEADROOM)

    def at_nodes(self, posterior: Posterior) -> np.ndarray:
        """Possible qualities (n, nodes), to be weighted with QUALITY_WEIGHTS."""
        spread = np.sqrt(posterior.variance)
        return self.values(posterior.mean[:, None] + spread[:, None] * QUALITY_NODES)

    def smoothed(self, codes: np.ndarray) -> np.ndarray:
        """What the qualities (n,) of observed networks probably are without their noise."""
        return self.values(self.process.predict(codes)[0])


class Costs:
    """One model a cost, of its log where all costs are positive."""

    def __init__(self, choices: Choices, codes: np.ndarray, costs: np.ndarray) -> None:
        self._log = bool((costs > 0).all())
        scaled = np.log(costs) if self._log else costs
        self._mean, self._std = scaled.mean(axis=0), np.maximum(scaled.std(axis=0), 1e-9)
        standardised = (scaled - self._mean) / self._std
        self.processes = [GaussianProcess(choices, codes, column) for column in standardised.T]

    def predict(self, codes: np.ndarray) -> "Spread":
        """Costs of candidates, as the model sees them."""
        found = [process.posterior(codes) for process in self.processes]
        noise = np.array([process.noise for process in self.processes])
        mean = np.stack([posterior.mean for posterior in found], axis=1)
        variance = np.stack([posterior.variance for posterior in found], axis=1)
        # What the model calls noise is mostly what it does not know: a cost is nearly exact.
        std = np.sqrt(variance + noise**2)
        return Spread(mean * self._std + self._mean, std * self._std, self._log)

    def exact(self, costs: np.ndarray) -> "Spread":
        """Costs that are known."""
        scaled = np.log(costs) if self._log else np.asarray(costs, float)
        return Spread(scaled, np.full(scaled.shape, 1e-9), self._log)


@dataclasses.dataclass(frozen=True, eq=False)
class Spread:
    """Normal distributions of costs (n, m), in log if `log`."""

    mean: np.ndarray
    std: np.ndarray
    log: bool

    def values(self, mean: np.ndarray) -> np.ndarray:
        """In the unit of the costs."""
        return np.exp(mean) if self.log else mean

    def keep(self, indices: np.ndarray) -> "Spread":
        """Of some of the candidates only."""
        return Spread(self.mean[indices], self.std[indices], self.log)

    def join(self, other: "Spread") -> "Spread":
        """The candidates of both."""
        mean = np.concatenate([self.mean, other.mean])
        return Spread(mean, np.concatenate([self.std, other.std]), self.log)

    def below(self, limits: np.ndarray) -> np.ndarray:
        """Probability (n, u) that all costs are within each of `limits` (u, m)."""
        scaled = np.log(np.maximum(limits, 1e-300)) if self.log else limits
        return ndtr((scaled - self.mean[:, None]) / self.std[:, None]).prod(axis=2)


def within_budgets(reward: Callable) -> Callable:
    """`reward` less a penalty beyond its budgets, where it has any: only what is within is wanted.

    Where quality rises faster with cost than the reward charges for it, the best reward lies beyond
    the budget, and a search for it would look there.
    """
    budgets = getattr(reward, "budgets", None)
    if budgets is None:
        return reward

    def penalized(quality: Any, costs: Any) -> np.ndarray:
        over = np.maximum(costs / np.asarray(budgets) - 1 - ROUNDING, 0).max(axis=1)
        return reward(quality, costs) - np.where(over > 0, OVER_BUDGET + over, 0)

    return penalized


class ValueGain:
    """Expected improvement over the best smoothed value."""

    def __init__(self, quality: Quality, codes: np.ndarray) -> None:
        self._quality, self._best = quality, quality.smoothed(codes).max()

    def __call__(self, posterior: Posterior, costs: Spread | None) -> np.ndarray:
        """Gain (n,) of candidates."""
        possible = self._quality.at_nodes(posterior)
        return _expected(possible - self._best, QUALITY_WEIGHTS)


class RewardGain:
    """Expected improvement of reward(quality, costs) over the best that was evaluated."""

    def __init__(
        self, quality: Quality, reward: Callable, codes: np.ndarray, costs: np.ndarray
    ) -> None:
        self._quality, self._reward = quality, reward
        self._best = reward(quality.smoothed(codes), costs).max()

    def __call__(self, posterior: Posterior, costs: Spread) -> np.ndarray:
        """Gain (n,) of candidates."""
        gains, weights = self._by_cost(posterior, costs)
        return gains @ weights

    def scout(self, posterior: Posterior, costs: Spread, known: float) -> np.ndarray:
        """The gain (n,) of profiling a candidate: expected gain above one of a `known` cost."""
        gains, weights = self._by_cost(posterior, costs)
        return np.maximum(gains - known, 0) @ weights

    def _by_cost(self, posterior: Posterior, costs: Spread) -> tuple[np.ndarray, np.ndarray]:
        """Gain (n, nodes) of candidates at each of some costs, and the weights of these."""
        quality = self._quality.at_nodes(posterior)
        uncertain = (costs.std > 1e-8).any()
        nodes, weights = (COST_NODES, COST_WEIGHTS) if uncertain else (np.zeros(1), np.ones(1))
        # (candidates, cost nodes, quality nodes), flat for the reward
        at = costs.values(costs.mean[:, None] + nodes[:, None] * costs.std[:, None])
        every = np.repeat(at.reshape(-1, at.shape[2]), quality.shape[1], axis=0)
        reward = self._reward(np.repeat(quality, len(nodes), axis=0).ravel(), every)
        above = reward.reshape(len(quality), len(nodes), quality.shape[1]) - self._best
        return _expected(above, QUALITY_WEIGHTS), weights


class HypervolumeGain:
    """Expected hypervolume improvement of the front of (quality, *costs).

    A network of cost c and quality q adds, at every place u >= c of cost space, what q exceeds the
    front's best quality of cost <= u by; the hypervolume is the mean of that over cost space.
    """

    def __init__(
        self,
        quality: Quality,
        values: np.ndarray,
        costs: np.ndarray,
        lowest: np.ndarray,
        highest: np.ndarray,
        rng: np.random.Generator,
    ) -> None:
        self._quality = quality
        count = HYPERVOLUME_NODES * (1 if costs.shape[1] == 1 else 3)
        even = (np.arange(count) + rng.random((costs.shape[1], count))) / count
        places = np.stack([rng.permutation(row) for row in even], axis=1)  # a Latin hypercube
        self._places = lowest + (highest - lowest) * places
        known = (costs[None] <= self._places[:, None]).all(axis=2)
        self._front = np.where(known, values, values.min()).max(axis=1)

    def __call__(self, posterior: Posterior, costs: Spread) -> np.ndarray:
        """Gain (n,) of candidates."""
        possible = self._quality.at_nodes(posterior)
        gain = np.zeros((len(possible), len(self._front)))
        for column, weight in zip(possible.T, QUALITY_WEIGHTS, strict=True):
            gain += weight * np.maximum(column[:, None] - self._front, 0)
        return (gain * costs.below(self._places)).mean(axis=1) + 1e-12 * posterior.mean


class Pool:
    """Proposals, the best first, worked out on demand; each regards those before as evaluated.

    Every other one is one of the `scouts` while there are any: indices of candidates to
    profile because their cost may turn out right.
    """

    def __init__(
        self,
        codes: np.ndarray,
        posterior: Posterior,
        costs: Spread | None,
        gains: np.ndarray,
        gain: Callable,
        scouts: np.ndarray | None = None,
    ) -> None:
        order = np.argsort(-gains, kind="stable")
        top = order[: 2 * AT_ONCE]
        self._codes, self._later = codes[top], codes[order[2 * AT_ONCE :]]
        self._posterior = posterior.keep(top)
        self._costs = None if costs is None else costs.keep(top)
        self._left, self._gain = gains[top], gain
        self._chosen: list[int] = []
        self.members = {row.tobytes() for row in codes}
        self._scouts = codes[:0] if scouts is None else codes[scouts]

    def regarding(self, pending: np.ndarray) -> "Pool":
        """The same proposals, where `pending` (p, d) count as evaluated too."""
        both = np.concatenate([self._codes, pending])
        posterior = self._posterior.process.posterior(both)
        for index in range(len(self._codes), len(both)):
            posterior.believe(index)
        posterior = posterior.keep(np.arange(len(self._codes)))
        gains = self._gain(posterior, self._costs)
        pool = Pool(self._codes, posterior, self._costs, gains, self._gain)
        pool._later, pool._scouts = self._later, self._scouts
        return pool

    def __getitem__(self, place: int) -> np.ndarray:
        both = 2 * len(self._scouts)  # in turns at first
        if place < both:
            return self._scouts[place // 2] if place % 2 else self._best(place // 2)
        return self._best(place - len(self._scouts))

    def _best(self, place: int) -> np.ndarray:
        while place >= len(self._chosen) and len(self._chosen) < len(self._codes):
            self._choose()
        if place < len(self._chosen):
            return self._codes[self._chosen[place]]
        return self._later[place - len(self._chosen)]  # IndexError ends an iteration

    def _choose(self) -> None:
        if 0 < len(self._chosen) < AT_ONCE:
            self._posterior.believe(self._chosen[-1])
            self._left = self._gain(self._posterior, self._costs)
        self._left[self._chosen] = -np.inf
        self._chosen.append(int(np.argmax(self._left)))


def _expected(above: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of the positive part; where nothing is positive, still ordered by the mean."""
    return np.maximum(above, 0) @ weights + 1e-9 * (above @ weights)
