"""The transducer loss, exact, with its gradient in closed form, and FastEmit.

Graves, "Sequence Transduction with Recurrent Neural Networks", arXiv 1211.3711; Yu et al.,
"FastEmit", arXiv 2010.11148.

A lattice has the nodes (t, u): `t` frames consumed, `u` labels emitted. A blank leads from (t, u)
to (t + 1, u), a label to (t, u + 1); every path ends with the blank of the last frame. All paths
cross the anti-diagonal t + u = n in exactly one node, so a lattice is summed diagonal by diagonal,
forwards and backwards in one pass of T + U steps over vectors. Nothing is differentiated through
these steps: the gradient is the share of each arc in the sum over paths.
"""

import dataclasses
from typing import Any

import keras
from keras import ops

BLANK = 0  # index of the blank in the vocabulary
NEVER = -1e30  # log-probability of an arc that does not exist; finite, for -inf - -inf is nan


@dataclasses.dataclass(frozen=True)
class Posteriors:
    """What paths through lattices have in common.

    loss: (batch,) negative log-likelihood of the labels.
    blank, label: (batch, T, U + 1) probability that a path takes the arc; 0 in the padding.
    forward, backward: (T + U + 1, batch, U + 1) logarithms of alpha and beta by anti-diagonals; on
        every diagonal the sum of alpha * beta over u is the likelihood.
    """

    loss: Any
    blank: Any
    label: Any
    forward: Any
    backward: Any


def transducer_loss(
    logits: Any, labels: Any, frame_lengths: Any, label_lengths: Any, fastemit: float = 0.0
) -> Any:
    """Negative log-likelihood (batch,) of `labels` under all alignments.

    logits: (batch, T, U + 1, V) of the joint network, unnormalized; static T and U.
    labels: (batch, U) integers, never the blank, which is 0; what is beyond a length is ignored.
    frame_lengths, label_lengths: (batch,) integers, at least 1 and 0.
    fastemit: the gradient of every label's log-probability is multiplied by 1 + fastemit, that of
        blanks is left alone, so that labels come early; the value stays the plain loss.

    Beside `logits` it holds their gradient and one passing copy, and a dozen arrays without V.
    """
    if fastemit < 0:
        raise ValueError(f"fastemit={fastemit!r}; expected a factor >= 0, such as 0.01")
    if len(logits.shape) != 4 or labels.shape[1] + 1 != logits.shape[2]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}; expected "
            "(batch, T, U + 1, V) and (batch, U)"
        )
    labels = ops.pad(ops.cast(labels, "int32"), [[0, 0], [0, 1]])  # no label leaves the last row

    @ops.custom_gradient
    def loss_of(logits):
        values = _at_least_float32(logits)
        total = ops.logsumexp(values, axis=-1)
        places = ops.broadcast_to(labels[:, None, :], ops.shape(total))
        label = ops.take_along_axis(values, places[..., None], axis=-1)[..., 0] - total
        blank = values[..., BLANK] - total
        found = alignment_posteriors(blank, label, frame_lengths, label_lengths)

        def gradient(upstream):
            """Softmax, as often as a path passes, minus the arcs that it takes."""
            weight = upstream[:, None, None]
            passes = (found.label * (1 + fastemit) + found.blank) * weight
            result = ops.exp(values - total[..., None]) * passes[..., None]
            entry = ops.exp(label) * passes - found.label * (1 + fastemit) * weight
            result = _with_entries(result, places, entry)
            # Second, as padded labels are blanks.
            entry = ops.exp(blank) * passes - found.blank * weight
            result = _with_entries(result, ops.full_like(places, BLANK), entry)
            return ops.cast(result, logits.dtype)

        return found.loss, gradient

    return loss_of(logits)


def alignment_loss(
    blank: Any, label: Any, frame_lengths: Any, label_lengths: Any, fastemit: float = 0.0
) -> Any:
    """As `transducer_loss`, of log-probabilities `blank` and `label` (batch, T, U + 1).

    For joints whose probabilities are not one softmax, such as the factorized blank of HAT.
    """
    found = alignment_posteriors(blank, label, frame_lengths, label_lengths)
    keep = ops.stop_gradient
    shares = ops.where(keep(found.label) > 0, label, 0) * keep(found.label) * (1 + fastemit)
    shares = shares + ops.where(keep(found.blank) > 0, blank, 0) * keep(found.blank)
    surrogate = -ops.sum(shares, axis=(1, 2))
    return keep(found.loss) + (surrogate - keep(surrogate))


