"""Times of operations learned from times of whole networks: a Gaussian process over sums.

A network of works u takes sum_u m(u) (1 + g(u)) + b: m is a rough guess with a few positive
coefficients (a roofline, or what is known of another device) and g its relative error, a Gaussian
process over the kind and the features of a work. A sum of Gaussian processes is one (Rasmussen and
Williams 2006, 9.4), so whole-network times alone tell of each operation, and how sure that is.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from latency.prediction.operation_features import Work

# Logarithms of the hyperparameters, and how far from here they usually lie: amplitudes of what a
# kind, similar works and a work alone have in common, length in features; of noise; of what similar
# networks have in common, length in networks.
PRIOR = np.log([0.4, 0.3, 0.15, 0.7, 0.02, 0.03, 1.0])
PRIOR_SPREAD = np.array([0.7, 0.7, 0.7, 0.7, 1.0, 1.0, 0.7])
_SCALE = 0.2  # amplitude of an error that all works share
_OTHER_KIND = 0.3  # correlation of like works of different kinds
LENGTHS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0)  # of similarity in features, tried in turn
_STEPS = 25
_OUTLIER = 3.0  # standardised leave-one-out error beyond which a time counts less


@dataclasses.dataclass(frozen=True, eq=False)
class AdditiveGaussianProcess:
    """A fitted process as plain arrays: `np.savez` of its `vars` stores it.

    U works and n networks of training, p columns of the guess.
    """

    kinds: np.ndarray  # (U,) names
    features: np.ndarray  # (U, features), standardised
    center: np.ndarray
    spread: np.ndarray
    coefficients: np.ndarray  # (p + 1,): of the columns, and the constant b
    hyperparameters: np.ndarray
    shares: np.ndarray  # (n, U): the part of each work in the guess of each network
    described: np.ndarray  # (n, d): networks as the process compares them, standardised
    described_kinds: np.ndarray
    described_center: np.ndarray
    described_spread: np.ndarray
    inverse: np.ndarray  # (n, n): of the covariance of the networks
    weights: np.ndarray  # (n,)
    errors: np.ndarray  # (n,): leave-one-out, relative
    deviations: np.ndarray  # (n,): what was expected of `errors`
    evidence: float  # mean log density of the times, each left out in turn

    def guess(self, columns: np.ndarray) -> np.ndarray:
        """The rough guess of works in milliseconds, from their columns (works, p)."""
        return columns @ self.coefficients[:-1]

    def works(self, works: Sequence[Work], columns: np.ndarray) -> np.ndarray:
        """The milliseconds of each work."""
        kinds, features = self._standardised(works)
        covariance = self._covariance(kinds, features)
        return self.guess(columns) * (1 + covariance @ self.weights)

    def networks(
        self, works: Sequence[Work], columns: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Milliseconds (k,) of networks with `counts` (k, w) of `works`, and how unsure, relative.

        The second is the standard deviation of the posterior, with the noise of a measurement.
        """
        kinds, features = self._standardised(works)
        parts = counts * self.guess(columns)
        totals = parts.sum(axis=1) + self.coefficients[-1]
        shares = parts / totals[:, None]
        described = _networks(shares, kinds, totals, self.described_kinds)
        described = (described - self.described_center) / self.described_spread
        beside = _beside(described, self.described, self.hyperparameters)
        cross = shares @ self._covariance(kinds, features) + beside
        similar = _similarity(kinds, features, kinds, features, self.hyperparameters)
        amplitudes = np.exp(2 * self.hyperparameters)
        similar[np.diag_indices(len(works))] += amplitudes[2]
        variance = ((shares @ (similar + _SCALE**2)) * shares).sum(axis=1) + amplitudes[5]
        variance -= ((cross @ self.inverse) * cross).sum(axis=1)
        deviation = np.sqrt(np.maximum(variance, 0) + amplitudes[4])
        return totals * (1 + cross @ self.weights), deviation

    def _standardised(self, works: Sequence[Work]) -> tuple[np.ndarray, np.ndarray]:
        kinds, features = _described(works)
        return kinds, (features - self.center) / self.spread

    def _covariance(self, kinds: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Of works with the networks of training (., n)."""
        similar = _similarity(kinds, features, self.kinds, self.features, self.hyperparameters)
        known = (_squares(features, self.features) < 1e-9) & (kinds[:, None] == self.kinds[None])
        alone = np.exp(2 * self.hyperparameters[2])
        return (similar + alone * known + _SCALE**2) @ self.shares.T


def fit(
    works: Sequence[Work],
    columns: np.ndarray,
    counts: np.ndarray,
    ms: np.ndarray,
    start: np.ndarray | None = None,
    steps: int = _STEPS,
) -> AdditiveGaussianProcess:
    """Fits the times `ms` (n,) of networks with `counts` (n, U) of `works`; columns (U, p).

    Hyperparameters begin at `start`; without `steps` they stay there.
    """
    from scipy import linalg, optimize

    kinds, raw = _described(works)
    center, spread = raw.mean(axis=0), np.maximum(raw.std(axis=0), 0.3)
    features = (raw - center) / spread
    coefficients = _coefficients(columns, counts, ms)
    parts = counts * (columns @ coefficients[:-1])
    totals = parts.sum(axis=1) + coefficients[-1]
    shares, errors = parts / totals[:, None], ms / totals - 1
    described_kinds = np.unique(kinds)
    described = _networks(shares, kinds, totals, described_kinds)
    described_center = described.mean(axis=0)
    described_spread = np.maximum(described.std(axis=0), 0.01)
    described = (described - described_center) / described_spread
    noise = np.ones(len(ms))
    # Between networks, what does not change with the hyperparameters, or by the length alone.
    squares = _squares(features, features)
    same = kinds[:, None] == kinds[None]
    alike = shares @ same @ shares.T
    alone = shares @ shares.T
    everything = np.outer(shares.sum(axis=1), shares.sum(axis=1))
    correlation = np.where(same, 1, _OTHER_KIND)
    near = {}
    hyperparameters = start if start is not None else PRIOR
    for length in LENGTHS if steps else [np.exp(hyperparameters[3])]:
        kernel = np.exp(squares / (-2 * length**2 * features.shape[1])) * correlation
        near[float(np.log(length))] = shares @ kernel @ shares.T

    def covariance(hyperparameters: np.ndarray) -> np.ndarray:
        kind, similar, single, _, less = np.exp(2 * hyperparameters[:5])
        between = kind * alike + similar * near[hyperparameters[3]] + single * alone
        between += _SCALE**2 * everything + _beside(described, described, hyperparameters)
        return between + np.diag(less * noise + 1e-8)

    def loss(free: np.ndarray, length: float) -> float:
        hyperparameters = np.insert(free, 3, length)
        try:
            factor = linalg.cholesky(covariance(hyperparameters), lower=True, check_finite=False)
        except linalg.LinAlgError:
            return 1e10
        white = linalg.solve_triangular(factor, errors, lower=True, check_finite=False)
        outward = (hyperparameters - PRIOR) / PRIOR_SPREAD
        return 0.5 * white @ white + np.log(np.diag(factor)).sum() + 0.5 * outward @ outward

    def optimum(begin: np.ndarray, lengths: Sequence[float]) -> np.ndarray:
        bounds = [(value - 5, value + 4) for value in np.delete(PRIOR, 3)]
        found = {}
        for length in lengths:
            options = {"method": "L-BFGS-B", "bounds": bounds, "options": {"maxiter": steps}}
            result = optimize.minimize(loss, np.delete(begin, 3), (length,), **options)
            found[float(result.fun)] = np.insert(result.x, 3, length)
        return found[min(found)]

    if steps:
        hyperparameters = optimum(hyperparameters, list(near))
    for again in range(3):
        inverse = linalg.inv(covariance(hyperparameters))
        left_out = (inverse @ errors) / np.diag(inverse)
        deviations = 1 / np.sqrt(np.diag(inverse))
        outliers = np.abs(left_out / deviations) > _OUTLIER
        if again == 2 or not outliers.any():
            break
        # As under a heavy-tailed noise: what is far off counts as if measured less well.
        far = (left_out / np.exp(hyperparameters[4])) ** 2
        noise = np.where(outliers, np.maximum(noise, far), noise)
        if steps:
            hyperparameters = optimum(hyperparameters, [hyperparameters[3]])
    density = -0.5 * (left_out / deviations) ** 2 - np.log(deviations * totals)
    return AdditiveGaussianProcess(
        kinds,
        features,
        center,
        spread,
        coefficients,
        hyperparameters,
        shares,
        described,
        described_kinds,
        described_center,
        described_spread,
        inverse,
        inverse @ errors,
        left_out * totals / ms,
        deviations * totals / ms,
        float(density.mean()),
    )


def _described(works: Sequence[Work]) -> tuple[np.ndarray, np.ndarray]:
    kinds = np.array([work.kind for work in works])
    return kinds, np.array([work.features for work in works], float)


def _coefficients(columns: np.ndarray, counts: np.ndarray, ms: np.ndarray) -> np.ndarray:
    """Positive coefficients of the columns and of a constant, drawn to equal parts of the time."""
    from scipy import optimize

    table = np.concatenate([counts @ columns, np.ones((len(ms), 1))], axis=1) / ms[:, None]
    scale = table.mean(axis=0) + 1e-30
    table, wide = table / scale, table.shape[1]
    drawn = 0.02 * np.sqrt(len(ms))
    matrix = np.concatenate([table, drawn * np.eye(wide)])
    found, _ = optimize.nnls(matrix, np.append(np.ones(len(ms)), np.full(wide, drawn / wide)))
    return found / scale


def _similarity(
    kinds: np.ndarray,
    features: np.ndarray,
    other_kinds: np.ndarray,
    other_features: np.ndarray,
    hyperparameters: np.ndarray,
) -> np.ndarray:
    """The prior covariance of two lists of works, without what a work has alone."""
    same = kinds[:, None] == other_kinds[None]
    squares = _squares(features, other_features)
    kind, similar, _, length = np.exp(2 * hyperparameters[:4])
    near = np.exp(squares / (-2 * length * features.shape[1]))
    return kind * same + similar * near * np.where(same, 1, _OTHER_KIND)


def _networks(
    shares: np.ndarray, kinds: np.ndarray, totals: np.ndarray, described_kinds: np.ndarray
) -> np.ndarray:
    """Networks as the share of each kind and the logarithm of the time."""
    parts = [shares[:, kinds == kind].sum(axis=1) for kind in described_kinds]
    return np.stack([*parts, np.log(np.maximum(totals, 1e-6))], axis=1)


def _beside(described: np.ndarray, other: np.ndarray, hyperparameters: np.ndarray) -> np.ndarray:
    """The prior covariance of what networks have beyond their works."""
    squares = _squares(described, other)
    amplitude, length = np.exp(2 * hyperparameters[5:7])
    return amplitude * np.exp(squares / (-2 * length * described.shape[1]))


def _squares(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    squares = (ours**2).sum(axis=1)[:, None] + (theirs**2).sum(axis=1)
    return np.maximum(squares - 2 * ours @ theirs.T, 0)
