"""One network that holds all of a space of MnasNets as slices of its weights.

Kernels of 3 are the centre of those of 5, narrow layers the first channels of wide ones, shallow
blocks the first layers of deep ones (Cai et al., "Once-for-All", arXiv 1908.09791); each operation
has weights of its own (Bender et al., TuNAS, arXiv 2008.06120).
"""

import re
from collections.abc import Iterable

import keras
import numpy as np

from families.mnasnet import Config
from nas.supernets.layers import (
    COLUMNS,
    EXPAND,
    FILTERS,
    KERNEL,
    OPERATIONS,
    REPEATS,
    SKIP,
    SKIPS,
    SQUEEZE,
    Choice,
    SharedConv,
    SharedLayer,
)


def build(configs: Iterable[Config]) -> keras.Model:
    """Images -> logits of the network that the variable `choice` says.

    It holds every network each of whose choices is in some of `configs`, which share their input,
    classes, stem, strides and head.
    """
    configs = list(configs)
    config = configs[0]
    for other in configs:
        if _outside(other) != _outside(config):
            raise ValueError(
                f"networks that share weights share stem, strides and head: {_outside(config)} and"
                f" {_outside(other)}"
            )
    inputs = keras.Input(config.input_shape, name="image")
    choice = Choice(len(config.blocks), name="choice")(inputs)
    x = SharedConv(config.stem_filters, 3, config.stem_stride, name="stem")(inputs, choice)
    for number, blocks in enumerate(zip(*(each.blocks for each in configs), strict=True), 1):
        has = {name for block in blocks for name in _operations(block)}
        for repeat in range(max(block.repeats for block in blocks)):
            x = SharedLayer(
                block=number - 1,
                repeat=repeat,
                stride=1 if repeat else blocks[0].stride,
                operations=[name for name in OPERATIONS if name in has],
                kernel=max(block.kernel for block in blocks),
                expand=max(block.expand for block in blocks),
                filters=max(block.filters for block in blocks),
                squeeze=max(_divisor(block) for block in blocks),
                skips=[name for name in SKIPS if name in {block.skip for block in blocks}],
                name=f"block{number}_{repeat + 1}",
            )(x, choice)
    x = SharedConv(config.head_filters, 1, narrows=True, name="head")(x, choice)
    x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    logits = keras.layers.Dense(config.classes, name="head_logits")(x)
    return keras.Model(inputs, logits, name="supernet")


def _outside(config: Config) -> tuple:
    """What of a network is not chosen."""
    strides = tuple(block.stride for block in config.blocks)
    return (
        config.input_shape,
        config.classes,
        config.stem_filters,
        config.stem_stride,
        strides,
        config.head_filters,
    )


def _operations(block) -> tuple[str, ...]:
    return (block.op,)


def _divisor(block) -> int:
    return round(1 / block.se_ratio) if block.se_ratio else 0


def choice(config: Config) -> np.ndarray:
    """The rows (blocks, columns) that make a supernet the network of `config`."""
    rows = np.zeros((len(config.blocks), COLUMNS), np.int32)
    for row, block in zip(rows, config.blocks, strict=True):
        row[OPERATIONS.index(block.op)] = 1
        row[KERNEL], row[EXPAND] = block.kernel, block.expand
        row[FILTERS], row[REPEATS] = block.filters, block.repeats
        row[SQUEEZE], row[SKIP] = _divisor(block), SKIPS.index(block.skip)
    return rows


def largest(supernet: keras.Model) -> np.ndarray:
    """A choice of the most there is, of the last of the operations."""
    layers = [layer for layer in supernet.layers if isinstance(layer, SharedLayer)]
    rows = np.zeros((layers[-1].block + 1, COLUMNS), np.int32)
    for layer in layers:
        row = rows[layer.block]
        row[OPERATIONS.index(layer.operations[-1])] = 1
        row[KERNEL], row[EXPAND], row[FILTERS] = layer.kernel, layer.expand, layer.filters
        row[REPEATS], row[SQUEEZE] = layer.repeat + 1, layer.squeeze
        row[SKIP] = SKIPS.index(min(layer.skips, key=("identity", "pool", "none").index))
    return rows


def widest(supernet: keras.Model, rows: np.ndarray) -> np.ndarray:
    """A choice with all the filters and expansion there are, as in the warm-up of filters."""
    rows = rows.copy()
    for layer in supernet.layers:
        if isinstance(layer, SharedLayer):
            rows[layer.block, [FILTERS, EXPAND]] = layer.filters, layer.expand
    return rows


def together(supernet: keras.Model, rows: np.ndarray) -> np.ndarray:
    """A choice with all operations on, as in the warm-up of operations."""
    rows = rows.copy()
    for layer in supernet.layers:
        if isinstance(layer, SharedLayer):
            rows[layer.block, [OPERATIONS.index(name) for name in layer.operations]] = 1
            rows[layer.block, EXPAND] = max(rows[layer.block, EXPAND], layer.expand)
    return rows


def inherit(supernet: keras.Model, config: Config, model: keras.Model) -> None:
    """Give `model`, built of `config`, its part of the weights; averages of norms stay."""
    operations = {f"block{n}": block.op for n, block in enumerate(config.blocks, 1)}
    for weight in model.weights:
        *place, name = weight.path.split("/")
        if name.startswith("moving_"):
            continue
        source = _source(supernet, operations, place[-1], name)
        if source is not None:
            weight.assign(_part_of(np.asarray(source), tuple(weight.shape)))


def _source(supernet: keras.Model, operations: dict[str, str], layer: str, name: str):
    """The shared weight of a weight `name` of a `layer`, or None: dropout has a state."""
    if layer == "head_logits":
        return {w.name: w for w in supernet.get_layer(layer).weights}[name]
    found = re.fullmatch(r"(stem|head|(block\d+)_\d+)_(\w+)", layer)
    if found is None or layer == "head_dropout":
        return None
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
