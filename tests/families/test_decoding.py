"""Searches against the enumeration of everything that could be said."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from families.objectives import decoding
from families.objectives.transducer import transducer_loss

VOCABULARY, DIM = 4, 3


class Machine:
    """A small transducer with random weights: its prediction sees all labels so far, in order."""

    def __init__(self, seed: int, bias: float = 0.0):
        generator = np.random.default_rng(seed)
        self.embedding = generator.normal(size=(VOCABULARY, DIM))
        self.recurrent = generator.normal(size=(DIM, DIM))
        self.out = generator.normal(size=(DIM, VOCABULARY)) * 2
        self.bias = np.array([bias, 0, 0, 0])
        self.calls = 0

    def predict(self, labels, state):
        self.calls += 1
        hidden = np.tanh(self.embedding[labels] + state["hidden"] @ self.recurrent)
        return hidden, {"hidden": hidden}

    def joint(self, encoded, prediction):
        return np.tanh(encoded + prediction) @ self.out + self.bias

    def start(self, batch):
        return {"hidden": np.zeros((batch, DIM))}

    @property
    def parts(self):
        return decoding.Parts(self.predict, self.joint, self.start)

    def logits(self, encoded, labels):
        """(T, U + 1, V), as a training network gives them."""
        state, rows = self.start(1), []
        for label in (0, *labels):
            prediction, state = self.predict(np.array([label]), state)
            rows.append(self.joint(encoded, prediction))
        return np.stack(rows, axis=1)

    def scores(self, encoded, texts):
        """Exact log-likelihoods of texts, in one batch."""
        longest = max(map(len, texts))
        labels = np.array([[*text, *[0] * (longest - len(text))] for text in texts], int)
        logits = np.stack([self.logits(encoded, row) for row in labels])
        lengths = np.full(len(texts), len(encoded)), np.array([len(text) for text in texts])
        return -np.asarray(transducer_loss(logits, labels, *lengths))


def frames(seed: int, count: int):
    return np.random.default_rng((seed, 1)).normal(size=(count, DIM)) * 1.5


def plain_greedy(machine, encoded, limit):
    """One stream, as the paper tells it."""
    prediction, state = machine.predict(np.array([0]), machine.start(1))
    labels, times = [], []
    for time, frame in enumerate(encoded):
        for _ in range(limit):
            best = int(np.argmax(machine.joint(frame[None], prediction)))
            if best == 0:
                break
            labels.append(best)
            times.append(time)
            prediction, state = machine.predict(np.array([best]), state)
    return labels, times


@pytest.mark.parametrize("limit", [1, 3])
def test_greedy_side_by_side_is_greedy_one_by_one(limit):
    machine = Machine(0, bias=1.0)
    lengths = np.array([9, 0, 4, 7, 1])
    encoded = np.stack([frames(seed, 9) for seed in range(5)])
    found = decoding.greedy(encoded, lengths, machine.parts, limit=limit)
    for row, length in enumerate(lengths):
        labels, times = plain_greedy(machine, encoded[row, :length], limit)
        assert found.labels[row] == labels and found.frames[row] == times
    assert sum(map(len, found.labels)) > 5
    assert len({len(row) for row in found.labels}) > 2


def test_greedy_stops_at_the_limit_of_a_frame():
    machine = Machine(0, bias=-100.0)  # never a blank
    found = decoding.greedy(frames(0, 5)[None], np.array([5]), machine.parts, limit=3)
    assert found.frames[0] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3


@pytest.mark.parametrize("cuts", [(3,), (1, 2, 3, 4, 5, 6, 7, 8), (4, 4)])
def test_searches_go_on_where_they_stopped(cuts):
    machine = Machine(1, bias=1.0)
    encoded = np.stack([frames(seed, 9) for seed in range(3)])
    whole = decoding.greedy(encoded, np.array([9, 9, 9]), machine.parts)
    whole_beam = decoding.beam(encoded[0], machine.parts, width=5)
    outputs = encoded[0] @ machine.out
    whole_ctc = decoding.ctc_beam(outputs, width=5)
    memory = beams = sums = None
    for piece, scores in zip(np.split(encoded, cuts, 1), np.split(outputs, cuts), strict=True):
        count = np.full(3, piece.shape[1])
        memory = decoding.greedy(piece, count, machine.parts, memory=memory)
        beams = decoding.beam(piece[0], machine.parts, width=5, memory=beams)
        sums = decoding.ctc_beam(scores, width=5, memory=sums)
    assert memory.labels == whole.labels and memory.frames == whole.frames
    assert [b.labels for b in beams] == [b.labels for b in whole_beam]
    assert [b.score for b in beams] == [b.score for b in whole_beam]
    assert sums == whole_ctc
    assert len(whole.labels[0]) > 0 and len(whole_beam[0].labels) > 0


def test_memory_may_be_used_twice():
    machine = Machine(1, bias=1.0)
    first, second = frames(0, 4)[None], frames(1, 4)[None]
    memory = decoding.greedy(first, np.array([4]), machine.parts)
    kept = [list(row) for row in memory.labels]
    once = decoding.greedy(second, np.array([4]), machine.parts, memory=memory)
    again = decoding.greedy(second, np.array([4]), machine.parts, memory=memory)
    assert memory.labels == kept and once.labels == again.labels != kept


def sequences(longest: int):
    for length in range(longest + 1):
        yield from itertools.product(range(1, VOCABULARY), repeat=length)


@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_exact_likelihoods(seed):
    """All sequences of up to 3 labels in 2 frames: 40, each by its sum over alignments."""
    machine, encoded = Machine(seed, bias=2.0), frames(seed, 2)
    found = decoding.beam(encoded, machine.parts, width=10_000, limit=4)
    scores = {hypothesis.labels: hypothesis.score for hypothesis in found}
    texts = list(sequences(3))
    exact = dict(zip(texts, machine.scores(encoded, texts), strict=True))
    for labels, score in exact.items():
        assert scores[labels] == pytest.approx(score, abs=1e-5), labels
    assert found[0].labels == max(exact, key=exact.get)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


def test_the_beam_beats_greedy_where_alignments_add_up():
    better = 0
    for seed in range(20):
        machine, encoded = Machine(seed, bias=1.0), frames(seed, 5)
        first = decoding.greedy(encoded[None], np.array([5]), machine.parts)
        best = decoding.beam(encoded, machine.parts, width=8)[0]
        scores = machine.scores(encoded, [first.labels[0], best.labels])
        assert scores[1] >= scores[0] - 1e-6
        assert best.score <= scores[1] + 1e-6  # of some alignments, where the limit is no bound
        better += scores[1] > scores[0] + 1e-3
    assert better >= 3


def test_no_labels_twice_in_a_beam():
    machine, encoded = Machine(2), frames(2, 6)
    found = decoding.beam(encoded, machine.parts, width=6, limit=2)
    assert len(found) == 6 and len({hypothesis.labels for hypothesis in found}) == 6


def collapse(path):
    return tuple(label for label, _ in itertools.groupby(path) if label != 0)


@pytest.mark.parametrize("seed", range(3))
def test_ctc_beam_and_loss_are_the_sum_over_all_paths(seed):
    """256 paths of 4 frames; `keras.ops.ctc_loss` is what the task trains with."""
    logits = np.random.default_rng(seed).normal(size=(4, VOCABULARY)) * 2
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    exact: dict[tuple, float] = {}
    for path in itertools.product(range(VOCABULARY), repeat=4):
        total = sum(scores[time, label] for time, label in enumerate(path))
        exact[collapse(path)] = np.logaddexp(exact.get(collapse(path), -np.inf), total)
    found = decoding.ctc_beam(logits, width=10_000)
    assert {labels for labels in found if np.logaddexp(*found[labels]) > -np.inf} == set(exact)
    for labels, score in exact.items():
        assert np.logaddexp(*found[labels]) == pytest.approx(score, abs=1e-9)
    assert next(iter(found)) == max(exact, key=exact.get)
    padded = np.concatenate([logits, np.random.default_rng(9).normal(size=(2, VOCABULARY))])
    spoken = [labels for labels in exact if labels]
    targets = np.array([labels + (0,) * (4 - len(labels)) for labels in spoken])
    lengths = np.array([len(labels) for labels in spoken]), np.full(len(spoken), 4)
    outputs = np.repeat(padded[None].astype("float32"), len(spoken), 0)
    losses = keras.ops.ctc_loss(targets, outputs, *lengths, mask_index=0)
    np.testing.assert_allclose(losses, [-exact[labels] for labels in spoken], rtol=0, atol=1e-5)


def ctc_under_jax(logits, labels, lengths, frames):
    import jax

    def total(x):
        losses = keras.ops.ctc_loss(labels, x, lengths, frames, mask_index=0)
        return losses.sum(), losses

    gradient, losses = jax.grad(total, has_aux=True)(logits)
    return np.asarray(losses), np.asarray(gradient)


def test_ctc_loss_is_one_under_both_backends(on_jax):
    logits = np.random.default_rng(3).normal(size=(4, 6, VOCABULARY)).astype(np.float32)
    labels = np.array([[1, 1, 2], [3, 0, 0], [0, 0, 0], [1, 2, 3]])
    lengths, frames = np.array([3, 1, 0, 3]), np.array([6, 4, 5, 3])
    losses, gradient = on_jax(ctc_under_jax, logits, labels, lengths, frames)
    x = tf.Variable(logits)
    with tf.GradientTape() as tape:
        expected = keras.ops.ctc_loss(labels, x, lengths, frames, mask_index=0)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(gradient, tape.gradient(expected, x), rtol=0, atol=1e-5)


def test_ctc_greedy_merges_repeats_and_goes_on():
    best = [1, 1, 0, 1, 2, 2, 0, 0, 3]
    logits = np.eye(VOCABULARY)[best][None]
    assert decoding.ctc_greedy(logits, np.array([9])) == [[1, 1, 2, 3]]
    assert decoding.ctc_greedy(logits, np.array([5])) == [[1, 1, 2]]
    first = decoding.ctc_greedy(logits[:, :5], np.array([5]))[0]
    second = decoding.ctc_greedy(logits[:, 5:], np.array([4]), last=np.array([best[4]]))[0]
    assert first + second == [1, 1, 2, 3]


def test_edit_distance():
    assert decoding.edit_distance("kitten", "sitting") == 3
    assert decoding.edit_distance([], [1, 2]) == 2
    assert decoding.edit_distance([1, 2, 3], []) == 3
    assert decoding.edit_distance("abc", "abc") == 0


def test_a_beam_has_a_width():
    with pytest.raises(ValueError, match="width 0"):
        decoding.beam(frames(0, 2), Machine(0).parts, width=0)
    with pytest.raises(ValueError, match="width 0"):
        decoding.ctc_beam(np.zeros((2, 3)), width=0)
