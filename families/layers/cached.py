"""Caches that shift: the last of what was and what is, and how much of that is real."""

from typing import Any

import keras
from keras import ops

from families.layers.attention import MASKED
from families.layers.protocol import ChannelGraph, Labels


@keras.saving.register_keras_serializable("nas")
class KeepLast(keras.layers.Layer):
    """The last `count` of cache (batch, capacity, width) followed by new (batch, length, width).

    A cache that is always shifted needs no index, no scatter and no modulus: position does not
    enter, a window is a shorter cache, and what is older than the cache falls out by itself.

    >>> cache, new = keras.ops.zeros((1, 3, 1)), keras.ops.ones((1, 2, 1))
    >>> keras.ops.convert_to_numpy(KeepLast(4)(cache, new)).ravel().tolist()
    [0.0, 0.0, 1.0, 1.0]
    """

    def __init__(self, count: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.count = count

    def call(self, cache: Any, new: Any) -> Any:
        kept = self.count - new.shape[1]
        if kept <= 0:
            return new[:, -kept:]
        return ops.concatenate([cache[:, cache.shape[1] - kept :], new], axis=1)

    def compute_output_spec(self, cache: Any, new: Any) -> Any:
        shape = (new.shape[0], self.count, new.shape[2])
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def macs(self, *_: Any) -> int:
        return 0

    def channels(self, graph: ChannelGraph, node: Any, labels: Labels) -> Labels:
        """A channel is the same one in the cache and in what is new."""
        graph.tie(*labels)
        return [labels[0]]

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"count": self.count}


@keras.saving.register_keras_serializable("nas")
class CacheBias(keras.layers.Layer):
    """What keeps attention from the keys of a cache that is not full yet: (batch, keys).

    Called with position (batch, 1), the tokens before this call's `length`: of the last `keys` keys
    those are real that are not older than the first token.

    >>> bias = CacheBias(keys=4, length=1)(keras.ops.ones((1, 1)))  # the second token
    >>> (keras.ops.convert_to_numpy(bias) < 0).tolist()
    [[True, True, False, False]]
    """

    def __init__(self, keys: int, length: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.keys = keys
        self.length = length

    def call(self, position: Any) -> Any:
        first = self.keys - self.length - position
        index = ops.arange(self.keys, dtype=position.dtype)
        return ops.cast(index < first, "float32") * MASKED

    def compute_output_spec(self, position: Any) -> Any:
        return keras.KerasTensor((position.shape[0], self.keys), dtype="float32")

    def macs(self, *_: Any) -> int:
        return 0

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"keys": self.keys, "length": self.length}
