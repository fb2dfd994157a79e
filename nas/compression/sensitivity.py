"""Which layers bear a compression least: one layer compressed at a time, the others as before."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from compress.examples.data import Data
from compress.method import WEIGHTS, Compressed, Method, compress
from compress.rewriting import graph


def by_layer(
    model: Any,
    methods: Sequence[Method],
    data: Data,
    batch_size: int = 64,
    done: Compressed | None = None,
) -> list[dict[str, Any]]:
    """[{"layer", "loss", "params"}] for every layer whose weights the methods change in place.

    The methods take effect at once, without training; "loss" is the mean over `data` with only
    this layer's weights compressed. The first entry, "layer": None, is the network as it was.
    done: what the methods made without training, where that is at hand.
    Empty where no method leaves the shapes as they are.
    """
    one_shot = [method for method in methods if method.stage == WEIGHTS]
    if not one_shot:
        return []
    if done is None or len(one_shot) < len(methods):
        done = compress(model, one_shot, None, data)
    compressed = done.model
    found = {weight.path: np.asarray(weight) for weight in compressed.weights}
    probe = graph.rewrite(model, lambda layer, copy: copy)
    rows: list[dict[str, Any]] = [
        {"layer": None, "loss": loss(probe, data, batch_size), "params": 0}
    ]
    for layer in probe.layers:
        before = layer.get_weights()
        paths = [weight.path for weight in layer.weights]
        new = [found.get(path, array) for path, array in zip(paths, before, strict=True)]
        if any(a.shape != b.shape for a, b in zip(new, before, strict=True)):
            continue
        if all(np.array_equal(a, b) for a, b in zip(new, before, strict=True)):
            continue
        layer.set_weights(new)
        value = loss(probe, data, batch_size)
        layer.set_weights(before)
        rows.append({"layer": layer.name, "loss": value, "params": layer.count_params()})
    return rows


def loss(model: Any, data: Data, batch_size: int = 64) -> float:
    """The mean loss of a model over `data`; `ValueError` where the data has no loss."""
    if data.loss is None:
        raise ValueError("the examples have no labels: name a task, or data with y")
    import keras

    losses = []
    for inputs, targets in data.batches(batch_size):
        outputs = model(inputs, training=False)
        losses.append(keras.ops.convert_to_numpy(data.loss(outputs, targets)))
    return float(np.concatenate(losses).mean())
