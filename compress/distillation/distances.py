"""Distances of a network's outputs and features from its teacher's; see `compress.distill`."""

import dataclasses
from typing import Any

from keras import ops

BLANK = 0  # index of the blank of transducers
LEAST = 1e-7  # the smallest probability that counts


@dataclasses.dataclass(frozen=True)
class Classes:
    """heat^2 KL(teacher's, mine) of softmax(logits / heat); `soft`: which of both are softmaxed."""

    heat: float
    soft: tuple[bool, ...]

    def __call__(self, mine: Any, theirs: Any, projections: Any) -> Any:
        mine, theirs = self.logarithms(mine[0], theirs[0])
        mine, theirs = (ops.log_softmax(one, axis=-1) for one in (mine, theirs))
        return self.heat**2 * ops.mean(ops.sum(ops.exp(theirs) * (theirs - mine), axis=-1))

    def logarithms(self, *both: Any) -> Any:
        """Logits / heat of both: logarithms of probabilities are logits, too."""
        logits = [
            ops.log(ops.maximum(one, LEAST)) if soft else one
            for one, soft in zip(both, self.soft, strict=True)
        ]
        return logits if self.heat == 1 else [one / self.heat for one in logits]


@dataclasses.dataclass(frozen=True)
class Shares(Classes):
    """The same of sigmoids, each the probability of one class against its opposite."""

    def __call__(self, mine: Any, theirs: Any, projections: Any) -> Any:
        pairs = zip((mine[0], theirs[0]), self.soft, strict=True)
        mine, theirs = (
            ops.stack([one, 1 - one if soft else ops.zeros_like(one)], -1) for one, soft in pairs
        )
        return Classes.__call__(self, [mine], [theirs], projections)


@dataclasses.dataclass(frozen=True)
class Lattice(Classes):
    """The same of {blank, the next label, the rest} in the nodes of lattices, one array held."""

    ratio: int  # frames that are one column of the lattice

    def __call__(self, mine: Any, theirs: Any, projections: Any) -> Any:
        mine, frames, labels = mine
        mine, theirs = self.logarithms(mine, theirs[0])
        labels = ops.cast(labels, "int32")
        lengths = ops.sum(ops.cast(labels != BLANK, "int32"), axis=1)[:, None, None]
        columns = (ops.cast(frames, "int32") + self.ratio - 1) // self.ratio
        column = ops.arange(mine.shape[1], dtype="int32")[None, :, None]
        row = ops.arange(mine.shape[2], dtype="int32")[None, None, :]
        nodes = (column < ops.reshape(columns, (-1, 1, 1))) & (row <= lengths)
        nodes = ops.cast(nodes, "float32")
        nodes = nodes / ops.maximum(ops.sum(nodes), 1.0)
        next_label = ops.pad(labels, [[0, 0], [0, 1]])[:, None, :]  # 0: none follows
        next_label = ops.broadcast_to(next_label, ops.shape(mine)[:3])
        return self.heat**2 * _reduced_divergence(mine, theirs, next_label, nodes)


@dataclasses.dataclass(frozen=True)
class Features:
    """The mean distance of pairs of layers (..., width); widths: of each pair."""

    distance: str
    widths: tuple[tuple[int, int], ...]

    def __call__(self, mine: Any, theirs: Any, projections: Any) -> Any:
        projections, total = iter(projections), 0.0
        for one, other, (width, wanted) in zip(mine, theirs, self.widths, strict=True):
            one = one if width == wanted else ops.matmul(one, next(projections))
            if self.distance == "mse":
                size = ops.mean(ops.square(other))
                total += ops.mean(ops.square(one - other)) / ops.maximum(size, LEAST)
            else:
                total += 1 - ops.mean(ops.sum(ops.normalize(one) * ops.normalize(other), axis=-1))
        return total / len(self.widths)


@dataclasses.dataclass(frozen=True)
class Several:
    """The sum over several outputs, of each the distance that is its own."""

    parts: tuple[Any, ...]

    def __call__(self, mine: Any, theirs: Any, projections: Any) -> Any:
        pairs = zip(self.parts, mine, theirs, strict=True)
        return sum(part([one], [other], ()) for part, one, other in pairs)


def _reduced_divergence(mine, theirs, next_label, nodes):
    """Sum of nodes * KL(teacher's, mine) over three classes; logits (batch, T, U + 1, V).

    The gradient in closed form holds one array of that size: in a class k with probabilities p of
    mine and q of the teacher's it is softmax(mine) * (1 - q_k / p_k).
    """
    follows = next_label != BLANK

    def classes(logits):
        """log p of the blank, p of the blank, the label, the rest; logarithm of the sum."""
        total = ops.logsumexp(logits, axis=-1)
        blank = logits[..., BLANK] - total
        label = ops.take_along_axis(logits, next_label[..., None], axis=-1)[..., 0] - total
        taken = ops.exp(blank) + ops.where(follows, ops.exp(label), 0.0)
        return blank, label, ops.log(ops.maximum(1 - taken, LEAST)), total

    target = [ops.stop_gradient(one) for one in classes(theirs)[:3]]
    shares = [ops.exp(one) for one in target]
    shares[1] = ops.where(follows, shares[1], 0.0)

    @ops.custom_gradient
    def divergence(logits):
        *found, total = classes(logits)
        parts = zip(shares, target, found, strict=True)
        value = ops.sum(nodes * sum(q * (log_q - log_p) for q, log_q, log_p in parts))

        def gradient(upstream):
            blank, label, rest = (ops.exp(one) for one in found)
            weight = upstream * nodes
            result = ops.exp(logits - total[..., None])
            result = result * (weight * (1 - shares[2] / rest))[..., None]
            places = ops.arange(logits.shape[-1], dtype="int32")
            entries = (
                (next_label, label - shares[1]),
                (ops.zeros_like(next_label), blank - shares[0]),
            )
            for (
                place,
                entry,
            ) in entries:  # the blank second: where no label follows, it is the label
                here = places == place[..., None]
                result = ops.where(here, (weight * entry)[..., None], result)
            return result

        return value, gradient

    return divergence(mine)
