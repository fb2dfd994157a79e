"""The embedding decoder's mixture of the last labels, as a leaf.

Botros et al., "Tied & Reduced RNN-T Decoder", arXiv 2109.07513; patent US20230108275.
"""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("nas")
class LabelContext(keras.layers.Layer):
    """Embeddings (batch, steps + context - 1, d) -> (batch, steps, d).

    Output t is the mean over `heads` and the `context` last embeddings e_n of e_n times its
    similarity (scalar product) to the vector that the head has for position n.

    >>> LabelContext(heads=2)(keras.Input((4, 8))).shape
    (None, 3, 8)
    """

    def __init__(self, heads: int, context: int = 2, **kwargs: Any):
        super().__init__(**kwargs)
        self.heads = heads
        self.context = context

    def build(self, input_shape: tuple[int, ...]) -> None:
        width = input_shape[-1]
        self.position = self.add_weight(
            name="position",
            shape=(self.heads, self.context, width),
            # Similarities to embeddings of variance 1 have variance 1.
            initializer=keras.initializers.RandomNormal(stddev=width**-0.5),
        )

    def call(self, inputs: Any) -> Any:
        steps = inputs.shape[1] - self.context + 1
        total = 0.0
        for number in range(self.context):
            label = inputs[:, number : number + steps]
            similarity = ops.matmul(label, ops.transpose(self.position[:, number]))
            total = total + ops.mean(similarity, axis=-1, keepdims=True) * label
        return total / self.context

    def compute_output_shape(self, input_shape: tuple[int, ...]) -> tuple[int | None, ...]:
        batch, labels, width = input_shape
        return (batch, labels - self.context + 1, width)

    def macs(self, input_shape: tuple[int, ...]) -> int:
        batch, labels, width = input_shape
        return batch * (labels - self.context + 1) * self.context * self.heads * width

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"heads": self.heads, "context": self.context}
