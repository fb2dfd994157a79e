"""A choice as masks on shared weights: zeros where it has no channels; each network costs the most.

For compilers that fix shapes (JAX): the functions and outputs of nas/supernets/slices.py.
"""

from typing import Any

import numpy as np
from keras import ops


def narrow(kernel: Any, window: Any = None, inputs: Any = None, outputs: Any = None) -> Any:
    """A kernel (rows, columns, inputs, outputs) with zeros outside of the chosen part."""
    rows, _, *channels = kernel.shape
    if window is not None:
        distance = abs(np.arange(rows, dtype="int32") - rows // 2)
        inside = ops.cast(distance <= window // 2, kernel.dtype)
        kernel = kernel * ops.reshape(inside, (-1, 1, 1, 1)) * ops.reshape(inside, (1, -1, 1, 1))
    if inputs is not None:
        kernel = kernel * ops.reshape(_mask(channels[0], inputs), (1, 1, -1, 1))
    return kernel if outputs is None else kernel * _mask(channels[1], outputs)


def first(vector: Any, count: Any) -> Any:
    """A vector with zeros after its first `count` numbers."""
    vector = ops.convert_to_tensor(vector)
    return vector if count is None else vector * _mask(vector.shape[0], count)


def _mask(size: int, count: Any) -> Any:
    return ops.cast(np.arange(size, dtype="int32") < count, "float32")


def convolved(inputs: Any, kernel: Any, stride: int = 1) -> Any:
    return ops.conv(inputs, kernel, stride, padding="same")


def depthwise(inputs: Any, kernel: Any, stride: int = 1) -> Any:
    return ops.depthwise_conv(inputs, kernel, stride, padding="same")


def normalized(inputs: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    """Normalize channels by the statistics of this batch; those without gamma and beta are 0."""
    mean, variance = ops.moments(inputs, (0, 1, 2), keepdims=True)
    return (inputs - mean) * (ops.rsqrt(variance + epsilon) * gamma) + beta


def widened(inputs: Any, channels: int) -> Any:
    """`inputs` with zeros up to `channels`, or without those beyond, which are zeros."""
    present = inputs.shape[-1]
    if present < channels:
        return ops.pad(inputs, [(0, 0), (0, 0), (0, 0), (0, channels - present)])
    return inputs[..., :channels]


def nothing(inputs: Any, stride: int, chosen: Any, channels: int) -> Any:
    """The output of a layer of which nothing is on: zeros."""
    batch, height, width, _ = inputs.shape
    batch = ops.shape(inputs)[0] if batch is None else batch
    return ops.zeros((batch, -(-height // stride), -(-width // stride), channels))
