"""Leaves about the time axis: which frames are real, which are kept for the next chunk."""

from typing import Any

import keras
from keras import ops

from families.layers.protocol import ChannelGraph, Labels


@keras.saving.register_keras_serializable("nas")
class ValidFrames(keras.layers.Layer):
    """Numbers of real frames (batch,) -> (batch, length): 1 for frames, 0 for the padding after.

    `ratio` frames became one before: counts are divided by it, rounded up.

    >>> ValidFrames(3, ratio=4)(keras.ops.convert_to_tensor([5])).numpy().tolist()
    [[1.0, 1.0, 0.0]]
    """

    def __init__(self, length: int, ratio: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.length = length
        self.ratio = ratio

    def call(self, frames: Any) -> Any:
        first = ops.arange(self.length, dtype="int32") * self.ratio
        return ops.cast(first[None, :] < ops.cast(frames, "int32")[:, None], self.compute_dtype)

    def compute_output_spec(self, frames: Any) -> Any:
        return keras.KerasTensor((frames.shape[0], self.length), self.compute_dtype)

    def macs(self, *_: Any) -> int:
        return 0

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"length": self.length, "ratio": self.ratio}


@keras.saving.register_keras_serializable("nas")
class ValidContext(keras.layers.Layer):
    """Which frames of cache and chunk are real, and how many the cache then holds.

    Number of real frames in the cache (batch,), at most `left` -> mask (batch, left + chunk), the
    cache being filled from its end, and the number after this chunk.
    """

    def __init__(self, left: int, chunk: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.left = left
        self.chunk = chunk

    def call(self, count: Any) -> Any:
        age = ops.arange(self.left, -self.chunk, -1, dtype="int32")  # of the oldest: left
        valid = ops.cast(age[None, :] <= count[:, None], self.compute_dtype)
        return valid, ops.minimum(count + self.chunk, self.left)

    def compute_output_spec(self, count: Any) -> Any:
        valid = keras.KerasTensor((count.shape[0], self.left + self.chunk), self.compute_dtype)
        return valid, keras.KerasTensor(count.shape, count.dtype)

    def macs(self, *_: Any) -> int:
        return 0

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"left": self.left, "chunk": self.chunk}


@keras.saving.register_keras_serializable("nas")
class LastFrames(keras.layers.Layer):
    """(batch, frames, ...) -> the last `count` of them.

    >>> LastFrames(2)(keras.Input((5, 8))).shape
    (None, 2, 8)
    """

    def __init__(self, count: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.count = count

    def call(self, inputs: Any) -> Any:
        return inputs[:, inputs.shape[1] - self.count :]

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor((inputs.shape[0], self.count, *inputs.shape[2:]), inputs.dtype)

    def macs(self, *_: Any) -> int:
        return 0

    def channels(self, graph: ChannelGraph, node: Any, labels: Labels) -> Labels:
        """As they come: only frames leave."""
        return [labels[0]]

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"count": self.count}
