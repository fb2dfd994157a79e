"""Probe networks for learning a device: convolutional networks drawn at random, sizes users deploy.

They mix what mobile networks are made of (convolutions, inverted bottlenecks, squeeze-and-
excitation, pooling, five activations), so that a predictor fitted on them knows the operations of
search spaces that it has not seen. Weights are random: the time of dense float operations depends
on shapes alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from latency.tflite.graph import SAME, Graph

RESOLUTIONS = (96, 112, 128, 160, 192, 224)
ACTIVATIONS = ("relu", "relu", "relu6", "hard_swish", "silu")
_FUSED = {
    "relu": schema.ActivationFunctionType.RELU,
    "relu6": schema.ActivationFunctionType.RELU6,
}
_STAGES = (16, 24, 40, 80, 112, 192)  # filters at width 1, as in the networks of the catalog


def network(seed: int) -> bytes:
    """The `.tflite` file of probe `seed`; the same seed is the same network.

    >>> network(0)[4:8]
    b'TFL3'
    """
    random = np.random.default_rng(seed)
    writer = Writer(int(random.choice(RESOLUTIONS)), weights=random.spawn(1)[0])
    width = float(np.exp(random.uniform(np.log(0.3), np.log(1.5))))
    activation = str(random.choice(ACTIVATIONS))
    x = writer.conv(writer.image, _filters(random, 24 * width), 3, 2, activation)
    for number, filters in enumerate(_STAGES[: random.integers(4, len(_STAGES) + 1)]):
        kind = str(random.choice(("mbconv", "mbconv", "mbconv", "depthwise", "conv", "mixed")))
        filters = _filters(random, filters * width * random.uniform(0.7, 1.4))
        stride = 2 if number in (1, 2, 3, 5) else 1
        for repeat in range(random.integers(1, 4)):
            x = _layer(writer, random, x, kind, filters, stride if repeat == 0 else 1, activation)
    if random.random() < 0.7:
        x = writer.conv(x, _filters(random, 640 * random.uniform(0.2, 3)), 1, 1, activation)
    x = writer.mean(x)
    if random.random() < 0.2:
        x = writer.dense(x, _filters(random, 512 * random.uniform(0.2, 2)), "relu")
    x = writer.dense(x, int(random.choice((2, 10, 100, 1000))))
    return writer.finish(writer.softmax(x) if random.random() < 0.3 else x)


def _filters(random: np.random.Generator, about: float) -> int:
    """A width near `about`: mostly a multiple of 8, as designers choose them, sometimes of 4."""
    divisor = int(random.choice((8, 8, 4)))
    return max(divisor, round(about / divisor) * divisor)


def _layer(
    writer: "Writer",
    random: np.random.Generator,
    x: int,
    kind: str,
    filters: int,
    stride: int,
    activation: str,
) -> int:
    """One layer of a stage; what the kind leaves open is drawn anew for each layer."""
    if kind == "mixed":
        kind = str(random.choice(("mbconv", "depthwise", "conv", "pool")))
    kernel = int(random.choice((3, 3, 5, 5, 7)))
    inputs, channels = x, writer.shape(x)[-1]
    if kind == "pool":
        x = writer.pool(x, int(random.choice((2, 3))), stride, str(random.choice(_POOLS)))
        return writer.conv(x, filters, 1, 1, activation)
    if kind == "conv":
        x = writer.conv(x, filters, min(kernel, 5), stride, activation)
    else:
        expand = int(random.choice((2, 3, 4, 6))) if kind == "mbconv" else 1
        if expand > 1:
            x = writer.conv(x, channels * expand, 1, 1, activation)
        x = writer.depthwise(x, kernel, stride, activation)
    if random.random() < 0.35:
        of = channels if random.random() < 0.5 else writer.shape(x)[-1]
        gate = str(random.choice(("sigmoid", "sigmoid", "hard_sigmoid")))
        x = writer.squeeze_excite(x, max(4, of // 4), gate)
    if kind != "conv":
        x = writer.conv(x, filters, 1, 1)
    skip = str(random.choice(("identity", "identity", "pool", "none", "concat")))
    if skip == "identity" and writer.shape(x) == writer.shape(inputs):
        x = writer.add(x, inputs)
    elif skip == "concat" and writer.shape(x)[1] == writer.shape(inputs)[1]:
        x = writer.conv(writer.concatenate(x, inputs), filters, 1, 1, activation)
    elif skip == "pool":
        beside = writer.pool(inputs, 3, stride, "AVERAGE_POOL_2D")
        x = writer.add(x, beside if channels == filters else writer.conv(beside, filters, 1, 1))
    return x


_POOLS = ("AVERAGE_POOL_2D", "MAX_POOL_2D")


class Writer:
    """A network on an image that is being written; tensors are numbers of its `Graph`."""

    def __init__(
        self, resolution: int, channels: int = 3, weights: np.random.Generator | None = None
    ):
        self._graph = Graph()
        self._random = weights or np.random.default_rng(0)
        self._count = 0
        self.image = self._graph.tensor((1, resolution, resolution, channels), "image")

    def shape(self, x: int) -> tuple[int, ...]:
        return self._graph.shapes[x]

    def conv(self, x: int, filters: int, kernel: int, stride: int, activation: str = "none") -> int:
        """A convolution with bias and activation, SAME."""
        options = schema.Conv2DOptionsT(padding=SAME, strideH=stride, strideW=stride)
        return self._convolution("CONV_2D", x, filters, kernel, stride, options, activation)

    def depthwise(self, x: int, kernel: int, stride: int, activation: str = "none") -> int:
        """A depthwise convolution with bias and activation, SAME."""
        options = schema.DepthwiseConv2DOptionsT(
            padding=SAME, strideH=stride, strideW=stride, depthMultiplier=1
        )
        channels = self.shape(x)[-1]
        kind = "DEPTHWISE_CONV_2D"
        return self._convolution(kind, x, channels, kernel, stride, options, activation)

    def pool(self, x: int, size: int, stride: int, kind: str) -> int:
        """AVERAGE_POOL_2D or MAX_POOL_2D, SAME."""
        options = schema.Pool2DOptionsT(
            padding=SAME, strideH=stride, strideW=stride, filterHeight=size, filterWidth=size
        )
        return self._add(kind, [x], self._strided(x, stride, self.shape(x)[-1]), options)

    def mean(self, x: int, keep: bool = False) -> int:
        """The mean over height and width."""
        channels = self.shape(x)[-1]
        axes = self._graph.constant([1, 2], self._name("axes"), np.int32)
        shape = (1, 1, 1, channels) if keep else (1, channels)
        return self._add("MEAN", [x, axes], shape, schema.ReducerOptionsT(keepDims=keep))

    def dense(self, x: int, units: int, activation: str = "none") -> int:
        """A matrix product with bias and activation."""
        inputs = self.shape(x)[-1]
        options = schema.FullyConnectedOptionsT(fusedActivationFunction=_FUSED.get(activation, 0))
        weights = self._weights((units, inputs), inputs)
        x = self._add("FULLY_CONNECTED", [x, *weights], (1, units), options)
        return x if activation in _FUSED else self.activate(x, activation)

    def squeeze_excite(self, x: int, units: int, gate: str = "sigmoid") -> int:
        """Scales each channel by a gate computed from all of them (arXiv 1709.01507)."""
        y = self.conv(self.mean(x, keep=True), units, 1, 1, "relu")
        y = self.conv(y, self.shape(x)[-1], 1, 1, gate)
        return self._add("MUL", [x, y], self.shape(x), schema.MulOptionsT())

    def add(self, x: int, y: int) -> int:
        """The sum of two tensors of one shape."""
        return self._add("ADD", [x, y], self.shape(x), schema.AddOptionsT())

    def concatenate(self, x: int, y: int) -> int:
        """Two tensors beside each other in their channels."""
        options = schema.ConcatenationOptionsT(axis=-1)
        shape = (*self.shape(x)[:-1], self.shape(x)[-1] + self.shape(y)[-1])
        return self._add("CONCATENATION", [x, y], shape, options)

    def softmax(self, x: int) -> int:
        """Probabilities of the classes."""
        return self._add("SOFTMAX", [x], self.shape(x), schema.SoftmaxOptionsT(beta=1.0))

    def activate(self, x: int, activation: str) -> int:
        """An activation as operations of its own, written as `latency.tflite.direct_writer` writes
        it."""
        shape = self.shape(x)
        if activation == "none":
            return x
        if activation in ("relu", "relu6"):
            return self._add(activation.upper(), [x], shape)
        if activation == "sigmoid":
            return self._add("LOGISTIC", [x], shape)
        if activation == "hard_swish":
            return self._add("HARD_SWISH", [x], shape, schema.HardSwishOptionsT())
        if activation == "silu":
            gate = self._add("LOGISTIC", [x], shape)
            return self._add("MUL", [x, gate], shape, schema.MulOptionsT())
        if activation == "hard_sigmoid":
            three = self._graph.constant(3.0, self._name("three"))
            x = self._add("ADD", [x, three], shape, schema.AddOptionsT())
            x = self._add("RELU6", [x], shape)
            sixth = self._graph.constant(1 / 6, self._name("sixth"))
            return self._add("MUL", [x, sixth], shape, schema.MulOptionsT())
        raise ValueError(f"activation {activation!r}: expected one of {', '.join(ACTIVATIONS)}")

    def finish(self, x: int) -> bytes:
        """The `.tflite` file with output `x`."""
        return self._graph.serialize([self.image], self._graph.fuse([self.image], [x]))

    def _convolution(
        self,
        kind: str,
        x: int,
        filters: int,
        kernel: int,
        stride: int,
        options: Any,
        activation: str,
    ) -> int:
        channels = self.shape(x)[-1]
        full = kind == "CONV_2D"
        shape = (filters, kernel, kernel, channels) if full else (1, kernel, kernel, channels)
        weights = self._weights(shape, kernel * kernel * (channels if full else 1))
        options.fusedActivationFunction = _FUSED.get(activation, 0)
        x = self._add(kind, [x, *weights], self._strided(x, stride, filters), options)
        return x if activation in _FUSED else self.activate(x, activation)

    def _weights(self, shape: tuple[int, ...], fan_in: int) -> tuple[int, int]:
        kernel = self._random.standard_normal(shape, np.float32) * np.float32((2 / fan_in) ** 0.5)
        bias = self._random.standard_normal(shape[0] if shape[0] > 1 else shape[-1], np.float32)
        constant = self._graph.constant
        return constant(kernel, self._name("kernel")), constant(bias / 10, self._name("bias"))

    def _strided(self, x: int, stride: int, channels: int) -> tuple[int, ...]:
        _, height, width, _ = self.shape(x)
        return (1, -(-height // stride), -(-width // stride), channels)

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{what}{self._count}"

    def _add(
        self, kind: str, inputs: Sequence[int], shape: tuple[int, ...], options: Any = None
    ) -> int:
        return self._graph.add(kind, inputs, shape, self._name("layer"), options)
