"""Rotary position embeddings: Su et al., arXiv 2104.09864."""

from typing import Any

import keras
import numpy as np
from keras import ops

from families.layers.heads import tie_heads
from families.layers.protocol import ChannelGraph, Labels


@keras.saving.register_keras_serializable("nas")
class RotaryAngles(keras.layers.Layer):
    """The cosines and sines of every position, once for all layers: (batch or 1, length, width).

    Called with tokens (batch, length), which stand at 0, 1, ..., or with `position` (batch, 1) at
    position, position + 1, ... The first half of the last axis are the cosines of
    position * theta ** (-2 i / width) for i < width / 2, the second half the sines.
    """

    def __init__(self, width: int, theta: float = 10000.0, **kwargs: Any):
        super().__init__(**kwargs)
        if width % 2:
            raise ValueError(f"rotary embeddings turn pairs; expected an even width, got {width}")
        self.width = width
        self.theta = theta

    def call(self, tokens: Any, position: Any = None) -> Any:
        rates = self.theta ** (-np.arange(0, self.width, 2) / self.width)
        steps = np.arange(tokens.shape[1], dtype="float32")
        rates = rates.astype("float32")
        if position is None:  # a constant, of the very products that a step computes
            angles = (steps[:, None] * rates)[None]
            table = np.concatenate([np.cos(angles), np.sin(angles)], -1)
            return ops.convert_to_tensor(table, self.compute_dtype)
        positions = ops.cast(position, "float32") + steps
        angles = ops.expand_dims(positions, -1) * rates
        table = ops.concatenate([ops.cos(angles), ops.sin(angles)], -1)
        return ops.cast(table, self.compute_dtype)

    def compute_output_spec(self, tokens: Any, position: Any = None) -> Any:
        batch = 1 if position is None else tokens.shape[0]
        shape = (batch, tokens.shape[1], self.width)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def macs(self, *_: Any) -> int:
        return 0

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"width": self.width, "theta": self.theta}


@keras.saving.register_keras_serializable("nas")
class Rotary(keras.layers.Layer):
    """Turn each pair of every head of inputs (batch, length, heads * width) by its angle.

    The pairs of a head are (i, i + width / 2). Checkpoints whose pairs are (2 i, 2 i + 1) need the
    columns of their kernels in the order of `halves`.
    """

    def __init__(self, heads: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.heads = heads

    def call(self, inputs: Any, angles: Any) -> Any:
        length, width = inputs.shape[1], inputs.shape[2] // self.heads
        cos, sin = ops.split(ops.expand_dims(angles, 2), 2, axis=-1)
        heads = ops.reshape(inputs, (-1, length, self.heads, width))
        first, second = ops.split(heads, 2, axis=-1)
        turned = [first * cos - second * sin, second * cos + first * sin]
        return ops.reshape(ops.concatenate(turned, -1), (-1, length, inputs.shape[2]))

    def compute_output_spec(self, inputs: Any, angles: Any) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def macs(self, *_: Any) -> int:
        return 0

    def channels(self, graph: ChannelGraph, node: Any, labels: Labels) -> Labels:
        """Whole heads leave."""
        return tie_heads(graph, self, labels[0])

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"heads": self.heads}


def halves(heads: int, width: int) -> np.ndarray:
    """Order of the columns of a query or key kernel whose rotary pairs are neighbours.

    `kernel[:, halves(heads, width)]` is the same projection for `Rotary`, as is `scale[halves(1,
    width)]` of a normalization of each head. llama2.c pairs neighbours; Hugging Face's files of
    Llama and Mixtral hold halves already.

    >>> halves(1, 6)
    array([0, 2, 4, 1, 3, 5])
    """
    pairs = np.arange(heads * width).reshape(heads, width // 2, 2)
    return pairs.transpose(0, 2, 1).reshape(-1)
