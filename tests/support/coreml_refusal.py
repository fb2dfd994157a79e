"""What Core ML's writer says of Keras on another backend; run in the process with JAX."""

import pathlib

import keras
import pytest

from compress.rewriting.record import Record


def refusal(path: pathlib.Path) -> str:
    """The error of writing a small network to `path`."""
    from nas.files.writers import coreml  # needs coremltools

    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    with pytest.raises(ValueError) as error:
        coreml.write(path, model, Record())
    return str(error.value)
