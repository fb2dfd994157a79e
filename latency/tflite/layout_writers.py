"""LiteRT operators for `families.layers.layouts`: pixels to channels or batch, and back.

By registered names, as this package imports no family; operators and order are the converter's.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema


def _space_to_depth(graph, layer, inputs, shape) -> int:
    x, (batch, rows, columns, channels) = inputs[0], shape
    sizes = graph.shapes[x]
    around = [(0, 0), (0, sizes[1] % 2), (0, sizes[2] % 2), (0, 0)]
    if np.any(around):
        padded = (batch, 2 * rows, 2 * columns, sizes[3])
        amounts = graph.constant(around, f"{layer.name}/padding", np.int32)
        x = graph.add("PAD", [x, amounts], padded, layer.name, schema.PadOptionsT())
    return _exchanged(graph, layer, x, (batch * rows, 2, columns, channels // 2), shape)


def _depth_to_space(graph, layer, inputs, shape) -> int:
    batch, rows, columns, channels = graph.shapes[inputs[0]]
    whole = (batch, 2 * rows, 2 * columns, channels // 4)
    x = _exchanged(graph, layer, inputs[0], (batch * rows, columns, 2, channels // 2), whole)
    if shape == whole:
        return x
    ends = [
        graph.constant(value, f"{layer.name}/{name}", np.int32)
        for name, value in (("begin", (0,) * 4), ("end", shape), ("strides", (1,) * 4))
    ]
    # The masks: from the first to the last sample and channel.
    options = schema.StridedSliceOptionsT(beginMask=0b1111, endMask=0b1001)
    return graph.add("STRIDED_SLICE", [x, *ends], shape, layer.name, options)


def _depth_to_batch(graph, layer, inputs, shape) -> int:
    batch, rows, columns, channels = shape
    return _exchanged(
        graph, layer, inputs[0], (batch // 4, rows * columns, 4, channels), tuple(shape)
    )


def _batch_to_depth(graph, layer, inputs, shape) -> int:
    batch, rows, columns, channels = shape
    return _exchanged(graph, layer, inputs[0], (batch, 4, rows * columns, channels // 4), shape)


def _exchanged(graph, layer, x: int, sizes: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """A tensor of `sizes` with the two axes in the middle exchanged, seen as of `shape`."""
    x = _reshape(graph, layer, x, sizes)
    axes = graph.constant((0, 2, 1, 3), f"{layer.name}/axes", np.int32)
    sizes = (sizes[0], sizes[2], sizes[1], sizes[3])
    x = graph.add("TRANSPOSE", [x, axes], sizes, layer.name, schema.TransposeOptionsT())
    return _reshape(graph, layer, x, shape)


def _reshape(graph, layer, x: int, shape: tuple[int, ...]) -> int:
    target = graph.constant(shape, f"{layer.name}/shape", np.int32)
    return graph.add("RESHAPE", [x, target], shape, layer.name)


WRITERS = {
    "nas>BatchToDepth": _batch_to_depth,
    "nas>DepthToBatch": _depth_to_batch,
    "nas>DepthToSpace": _depth_to_space,
    "nas>SpaceToDepth": _space_to_depth,
}
