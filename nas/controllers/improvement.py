"""How much a candidate is expected to improve a search: one number from quality and cost models.

Expected improvement of a value or reward, and expected hypervolume improvement (Emmerich et al.
2006). Costs come from a model, or, once profiled, are exact.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.special import ndtr

from nas.gaussian_process import Choices, GaussianProcess, Posterior

# Quantiles of the normal distribution: quality is integrated over the first, cost over the second.
QUALITY_NODES = np.linspace(-3, 3, 13)
QUALITY_WEIGHTS = np.exp(-0.5 * QUALITY_NODES**2) / np.exp(-0.5 * QUALITY_NODES**2).sum()
COST_NODES = np.array([-1.5, -0.75, 0.0, 0.75, 1.5])
COST_WEIGHTS = np.exp(-0.5 * COST_NODES**2) / np.exp(-0.5 * COST_NODES**2).sum()
HYPERVOLUME_NODES = 64  # places in cost space at which the front's gain is looked at, one cost
# Headroom above the best seen value in the scale of quality, in units of (best - median).
HEADROOM = 0.5


class Quality:
    """The quality model. Learns -log(best + headroom - quality): what is bad differs in log."""

    def __init__(self, choices: Choices, codes: np.ndarray, values: np.ndarray):
        self._best = values.max()
        self._span = max(self._best - np.median(values), 1e-9 * max(1.0, abs(self._best)))
        logs = self._log(values)
        self._mean, self._std = logs.mean(), max(logs.std(), 1e-9)
        self.process = GaussianProcess(choices, codes, (logs - self._mean) / self._std)

    def _log(self, values: np.ndarray) -> np.ndarray:
        return -np.log((self._best - values) / self._span + HEADROOM)

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

    def __init__(self, choices: Choices, codes: np.ndarray, costs: np.ndarray):
        self._log = bool((costs > 0).all())
        scaled = np.log(costs) if self._log else costs
        self._mean, self._std = scaled.mean(axis=0), np.maximum(scaled.std(axis=0), 1e-9)
        standardised = (scaled - self._mean) / self._std
        self.processes = [GaussianProcess(choices, codes, column) for column in standardised.T]

    def predict(self, codes: np.ndarray) -> "Spread":
        """Costs of candidates, as the model sees them."""
        found = [process.predict(codes) for process in self.processes]
        mean = np.stack([mean for mean, _ in found], axis=1) * self._std + self._mean
        return Spread(mean, np.stack([s for _, s in found], axis=1) * self._std, self._log)

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

    def below(self, limits: np.ndarray) -> np.ndarray:
        """Probability (n, u) that all costs are within each of `limits` (u, m)."""
        scaled = np.log(np.maximum(limits, 1e-300)) if self.log else limits
        return ndtr((scaled - self.mean[:, None]) / self.std[:, None]).prod(axis=2)


class ValueGain:
    """Expected improvement over the best smoothed value."""

    def __init__(self, quality: Quality, codes: np.ndarray):
        self._quality, self._best = quality, quality.smoothed(codes).max()

    def __call__(self, posterior: Posterior, costs: Spread | None) -> np.ndarray:
        """Gain (n,) of candidates."""
        possible = self._quality.at_nodes(posterior)
        return _expected(possible - self._best, QUALITY_WEIGHTS)


class RewardGain:
    """Expected improvement of reward(quality, costs) over the best that was evaluated."""

    def __init__(self, quality: Quality, reward: Callable, codes: np.ndarray, costs: np.ndarray):
        self._quality, self._reward = quality, reward
        self._best = reward(quality.smoothed(codes), costs).max()

    def __call__(self, posterior: Posterior, costs: Spread) -> np.ndarray:
        """Gain (n,) of candidates."""
        quality = self._quality.at_nodes(posterior)
        uncertain = costs.std.max() > 1e-8
        nodes, weights = (COST_NODES, COST_WEIGHTS) if uncertain else (np.zeros(1), np.ones(1))
        # (candidates, quality nodes, cost nodes), flat for the reward
        at = costs.values(costs.mean[:, None] + nodes[:, None] * costs.std[:, None])
        shape = (*quality.shape, len(nodes))
        every = np.broadcast_to(at[:, None], (*shape, at.shape[2])).reshape(-1, at.shape[2])
        reward = self._reward(np.repeat(quality.ravel(), len(nodes)), every)
        return _expected(
            reward.reshape(len(quality), -1) - self._best,
            np.outer(QUALITY_WEIGHTS, weights).ravel(),
        )


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
    ):
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


def _expected(above: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of the positive part; where nothing is positive, still ordered by the mean."""
    return np.maximum(above, 0) @ weights + 1e-9 * (above @ weights)