def alignment_posteriors(
    blank: Any, label: Any, frame_lengths: Any, label_lengths: Any
) -> Posteriors:
    """The sums over all paths of lattices of log-probabilities `blank`, `label` (batch, T, U + 1).

    label[:, t, u] is that of the label u + 1 in frame t; its last row is ignored. No gradient.
    """
    frames, rows = blank.shape[1:]
    blank, label = (ops.stop_gradient(_at_least_float32(x)) for x in (blank, label))
    frame_lengths, label_lengths = (ops.cast(x, "int32") for x in (frame_lengths, label_lengths))
    row = ops.arange(rows, dtype="int32")
    in_time = ops.arange(frames, dtype="int32")[None, :, None] < frame_lengths[:, None, None]
    in_text = row[None, None, :] <= label_lengths[:, None, None]
    before_end = row[None, None, :] < label_lengths[:, None, None]
    blank = _diagonals(ops.where(in_time & in_text, ops.maximum(blank, NEVER), NEVER))
    label = _diagonals(ops.where(in_time & before_end, ops.maximum(label, NEVER), NEVER))
    # Short lattices wait in their last node for the long ones.
    number = ops.arange(frames + rows - 1, dtype="int32")[:, None, None]
    last_row = row[None, :] == label_lengths[:, None]  # (batch, rows)
    waits = (number >= (frame_lengths + label_lengths)[None, :, None]) & last_row[None]
    blank = ops.where(waits, ops.zeros_like(blank), blank)

    sums = _sums(blank, label, ops.where(last_row, 0.0, NEVER))
    tops = ops.max(sums, axis=2, keepdims=True)  # of each diagonal, relative to the one before
    forward, backward = _halves(sums - tops)
    # All arcs between two diagonals are taken once: what they share is 1, whatever the scale.
    ahead = ops.pad(backward[1:, :, 1:], [[0, 0], [0, 0], [0, 1]], constant_values=NEVER)
    blank_arcs = forward[:-1] + blank + backward[1:]
    label_arcs = forward[:-1] + label + ahead
    most = ops.max(ops.maximum(blank_arcs, label_arcs), axis=2, keepdims=True)
    blank_arcs, label_arcs = ops.exp(blank_arcs - most), ops.exp(label_arcs - most)
    total = ops.sum(blank_arcs + label_arcs, axis=2, keepdims=True)
    scale_forward, scale_backward = _halves(ops.cumsum(tops, axis=0))
    likelihood = ops.logsumexp(ops.where(last_row, forward[-1], NEVER), axis=-1)
    return Posteriors(
        loss=-(likelihood + scale_forward[-1, :, 0]),
        blank=_frames(ops.where(waits, 0.0, blank_arcs / total), frames),
        label=_frames(label_arcs / total, frames),
        forward=forward + scale_forward,
        backward=backward + scale_backward,
    )


def _sums(blank, label, end):
    """Logarithms of the sums of all beginnings and of all ends: (steps + 1, 2 batch, rows).

    The ends, turned round, are beginnings: both are the same recursion, done side by side. Each
    diagonal is relative to the largest sum of the one before, so that all digits of a float32 tell
    the sums of a diagonal apart, in lattices of thousands of arcs, too.
    """
    none = ops.full_like(label[:, :, :1], NEVER)
    arrives = ops.concatenate([none, label[:, :, :-1]], axis=2)
    leaves = ops.concatenate([none, ops.flip(label[:, :, :-1], axis=(0, 2))], axis=2)
    blank = ops.concatenate([blank, ops.flip(blank, axis=(0, 2))], axis=1)
    label = ops.concatenate([arrives, leaves], axis=1)  # the arcs into each node
    end = ops.cast(end, blank.dtype)
    start = ops.where(ops.arange(end.shape[-1]) == 0, 0.0, NEVER)
    start = ops.broadcast_to(ops.cast(start, blank.dtype), ops.shape(end))
    start = ops.concatenate([start, ops.flip(end, axis=1)], axis=0)

    def step(sums, arcs):
        stay, arrive = arcs
        sums = sums - ops.max(sums, axis=1, keepdims=True)
        below = ops.concatenate([sums[:, :1], sums[:, :-1]], axis=1)  # into row 0 comes NEVER
        sums = ops.logaddexp(sums + stay, below + arrive)
        return sums, sums

    _, sums = ops.scan(step, start, (blank, label))
    return ops.concatenate([start[None], sums], axis=0)


def _halves(sums):
    """Beginnings and ends, side by side in `sums`, each in the order of the lattice."""
    forward, backward = ops.split(sums, 2, axis=1)
    return forward, ops.flip(backward, axis=(0, 2))


def _diagonals(lattice):
    """(batch, T, rows) -> (T + rows - 1, batch, rows): row u starts u later, NEVER around."""
    frames, rows = lattice.shape[1:]
    lattice = ops.transpose(lattice, (0, 2, 1))
    lattice = ops.pad(lattice, [[0, 0], [0, 0], [0, rows]], constant_values=NEVER)
    lattice = ops.reshape(lattice, (-1, rows * (frames + rows)))[:, :-rows]
    return ops.transpose(ops.reshape(lattice, (-1, rows, frames + rows - 1)), (2, 0, 1))


def _frames(diagonals: Any, frames: int) -> Any:
    """What `_diagonals` was made of."""
    rows = diagonals.shape[2]
    lattice = ops.transpose(diagonals, (1, 2, 0))
    lattice = ops.reshape(lattice, (-1, rows * (frames + rows - 1)))
    lattice = ops.reshape(ops.pad(lattice, [[0, 0], [0, rows]]), (-1, rows, frames + rows))
    return ops.transpose(lattice[:, :, :frames], (0, 2, 1))


def _with_entries(array, places, entries):
    """`array` (..., V) with `entries` (...) at `places` (...) of the last axis; done in place."""
    flat = ops.reshape(array, (-1, array.shape[-1]))
    places = ops.reshape(places, (-1,))
    indices = ops.stack([ops.arange(ops.shape(places)[0], dtype="int32"), places], axis=1)
    flat = ops.scatter_update(flat, indices, ops.reshape(entries, (-1,)))
    return ops.reshape(flat, ops.shape(array))


def _at_least_float32(tensor):
    double = keras.backend.standardize_dtype(tensor.dtype) == "float64"
    return tensor if double else ops.cast(tensor, "float32")
