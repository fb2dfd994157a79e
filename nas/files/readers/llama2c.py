"""The layout of karpathy/llama2.c, version 0: seven integers, then all weights as float32.

Kernels are stored (outputs, inputs), and rotary pairs are neighbours: both are turned into ours.
"""

import math
import pathlib
import struct
from collections.abc import Mapping

import numpy as np

from families import decoder
from families.layers.rotary import halves
from nas.files.readers.checkpoint import Checkpoint

HEADER = struct.Struct("<7i")
FIELDS = ("dim", "hidden", "layers", "heads", "key_value_heads", "vocabulary", "length")
NEWER = 0x616B3432  # "ak42": versions 1 (another order) and 2 (int8) begin with it


def read(path: str | pathlib.Path) -> Checkpoint:
    """The network in a llama2.c file; ValueError in one line where the file is not whole."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with open(path, "rb") as file:
        start = file.read(HEADER.size)
    if len(start) < HEADER.size:
        raise ValueError(f"{path}: {len(start)} bytes are no llama2.c header of {HEADER.size}")
    numbers = dict(zip(FIELDS, HEADER.unpack(start), strict=True))
    if numbers["dim"] == NEWER:
        raise ValueError(f"{path}: llama2.c's version {numbers['hidden']}; expected version 0")
    tied = numbers["vocabulary"] > 0
    numbers["vocabulary"] = abs(numbers["vocabulary"])
    foreign = f"{path}: not a llama2.c file: its header would say {numbers}"
    if min(numbers.values()) <= 0:
        raise ValueError(foreign)
    try:
        config = decoder.Config(**numbers, tied=tied)
    except ValueError as error:
        raise ValueError(f"{foreign}; {error}") from error
    layout = _layout(config)
    expected = HEADER.size + 4 * sum(math.prod(shape) for _, shape in layout)
    size = path.stat().st_size
    if size != expected:
        raise ValueError(f"{foreign}, which takes {expected} bytes, and it has {size}")
    return Checkpoint(config, _Weights(path, config, layout), str(path))


def _layout(config: decoder.Config) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of what the file holds, in its order; every layer's together."""
    layers, dim, hidden = config.layers, config.dim, config.hidden
    kept = config.key_value_heads * config.head_width
    angles = config.length * config.head_width // 2  # cosines and sines, which are computed now
    layout = [
        ("embed/embeddings", (config.vocabulary, dim)),
        ("attention_norm/scale", (layers, dim)),
        ("attention_query/kernel", (layers, dim, dim)),
        ("attention_key/kernel", (layers, kept, dim)),
        ("attention_value/kernel", (layers, kept, dim)),
        ("attention_output/kernel", (layers, dim, dim)),
        ("feed_norm/scale", (layers, dim)),
        ("feed_gate/kernel", (layers, hidden, dim)),
        ("feed_down/kernel", (layers, dim, hidden)),
        ("feed_up/kernel", (layers, hidden, dim)),
        ("head_norm/scale", (dim,)),
        ("", (2 * angles,)),
    ]
    return layout if config.tied else [*layout, ("head_logits/kernel", (config.vocabulary, dim))]


class _Weights(Mapping):
    """The arrays of a file by our paths, read from the disk and turned when asked for."""

    def __init__(self, path: pathlib.Path, config: decoder.Config, layout: list):
        values, at = np.memmap(path, "<f4", "r", HEADER.size), 0
        self._stored = {}
        for name, shape in layout:
            array = values[at : at + math.prod(shape)].reshape(shape)
            at += array.size
            if name.startswith(("embed", "head")):
                self._stored[name] = array
            elif name:
                self._stored |= {f"block{n}_{name}": part for n, part in enumerate(array, 1)}
        self._heads = {"query": config.heads, "key": config.key_value_heads}
        self._width = config.head_width

    def __getitem__(self, path: str) -> np.ndarray:
        array = self._stored[path]
        if not path.endswith("kernel"):
            return array
        role = path.removesuffix("/kernel").rpartition("_")[2]
        if role in self._heads:
            array = array[halves(self._heads[role], self._width)]
        return array.T

    def __iter__(self):
        return iter(self._stored)

    def __len__(self):
        return len(self._stored)
