"""Fixed networks whose time on a device is known: they tell a slow machine from a slow network.

A busy neighbour costs a network that lives in the core's own cache something else than a larger one
(here 42 % and 50 % on the same occasion), so there is a reference of either kind.
"""

import functools

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from latency.tflite.graph import SAME, Graph

# Input size, stem filters, then (expansion, filters, stride, kernel) of each MBConv layer.
_NETWORKS = {
    "small": (56, 16, ((3, 16, 1, 3), (3, 24, 2, 3), (3, 24, 1, 5), (6, 40, 2, 5), (6, 40, 1, 3))),
    "large": (
        112,
        24,
        ((3, 24, 1, 3), (6, 24, 2, 3), (6, 40, 2, 5), (6, 40, 1, 3), (6, 80, 2, 3), (6, 80, 1, 5)),
    ),
}
NAMES = tuple(_NETWORKS)


@functools.cache
def network(name: str) -> bytes:
    """The `.tflite` file of a reference: MBConv layers, fixed random weights. Never change one."""
    resolution, filters, layers = _NETWORKS[name]
    random = np.random.default_rng(0)
    graph = Graph()
    image = graph.tensor((1, resolution, resolution, 3), "image")
    x = _convolution(graph, random, image, filters, 3, 2, "stem", relu=True)
    for number, (expand, filters, stride, kernel) in enumerate(layers):
        channels = graph.shapes[x][-1]
        path = f"layer{number}"
        y = _convolution(graph, random, x, channels * expand, 1, 1, f"{path}_expand", relu=True)
        y = _convolution(graph, random, y, 0, kernel, stride, f"{path}_depthwise", relu=True)
        y = _convolution(graph, random, y, filters, 1, 1, f"{path}_project")
        if graph.shapes[y] == graph.shapes[x]:
            y = graph.add("ADD", [x, y], graph.shapes[y], path, schema.AddOptionsT())
        x = y
    return graph.serialize([image], graph.fuse([image], [x]))


def _convolution(
    graph: Graph,
    random: np.random.Generator,
    tensor: int,
    filters: int,
    kernel: int,
    stride: int,
    name: str,
    relu: bool = False,
) -> int:
    """A convolution, or a depthwise one where `filters` is 0."""
    _, height, width, channels = graph.shapes[tensor]
    out = filters or channels
    shape = (out, kernel, kernel, channels) if filters else (1, kernel, kernel, out)
    options = (schema.Conv2DOptionsT if filters else schema.DepthwiseConv2DOptionsT)(
        padding=SAME,
        strideH=stride,
        strideW=stride,
        fusedActivationFunction=schema.ActivationFunctionType.RELU if relu else 0,
    )
    if not filters:
        options.depthMultiplier = 1
    scale = (2 * out / np.prod(shape)) ** 0.5
    weights = graph.constant(random.normal(0, scale, shape), f"{name}/kernel")
    bias = graph.constant(random.normal(0, 0.1, out), f"{name}/bias")
    result = (1, -(-height // stride), -(-width // stride), out)
    return graph.add(
        "CONV_2D" if filters else "DEPTHWISE_CONV_2D",
        [tensor, weights, bias],
        result,
        name,
        options,
    )
