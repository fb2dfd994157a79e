"""Operations of Keras that LiteRT has, written by Keras with others that it has not."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def plain_argmax() -> Iterator[None]:
    """While this lasts, argmax and argmin of Keras on TensorFlow are TensorFlow's own.

    Keras looks at the sign of zeros first (BitwiseAnd), so that -0.0 comes below 0.0: the one case
    in which both differ.
    """
    import tensorflow as tf
    from keras.src.backend.tensorflow import numpy as operations

    kept = {name: getattr(operations, name) for name in ("argmax", "argmin")}

    def plain(function: Any) -> Any:
        def call(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
            flat = tf.reshape(x, [-1]) if axis is None else x
            found = function(flat, axis=0 if axis is None else axis, output_type="int32")
            if not keepdims:
                return found
            return tf.reshape(found, [1] * x.ndim) if axis is None else tf.expand_dims(found, axis)

        return call

    operations.argmax, operations.argmin = plain(tf.argmax), plain(tf.argmin)
    try:
        yield
    finally:
        operations.argmax, operations.argmin = kept["argmax"], kept["argmin"]
