"""Pieces of mobile networks: convolutions without bias, their normalization, channel gates.

Their starting values are those of the released MnasNet and EfficientNet (tensorflow/tpu).
"""

from typing import Any

import keras


def convolution(inputs: Any, filters: int, kernel: int, *, name: str, stride: int = 1) -> Any:
    """A convolution without bias, with padding "same"; the layer's name is `name`."""
    return keras.layers.Conv2D(
        filters,
        kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer=_initializer(),
        name=name,
    )(inputs)


def depthwise(inputs: Any, kernel: int, *, name: str, stride: int = 1) -> Any:
    """A depthwise convolution without bias, with padding "same"."""
    return keras.layers.DepthwiseConv2D(
        kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        depthwise_initializer=_initializer(),
        name=name,
    )(inputs)


def norm(inputs: Any, *, momentum: float, name: str) -> Any:
    """BatchNormalization with the epsilon of the released mobile networks."""
    return keras.layers.BatchNormalization(momentum=momentum, epsilon=1e-3, name=name)(inputs)


def squeeze_excite(inputs: Any, units: int, path: str, activation: str = "relu") -> Any:
    """Scale each channel by a gate computed from all of them (arXiv 1709.01507)."""
    x = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{path}_squeeze")(inputs)
    x = keras.layers.Conv2D(units, 1, activation=activation, name=f"{path}_squeeze_reduce")(x)
    x = keras.layers.Conv2D(
        inputs.shape[-1], 1, activation="sigmoid", name=f"{path}_squeeze_expand"
    )(x)
    return keras.layers.Multiply(name=f"{path}_excite")([inputs, x])


def _initializer():
    """Normal, variance 2 / fan_out (released code); new for each layer, for each has its seed."""
    return keras.initializers.VarianceScaling(
        2.0, mode="fan_out", distribution="untruncated_normal"
    )
