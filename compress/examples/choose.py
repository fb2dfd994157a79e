"""Which examples methods look at: balanced classes; texts that are rare, fitting or good.

Huang et al., "Sentence-Select", arXiv 2203.05008 (soft-log downsampling, rare words, contrast of
perplexities); Kong et al., "Large Language Model-guided Document Selection", arXiv 2406.04638.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

POOL = 16  # windows of a text that are looked at for each that is chosen


def soft_log(count: float, threshold: float) -> float:
    """How many of `count` copies are kept: all up to the threshold, then its logarithm.

    Continuous with slope 1 at the threshold, and rising; threshold inf keeps all.

    >>> soft_log(5, 10), round(soft_log(1000, 10), 2)
    (5, 56.05)
    """
    if not threshold > 0:
        raise ValueError(f"threshold={threshold!r}; expected a number above 0")
    return count if count <= threshold else threshold * (1 + math.log(count / threshold))


def soft_log_downsample(texts: Sequence[Hashable], threshold: float, seed: int = 0) -> list[int]:
    """Indices, in order, of texts that stay when those that are said often are said less often.

    Of n equal ones `soft_log(n, threshold)` stay, a fraction by chance: which ones, too.
    """
    generator = np.random.default_rng(seed)
    places = collections.defaultdict(list)
    for index, text in enumerate(texts):
        places[text].append(index)
    kept: list[int] = []
    for found in places.values():
        wanted = soft_log(len(found), threshold)
        number = math.floor(wanted) + int(generator.random() < wanted % 1)
        kept.extend(generator.permutation(found)[:number])
    return sorted(int(index) for index in kept)


def rare_word_filter(
    texts: Sequence[str | Sequence[Hashable]], counts: Mapping[Hashable, int], most: int
) -> list[int]:
    """Indices of texts with at least one word that `counts` has at most `most` times.

    A text is a string, of words between spaces, or a sequence of words or tokens. `counts` are
    those of what the network has learned well already, such as the transcripts of its audio.

    >>> rare_word_filter(["a cat", "a yak"], {"a": 9, "cat": 5}, most=1)
    [1]
    """
    return [
        index
        for index, text in enumerate(texts)
        if any(counts.get(word, 0) <= most for word in _words(text))
    ]


def word_counts(texts: Sequence[str | Sequence[Hashable]]) -> collections.Counter:
    """How often each word is in `texts`.

    >>> word_counts(["a cat", "a yak"])["a"]
    2
    """
    return collections.Counter(word for text in texts for word in _words(text))


def perplexity_contrast(
    texts: Sequence[Any],
    target: Callable[[Any], float],
    background: Callable[[Any], float],
    keep: float,
) -> list[int]:
    """Indices, in order, of the share `keep` whose perplexity falls most from background to target.

    `target` and `background` give the mean log-likelihood of a text's tokens, the first by a
    language model of the domain. Only differences matter: a constant in either changes nothing.
    """
    return keep_top([target(text) - background(text) for text in texts], keep)


def keep_top(scores: Sequence[float], keep: float) -> list[int]:
    """Indices, in order, of the round(keep * n) highest scores; among equals the first.

    >>> keep_top([0.1, 0.9, 0.5, 0.9], 0.5)
    [1, 3]
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep={keep!r}; expected a share from 0 to 1")
    values = np.asarray(scores, np.float64)
    if np.isnan(values).any():
        raise ValueError(f"the score of text {int(np.isnan(values).argmax())} is not a number")
    order = np.argsort(-values, kind="stable")
    return sorted(int(index) for index in order[: round(keep * len(scores))])


@dataclasses.dataclass(frozen=True, eq=False)
class QualityClassifier:
    """What `distill_quality` learned of a grader: logistic regression of hashed word n-grams."""

    vectorizer: Any
    regression: Any

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """0 to 1 for every text, as the grader would say."""
        return self.regression.predict_proba(self.vectorizer.transform(texts))[:, 1]


