"""What makes a sequence of image patches one: a class token and learned positions."""

from typing import Any

import keras
from keras import ops

from families.layers.protocol import ChannelGraph, Labels


@keras.saving.register_keras_serializable("nas")
class ClassToken(keras.layers.Layer):
    """A learned token before the others: (batch, tokens, dim) -> (batch, 1 + tokens, dim).

    Its output is what a classifier reads (Devlin et al., arXiv 1810.04805).

    >>> ClassToken()(keras.Input((4, 8))).shape
    (None, 5, 8)
    """

    def build(self, shape: tuple[int, ...]) -> None:
        self.token = self.add_weight(shape=(1, 1, shape[-1]), initializer="zeros", name="token")

    def call(self, inputs: Any) -> Any:
        first = ops.broadcast_to(self.token, (ops.shape(inputs)[0], 1, inputs.shape[-1]))
        return ops.concatenate([first, inputs], 1)

    def compute_output_shape(self, shape: tuple[int, ...]) -> tuple[int | None, ...]:
        return (shape[0], shape[1] + 1, shape[2])

    def macs(self, *_: Any) -> int:
        return 0

    def channels(self, graph: ChannelGraph, node: Any, labels: Labels) -> Labels:
        """The token has the channels of the tokens that it is put before."""
        graph.slot(self, "token", -1, labels[0], "other")
        return [labels[0]]


@keras.saving.register_keras_serializable("nas")
class Positions(keras.layers.Layer):
    """Adds a learned vector for every place: (batch, tokens, dim) to the same."""

    def build(self, shape: tuple[int, ...]) -> None:
        self.positions = self.add_weight(
            # 0.02: released ViT
            shape=shape[1:],
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="positions",
        )

    def call(self, inputs: Any) -> Any:
        return inputs + self.positions

    def compute_output_shape(self, shape: tuple[int, ...]) -> tuple[int | None, ...]:
        return shape

    def macs(self, *_: Any) -> int:
        return 0

    def channels(self, graph: ChannelGraph, node: Any, labels: Labels) -> Labels:
        """Added channel by channel."""
        graph.slot(self, "positions", -1, labels[0], "other")
        return [labels[0]]
