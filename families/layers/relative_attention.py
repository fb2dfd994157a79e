"""Attention over frames, with and without relative positions, as leaves; masks are theirs.

Relative positions: Dai et al., "Transformer-XL", arXiv 1901.02860, section 3.3. The projections of
queries, keys, values and outputs are layers beside them.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from families.layers.heads import tie_groups
from families.layers.protocol import ChannelGraph, Labels


@keras.saving.register_keras_serializable("nas")
class FrameAttention(keras.layers.Layer):
    """softmax(q k^T / sqrt(d)) v over frames of which the queries are the last.

    Called with query (batch, queries, heads * d), key and value (batch, keys, heads * d), where
    keys >= queries: the first keys come from a cache. `valid` (batch, keys) is 0 where a key is
    padding. `causal`: no key later than the query is seen, and of the earlier ones the `left`
    nearest, all if None.

    >>> chunk, frames = keras.Input((2, 8)), keras.Input((6, 8))
    >>> FrameAttention(heads=2, causal=True, left=4)(chunk, frames, frames).shape
    (None, 2, 8)
    """

    def __init__(self, heads: int, causal: bool = False, left: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.heads = heads
        self.causal = causal
        self.left = left
        if left is not None and not causal:
            raise ValueError(f"left={left} without causal: expected None, all frames are seen")

    def call(self, query: Any, key: Any, value: Any, valid: Any = None) -> Any:
        queries, keys, width = query.shape[1], key.shape[1], query.shape[2]
        query, key, value = (self._split(x) for x in (query, key, value))
        scores = self._scores(query, key, (width // self.heads) ** -0.5)
        # In float32: in float16 the sentinel is -inf, and a frame that sees nothing is nan.
        scores = ops.cast(scores, "float32")
        if self.causal:
            scores = ops.where(self._seen(queries, keys)[None, None], scores, -1e9)
        if valid is not None:
            scores = ops.where(ops.cast(valid, "bool")[:, None, None, :], scores, -1e9)
        outputs = ops.matmul(ops.cast(ops.softmax(scores), value.dtype), value)
        return ops.reshape(ops.transpose(outputs, (0, 2, 1, 3)), (-1, queries, width))

    def _split(self, tensor):
        """(batch, frames, heads * d) -> (batch, heads, frames, d)."""
        frames, width = tensor.shape[1:]
        tensor = ops.reshape(tensor, (-1, frames, self.heads, width // self.heads))
        return ops.transpose(tensor, (0, 2, 1, 3))

    def _scores(self, query, key, scale):
        return ops.matmul(query * scale, ops.transpose(key, (0, 1, 3, 2)))

    def _seen(self, queries: int, keys: int) -> np.ndarray:
        """(queries, keys): which key each query sees when all are valid."""
        distance = np.arange(keys - queries, keys)[:, None] - np.arange(keys)
        return (distance >= 0) & (distance <= (keys if self.left is None else self.left))

    def compute_output_shape(
        self, query_shape: tuple[int, ...], *_: Any, **__: Any
    ) -> tuple[int | None, ...]:
        return query_shape

    def macs(self, query_shape: tuple[int, ...], key_shape: tuple[int, ...], *_: Any) -> int:
        """Multiply-adds of one call, for all keys, seen or not (as published counts are)."""
        return query_shape[0] * query_shape[1] * key_shape[1] * 2 * query_shape[2]

    def channels(self, graph: ChannelGraph, node: Any, labels: Labels) -> Labels | None:
        """Whole heads leave."""
        query = labels[0]
        if not tie_groups(graph, labels, self.heads):
            return None
        width = len(query) // self.heads
        graph.size(self, heads=lambda count: count(query) // width)
        return [query]

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "heads": self.heads,
            "causal": self.causal,
            "left": self.left,
        }


@keras.saving.register_keras_serializable("nas")
class RelativeAttention(FrameAttention):
    """`FrameAttention` whose scores are (q + u) k^T + (q + v) r^T, r a projected sinusoid of i - j.

    Owns the projection `kernel` of the sinusoids (no bias) and the two biases u and v.
    """

    def build(self, query_shape: tuple[int, ...], *_: Any) -> None:
        width = query_shape[-1]
        self.kernel = self.add_weight(name="kernel", shape=(width, width))
        self.content_bias = self.add_weight(
            name="content_bias", shape=(width,), initializer="zeros"
        )
        self.position_bias = self.add_weight(
            name="position_bias", shape=(width,), initializer="zeros"
        )

    def _scores(self, query, key, scale):
        (heads, queries, width), keys = query.shape[1:], key.shape[2]
        bias = ops.reshape(self.content_bias, (1, heads, 1, width))
        content = ops.matmul((query + bias) * scale, ops.transpose(key, (0, 1, 3, 2)))
        # Later keys, of negative distance, are never seen by a causal network.
        nearest = 0 if self.causal else 1 - queries
        table = sinusoids(np.arange(keys - 1, nearest - 1, -1), heads * width)
        table = ops.matmul(ops.cast(table, query.dtype), self.kernel)  # (distances, heads * d)
        table = ops.transpose(ops.reshape(table, (1, -1, heads, width)), (0, 2, 3, 1))
        bias = ops.reshape(self.position_bias, (1, heads, 1, width))
        return content + shift(ops.matmul((query + bias) * scale, table), keys)

    def macs(self, query_shape: tuple[int, ...], key_shape: tuple[int, ...], *_: Any) -> int:
        """As published counts: one distance a key, one product of each query with each distance.

        Full context has twice as many distances; half of their products are shifted out.
        """
        batch, queries, width = query_shape
        pairs = batch * queries * key_shape[1] * 3 * width
        return pairs + key_shape[1] * width * width

    def channels(self, graph: ChannelGraph, node: Any, labels: Labels) -> Labels:
        """All stay: the table of sinusoids is as wide as all heads together, no sum of theirs."""
        reason = f"the positions of its {self.heads} heads are one table"
        graph.stay(self, reason)
        for one in labels[:3]:
            graph.keep(one, f"{self.name}: {reason}")
        return [labels[0]]


def sinusoids(positions: np.ndarray, width: int) -> np.ndarray:
    """(positions, width): sines of width / 2 frequencies, then their cosines (section 3.3).

    >>> sinusoids(np.array([0, 1]), 4)[0].tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    frequencies = 10000.0 ** (-np.arange(0, width, 2) / width)
    angles = positions[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], 1)[:, :width].astype(np.float32)


def shift(scores: Any, keys: int) -> Any:
    """Scores by distance, far to near, to scores by key: out[i, j] = in[i, queries - 1 - i + j].

    scores: (batch, heads, queries, distances), the first distance that of the last query to the
    first key. One column of padding and a reshape move row i by i (appendix B). What the input has
    no distance for, keys later than the query, is filled with values of other rows: mask it.
    """
    heads, queries, distances = scores.shape[1:]
    scores = ops.pad(scores, [[0, 0], [0, 0], [0, 0], [1, 0]])
    scores = ops.reshape(scores, (-1, heads, (distances + 1) * queries))[:, :, queries:]
    return ops.reshape(scores, (-1, heads, queries, distances))[:, :, :, :keys]
