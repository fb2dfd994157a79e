"""Where a feature map keeps its pixels: in space, in channels or in the batch; reshapes only.

Li et al., "Searching for Fast Model Families on Datacenter Accelerators", CVPR 2021
(arXiv 2102.05610): the same pixels in another layout fill the matrix units of an accelerator
better. All four leaves transpose at most four axes, which every exporter can.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from families.layers.protocol import LiteRTGraph

Shape = tuple[int, ...]


class _Layout(keras.layers.Layer):
    """A leaf without weights that moves values and computes nothing."""

    # The batch of the output over that of the input: what an open batch in a graph does not tell.
    batch_factor = 1.0

    def macs(self, *_: Any) -> int:
        return 0

    def _exchanged(self, graph: LiteRTGraph, x: int, sizes: Shape, shape: Shape) -> int:
        """A tensor of `sizes` with the two axes in the middle exchanged, seen as of `shape`."""
        x = self._reshaped(graph, x, sizes)
        axes = graph.constant((0, 2, 1, 3), f"{self.name}/axes", np.int32)
        sizes = (sizes[0], sizes[2], sizes[1], sizes[3])
        x = graph.add("TRANSPOSE", [x, axes], sizes, self.name, {})
        return self._reshaped(graph, x, shape)

    def _reshaped(self, graph: LiteRTGraph, x: int, shape: Shape) -> int:
        target = graph.constant(shape, f"{self.name}/shape", np.int32)
        return graph.add("RESHAPE", [x, target], shape, self.name)


@keras.saving.register_keras_serializable("nas")
class SpaceToDepth(_Layout):
    """(batch, h, w, c) -> (batch, ceil(h / 2), ceil(w / 2), 4 c); odd sizes get a row of zeros.

    Channels are ordered by row, column and channel of their 2 x 2 pixels, as in `tf.nn`.

    >>> SpaceToDepth()(keras.Input((5, 6, 3))).shape
    (None, 3, 3, 12)
    """

    def call(self, inputs: Any) -> Any:
        height, width, channels = inputs.shape[1:]
        if height % 2 or width % 2:
            inputs = ops.pad(inputs, [[0, 0], [0, height % 2], [0, width % 2], [0, 0]])
        rows, columns = -(-height // 2), -(-width // 2)
        # The batch and the rows are one axis: two pixel rows, then pairs of pixels.
        x = ops.reshape(inputs, (-1, 2, columns, 2 * channels))
        x = ops.transpose(x, (0, 2, 1, 3))
        return ops.reshape(x, (-1, rows, columns, 4 * channels))

    def compute_output_shape(self, shape: tuple[int, ...]) -> tuple[int | None, ...]:
        batch, height, width, channels = shape
        return batch, -(-height // 2), -(-width // 2), 4 * channels

    def litert(self, graph: LiteRTGraph, inputs: list[int], shape: Shape) -> int:
        x, (batch, rows, columns, channels) = inputs[0], shape
        sizes = graph.shapes[x]
        around = [(0, 0), (0, sizes[1] % 2), (0, sizes[2] % 2), (0, 0)]
        if np.any(around):
            padded = (batch, 2 * rows, 2 * columns, sizes[3])
            amounts = graph.constant(around, f"{self.name}/padding", np.int32)
            x = graph.add("PAD", [x, amounts], padded, self.name, {})
        return self._exchanged(graph, x, (batch * rows, 2, columns, channels // 2), shape)


@keras.saving.register_keras_serializable("nas")
class DepthToSpace(_Layout):
    """The inverse of `SpaceToDepth`: (batch, h, w, 4 c) -> (batch, *size, c).

    size: height and width, at most 2 h and 2 w; what was added to odd sizes is cut off.

    >>> DepthToSpace(size=(5, 6))(keras.Input((3, 3, 12))).shape
    (None, 5, 6, 3)
    """

    def __init__(self, size: tuple[int, int], **kwargs: Any):
        super().__init__(**kwargs)
        self.size = tuple(int(side) for side in size)

    def call(self, inputs: Any) -> Any:
        rows, columns, channels = inputs.shape[1:]
        x = ops.reshape(inputs, (-1, columns, 2, channels // 2))
        x = ops.transpose(x, (0, 2, 1, 3))
        x = ops.reshape(x, (-1, 2 * rows, 2 * columns, channels // 4))
        height, width = self.size
        return x if self.size == (2 * rows, 2 * columns) else x[:, :height, :width, :]

    def compute_output_shape(self, shape: tuple[int, ...]) -> tuple[int | None, ...]:
        batch, rows, columns, channels = shape
        if channels % 4 or self.size[0] > 2 * rows or self.size[1] > 2 * columns:
            raise ValueError(
                f"{self.name}: {shape[1:]} holds no image of size {self.size} four channels deep"
            )
        return batch, *self.size, channels // 4

    def litert(self, graph: LiteRTGraph, inputs: list[int], shape: Shape) -> int:
        batch, rows, columns, channels = graph.shapes[inputs[0]]
        whole = (batch, 2 * rows, 2 * columns, channels // 4)
        x = self._exchanged(graph, inputs[0], (batch * rows, columns, 2, channels // 2), whole)
        if shape == whole:
            return x
        ends = [
            graph.constant(value, f"{self.name}/{name}", np.int32)
            for name, value in (("begin", (0,) * 4), ("end", shape), ("strides", (1,) * 4))
        ]
        # The masks: from the first to the last sample and channel.
        options = {"beginMask": 0b1111, "endMask": 0b1001}
        return graph.add("STRIDED_SLICE", [x, *ends], shape, self.name, options)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"size": self.size}


@keras.saving.register_keras_serializable("nas")
class DepthToBatch(_Layout):
    """(batch, h, w, 4 c) -> (4 batch, h, w, c): four images of each, in its channels' order.

    After `SpaceToDepth` it is space-to-batch: the four grids of every second pixel.
    """

    batch_factor = 4.0

    def call(self, inputs: Any) -> Any:
        rows, columns, channels = inputs.shape[1:]
        x = ops.reshape(inputs, (-1, rows * columns, 4, channels // 4))
        x = ops.transpose(x, (0, 2, 1, 3))
        return ops.reshape(x, (-1, rows, columns, channels // 4))

    def compute_output_shape(self, shape: tuple[int, ...]) -> tuple[int | None, ...]:
        batch, rows, columns, channels = shape
        if channels % 4:
            raise ValueError(f"{self.name}: {channels} channels are not four times as many")
        return None if batch is None else 4 * batch, rows, columns, channels // 4

    def litert(self, graph: LiteRTGraph, inputs: list[int], shape: Shape) -> int:
        batch, rows, columns, channels = shape
        sizes = (batch // 4, rows * columns, 4, channels)
        return self._exchanged(graph, inputs[0], sizes, tuple(shape))


@keras.saving.register_keras_serializable("nas")
class BatchToDepth(_Layout):
    """The inverse of `DepthToBatch`: (4 batch, h, w, c) -> (batch, h, w, 4 c)."""

    batch_factor = 0.25

    def call(self, inputs: Any) -> Any:
        rows, columns, channels = inputs.shape[1:]
        x = ops.reshape(inputs, (-1, 4, rows * columns, channels))
        x = ops.transpose(x, (0, 2, 1, 3))
        return ops.reshape(x, (-1, rows, columns, 4 * channels))

    def compute_output_shape(self, shape: tuple[int, ...]) -> tuple[int | None, ...]:
        batch, rows, columns, channels = shape
        return None if batch is None else batch // 4, rows, columns, 4 * channels

    def litert(self, graph: LiteRTGraph, inputs: list[int], shape: Shape) -> int:
        batch, rows, columns, channels = shape
        sizes = (batch, 4, rows * columns, channels // 4)
        return self._exchanged(graph, inputs[0], sizes, shape)
