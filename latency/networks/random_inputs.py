"""Inputs that a network can take, for a network whose data is not at hand."""

from typing import Any

import numpy as np

OPEN_SIZE = 32  # of a dimension that a network leaves open
WORDS = np.array(["", "the", "network", "unheard-of"])


def random_inputs(model: Any, count: int, seed: int = 0) -> Any:
    """`count` examples in the structure of `model.input`: normal numbers, valid integers.

    Integers that are looked up in an embedding are below its size, others 0 or 1. Where a network
    begins with Rescaling or Normalization, numbers are such that these make normal ones of them.
    `model` is any Functional model.

    >>> import keras
    >>> inputs = keras.Input((1000,))
    >>> pixels = random_inputs(keras.Model(inputs, keras.layers.Rescaling(1 / 255)(inputs)), 1)
    >>> bool(200 < pixels.std() < 300)
    True
    """
    import keras  # noqa: PLC0415 (whoever has a model has imported it)

    below: dict[int, int] = {}
    first: dict[int, Any] = {}  # id of a tensor -> the layer that reads it
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            for tensor in node.input_tensors:
                below.setdefault(id(tensor), getattr(node.operation, "input_dim", 2))
                first.setdefault(id(tensor), node.operation)
    generator = np.random.default_rng(seed)

    def drawn(tensor: Any) -> np.ndarray:
        shape = (count, *(size or OPEN_SIZE for size in tensor.shape[1:]))
        if tensor.dtype == "string":
            return generator.choice(WORDS, shape)
        if "int" in tensor.dtype or tensor.dtype == "bool":
            pixels = isinstance(first.get(id(tensor)), keras.layers.Rescaling)
            most = 128 if tensor.dtype == "int8" else 256
            high = most if pixels else below.get(id(tensor), 2)
            return generator.integers(0, high, shape).astype(tensor.dtype)
        return before(first.get(id(tensor)), generator.normal(size=shape)).astype(tensor.dtype)

    def before(layer: Any, values: np.ndarray) -> np.ndarray:
        """What a layer that only scales makes `values` of."""
        if isinstance(layer, keras.layers.Rescaling):
            scale = np.asarray(layer.scale, np.float64)
            return (values - np.asarray(layer.offset)) / np.where(scale == 0, 1, scale)
        if isinstance(layer, keras.layers.Normalization) and not layer.invert and layer.built:
            mean, variance = (
                keras.ops.convert_to_numpy(part) for part in (layer.mean, layer.variance)
            )
            return values * np.sqrt(variance) + mean
        return values

    return keras.tree.map_structure(drawn, model.input)