def distill_quality(
    grader: Callable[[str], float],
    texts: Sequence[str],
    count: int = 1000,
    *,
    ngrams: int = 2,
    features: int = 2**18,
    strength: float = 10.0,
    seed: int = 0,
) -> QualityClassifier:
    """A classifier that grades as `grader` does, which is asked about `count` of the texts only.

    The grader, such as a language model with a prompt, gives 0 (bad) to 1 (good) or anything
    between: that counts as both answers, in these shares. `ngrams`: the longest run of words that
    is a feature, hashed to one of `features`. `strength`: inverse of the regularization.
    """
    import scipy.sparse
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    order = np.random.default_rng(seed).permutation(len(texts))[:count]
    asked = [texts[index] for index in order]
    grades = np.array([grader(text) for text in asked], np.float64)
    if not np.all((grades >= 0) & (grades <= 1)):
        raise ValueError(f"the grader gave {grades.min()} to {grades.max()}; expected 0 to 1")
    if not (grades > 0).any() or not (grades < 1).any():
        raise ValueError(f"the grader gave all {len(grades)} texts {grades[:1]}: nothing to learn")
    vectorizer = HashingVectorizer(ngram_range=(1, ngrams), n_features=features)
    inputs = vectorizer.transform(asked)
    regression = LogisticRegression(C=strength, max_iter=1000)
    regression.fit(
        scipy.sparse.vstack([inputs, inputs]),
        np.repeat([1, 0], len(grades)),
        np.concatenate([grades, 1 - grades]),
    )
    return QualityClassifier(vectorizer, regression)


def choose(
    inputs: Any,
    targets: Any,
    count: int,
    seed: int = 0,
    *,
    threshold: float | None = 1.0,
    most: int | None = None,
    scores: Sequence[float] | None = None,
) -> np.ndarray:
    """Indices of up to `count` examples of a task, in an order whose beginning is a choice as well.

    Labels (n,) of classes: as many of each class as there are, by turns. Sequences of tokens
    (n, length): of equal ones as `soft_log_downsample` says with `threshold` (None: all), those
    that have a token seen at most `most` times (None: any), of `POOL` times `count` by chance.
    Everything else: by chance. `scores`: the highest come first in place of chance, such as a
    contrast of perplexities or grades of a `QualityClassifier`.

    >>> labels = np.array([0, 0, 0, 1])
    >>> sorted(labels[choose(np.zeros((4, 2)), labels, 2)].tolist())
    [0, 1]
    """
    if count < 1:
        raise ValueError(f"count={count!r}; expected at least 1")
    total = len(next(iter(inputs.values()))) if isinstance(inputs, dict) else len(inputs)
    order = np.random.default_rng(seed).permutation(total)
    if scores is not None:
        if len(scores) != total:
            raise ValueError(f"{len(scores)} scores of {total} examples; expected one each")
        order = order[np.argsort(-np.asarray(scores, np.float64)[order], kind="stable")]
    if _are_classes(targets):
        order = _by_turns(order, np.asarray(targets))
    elif _are_tokens(inputs):
        order = _filter_texts(inputs, order[: POOL * count], threshold, most, seed)
    return order[:count]


def _are_classes(targets: Any) -> bool:
    return isinstance(targets, np.ndarray) and targets.ndim == 1 and targets.dtype.kind in "iub"


def _are_tokens(inputs: Any) -> bool:
    return isinstance(inputs, np.ndarray) and inputs.ndim == 2 and inputs.dtype == np.int32


def _by_turns(order: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One of each class, then again one of each: as long as there are some."""
    turn, seen = np.empty(len(order), int), collections.Counter[Any]()
    for place, label in enumerate(labels[order].tolist()):
        turn[place] = seen[label]
        seen[label] += 1
    return order[np.argsort(turn, kind="stable")]


def _filter_texts(windows: Any, order: Any, threshold: Any, most: Any, seed: int) -> np.ndarray:
    """Those of `order` that no filter leaves out; all where that would leave none."""
    read = windows[order]
    kept = np.ones(len(order), bool)
    if threshold is not None:
        same = [np.ascontiguousarray(window).tobytes() for window in read]
        kept &= np.isin(np.arange(len(order)), soft_log_downsample(same, threshold, seed))
    if most is not None:
        tokens, numbers = np.unique(read, return_counts=True)
        kept &= np.isin(read, tokens[numbers <= most]).any(axis=1)
    return order[kept] if kept.any() else order


def _words(text: str | Sequence[Hashable]) -> Sequence[Hashable]:
    return text.split() if isinstance(text, str) else text
