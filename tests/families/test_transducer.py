"""The transducer loss against the sum over all alignments, written down one by one."""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from families.objectives.transducer import (
    alignment_loss,
    alignment_posteriors,
    transducer_loss,
)

FRAMES, LABELS, VOCABULARY = 4, 3, 5
# Every length of either kind, alone and together with the longest of the other.
FRAME_LENGTHS = np.array([4, 3, 1, 2, 4, 4, 1])
LABEL_LENGTHS = np.array([3, 2, 3, 0, 1, 0, 0])


def lattices(seed: int = 0, dtype=np.float32):
    generator = np.random.default_rng(seed)
    shape = (len(FRAME_LENGTHS), FRAMES, LABELS + 1, VOCABULARY)
    logits = (2 * generator.normal(size=shape)).astype(dtype)
    labels = generator.integers(1, VOCABULARY, (len(FRAME_LENGTHS), LABELS))
    return logits, labels


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def paths(blank, label, frames: int, labels: int):
    """The log-probability of every path of one lattice, and its arcs ("blank" or "label", t, u)."""
    for emissions in itertools.combinations(range(frames - 1 + labels), labels):
        t, u, total, arcs = 0, 0, 0.0, []
        for step in range(frames - 1 + labels):
            if step in emissions:
                total, arcs, u = total + label[t, u], [*arcs, ("label", t, u)], u + 1
            else:
                total, arcs, t = total + blank[t, u], [*arcs, ("blank", t, u)], t + 1
        yield total + blank[t, u], [*arcs, ("blank", t, u)]


def arcs_of(logits, labels):
    """Log-probabilities of blanks and labels (batch, T, U + 1), double precision."""
    scores = log_softmax(logits.astype(np.float64))
    rows = np.arange(LABELS)
    label = np.zeros(scores.shape[:3])
    for index in range(len(scores)):
        label[index, :, :-1] = scores[index, :, rows, labels[index]].T
    return scores[..., 0], label


def brute_force(logits, labels):
    """Losses (batch,) and the posterior of every arc, by enumeration."""
    blank, label = arcs_of(logits, labels)
    losses = np.zeros(len(logits))
    shares = {"blank": np.zeros(blank.shape), "label": np.zeros(blank.shape)}
    for index, (frames, length) in enumerate(zip(FRAME_LENGTHS, LABEL_LENGTHS, strict=True)):
        found = list(paths(blank[index], label[index], frames, length))
        likelihood = sum(np.exp(total) for total, _ in found)
        losses[index] = -np.log(likelihood)
        for total, arcs in found:
            for kind, t, u in arcs:
                shares[kind][index, t, u] += np.exp(total) / likelihood
    return losses, shares


def loss_of(logits, labels, fastemit=0.0):
    return transducer_loss(logits, labels, FRAME_LENGTHS, LABEL_LENGTHS, fastemit)


