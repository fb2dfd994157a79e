"""Normalization of each attention head: Henry et al., "Query-Key Normalization", 2010.04245."""

from typing import Any

import keras
from keras import ops

from families.layers.heads import tie_heads
from families.layers.protocol import ChannelGraph, Labels


@keras.saving.register_keras_serializable("nas")
class HeadNormalization(keras.layers.Layer):
    """RMS normalization of every head of (batch, length, heads * width), one scale (width,).

    >>> HeadNormalization(heads=2)(keras.Input((5, 8))).shape
    (None, 5, 8)
    """

    def __init__(self, heads: int, epsilon: float = 1e-6, **kwargs: Any):
        super().__init__(**kwargs)
        self.heads = heads
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int, ...]) -> None:
        width = input_shape[-1] // self.heads
        self.scale = self.add_weight(name="scale", shape=(width,), initializer="ones")

    def call(self, inputs: Any) -> Any:
        length, width = inputs.shape[1:]
        heads = ops.reshape(inputs, (-1, length, self.heads, width // self.heads))
        heads = ops.rms_normalization(heads, self.scale, axis=-1, epsilon=self.epsilon)
        return ops.reshape(heads, (-1, length, width))

    def compute_output_shape(self, input_shape: tuple[int, ...]) -> tuple[int | None, ...]:
        return input_shape

    def macs(self, *_: Any) -> int:
        return 0

    def channels(self, graph: ChannelGraph, node: Any, labels: Labels) -> Labels:
        """Whole heads leave."""
        return tie_heads(graph, self, labels[0])

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"heads": self.heads, "epsilon": self.epsilon}
