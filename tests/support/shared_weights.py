"""A supernet as after training, its outputs, and those of the networks that inherit from it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from nas.supernets import network, supernet
from nas.tasks import digits

IMAGES = np.random.default_rng(1).random((16, 8, 8, 1), np.float32)


def with_weights(sample) -> supernet.Supernet:
    """Of a space of images of 8 x 8, with gates and norms that do something."""
    found = supernet.Supernet(sample, digits.load(size=8))
    generator = np.random.default_rng(0)
    for weight in found.model.trainable_variables:
        weight.assign(weight + generator.normal(0, 0.3, weight.shape))
    return found


def outputs(shared, rows) -> np.ndarray:
    shared.choose(rows)
    return keras.ops.convert_to_numpy(shared.model(IMAGES))


def alone(shared, config) -> np.ndarray:
    """Outputs of the network that inherits, by the same statistics: those of the batch."""
    return keras.ops.convert_to_numpy(shared.inherited(config)(IMAGES, training=True))


def choices(shared) -> list[np.ndarray]:
    """Of random networks, with all operations on, and at their widest."""
    drawn = [shared.rows(supernet.drawn(shared.sample, 11, number)) for number in range(6)]
    drawn.append(network.together(shared.model, drawn[0]))
    drawn.append(network.widest(shared.model, drawn[-1]))
    return drawn


def varied(start: Any, options: dict[str, tuple]) -> Iterator[Any]:
    """Of a Config of two blocks, with each option of each block, alone changed."""
    for place, filters in ((0, 6), (1, 8)):
        for name, values in (options | {"filters": (filters,)}).items():
            for value in values:
                blocks = list(start.blocks)
                blocks[place] = dataclasses.replace(blocks[place], **{name: value})
                yield dataclasses.replace(start, blocks=tuple(blocks))
