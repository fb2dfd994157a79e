"""Scaled dot-product attention as a leaf without weights: the projections are layers beside it.

Vaswani et al., arXiv 1706.03762; grouped queries: Ainslie et al., arXiv 2305.13245.
"""

import keras
from keras import ops


@keras.saving.register_keras_serializable("nas")
class Attention(keras.layers.Layer):
    """softmax(q k^T / sqrt(d)) v for `heads` query heads over `key_value_heads` groups.

    Called with query (batch, queries, heads * d), key and value (batch, keys, key_value_heads * d);
    gives (batch, queries, heads * d). `causal`: query i, at position offset + i, sees the keys
    j <= offset + i, with `window` only those with j > offset + i - window. `offset` (batch,) int32
    is the number of tokens before the first query, 0 if None.
    """

    def __init__(self, heads, key_value_heads=None, causal=False, window=None, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads
        self.key_value_heads = key_value_heads or heads
        if heads % self.key_value_heads:
            raise ValueError(
                f"{heads} query heads cannot share {key_value_heads} key-value heads evenly"
            )
        self.causal = causal
        self.window = window

    def call(self, query, key, value, offset=None):
        queries, keys = query.shape[1], key.shape[1]
        width = query.shape[-1] // self.heads
        groups, shared = self.key_value_heads, self.heads // self.key_value_heads
        query = ops.reshape(query, (-1, queries, groups, shared, width))
        key = ops.reshape(key, (-1, keys, groups, width))
        value = ops.reshape(value, (-1, keys, groups, width))
        query = ops.reshape(
            ops.transpose(query, (0, 2, 3, 1, 4)), (-1, groups, shared * queries, width)
        )
        scores = ops.matmul(query * width**-0.5, ops.transpose(key, (0, 2, 3, 1)))
        scores = ops.reshape(scores, (-1, groups, shared, queries, keys))
        if self.causal:
            scores = ops.where(self._seen(queries, keys, offset), scores, -1e9)
        weights = ops.reshape(ops.softmax(scores), (-1, groups, shared * queries, keys))
        outputs = ops.matmul(weights, ops.transpose(value, (0, 2, 1, 3)))
        outputs = ops.reshape(outputs, (-1, groups, shared, queries, width))
        outputs = ops.transpose(outputs, (0, 3, 1, 2, 4))
        return ops.reshape(outputs, (-1, queries, self.heads * width))

    def _seen(self, queries, keys, offset):
        """Which key each query sees: (batch or 1, 1, 1, queries, keys)."""
        position = ops.reshape(ops.arange(queries, dtype="int32"), (1, 1, 1, queries, 1))
        if offset is not None:
            position = position + ops.reshape(offset, (-1, 1, 1, 1, 1))
        key = ops.reshape(ops.arange(keys, dtype="int32"), (1, 1, 1, 1, keys))
        seen = key <= position
        if self.window is not None:
            seen = ops.logical_and(seen, key > position - self.window)
        return seen

    def compute_output_shape(self, query_shape, *_, **__):
        return query_shape

    def macs(self, query_shape, key_shape, value_shape, *_) -> int:
        """Multiply-adds of one call, for all keys, seen or not (as published counts are)."""
        return query_shape[0] * query_shape[1] * key_shape[1] * 2 * query_shape[2]

    def get_config(self):
        return super().get_config() | {
            "heads": self.heads,
            "key_value_heads": self.key_value_heads,
            "causal": self.causal,
            "window": self.window,
        }
