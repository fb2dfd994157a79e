"""Networks that compute in half or double precision: files and comparisons take float32."""

import contextlib
from collections.abc import Iterator
from typing import Any

OTHERS = ("float16", "bfloat16", "float64")


def other_precision(model: Any) -> dict[str, str]:
    """Name of a layer that computes, or keeps its weights, in another precision -> its policy.

    >>> import keras
    >>> inputs = keras.Input((4,))
    >>> outputs = keras.layers.Dense(2, dtype="mixed_float16", name="head")(inputs)
    >>> other_precision(keras.Model(inputs, outputs))
    {'head': 'mixed_float16'}
    """
    return {layer.name: layer.dtype_policy.name for layer in _others(model)}


def quantized(model: Any) -> dict[str, str]:
    """Name of a layer that Keras itself quantized -> its mode, such as "int8"."""
    modes = {layer.name: layer.dtype_policy.quantization_mode for layer in model._flatten_layers()}
    return {name: mode for name, mode in modes.items() if mode is not None}


@contextlib.contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """While this lasts, all layers of a model compute in float32; their weights stay as they are.

    Layers that Keras quantized keep their own types.
    """
    import keras  # noqa: PLC0415 (whoever has a model has imported it)

    before = [(layer, layer.dtype_policy) for layer in _others(model)]
    try:
        for layer, other in before:
            policy = keras.DTypePolicy("float32")
            policy._variable_dtype = other.variable_dtype  # so that Keras casts what it reads
            layer.dtype_policy = policy
        yield
    finally:
        for layer, policy in before:
            layer.dtype_policy = policy


def _others(model: Any) -> list[Any]:
    return [
        layer
        for layer in model._flatten_layers()
        if layer.dtype_policy.quantization_mode is None
        and {layer.dtype_policy.compute_dtype, layer.dtype_policy.variable_dtype} & set(OTHERS)
    ]
