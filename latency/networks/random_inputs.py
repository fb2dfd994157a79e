"""Inputs that a network can take, for a network whose data is not at hand."""

import numpy as np

from latency.networks.count import calls


def random_inputs(model, count: int, seed: int = 0) -> np.ndarray | dict | list:
    """`count` examples in the structure of `model.input`: normal numbers, valid integers.

    Integers that are looked up in an embedding are below its size, others 0 or 1.
    """
    import keras  # noqa: PLC0415 (whoever has a model has imported it)

    below = {}
    for node in calls(model):
        for tensor in node.input_tensors:
            below.setdefault(id(tensor), getattr(node.operation, "input_dim", 2))
    generator = np.random.default_rng(seed)

    def drawn(tensor) -> np.ndarray:
        shape = (count, *tensor.shape[1:])
        if "int" in tensor.dtype or tensor.dtype == "bool":
            return generator.integers(0, below.get(id(tensor), 2), shape).astype(tensor.dtype)
        return generator.normal(size=shape).astype(tensor.dtype)

    return keras.tree.map_structure(drawn, model.input)
