"""Inputs that a network can take, for a network whose data is not at hand."""

from typing import Any

import numpy as np

OPEN_SIZE = 32  # of a dimension that a network leaves open
WORDS = np.array(["", "the", "network", "unheard-of"])


def random_inputs(model: Any, count: int, seed: int = 0) -> Any:
    """`count` examples in the structure of `model.input`: normal numbers, valid integers.

    Integers that are looked up in an embedding are below its size, others 0 or 1. `model` is any
    Functional model.
    """
    import keras  # noqa: PLC0415 (whoever has a model has imported it)

    below: dict[int, int] = {}
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            for tensor in node.input_tensors:
                below.setdefault(id(tensor), getattr(node.operation, "input_dim", 2))
    generator = np.random.default_rng(seed)

    def drawn(tensor: Any) -> np.ndarray:
        shape = (count, *(size or OPEN_SIZE for size in tensor.shape[1:]))
        if tensor.dtype == "string":
            return generator.choice(WORDS, shape)
        if "int" in tensor.dtype or tensor.dtype == "bool":
            return generator.integers(0, below.get(id(tensor), 2), shape).astype(tensor.dtype)
        return generator.normal(size=shape).astype(tensor.dtype)

    return keras.tree.map_structure(drawn, model.input)
