"""A Gaussian process over choices: what a few hundred networks say about all the others.

Every choice of a decision is a learned vector, shared by decisions with the same choices (the
kernel sizes of all blocks). A network is their concatenation, with how often each choice occurs.
The kernel is linear plus squared exponential in these features: an additive model, and smooth
interactions of every order. All is fitted by maximum a posteriori (Rasmussen and Williams 2006,
chapter 5; lengths start with the root of the dimension: Hvarfner et al. 2024, arXiv 2402.02229).
"""

import dataclasses

import numpy as np
from scipy import linalg, optimize

JITTER = 1e-6
# Means of the normal priors on the logs of amplitudes, for standardised targets, and their spreads.
# The noise allows for what training adds: a few hundredths to a third of the spread of a space.
LINEAR, SMOOTH, NOISE = np.log(0.5), np.log(0.8), 0.5 * np.log(0.05)
AMPLITUDE_SPREADS = (1.0, 0.7, 0.5)
WEIGHT_SPREAD = 0.75
EMBEDDING_SPREAD = 0.35
# Share of the position of an ordered choice (3 < 5 < 7) in how far two choices are apart at first.
ORDER = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Choices:
    """What codes (n, d) mean: decision i takes one of `sizes[i]` choices.

    Decisions of equal `groups[i]` have the same choices and share what is learned of them.
    `positions[i]` holds a number for each choice where they are ordered, else None.
    """

    sizes: tuple[int, ...]
    groups: tuple[int, ...]
    positions: tuple[tuple[float, ...] | None, ...]

    def embeddings(self) -> list[np.ndarray]:
        """For each group (choices, choices + 1): where its choices lie before any data."""
        found = {}
        for size, group, positions in zip(self.sizes, self.groups, self.positions, strict=True):
            order = ORDER if positions is not None and size > 2 else 0.0
            embedding = np.zeros((size, size + 1))
            embedding[:, :size] = np.eye(size) * np.sqrt((1 - order) / 2)
            if order:
                line = np.asarray(positions, float)
                embedding[:, size] = np.sqrt(order) * (line - line.mean()) / np.ptp(line)
            found[group] = embedding
        return [found[group] for group in sorted(found)]

    def counts(self, codes: np.ndarray) -> np.ndarray:
        """How often each choice occurs among the decisions that share it (n, p)."""
        columns = [np.zeros((len(codes), 0))]
        for group in sorted(set(self.groups)):
            members = [i for i, other in enumerate(self.groups) if other == group]
            if len(members) > 1:
                same = codes[:, members, None] == np.arange(self.sizes[members[0]])
                columns.append(same.mean(axis=1) * np.sqrt(len(members)))
        return np.concatenate(columns, axis=1)


