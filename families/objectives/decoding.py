"""From outputs of networks to labels: greedy and beam search for transducers and for CTC.

Graves, arXiv 1211.3711 (transducer); Graves et al., ICML 2006, and Hannun et al., arXiv 1408.2873
(CTC, prefix beam). NumPy around functions of arrays: the networks may be Keras models, compiled
functions or LiteRT interpreters. All searches go on where they stopped, so that a stream that is
decoded piece by piece gives what it gives as a whole.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

BLANK = 0  # index of the blank in the vocabulary
SYMBOLS_PER_FRAME = 8  # no speaker says more in 40 ms; a bound for networks that do not stop


@dataclasses.dataclass(frozen=True)
class Parts:
    """The two networks of a transducer that run once per symbol, as functions of arrays.

    predict: (labels (batch,) int32, state) -> (prediction (batch, ...), state), where a state is an
        array (batch, ...), or lists, tuples or dicts of such; the first label is the blank.
    joint: (encoded (batch, dim), prediction) -> logits (batch, vocabulary).
    start: batch -> the state before the first label.
    """

    predict: Callable[[np.ndarray, Any], tuple[np.ndarray, Any]]
    joint: Callable[[np.ndarray, np.ndarray], np.ndarray]
    start: Callable[[int], Any]


@dataclasses.dataclass
class Greedy:
    """Where a greedy search stands: labels of each stream, and the frame that emitted each."""

    labels: list[list[int]]
    frames: list[list[int]]
    prediction: np.ndarray
    state: Any
    seen: np.ndarray  # (batch,) frames consumed


def greedy(
    encoded: np.ndarray,
    lengths: np.ndarray,
    parts: Parts,
    *,
    limit: int = SYMBOLS_PER_FRAME,
    memory: Greedy | None = None,
) -> Greedy:
    """The most probable symbol at every step, for streams (batch, T, dim) side by side.

    Of stream i the first lengths[i] frames count. `memory` is what the frames before returned; it
    is not changed. At most `limit` labels a frame.
    """
    batch, lengths = len(encoded), np.asarray(lengths)
    if memory is None:
        prediction, state = parts.predict(np.full(batch, BLANK, np.int32), parts.start(batch))
        nothing: list[list[int]] = [[] for _ in range(batch)]
        memory = Greedy(nothing, nothing, np.asarray(prediction), state, np.zeros(batch, int))
    labels, frames = ([list(row) for row in rows] for rows in (memory.labels, memory.frames))
    prediction, state = memory.prediction, memory.state
    time, emitted = np.zeros(batch, int), np.zeros(batch, int)
    rows = np.arange(batch)
    while np.any(live := time < lengths):
        frame = encoded[rows, np.minimum(time, encoded.shape[1] - 1)]
        best = np.argmax(np.asarray(parts.joint(frame, prediction)), axis=-1)
        emits = live & (best != BLANK) & (emitted < limit)
        if np.any(emits):
            further, new_state = parts.predict(np.where(emits, best, BLANK).astype(np.int32), state)
            prediction = _where(emits, further, prediction)
            state = _tree(lambda new, old, rows=emits: _where(rows, new, old), new_state, state)
        for row in np.flatnonzero(emits):
            labels[row].append(int(best[row]))
            frames[row].append(int(memory.seen[row] + time[row]))
        time = time + (live & ~emits)
        emitted = np.where(emits, emitted + 1, 0)
    return Greedy(labels, frames, prediction, state, memory.seen + lengths)


def greedy_lattice(
    logits_of: Callable[[np.ndarray], np.ndarray],
    lengths_of: Callable[[int], np.ndarray],
    shape: tuple[int, int],
    *,
    limit: int = SYMBOLS_PER_FRAME,
) -> list[list[int]]:
    """What `greedy` finds, with a network that knows no state: the one that is trained.

    logits_of: labels (batch, U) -> logits (batch, T, U + 1, V), whose row u depends on the first u
        labels. lengths_of: T -> the frames (batch,) that count. shape: (batch, U). It runs once for
        every label of the longest text. A text of more than U labels ends after U + 1.
    """
    labels, emitted = np.zeros(shape, np.int32), np.zeros(shape[0], int)
    time, row = np.zeros(shape[0], int), np.zeros(shape[0], int)
    found: list[list[int]] = [[] for _ in range(shape[0])]
    while True:
        best = np.argmax(np.asarray(logits_of(labels)), axis=-1)  # (batch, T, U + 1)
        lengths = lengths_of(best.shape[1])
        for i in range(shape[0]):
            while time[i] < lengths[i] and row[i] <= shape[1]:
                symbol = int(best[i, time[i], row[i]])
                if symbol != BLANK and emitted[i] < limit:
                    found[i].append(symbol)
                    emitted[i] += 1
                    row[i] += 1
                    if row[i] <= shape[1]:
                        labels[i, row[i] - 1] = symbol
                    break
                time[i], emitted[i] = time[i] + 1, 0
        if not np.any((time < lengths) & (row <= shape[1])):
            return found


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """Labels, the logarithm of their probability so far, and the prediction network after them."""

    labels: tuple[int, ...]
    score: float
    prediction: np.ndarray
    state: Any


def beam(
    encoded: np.ndarray,
    parts: Parts,
    *,
    width: int = 4,
    limit: int = SYMBOLS_PER_FRAME,
    memory: list[Hypothesis] | None = None,
) -> list[Hypothesis]:
    """The `width` most probable label sequences of one stream (T, dim), best first.

    Frame by frame; hypotheses of equal labels are one, and their probabilities add up: with a beam
    as wide as there are sequences the scores are the exact likelihoods. `memory` is what the frames
    before returned.
    """
    if width < 1:
        raise ValueError(f"beam width {width}; expected at least 1")
    beams = memory
    if beams is None:
        prediction, state = parts.predict(np.array([BLANK], np.int32), parts.start(1))
        beams = [Hypothesis((), 0.0, np.asarray(prediction), state)]
    for frame in encoded:
        waiting: dict[tuple[int, ...], Hypothesis] = {}  # those that are through with this frame
        for symbols in range(limit + 1):
            logits = parts.joint(
                np.repeat(frame[None], len(beams), 0),
                np.concatenate([hypothesis.prediction for hypothesis in beams]),
            )
            scores = _log_softmax(np.asarray(logits, np.float64))
            for hypothesis, row in zip(beams, scores, strict=True):
                _merge(waiting, hypothesis, hypothesis.score + row[BLANK])
            if symbols == limit:
                break
            totals = scores + np.array([[hypothesis.score] for hypothesis in beams])
            totals[:, BLANK] = -np.inf
            best = np.argsort(-totals, axis=None, kind="stable")[:width]
            # A sequence only loses by going on: what is already below the beam stays there.
            floor = _floor(waiting, width)
            chosen = [place for place in best if totals.flat[place] > floor]
            if not chosen:
                break
            beams = _extended(beams, totals, np.array(chosen), parts)
        beams = sorted(waiting.values(), key=lambda hypothesis: -hypothesis.score)[:width]
    return beams


def _extended(beams: Any, totals: Any, chosen: Any, parts: Any) -> list[Hypothesis]:
    """The hypotheses at the flat places `chosen` of `totals` (beams, vocabulary)."""
    parents, labels = np.unravel_index(chosen, totals.shape)
    state = _tree(lambda *leaves: np.concatenate(leaves), *(beams[p].state for p in parents))
    prediction, state = parts.predict(labels.astype(np.int32), state)
    prediction = np.asarray(prediction)
    return [
        Hypothesis(
            (*beams[parent].labels, int(label)),
            float(totals[parent, label]),
            prediction[row : row + 1],
            _tree(lambda leaf, row=row: np.asarray(leaf)[row : row + 1], state),
        )
        for row, (parent, label) in enumerate(zip(parents, labels, strict=True))
    ]


def _merge(waiting: dict, hypothesis: Hypothesis, score: float) -> None:
    known = waiting.get(hypothesis.labels)
    total = score if known is None else np.logaddexp(known.score, score)
    waiting[hypothesis.labels] = dataclasses.replace(hypothesis, score=float(total))


def _floor(waiting: dict, width: int) -> float:
    """The score that a new hypothesis must exceed to be among the best `width`."""
    if len(waiting) < width:
        return -np.inf
    return sorted((hypothesis.score for hypothesis in waiting.values()), reverse=True)[width - 1]


def ctc_greedy(logits: np.ndarray, lengths: np.ndarray, *, last: Any = None) -> list[list[int]]:
    """Labels of the best path of outputs (batch, T, vocabulary): repeats merged, blanks left out.

    last: (batch,) best symbols of the frame before, where outputs go on.
    """
    best = np.argmax(np.asarray(logits), axis=-1)
    before = np.full((len(best), 1), BLANK) if last is None else np.asarray(last)[:, None]
    before = np.concatenate([before, best[:, :-1]], axis=1)
    kept = (best != BLANK) & (best != before)
    kept &= np.arange(best.shape[1]) < np.asarray(lengths)[:, None]
    return [row[keep].tolist() for row, keep in zip(best, kept, strict=True)]


def ctc_beam(
    logits: np.ndarray, *, width: int = 8, memory: dict | None = None
) -> dict[tuple[int, ...], tuple[float, float]]:
    """The `width` most probable label sequences of outputs (T, vocabulary), best first.

    Values are the logarithms of the probability of all paths that end in a blank, and in a label;
    their `np.logaddexp` is the sequence's. `memory` is what the frames before returned.
    """
    if width < 1:
        raise ValueError(f"beam width {width}; expected at least 1")
    beams: dict = {(): (0.0, -np.inf)} if memory is None else memory
    for row in _log_softmax(np.asarray(logits, np.float64)):
        grown: dict[tuple[int, ...], tuple[float, float]] = {}

        def add(prefix, place, score, grown=grown):
            blank, label = grown.get(prefix, (-np.inf, -np.inf))
            if place == 0:
                blank = float(np.logaddexp(blank, score))
            else:
                label = float(np.logaddexp(label, score))
            grown[prefix] = blank, label

        for prefix, (in_blank, in_label) in beams.items():
            total = np.logaddexp(in_blank, in_label)
            add(prefix, 0, total + row[BLANK])
            if prefix:
                add(prefix, 1, in_label + row[prefix[-1]])
            for label in range(len(row)):
                if label == BLANK:
                    continue
                repeats = bool(prefix) and label == prefix[-1]  # only a blank tells two apart
                add((*prefix, label), 1, (in_blank if repeats else total) + row[label])
        best = sorted(grown.items(), key=lambda item: -np.logaddexp(*item[1]))[:width]
        beams = dict(best)
    return beams


def edit_distance(found: Any, expected: Any) -> int:
    """Least insertions, deletions and substitutions that turn one sequence into the other.

    >>> edit_distance("kitten", "sitting")
    3
    """
    costs = np.arange(len(expected) + 1)
    for row, symbol in enumerate(found, 1):
        before, costs = costs, np.full(len(expected) + 1, row)
        for column, other in enumerate(expected, 1):
            costs[column] = min(
                before[column] + 1, costs[column - 1] + 1, before[column - 1] + (symbol != other)
            )
    return int(costs[-1])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _where(rows: np.ndarray, new: Any, old: Any) -> np.ndarray:
    new, old = np.asarray(new), np.asarray(old)
    return np.where(rows.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _tree(function: Callable, *trees: Any) -> Any:
    """`function` of the leaves at equal places of trees of dicts, lists and tuples."""
    first = trees[0]
    if isinstance(first, dict):
        return {name: _tree(function, *(tree[name] for tree in trees)) for name in first}
    if isinstance(first, (list, tuple)):
        return type(first)(_tree(function, *leaves) for leaves in zip(*trees, strict=True))
    return function(*trees)
