"""One network that holds all of a space as slices of its weights.

Kernels of 3 are the centre of those of 5, narrow layers the first channels of wide ones, shallow
blocks the first layers of deep ones (Cai et al., "Once-for-All", arXiv 1908.09791); each operation
has weights of its own (Bender et al., TuNAS, arXiv 2008.06120).
"""

import re
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from nas.supernets.layers import (
    ACTIVATION,
    ACTIVATIONS,
    COLUMNS,
    EXPAND,
    FILTERS,
    KERNEL,
    OPERATIONS,
    OUTSIDE,
    REPEATS,
    SKIP,
    SKIPS,
    SQUEEZE,
    Choice,
    SharedConv,
    SharedLayer,
)
from nas.supernets.outline import Outline


def build(outlines: Iterable[Outline]) -> keras.Model:
    """Images -> logits of the network that the variable `choice` says.

    It holds every network each of whose choices is in some of `outlines`, which share their input,
    classes, stem, strides and head.
    """
    outlines = list(outlines)
    first = outlines[0]
    for other in outlines:
        if other.outside != first.outside:
            raise ValueError(
                f"networks that share weights share stem, strides and head: {first.outside} and"
                f" {other.outside}"
            )
    inputs = keras.Input(first.input_shape, name="image")
    choice = Choice(len(first.stages), name="choice")(inputs)
    has = {outline.activation for outline in outlines}
    outside = {"activations": [name for name in ACTIVATIONS if name in has]}
    stem = SharedConv(first.stem_filters, 3, stride=first.stem_stride, name="stem", **outside)
    x = stem(inputs, choice)
    for number, stages in enumerate(zip(*(each.stages for each in outlines), strict=True), 1):
        operations = {stage.operation for stage in stages}
        skips = {stage.skip for stage in stages}
        activations = {stage.activation for stage in stages}
        for repeat in range(max(stage.repeats for stage in stages)):
            x = SharedLayer(
                block=number - 1,
                repeat=repeat,
                stride=1 if repeat else stages[0].stride,
                operations=[name for name in OPERATIONS if name in operations],
                kernel=max(stage.kernel for stage in stages),
                expand=max(stage.expand for stage in stages),
                filters=max(stage.filters for stage in stages),
                squeeze=min((stage.squeeze for stage in stages if stage.squeeze), default=0),
                skips=[name for name in SKIPS if name in skips],
                activations=[name for name in ACTIVATIONS if name in activations],
                name=f"block{number}_{repeat + 1}",
            )(x, choice)
    x = SharedConv(first.head_filters, 1, narrows=True, name="head", **outside)(x, choice)
    x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    logits = keras.layers.Dense(first.classes, name="head_logits")(x)
    return keras.Model(inputs, logits, name="supernet")


def choice(outline: Outline) -> np.ndarray:
    """The rows (blocks, columns) that make a supernet the network of `outline`."""
    rows = np.zeros((len(outline.stages), COLUMNS), np.int32)
    rows[:, OUTSIDE] = ACTIVATIONS.index(outline.activation)
    for row, stage in zip(rows, outline.stages, strict=True):
        row[OPERATIONS.index(stage.operation)] = 1
        row[KERNEL], row[EXPAND] = stage.kernel, stage.expand
        row[FILTERS], row[REPEATS] = stage.filters, stage.repeats
        row[SQUEEZE], row[SKIP] = stage.squeeze, SKIPS.index(stage.skip)
        row[ACTIVATION] = ACTIVATIONS.index(stage.activation)
    return rows


def largest(supernet: keras.Model) -> np.ndarray:
    """A choice of the most there is, of the last of the operations and activations."""
    layers = _layers(supernet)
    rows = np.zeros((layers[-1].block + 1, COLUMNS), np.int32)
    rows[:, OUTSIDE] = ACTIVATIONS.index(supernet.get_layer("head").activations[-1])
    for layer in layers:
        row = rows[layer.block]
        row[OPERATIONS.index(layer.operations[-1])] = 1
        row[KERNEL], row[EXPAND], row[FILTERS] = layer.kernel, layer.expand, layer.filters
        row[REPEATS], row[SQUEEZE] = layer.repeat + 1, layer.squeeze
        row[SKIP] = SKIPS.index(min(layer.skips, key=("identity", "pool", "none").index))
        row[ACTIVATION] = ACTIVATIONS.index(layer.activations[-1])
    return rows


def widest(supernet: keras.Model, rows: np.ndarray) -> np.ndarray:
    """A choice with all the filters and expansion there are, as in the warm-up of filters."""
    rows = rows.copy()
    for layer in _layers(supernet):
        rows[layer.block, [FILTERS, EXPAND]] = layer.filters, layer.expand
    return rows


def together(supernet: keras.Model, rows: np.ndarray) -> np.ndarray:
    """A choice with all operations on, as in the warm-up of operations."""
    rows = rows.copy()
    for layer in _layers(supernet):
        rows[layer.block, [OPERATIONS.index(name) for name in layer.operations]] = 1
        rows[layer.block, EXPAND] = max(rows[layer.block, EXPAND], layer.expand)
    return rows


def _layers(supernet: keras.Model) -> list[SharedLayer]:
    return [layer for layer in supernet.layers if isinstance(layer, SharedLayer)]


def inherit(supernet: keras.Model, outline: Outline, model: keras.Model) -> None:
    """Give `model`, which `outline` outlines, its part of the weights; averages of norms stay."""
    operations = {f"block{n}": stage.operation for n, stage in enumerate(outline.stages, 1)}
    for weight in model.trainable_weights:
        layer, name = weight.path.split("/")[-2:]
        source = np.asarray(_source(supernet, operations, layer, name))
        weight.assign(_part_of(source, tuple(weight.shape)))


def _source(supernet: keras.Model, operations: dict[str, str], layer: str, name: str) -> Any:
    """The shared weight of a weight `name` of a `layer`."""
    if layer == "head_logits":
        return {w.name: w for w in supernet.get_layer(layer).weights}[name]
    found = re.fullmatch(r"(stem|head|(block\d+)_\d+)_(\w+)", layer)
    assert found is not None  # every layer of a network has such a name
    shared, block, part = found.groups()
    if block is not None and not part.startswith("shortcut"):
        part = f"{operations[block]}_{part}"
    return supernet.get_layer(shared).named[f"{part}_{name}"]


def _part_of(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The centre of a kernel and its first channels; the first numbers of a vector."""
    if array.ndim == 4:
        edge = (array.shape[0] - shape[0]) // 2
        array = array[edge : edge + shape[0], edge : edge + shape[1]]
        return array[..., : shape[2], : shape[3]]
    return array[tuple(slice(0, size) for size in shape)]