def gradient_of(function, *arrays):
    """Gradient of the summed losses, through a tf.function as in training."""

    @functools.partial(tf.function, autograph=False)
    def run(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            total = tf.reduce_sum(function(*tensors))
        return tape.gradient(total, tensors)

    return [gradient.numpy() for gradient in run(*map(tf.constant, arrays))]


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_is_the_sum_over_all_alignments(seed):
    logits, labels = lattices(seed)
    expected, _ = brute_force(logits, labels)
    np.testing.assert_allclose(loss_of(logits, labels), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(loss_of(logits, labels, 0.5), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_posteriors_are_the_shares_of_the_paths(seed):
    logits, labels = lattices(seed)
    blank, label = arcs_of(logits, labels)
    found = alignment_posteriors(
        blank.astype("float32"), label.astype("float32"), FRAME_LENGTHS, LABEL_LENGTHS
    )
    losses, shares = brute_force(logits, labels)
    np.testing.assert_allclose(found.loss, losses, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.blank, shares["blank"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.label, shares["label"], rtol=0, atol=1e-5)


def test_every_diagonal_sums_to_the_likelihood():
    logits, labels = lattices()
    blank, label = arcs_of(logits, labels)
    found = alignment_posteriors(blank, label, FRAME_LENGTHS, LABEL_LENGTHS)
    joint = np.exp(np.asarray(found.forward) + np.asarray(found.backward)).sum(-1)
    assert joint.shape == (FRAMES + LABELS + 1, len(logits))
    likelihood = np.exp(-np.asarray(found.loss))
    np.testing.assert_allclose(joint, np.tile(likelihood, (len(joint), 1)), rtol=1e-6)


def test_the_gradient_is_that_of_finite_differences():
    logits, labels = lattices(dtype=np.float64)
    (found,) = gradient_of(lambda x: loss_of(x, labels), logits)
    assert found.dtype == np.float64
    step = 1e-6
    expected = np.zeros_like(logits)
    for place in np.ndindex(*logits.shape):
        values = []
        for sign in (1, -1):
            moved = logits[place[0]].copy()
            moved[place[1:]] += sign * step
            blank, label = arcs_of(moved[None], labels[place[0]][None])
            lengths = FRAME_LENGTHS[place[0]], LABEL_LENGTHS[place[0]]
            values.append(-np.log(sum(np.exp(p) for p, _ in paths(blank[0], label[0], *lengths))))
        expected[place] = (values[0] - values[1]) / (2 * step)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
    (single,) = gradient_of(lambda x: loss_of(x, labels), logits.astype(np.float32))
    np.testing.assert_allclose(single, expected, rtol=0, atol=1e-5)


def test_fastemit_multiplies_label_gradients_and_leaves_blanks_alone():
    logits, labels = lattices()
    arcs = [arc.astype(np.float32) for arc in arcs_of(logits, labels)]

    def alignments(fastemit):
        return lambda b, y: alignment_loss(b, y, FRAME_LENGTHS, LABEL_LENGTHS, fastemit)

    blank, label = gradient_of(alignments(0.0), *arcs)
    hasty_blank, hasty_label = gradient_of(alignments(0.25), *arcs)  # 1.25: exact in binary
    assert np.abs(label).max() > 0.5 and np.abs(blank).max() > 0.5
    np.testing.assert_array_equal(hasty_blank, blank)
    np.testing.assert_array_equal(hasty_label, label * np.float32(1.25))
    _, shares = brute_force(logits, labels)
    np.testing.assert_allclose(blank, -shares["blank"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(label, -shares["label"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(
        alignments(0.25)(*map(tf.constant, arcs)), alignments(0.0)(*map(tf.constant, arcs))
    )


@pytest.mark.parametrize("fastemit", [0.0, 0.25])
def test_both_losses_have_one_gradient(fastemit):
    """Of logits in closed form, and through a log-softmax and the loss of log-probabilities."""
    logits, labels = lattices()
    places = np.pad(labels, [(0, 0), (0, 1)])

    def long_way(x):
        scores = tf.nn.log_softmax(x)
        hot = tf.one_hot(places, VOCABULARY)[:, None]
        label = tf.reduce_sum(hot * scores, -1)
        return alignment_loss(scores[..., 0], label, FRAME_LENGTHS, LABEL_LENGTHS, fastemit)

    (direct,) = gradient_of(lambda x: loss_of(x, labels, fastemit), logits)
    (expected,) = gradient_of(long_way, logits)
    np.testing.assert_allclose(direct, expected, rtol=0, atol=1e-6)


def test_losses_are_weighted_by_what_comes_from_above():
    logits, labels = lattices()
    weights = np.linspace(0, 3, len(logits)).astype(np.float32)
    (plain,) = gradient_of(lambda x: loss_of(x, labels), logits)
    (weighted,) = gradient_of(lambda x: weights * loss_of(x, labels), logits)
    np.testing.assert_allclose(weighted, plain * weights[:, None, None, None], rtol=1e-6)


def test_padding_has_no_gradient_and_no_influence():
    logits, labels = lattices()
    (gradient,) = gradient_of(lambda x: loss_of(x, labels, 0.1), logits)
    outside = np.ones(logits.shape[:3], bool)
    other_labels = labels.copy()
    for index, (frames, length) in enumerate(zip(FRAME_LENGTHS, LABEL_LENGTHS, strict=True)):
        outside[index, :frames, : length + 1] = False
        other_labels[index, length:] = 0
    assert outside.sum() > 30
    assert np.all(gradient[outside] == 0)
    assert np.all(np.abs(gradient[~outside]).max(-1) > 0)
    changed = logits.copy()
    changed[outside] = 1e4
    np.testing.assert_array_equal(loss_of(changed, other_labels), loss_of(logits, labels))


def test_impossible_symbols_are_no_nan():
    logits, labels = lattices()
    logits[..., 4] = -np.inf
    labels = np.where(labels == 4, 3, labels)
    (gradient,) = gradient_of(lambda x: loss_of(x, labels), logits)
    expected, _ = brute_force(np.maximum(logits, -1e4), labels)
    np.testing.assert_allclose(loss_of(logits, labels), expected, rtol=0, atol=1e-5)
    assert np.all(np.isfinite(gradient)) and np.all(gradient[..., 4] == 0)


def test_long_lattices_stay_exact_in_single_precision():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(1, 300, 41, 64))
    labels = generator.integers(1, 64, (1, 40))
    lengths = np.array([300]), np.array([40])

    def loss(x):
        return transducer_loss(x, labels, *lengths)

    single, double = logits.astype(np.float32), logits
    assert loss(double)[0] > 1000
    np.testing.assert_allclose(loss(single), loss(double), rtol=1e-6)
    (found,), (expected,) = gradient_of(loss, single), gradient_of(loss, double)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_half_precision_logits_are_summed_in_single_precision():
    logits, labels = lattices()
    half = logits.astype(np.float16)
    expected, _ = brute_force(half, labels)
    np.testing.assert_allclose(loss_of(half, labels), expected, rtol=0, atol=1e-5)
    (gradient,) = gradient_of(lambda x: loss_of(x, labels), half)
    assert gradient.dtype == np.float16


def test_fastemit_brings_labels_forward():
    """Logits of one lattice trained by gradient descent: the label's mean frame falls."""
    labels, lengths = np.array([[1]]), (np.array([8]), np.array([1]))
    frame = {}
    for fastemit in (0.0, 0.2):
        logits = tf.Variable(np.zeros((1, 8, 2, 3), np.float32))
        step = tf.function(
            lambda logits=logits, fastemit=fastemit: _descend(logits, labels, lengths, fastemit),
            autograph=False,
        )
        for _ in range(100):
            step()
        scores = log_softmax(logits.numpy())
        label = np.pad(scores[:, :, :1, 1], [(0, 0), (0, 0), (0, 1)])
        shares = np.asarray(alignment_posteriors(scores[..., 0], label, *lengths).label)
        frame[fastemit] = float((shares[0, :, 0] * np.arange(8)).sum())
    assert frame[0.2] < frame[0.0] - 0.2, frame


def _descend(logits, labels, lengths, fastemit):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(transducer_loss(logits, labels, *lengths, fastemit))
    logits.assign_sub(tape.gradient(loss, logits))


def test_bad_input_is_named():
    logits, labels = lattices()
    with pytest.raises(ValueError, match=r"expected \(batch, T, U \+ 1, V\)"):
        transducer_loss(logits[:, :, :-1], labels, FRAME_LENGTHS, LABEL_LENGTHS)
    with pytest.raises(ValueError, match="fastemit=-1"):
        transducer_loss(logits, labels, FRAME_LENGTHS, LABEL_LENGTHS, -1)


def gradient_under_jax(logits, labels, frames, lengths):
    import jax

    def total(x):
        losses = transducer_loss(x, labels, frames, lengths, 0.1)
        return losses.sum(), losses

    gradient, losses = jax.jit(jax.grad(total, has_aux=True))(logits.astype("float32"))
    return np.asarray(losses), np.asarray(gradient)


def test_jax_says_the_same(on_jax):
    logits, labels = lattices()
    arrays = [np.asarray(x) for x in (logits, labels, FRAME_LENGTHS, LABEL_LENGTHS)]
    losses, gradient = on_jax(gradient_under_jax, *arrays)
    assert keras.config.backend() == "tensorflow"
    np.testing.assert_allclose(losses, loss_of(logits, labels), rtol=0, atol=1e-5)
    (expected,) = gradient_of(lambda x: loss_of(x, labels, 0.1), logits)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5)
