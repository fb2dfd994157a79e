"""The importance of an expert: the 16 criteria of MC-Suite, REAP's, and chance.

Jaiswal et al., "Finding Fantastic Experts in MoEs", arXiv 2504.05586, section 2; REAP: Lasby et
al., arXiv 2510.13999.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from compress.experts.statistics import OUTLIER, Statistics

EXTREMES = ("min", "max")
LEAST_DEVIATION = 1e-12  # of an expert that never answered: its logarithm is finite


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A score for each expert, or, of `pairs`, for each pair (then the less used of a pair goes).

    extreme: the one to drop, as far as the paper says (tables 1 and 2, section 3.1), else the one
        of redundancy or of little use. needs: what `gather` has to look at.
    """

    needs: str
    extreme: str
    score: Callable[[Statistics], np.ndarray]
    pairs: bool = False


def _similarity(matrices: np.ndarray) -> np.ndarray:
    """Sum of the cosines of each with the others, all flattened."""
    flat = matrices.reshape(len(matrices), -1).astype(np.float64)
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-30)
    return flat @ flat.sum(0) - (flat * flat).sum(1)


def _norm(matrices: np.ndarray) -> np.ndarray:
    return np.linalg.norm(matrices.reshape(len(matrices), -1).astype(np.float64), axis=1)


def _stable_rank(matrices: np.ndarray) -> np.ndarray:
    largest = np.array([np.linalg.norm(matrix, 2) for matrix in matrices.astype(np.float64)])
    return _norm(matrices) ** 2 / np.maximum(largest, 1e-30) ** 2


def _activation_similarity(found: Statistics) -> np.ndarray:
    """Mean cosine of an output of one and one of another, summed over the others."""
    mean = found.directions / np.maximum(found.rows, 1)[:, None]
    return mean @ mean.sum(0) - (mean * mean).sum(1)


def _entropy(deviations: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(deviations, LEAST_DEVIATION)).sum(-1)


def _outside(matrices: np.ndarray) -> np.ndarray:
    flat = matrices.reshape(len(matrices), -1).astype(np.float64)
    distance = np.abs(flat - flat.mean(1, keepdims=True))
    return (distance > OUTLIER * flat.std(1, keepdims=True)).sum(1)


CRITERIA: dict[str, Criterion] = {
    "EWS": Criterion("weights", "max", lambda found: _similarity(found.weights)),
    "RWN": Criterion("router", "max", lambda found: _norm(found.router)),
    "WSR": Criterion("weights", "max", lambda found: _stable_rank(found.weights)),
    "EWN": Criterion("weights", "min", lambda found: _norm(found.weights)),
    "EUF": Criterion("routes", "min", lambda found: found.used),
    "ECC": Criterion("routes", "max", lambda found: found.together, pairs=True),
    "EVTC": Criterion("words", "min", lambda found: found.words.mean(1)),
    "ETS": Criterion(
        "words",
        "max",
        lambda found: found.words.astype(np.int64) @ found.words.T.astype(np.int64),
        pairs=True,
    ),
    "EAS": Criterion("outputs", "max", _activation_similarity),
    "EAE": Criterion("outputs", "min", lambda found: _entropy(np.sqrt(found.variance()))),
    "EAO": Criterion("outliers", "min", lambda found: found.outliers),
    "EAN": Criterion("outputs", "min", lambda found: np.sqrt(found.squares).sum(1)),
    "EGS": Criterion("gradients", "max", lambda found: _similarity(found.gradients)),
    "EGE": Criterion(
        "gradients", "min", lambda found: _entropy(found.gradients.astype(np.float64).std(1))
    ),
    "EGO": Criterion("gradients", "min", lambda found: _outside(found.gradients)),
    "EGN": Criterion("gradients", "min", lambda found: _norm(found.gradients)),
    "REAP": Criterion("outputs", "min", lambda found: found.saliency / np.maximum(found.rows, 1)),
    "random": Criterion("nothing", "min", lambda found: np.zeros(len(found.experts))),
}


def weakest(
    found: Sequence[Statistics],
    criterion: str,
    extreme: str,
    number: int,
    generator: np.random.Generator,
) -> list[tuple[int, float]]:
    """The `number` experts to drop, the first first, with their scores.

    `found` are the layers that share one router, mostly one; of several the score is the mean of
    standard scores. Of equal ones the first goes; of a pair the less used, else the latter.
    """
    what, experts = CRITERIA[criterion], found[0].experts
    if number >= len(experts):
        raise ValueError(f"{number} of {len(experts)} experts to drop; expected fewer")
    parts = [np.asarray(what.score(one), np.float64) for one in found]
    if what.pairs:
        outside = ~np.eye(len(experts), dtype=bool)
        scores = _combined(parts, outside)
        used = sum(one.used for one in found)
        return [(int(experts[i]), s) for i, s in _of_pairs(scores, used, extreme, number)]
    scores = _combined(parts, np.ones(len(experts), bool))
    if criterion == "random":
        scores = generator.random(len(experts))
    order = np.argsort(scores if extreme == "min" else -scores, kind="stable")[:number]
    return [(int(experts[place]), float(scores[place])) for place in order]


def _combined(scores: list[np.ndarray], counted: np.ndarray) -> np.ndarray:
    if len(scores) == 1:
        return scores[0]
    parts = []
    for one in scores:
        deviation = one[counted].std()
        parts.append((one - one[counted].mean()) / (deviation if deviation > 0 else 1.0))
    return np.mean(parts, axis=0)


def _of_pairs(scores: Any, used: Any, extreme: str, number: int) -> Iterator[tuple[int, float]]:
    """The extreme pair of those left, again and again: (place of the one to drop, its score)."""
    left = list(range(len(scores)))
    for _ in range(number):
        pairs = [(p, q) for p in left for q in left if p < q]
        pick = min if extreme == "min" else max
        p, q = pick(pairs, key=lambda pair: scores[pair])
        dropped = p if used[p] < used[q] else q
        left.remove(dropped)
        yield dropped, float(scores[p, q])