class GaussianProcess:
    """Posterior of one standardised target (n,) given codes (n, d); `fit`, `condition`, `predict`.

    The hyperparameters are one vector: logs of a weight a decision and a count, logs of the three
    amplitudes (linear, smooth, noise), embeddings.
    """

    def __init__(self, choices: Choices, codes: np.ndarray, targets: np.ndarray) -> None:
        self.choices, self.codes, self.targets = choices, codes, np.asarray(targets, float)
        counts = choices.counts(codes)
        self._center = counts.mean(axis=0)
        self._scale = np.where(counts.std(axis=0) > 1e-9, counts.std(axis=0), np.inf)
        self._counts = (counts - self._center) / self._scale
        self._starts = choices.embeddings()
        self._weights = codes.shape[1] + counts.shape[1]
        amplitudes = [LINEAR, SMOOTH, NOISE]
        log_weight = 0.5 * np.log(1.5 / max(self._weights, 1))
        flat = [start.ravel() for start in self._starts]
        self.prior = np.concatenate([np.full(self._weights, log_weight), amplitudes, *flat])
        self._spread = np.concatenate(
            [
                np.full(self._weights, WEIGHT_SPREAD),
                AMPLITUDE_SPREADS,
                np.full(sum(len(f) for f in flat), EMBEDDING_SPREAD),
            ]
        )

    def fit(self, steps: int = 40) -> np.ndarray:
        """Hyperparameters of (locally) highest posterior probability."""
        found = optimize.minimize(
            self._loss,
            self.prior,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": steps, "maxfun": 3 * steps // 2},
        )
        return found.x

    def condition(self, hyperparameters: np.ndarray) -> "GaussianProcess":
        """Make ready to predict with these hyperparameters; returns itself."""
        self._set(hyperparameters)
        self._features = self._map(self.codes, self._counts)
        self._mean = self._features.mean(axis=0)
        kernel = self.covariance(self._features, self._features)
        kernel[np.diag_indices(len(kernel))] += self.noise**2 + JITTER
        self._factor = linalg.cholesky(kernel, lower=True, check_finite=False)
        self._weighted = linalg.cho_solve((self._factor, True), self.targets, check_finite=False)
        return self

    def predict(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (n,), without the noise of a new observation."""
        posterior = self.posterior(codes)
        return posterior.mean, np.sqrt(posterior.variance)

    def posterior(self, codes: np.ndarray) -> "Posterior":
        """The joint posterior at `codes`."""
        counts = (self.choices.counts(codes) - self._center) / self._scale
        features = self._map(codes, counts)
        cross = self.covariance(self._features, features)
        solved = linalg.solve_triangular(self._factor, cross, lower=True, check_finite=False)
        linear = self._linear**2 * ((features - self._mean) ** 2).sum(axis=1)
        variance = self._smooth**2 + linear - (solved**2).sum(axis=0)
        return Posterior(
            self, features, solved, cross.T @ self._weighted, np.maximum(variance, 1e-10)
        )

    def covariance(self, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        """The prior covariance of mapped features."""
        linear = self._linear**2 * ((ours - self._mean) @ (theirs - self._mean).T)
        return linear + self._smooth**2 * np.exp(-_distances(ours, theirs))

    def _set(self, hyperparameters: np.ndarray) -> None:
        self._weight = np.exp(hyperparameters[: self._weights])
        amplitudes = np.exp(hyperparameters[self._weights : self._weights + 3])
        self._linear, self._smooth, self.noise = (float(a) for a in amplitudes)
        self._embeddings, at = [], self._weights + 3
        for start in self._starts:
            self._embeddings.append(hyperparameters[at : at + start.size].reshape(start.shape))
            at += start.size

    def _map(self, codes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        decisions = codes.shape[1]
        parts = [
            self._weight[i] * self._embeddings[group][codes[:, i]]
            for i, group in enumerate(self.choices.groups)
        ]
        return np.concatenate([*parts, counts * self._weight[decisions:]], axis=1)

    def _loss(self, hyperparameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log posterior of the hyperparameters and its gradient."""
        self._set(hyperparameters)
        features = self._map(self.codes, self._counts)
        self._mean = features.mean(axis=0)
        centered = features - self._mean
        linear = self._linear**2 * (centered @ centered.T)
        smooth = self._smooth**2 * np.exp(-_distances(features, features))
        kernel = linear + smooth
        kernel[np.diag_indices(len(kernel))] += self.noise**2 + JITTER
        try:
            factor = linalg.cholesky(kernel, lower=True, check_finite=False)
        except linalg.LinAlgError:
            return 1e10, np.zeros_like(hyperparameters)
        inverse = linalg.cho_solve((factor, True), np.eye(len(kernel)), check_finite=False)
        weighted = inverse @ self.targets
        outward = (hyperparameters - self.prior) / self._spread
        loss = 0.5 * self.targets @ weighted + np.log(np.diag(factor)).sum()
        by_kernel = 0.5 * (inverse - np.outer(weighted, weighted))
        by_distance = -by_kernel * smooth
        by_features = 4 * (by_distance.sum(axis=1)[:, None] * features - by_distance @ features)
        by_centered = 2 * self._linear**2 * (by_kernel @ centered)
        by_features += by_centered - by_centered.mean(axis=0)
        gradient = self._backward(by_features)
        gradient[self._weights] = 2 * (by_kernel * linear).sum()
        gradient[self._weights + 1] = 2 * (by_kernel * smooth).sum()
        gradient[self._weights + 2] = 2 * self.noise**2 * np.trace(by_kernel)
        return float(loss + 0.5 * outward @ outward), gradient + outward / self._spread

    def _backward(self, by_features: np.ndarray) -> np.ndarray:
        by_weight = np.zeros(self._weights)
        by_embedding = [np.zeros_like(start) for start in self._starts]
        at = 0
        for i, group in enumerate(self.choices.groups):
            width = self._starts[group].shape[1]
            part, codes = by_features[:, at : at + width], self.codes[:, i]
            by_weight[i] = self._weight[i] * (part * self._embeddings[group][codes]).sum()
            chosen = (codes[:, None] == np.arange(self.choices.sizes[i])).astype(float)
            by_embedding[group] += self._weight[i] * (chosen.T @ part)
            at += width
        rest = (by_features[:, at:] * self._counts).sum(axis=0)
        decisions = len(self.choices.groups)
        by_weight[decisions:] = self._weight[decisions:] * rest
        return np.concatenate([by_weight, np.zeros(3), *(e.ravel() for e in by_embedding)])


@dataclasses.dataclass(eq=False)
class Posterior:
    """Mean and variance (n,) at some candidates; shrinks as candidates are pretended observed."""

    process: GaussianProcess
    features: np.ndarray
    solved: np.ndarray
    mean: np.ndarray
    variance: np.ndarray

    def keep(self, indices: np.ndarray) -> "Posterior":
        """Of some of the candidates only."""
        return Posterior(
            self.process,
            self.features[indices],
            self.solved[:, indices],
            self.mean[indices],
            self.variance[indices],
        )

    def believe(self, index: int) -> None:
        """Pretend that candidate `index` was observed at its mean: less is left to learn near it.

        The kriging believer of Ginsbourger et al. 2010: spreads proposals that are made at once.
        """
        prior = self.process.covariance(self.features, self.features[index : index + 1])[:, 0]
        shared = prior - self.solved.T @ self.solved[:, index]
        noise = self.process.noise**2 + JITTER
        row = shared / np.sqrt(self.variance[index] + noise)
        self.variance = np.maximum(self.variance - row**2, 1e-10)
        self.solved = np.vstack([self.solved, row])


def _distances(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    squares = (ours**2).sum(axis=1)[:, None] + (theirs**2).sum(axis=1)
    return np.maximum(squares - 2 * ours @ theirs.T, 0)
