"""Inputs that a network can take, for a network whose data is not at hand."""

import functools
from typing import Any

import numpy as np

# Of dimensions that a network leaves open, the first that it can compute with: some have positions
# for so many tokens only, others halve an image more often than 32 pixels allow.
OPEN_SIZES = (32, 16, 8, 4, 64, 128, 224)
WORDS = np.array(["", "the", "network", "unheard-of"])


def random_inputs(model: Any, count: int, seed: int = 0) -> Any:
    """`count` examples in the structure of `model.input`: normal numbers, valid integers.

    Integers that are looked up in an embedding are below its size, others 0 or 1. Where a network
    begins with Rescaling or Normalization, numbers are such that these make normal ones of them.
    `model` is any Functional model; one with open sizes is run, to find some that it takes, and
    `ValueError` raised where it takes none of `OPEN_SIZES`.

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

    def drawn(tensor: Any, generator: np.random.Generator, open_size: int) -> np.ndarray:
        shape = (count, *(size or open_size for size in tensor.shape[1:]))
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

    problem: Exception | None = None
    for open_size in OPEN_SIZES:
        generator = np.random.default_rng(seed)
        draw = functools.partial(drawn, generator=generator, open_size=open_size)
        inputs = keras.tree.map_structure(draw, model.input)
        if all(None not in tensor.shape[1:] for tensor in model.inputs):
            return inputs
        try:
            model(inputs, training=False)
            return inputs
        except Exception as error:  # whatever a layer says of a size
            problem = problem or error
    raise ValueError(
        f"{model.name}: none of {OPEN_SIZES} fits the sizes that its inputs leave open: "
        f"{' '.join(str(problem).split())[:200]}; build it with fixed sizes"
    ) from problem
