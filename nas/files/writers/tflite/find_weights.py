"""Where a `.tflite` file keeps the weights of a network: found by value, in whatever layout.

A batch normalization that was folded into a kernel multiplied each channel by a number: a scale
per channel takes it in. The gain of a norm before a product multiplied each input: no scale of a
kernel can, and the writer takes it out again.
"""

import dataclasses
import itertools

import numpy as np

from nas.files.writers.tflite.editable_file import FLOAT32, File, shape

_CHANNEL_LAST = ("DEPTHWISE_CONV_2D",)  # the others have their output channels first
_CLOSE = 1e-5  # of the largest value of a channel: float32 after one multiplication


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

    def laid(self, array: np.ndarray) -> np.ndarray:
        """An array of the weight's shape as the file has it, not multiplied."""
        return array.transpose(self.axes).reshape(self.shape)

    def taken(self, array: np.ndarray, weight_shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of `laid`."""
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


def places(file: File, weights: dict[str, np.ndarray]) -> list[Place]:
    """All constants of `file` that hold one of the weights (path -> float32 array)."""
    by_size: dict[int, list[str]] = {}
    for path, array in weights.items():
        by_size.setdefault(array.size, []).append(path)
    found, known, taken = [], {}, set()
    for graph, index, tensor in file.constants():
        if tensor.type != FLOAT32 or tensor.sparsity is not None:
            continue
        dims = shape(tensor)
        candidates = by_size.get(int(np.prod(dims)), ())
        if not candidates or not dims:
            continue
        names = {file.name(operator) for operator, _ in file.readers(graph, index)}
        channel = len(dims) - 1 if names & set(_CHANNEL_LAST) else 0
        product = names == {"FULLY_CONNECTED"}
        key = tensor.buffer, channel, dims, product
        if key not in known:
            constant = file.value(tensor)
            # Those not found yet first: networks have many weights of one shape.
            order = sorted(candidates, key=lambda path: path in taken)
            known[key] = next(
                (
                    (path, *match)
                    for match_one in (_matched, _behind_norm)[: 1 + product]
                    for path in order
                    if (match := match_one(constant, weights[path], channel))
                ),
                None,
            )
        if known[key] is None:
            continue
        path, axes, ratio, gain = known[key]
        taken.add(path)
        found.append(Place(path, graph, index, axes, dims, channel, ratio, gain, path))
    plain = {(place.graph, place.path) for place in found if place.gain is None}
    named, times = [], {}
    for place in found:
        name = place.path
        if place.gain is not None and (place.graph, name) in plain:
            name = f"{name}/normed"  # a table of words that makes the logits, too
        # A layer called several times, each time before another norm, is there several times.
        times[place.graph, name] = count = times.get((place.graph, name), 0) + 1
        named.append(dataclasses.replace(place, name=name if count == 1 else f"{name}/{count}"))
    return named


def _matched(constant: np.ndarray, weight: np.ndarray, channel: int):
    """(axes, ratio, no gain) by which `constant` is `weight`, or None."""
    rows = np.moveaxis(constant, channel, 0).reshape(constant.shape[channel], -1)
    if not constant.any():
        return None
    for axes in _orders(weight.shape):
        laid = weight.transpose(axes).reshape(constant.shape)
        laid = np.moveaxis(laid, channel, 0).reshape(rows.shape)
        # Most candidates fail at their first rows.
        if len(rows) > 4 and _ratio(rows[:2], laid[:2]) is None:
            continue
        ratio = _ratio(rows, laid)
        if ratio is not None:
            return axes, ratio, None
    return None


def _behind_norm(constant: np.ndarray, weight: np.ndarray, channel: int):
    """(axes, ratio of 1, gain) by which a product's `constant` is `weight`, or None."""
    if constant.ndim != 2 or not constant.any():
        return None
    for axes in _orders(weight.shape):
        laid = weight.transpose(axes).reshape(constant.shape)
        if _ratio(constant.T[:2], laid.T[:2]) is None:
            continue
        gain = _ratio(constant.T, laid.T)
        if gain is not None and np.isfinite(gain).all():
            gain = np.where(laid.any(0), gain, np.float32(1))
            return axes, np.ones(len(constant), np.float32), gain
    return None


def _orders(dims: tuple[int, ...]):
    """Orders of axes, the plain one first; those that differ in axes of size 1 only are one."""
    seen = set()
    for axes in itertools.permutations(range(len(dims))):
        key = tuple(axis for axis in axes if dims[axis] != 1)
        if key not in seen:
            seen.add(key)
            yield axes


def _ratio(rows: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """What each row of `weight` is multiplied by to give `rows`; None where no number does."""
    most = np.abs(rows).max(1)
    if np.array_equal(rows, weight):
        return np.ones(len(rows), np.float32)
    if rows.shape[1] == 1:  # any number is a multiple of any other
        return None
    at = np.abs(weight).argmax(1)[:, None]
    largest = np.take_along_axis(weight, at, 1)[:, 0]
    there = np.take_along_axis(rows, at, 1)[:, 0]
    ratio = np.divide(there, largest, out=np.zeros_like(there), where=largest != 0)
    near = np.abs(rows - ratio[:, None] * weight).max(1) <= _CLOSE * most
    return ratio.astype(np.float32) if near.all() else None
