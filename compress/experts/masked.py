"""Experts while some of them are being dropped."""

import numpy as np
from keras import ops

from families.layers.experts import Experts

GONE = -1e9  # added to the logit of a dropped expert: its weight is exactly 0


class MaskedExperts(Experts):
    """`Experts` while some are being dropped: their logits count as `GONE`.

    `fate` (2, experts), int32: the round, from 1, in which each was dropped, 0 if it lives; and the
    bits of its float32 score then. Integers, as averages of weights leave those alone.
    """

    def build(
        self, inputs_shape: tuple[int, ...], logits_shape: tuple[int, ...] | None = None
    ) -> None:
        super().build(inputs_shape, logits_shape)
        self.fate = self.add_weight(
            shape=(2, self.count), initializer="zeros", dtype="int32", trainable=False, name="fate"
        )

    def _route(self, logits, training):
        gone = ops.cast(self.fate[0] > 0, logits.dtype)
        return super()._route(logits + gone * GONE, training)

    def alive(self) -> np.ndarray:
        """Numbers of the experts that are left."""
        return np.flatnonzero(ops.convert_to_numpy(self.fate)[0] == 0)

    def drop(self, experts: dict[int, float], number: int) -> None:
        """Drop experts, with their scores, in round `number`."""
        fate = ops.convert_to_numpy(self.fate).copy()
        for expert, score in experts.items():
            fate[:, expert] = number, np.float32(score).view(np.int32)
        self.fate.assign(fate)

    def dropped(self) -> list[dict]:
        """What was dropped, in which round, with which score."""
        fate = ops.convert_to_numpy(self.fate)
        scores = np.ascontiguousarray(fate[1]).view(np.float32)
        gone = sorted(
            np.flatnonzero(fate[0]).tolist(), key=lambda expert: (fate[0, expert], expert)
        )
        return [{"expert": e, "round": int(fate[0, e]), "score": float(scores[e])} for e in gone]
