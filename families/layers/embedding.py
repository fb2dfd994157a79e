"""One table for the first and the last layer of a language model: Press and Wolf, 1608.05859."""

import math

import keras


@keras.saving.register_keras_serializable("nas")
class TiedEmbedding(keras.layers.ReversibleEmbedding):
    """Keras's embedding that also projects back, `layer(x, reverse=True)`, and counts that."""

    def macs(self, shape: tuple[int, ...]) -> int:
        """A look-up multiplies nothing; the way back is a product with the whole table."""
        return math.prod(shape) * self.input_dim if len(shape) == 3 else 0
