"""Where a `.tflite` file keeps the weights of a network: found by value, in whatever layout.

A batch normalization that was folded into a kernel multiplied each channel by a number: a scale
per channel takes it in. The gain of a norm before a product multiplied each input: no scale of a
kernel can, and the writer takes it out again.
"""

import dataclasses

import numpy as np

from nas.files.writers.find_by_value import Match, WeightFinder
from nas.files.writers.tflite.editable_file import FLOAT32, File, shape

_CHANNEL_LAST = ("DEPTHWISE_CONV_2D",)  # the others have their output channels first


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """A constant of a file that holds a weight: ratio * weight.transpose(axes).reshape(shape).

    ratio: one factor for each index of the constant's axis `channel`.
    gain: one more for each input, of products only: of the constant's last axis.
    name: what the constant is called in the file, the weight's path if it can.
    """

    path: str
    graph: int
    index: int
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    channel: int
    ratio: np.ndarray
    gain: np.ndarray | None
    name: str

    def arrange(self, array: np.ndarray) -> np.ndarray:
        """An array of the weight's shape as the file has it, not multiplied."""
        return array.transpose(self.axes).reshape(self.shape)

    def restore(self, array: np.ndarray, weight_shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of `arrange`."""
        moved = array.reshape([weight_shape[axis] for axis in self.axes])
        return moved.transpose(np.argsort(self.axes))

    @property
    def factors(self) -> np.ndarray:
        """`ratio` and `gain`, to be broadcast to the constant."""
        dims = [1] * len(self.shape)
        if dims:
            dims[self.channel] = -1
        ratio = self.ratio.reshape(dims)
        return ratio if self.gain is None else ratio * self.gain

    def without_gain(self, factor: float) -> "Place":
        """The same where the gain's work is done by another operator, but for a factor."""
        return dataclasses.replace(self, ratio=self.ratio * np.float32(factor), gain=None)


def find_places(file: File, weights: dict[str, np.ndarray]) -> list[Place]:
    """All constants of `file` that hold one of the weights (path -> float32 array)."""
    finder = WeightFinder(weights)
    matches: dict[tuple, Match | None] = {}
    places = []
    for graph, index, tensor in file.constants():
        dims = shape(tensor)
        if tensor.type != FLOAT32 or tensor.sparsity is not None or not dims:
            continue
        names = {file.name(operator) for operator, _ in file.readers(graph, index)}
        channel = len(dims) - 1 if names & set(_CHANNEL_LAST) else 0
        # A product may have the gain of a norm in it, too: a factor for each input.
        scaled = (channel, 1) if names == {"FULLY_CONNECTED"} and len(dims) == 2 else (channel,)
        key = tensor.buffer, dims, scaled
        if key not in matches:
            matches[key] = finder.find(file.value(tensor), scaled)
        match = matches[key]
        if match is None:
            continue
        ratio, gain = match.factor, None
        if match.axis != channel:
            empty = ~match.arrange(weights[match.path], dims).any(0)
            ratio, gain = np.ones(dims[0], np.float32), np.where(empty, np.float32(1), ratio)
        places.append(
            Place(match.path, graph, index, match.axes, dims, channel, ratio, gain, match.path)
        )
    return named(places)


def named(places: list[Place]) -> list[Place]:
    """The same under different names, where a graph holds a weight several times."""
    plain = {(place.graph, place.path) for place in places if place.gain is None}
    named = []
    times: dict[tuple[int, str], int] = {}
    for place in places:
        name = place.path
        if place.gain is not None and (place.graph, name) in plain:
            name = f"{name}/normed"  # a table of words that makes the logits, too
        # A layer called several times, each time before another norm, is there several times.
        times[place.graph, name] = count = times.get((place.graph, name), 0) + 1
        named.append(dataclasses.replace(place, name=name if count == 1 else f"{name}/{count}"))
    return named
