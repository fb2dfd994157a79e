"""A choice as slices of shared weights, their sizes tensors: what is not chosen costs nothing.

For TensorFlow, whose kernels take the shapes they meet: one graph computes every network of a space
at the cost of that network. Compilers that fix shapes need nas/supernets/masks.py.
"""

from typing import Any

import tensorflow as tf


def narrow(kernel: Any, window: Any = None, inputs: Any = None, outputs: Any = None) -> Any:
    """The chosen part of a kernel (rows, columns, inputs, outputs): its centre, its first channels.

    `window` is the size of the kernel, the others are numbers of channels; None: all there is.
    """
    kernel = tf.convert_to_tensor(kernel)
    rows = slice(None)
    if window is not None:
        edge = (kernel.shape[0] - window) // 2
        rows = slice(edge, edge + window)
    # One operation, and one for its gradient: tf.slice has eight for that.
    return kernel[rows, rows, :inputs, :outputs]


def first(vector: Any, count: Any) -> Any:
    """The first `count` numbers of a vector; None: all."""
    return tf.convert_to_tensor(vector)[:count]


def convolved(inputs: Any, kernel: Any, stride: int = 1) -> Any:
    return _shaped(tf.nn.conv2d(inputs, kernel, stride, "SAME"), inputs, stride)


def depthwise(inputs: Any, kernel: Any, stride: int = 1) -> Any:
    """Each channel with the one kernel of its own: (rows, columns, channels, 1)."""
    outputs = tf.raw_ops.DepthwiseConv2dNative(
        input=inputs, filter=kernel, strides=[1, stride, stride, 1], padding="SAME"
    )
    return _shaped(outputs, inputs, stride)


def _shaped(outputs: Any, inputs: Any, stride: int) -> Any:
    """With the shape as far as it is known: all but the channels."""
    batch, height, width, _ = inputs.shape
    outputs.set_shape((batch, -(-height // stride), -(-width // stride), None))
    return outputs


def normalized(inputs: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    """Normalize channels by the statistics of this batch (Ioffe and Szegedy, arXiv 1502.03167)."""
    return tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
    ).y


def widened(inputs: Any, channels: int) -> Any:
    """`inputs` as if they had `channels`, the most there can be: they keep those chosen."""
    return inputs


def nothing(inputs: Any, stride: int, chosen: Any, channels: int) -> Any:
    """The output of a layer of which nothing is on: zeros."""
    batch, height, width, _ = inputs.shape
    batch = tf.shape(inputs)[0] if batch is None else batch
    chosen = channels if chosen is None else chosen
    return tf.zeros([batch, -(-height // stride), -(-width // stride), chosen])
