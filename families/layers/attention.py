"""Scaled dot-product attention as a leaf without weights: the projections are layers beside it.

Vaswani et al., arXiv 1706.03762; grouped queries: Ainslie et al., arXiv 2305.13245.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from families.layers.heads import tie_groups
from families.layers.protocol import ChannelGraph, Labels

MASKED = -1e9  # added to the scores of keys that are not seen: their weights are exactly 0


@keras.saving.register_keras_serializable("nas")
class Attention(keras.layers.Layer):
    """softmax(q k^T / sqrt(d)) v for `heads` query heads over `key_value_heads` groups.

    Called with query (batch, queries, heads * d), key and value (batch, keys, key_value_heads * d);
    gives (batch, queries, heads * d). `causal`: the queries belong to the last of the keys, and
    each sees its own key and those before, with `window` only the last `window` of them.
    `bias` (batch, keys) is added to the scores of every query.

    >>> query, memory = keras.Input((3, 8)), keras.Input((5, 4))
    >>> layer = Attention(heads=4, key_value_heads=2, causal=True)
    >>> layer(query, memory, memory).shape, layer.macs((1, 3, 8), (1, 5, 4), (1, 5, 4))
    ((None, 3, 8), 240)
    """

    def __init__(
        self,
        heads: int,
        key_value_heads: int | None = None,
        causal: bool = False,
        window: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.heads = heads
        self.key_value_heads = key_value_heads or heads
        if heads % self.key_value_heads:
            raise ValueError(
                f"{heads} query heads cannot share {key_value_heads} key-value heads evenly"
            )
        if window is not None and not causal:
            raise ValueError(f"window={window} needs causal=True")
        self.causal = causal
        self.window = window

    def call(self, query: Any, key: Any, value: Any, bias: Any = None) -> Any:
        queries, keys = query.shape[1], key.shape[1]
        width = query.shape[-1] // self.heads
        groups, shared = self.key_value_heads, self.heads // self.key_value_heads
        key = ops.transpose(ops.reshape(key, (-1, keys, groups, width)), (0, 2, 3, 1))
        value = ops.transpose(ops.reshape(value, (-1, keys, groups, width)), (0, 2, 1, 3))
        # The queries of a group are rows of one product, so shared keys are never repeated.
        rows = _to_rows(query * width**-0.5, queries, groups, shared)
        scores = ops.matmul(rows, key)
        dtype = scores.dtype
        scores = ops.cast(scores, keras.backend.result_type(dtype, "float32"))
        unseen = self._unseen(queries, keys)
        if unseen.any():
            scores = scores + np.tile(np.where(unseen, MASKED, 0), (shared, 1)).astype("float32")
        if bias is not None:
            scores = scores + ops.expand_dims(ops.cast(bias, scores.dtype), (1, 2))
        outputs = ops.matmul(ops.cast(ops.softmax(scores), dtype), value)
        return _from_rows(outputs, queries, groups, shared)

    def _unseen(self, queries: int, keys: int) -> np.ndarray:
        """Which keys each query does not see: (queries, keys)."""
        ages = np.arange(keys - queries, keys)[:, None] - np.arange(keys)
        unseen = np.zeros((queries, keys), bool)
        if self.causal:
            unseen |= ages < 0
        if self.window is not None:
            unseen |= ages >= self.window
        return unseen

    def compute_output_spec(self, query: Any, key: Any, value: Any, bias: Any = None) -> Any:
        return keras.KerasTensor(query.shape, dtype=self.compute_dtype)

    def macs(
        self,
        query_shape: tuple[int, ...],
        key_shape: tuple[int, ...],
        value_shape: tuple[int, ...],
        *_: Any,
    ) -> int:
        """Multiply-adds of one call, for all keys, seen or not (as published counts are)."""
        return query_shape[0] * query_shape[1] * key_shape[1] * 2 * query_shape[2]

    def channels(self, graph: ChannelGraph, node: Any, labels: Labels) -> Labels | None:
        """Whole heads leave; where queries share keys and values, whole groups of heads."""
        query, key = labels[:2]
        if not tie_groups(graph, labels, self.key_value_heads):
            return None
        width = len(query) // self.heads
        graph.size(
            self,
            heads=lambda count: count(query) // width,
            key_value_heads=lambda count: count(key) // width,
        )
        return [query]

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "heads": self.heads,
            "key_value_heads": self.key_value_heads,
            "causal": self.causal,
            "window": self.window,
        }


def _to_rows(query: Any, queries: int, groups: int, shared: int) -> Any:
    """(batch, queries, heads * d) -> (batch, groups, shared * queries, d)."""
    width = query.shape[-1] // (groups * shared)
    if queries == 1:
        return ops.reshape(query, (-1, groups, shared, width))
    if shared == 1:
        return ops.transpose(ops.reshape(query, (-1, queries, groups, width)), (0, 2, 1, 3))
    query = ops.reshape(query, (-1, queries, groups, shared, width))
    return ops.reshape(ops.transpose(query, (0, 2, 3, 1, 4)), (-1, groups, shared * queries, width))


def _from_rows(rows: Any, queries: int, groups: int, shared: int) -> Any:
    """The inverse of `_to_rows`."""
    width = rows.shape[-1]
    if queries > 1 and shared == 1:
        rows = ops.transpose(rows, (0, 2, 1, 3))
    elif queries > 1:
        rows = ops.reshape(rows, (-1, groups, shared, queries, width))
        rows = ops.transpose(rows, (0, 3, 1, 2, 4))
    return ops.reshape(rows, (-1, queries, groups * shared * width))
