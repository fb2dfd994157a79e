"""Kernels rounded layer by layer on examples, the float network and the rounded one side by side.

What a kernel is multiplied with, in both networks, says which of its errors matter and which of
those made before it can make up for (compress/quantization/least_squares.py). A bias, or the mean
of the batch normalization that follows, then takes what is left of each output's mean: Nagel et
al., "Data-free quantization", arXiv 1906.04721, section 4.2, with measured means.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import layers

from compress.examples.data import Data, taken
from compress.quantization.least_squares import Moments, corrected, round_to_moments
from compress.quantization.products import Product, View, watched
from compress.quantization.quantizers import round_to_levels, scales
from compress.rewriting import graph
from compress.rewriting.parametrized import Parametrized, inner
from compress.rewriting.weights import RECURRENT, Kernel, kernels

BATCH = 128  # examples at once, at most
AT_ONCE = 3e7  # bytes of activations of them that are kept
ROWS = 8000  # of a kernel that are looked at, or twice its inputs
MOST_INPUTS = 5120  # of a kernel that are looked at together
PART = 2048  # inputs of a part of a larger one
MEMORY = 1.2e9  # bytes of activations that are kept: fewer examples where they would be more
BY_ROWS = 4  # bits at most for which rows decide the levels; wider ones are as good by themselves
BIASED: tuple[type, ...] = (
    *(layers.Dense, layers.EinsumDense, layers.Conv1D, layers.Conv2D, layers.Conv3D),
    *(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
    *(layers.SeparableConv1D, layers.SeparableConv2D),
    *(layers.DepthwiseConv1D, layers.DepthwiseConv2D),
)


@dataclasses.dataclass(frozen=True, eq=False)
class OnData:
    """What `round_on_data` found.

    values, scales: path of a kernel -> float32 values on levels, and their distances. targets: the
    float values that these stand for, corrected. shifted: path of a bias or a mean -> its new
    value. blind: path of a kernel -> why its levels were found without looking at its inputs.
    examples: how many were looked at.
    """

    values: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]
    shifted: dict[str, np.ndarray]
    blind: dict[str, str]
    examples: int


def round_on_data(
    model: keras.Model,
    bits: dict[str, int],
    data: Data,
    masks: dict[str, np.ndarray] | None = None,
    clip: str = "newton",
    alone: bool = False,
) -> OnData:
    """Levels for the kernels of a flat model, `Parametrized` layers as they are seen now.

    bits: path of a kernel -> 8, 4, 3 or 2. masks: path -> False where a weight is 0 and stays.
    clip: how levels are found that inputs do not decide. alone: each kernel as if all others stayed
        in float. The model is not changed.

    A layer that is called several times is rounded for its first call.

    >>> inputs = keras.Input((8,))
    >>> model = keras.Model(inputs, layers.Dense(4, name="head")(inputs))
    >>> data = Data(np.random.default_rng(0).normal(size=(32, 8)).astype("float32"))
    >>> found = round_on_data(model, {"head/kernel": 2}, data)
    >>> len(np.unique(np.abs(found.values["head/kernel"] / found.scales["head/kernel"]).round(4)))
    2
    """
    return _Walk(model, bits, data, masks or {}, clip, alone).run()


class _Walk:
    """One pass through a network, segments of it after one another, batches within each."""

    def __init__(
        self, model: Any, bits: dict[str, int], data: Data, masks: Any, clip: str, alone: bool
    ):
        self.alone = alone
        self.model, self.bits, self.masks, self.clip = model, bits, masks, clip
        self.kernels = {one.path: one for one in kernels(model) if one.path in bits}
        self.found = OnData({}, {}, {}, {}, {}, 0)
        self.changed: dict[int, Any] = {}  # id of a variable -> its value in the rounded network
        self.nodes = list(graph.calls(model))
        holders = {one.layer for one in self.kernels.values()}
        holding = [n for n, node in enumerate(self.nodes) if node.operation.name in holders]
        self.nodes = self.nodes[: holding[-1] + 1] if holding else []
        self.starts = sorted({0, *holding}) if holding else []
        self.last = {
            id(tensor): number
            for number, node in enumerate(self.nodes)
            for tensor in node.input_tensors
        }
        self.own = {node.operation.name: _values(node.operation) for node in self.nodes}
        self.batches = list(self._batches(data))

    def run(self) -> OnData:
        """Round all kernels."""
        kept = [{key: (value, value) for key, value in batch.items()} for batch in self.batches]
        for start, end in zip(self.starts, [*self.starts[1:], len(self.nodes)], strict=True):
            node = self.nodes[start]
            mine = [k for k in self.kernels.values() if k.layer == node.operation.name]
            left = [kernel for kernel in mine if kernel.path not in self.found.values]
            if left:
                self._round(node, left, kept)
            for number, batch in enumerate(kept):
                kept[number] = self._advance(start, end, batch)
        for path in self.kernels.keys() - self.found.values.keys():
            self._by_itself(self.kernels[path], "its layer is not part of the outputs")
        return dataclasses.replace(self.found, examples=sum(map(_count, self.batches)))

    def _batches(self, data: Data) -> Iterator[dict[int, Any]]:
        """The inputs by the ids of their tensors, as many examples as memory can take."""
        fixed = next((t.shape[0] for t in self.model.inputs if t.shape[0] is not None), None)
        probe = self._batch(data, 0, fixed or min(2, len(data)))
        each = max(self._bytes(probe), 1.0)
        size = fixed or int(np.clip(AT_ONCE / each, 2, BATCH))
        count = min(len(data), max(size, int(MEMORY / each)))
        for start in range(0, count, size):
            if not fixed or start + size <= len(data):
                yield self._batch(data, start, min(size, count - start))

    def _batch(self, data: Data, start: int, size: int) -> dict[int, Any]:
        tensors, part = self.model.inputs, taken(data.inputs, slice(start, start + size))
        if isinstance(part, dict) and not isinstance(self.model.input, dict):
            flat = [part[tensor._keras_history.operation.name] for tensor in tensors]
        else:  # keys of a dict of inputs need not be the names of its layers
            flat = keras.tree.flatten(part)
        return {
            id(tensor): _Kept(np.asarray(array).astype(tensor.dtype), None)
            for tensor, array in zip(tensors, flat, strict=True)
        }

    def _bytes(self, batch: dict[int, Any]) -> float:
        """The most that is kept of one example, of both networks."""
        kept, most = {key: (value, value) for key, value in batch.items()}, 0.0
        for start, end in zip(self.starts, [*self.starts[1:], len(self.nodes)], strict=True):
            kept = self._advance(start, end, kept, both=False)
            most = max(most, sum(2 * one[0].value.nbytes for one in kept.values()))
        return most / _count(batch)

    def _advance(self, start: int, end: int, batch: dict, both: bool = True) -> dict:
        """What later segments need, when the calls from `start` to `end` are done."""
        here = dict(batch)
        for node in self.nodes[start:end]:
            before = self._call(node, {key: one[0] for key, one in here.items()}, False)
            after = (
                self._call(node, {key: one[1] for key, one in here.items()}, True)
                if both
                else before
            )
            for tensor, *pair in zip(node.output_tensors, before, after, strict=True):
                here[id(tensor)] = tuple(pair)
        return {
            key: tuple(one.stored() for one in pair)
            for key, pair in here.items()
            if self.last.get(key, -1) >= end
        }

    def _call(self, node: Any, now: dict[int, "_Kept"], rounded: bool) -> list["_Kept"]:
        """The outputs of a call, of the float or of the rounded network."""
        layer = inner(node.operation)
        tensors = {key: one.tensor() for key, one in now.items()}
        args, kwargs = keras.tree.map_structure(
            lambda value: tensors.get(id(value), value),
            (node.arguments.args, node.arguments.kwargs),
        )
        if getattr(layer, "_call_has_training_arg", False):
            kwargs["training"] = False
        with keras.StatelessScope(state_mapping=self._mapping(node.operation, rounded)):
            outputs = layer(*args, **kwargs)
        return [
            _Kept(one, getattr(one, "_keras_mask", None)) for one in keras.tree.flatten(outputs)
        ]

    def _mapping(self, operation: Any, rounded: bool) -> list:
        own = self.own[operation.name]
        return [
            (variable, self.changed.get(id(variable), value) if rounded else value)
            for variable, value in own
        ]

    def _round(self, node: Any, left: list[Kernel], kept: list[dict]) -> None:
        """Levels for the kernels of one layer, in the order in which it uses them."""
        order: list[str] = []
        needed = [{id(t): batch[id(t)] for t in node.input_tensors} for batch in kept]
        self._watch(node, left, needed[0], False, lambda one: order.append(one.view.kernel.path))
        for kernel in sorted(left, key=lambda one: [*order, one.path].index(one.path)):
            moments, view, parts = self._moments(node, kernel, needed)
            if moments is None or view is None:
                self._by_itself(kernel, "its layer multiplies nothing with it as it is")
            else:
                self._decide(node, kernel, view, moments, parts)

    def _moments(
        self, node: Any, kernel: Kernel, kept: list[dict]
    ) -> tuple[Moments | None, View | None, int]:
        each = math.ceil(max(ROWS, 2 * math.prod(kernel.shape[a] for a in kernel.input_axes)))
        each = math.ceil(each / len(kept))
        moments: Moments | None = None
        view, parts = None, 1
        for number, batch in enumerate(kept):
            seen: list[list] = [[], []]
            for side in (0, 1):
                random = np.random.default_rng(number)
                self._watch(
                    node, [kernel], batch, bool(side),
                    lambda one, into=seen[side], random=random: into.append(
                        (one.view, *_rows(one, each, random))
                    ),
                )  # fmt: skip
            for (view, before, owner), (_, now, own) in zip(*seen, strict=False):
                groups, inputs, _ = view.shape
                if moments is None:
                    parts = _parts(inputs) if groups == 1 else 1
                    squares = self.bits[kernel.path] <= BY_ROWS and inputs // parts <= MOST_INPUTS
                    moments = Moments.empty(groups * parts, inputs // parts, squares)
                paired = owner is None and before.shape == now.shape
                before, now = (_in_parts(one, parts) for one in (before, now))
                moments.add(before if paired else None, now, own)
        return moments, view, parts

    def _watch(
        self, node: Any, wanted: list[Kernel], batch: dict, rounded: bool, seen: Any
    ) -> None:
        ids = {}
        for variable, value in self._mapping(node.operation, rounded):
            for kernel in wanted:
                if variable.path == kernel.path:
                    ids[id(variable)] = ids[id(value)] = kernel
        with watched(ids, seen):
            self._call(node, {key: one[int(rounded)] for key, one in batch.items()}, rounded)

    def _decide(self, node: Any, kernel: Kernel, view: View, moments: Moments, parts: int) -> None:
        variable, value = self._variable(kernel)
        weights = view.apply(keras.ops.convert_to_numpy(value).astype(np.float32))
        shape, part = weights.shape, (moments.groups, moments.inputs, weights.shape[-1])
        mask = self.masks.get(kernel.path)
        place = _place(self.model, node, kernel) if moments.paired else None
        if moments.square is None:
            self._by_itself(kernel, None if self.bits[kernel.path] > BY_ROWS else "too many inputs")
        else:
            square, cross = moments.centered(place is not None)
            target = corrected(weights.reshape(part), square, cross)
            masked = None if mask is None else view.apply(mask).reshape(part)
            q, scale = round_to_moments(target, square, self.bits[kernel.path], masked, parts)
            scale = scale[::parts]
            whole = view.restore((q.reshape(shape) * scale).astype(np.float32))
            self._set(kernel, whole, view.restore(scale), view.restore(target.reshape(shape)))
        if place is not None and not self.alone:
            now = view.apply(self.found.values[kernel.path]).reshape(part)
            means = [one.astype(np.float32)[:, None] for one in moments.means()]
            shift = means[0] @ weights.reshape(part) - means[1] @ now
            shift = shift.reshape(-1, parts, shift.shape[-1]).sum(1, keepdims=True)
            self._shift(place, view.restore(shift))

    def _by_itself(self, kernel: Kernel, reason: str | None) -> None:
        bits, mask = self.bits[kernel.path], self.masks.get(kernel.path)
        value = keras.ops.convert_to_numpy(self._variable(kernel)[1]).astype(np.float32)
        scale = scales(value, bits, kernel.input_axes, self.clip, mask)
        rounded = round_to_levels(value, scale, bits)
        self._set(kernel, rounded if mask is None else rounded * mask, scale, value)
        if reason is not None:
            self.found.blind[kernel.path] = reason

    def _variable(self, kernel: Kernel) -> tuple[Any, Any]:
        layer = self.model.get_layer(kernel.layer)
        pairs = self.own.get(layer.name) or _values(layer)
        return next((v, value) for v, value in pairs if v.path == kernel.path)

    def _set(self, kernel: Kernel, value: Any, scale: np.ndarray, target: np.ndarray) -> None:
        variable, _ = self._variable(kernel)
        if not self.alone:
            self.changed[id(variable)] = keras.ops.convert_to_tensor(value.astype(np.float32))
        self.found.values[kernel.path] = value
        self.found.scales[kernel.path] = np.ascontiguousarray(scale, np.float32)
        self.found.targets[kernel.path] = np.ascontiguousarray(target, np.float32)

    def _shift(self, place: "_Place", shift: np.ndarray) -> None:
        variable, before = place.variable, place.value
        before = self.changed.get(id(variable), before)
        new = keras.ops.convert_to_numpy(before).astype(np.float32)
        part = new if place.row is None else new[place.row : place.row + 1]
        part += place.sign * shift.reshape(part.shape)
        self.changed[id(variable)] = keras.ops.convert_to_tensor(new)
        self.found.shifted[variable.path] = new


@dataclasses.dataclass(frozen=True)
class _Kept:
    """A tensor between layers, and the mask that goes with it."""

    value: Any
    mask: Any

    def stored(self) -> "_Kept":
        return _Kept(keras.ops.convert_to_numpy(self.value), self.mask)

    def tensor(self) -> Any:
        tensor = keras.ops.convert_to_tensor(self.value)
        if self.mask is not None:
            tensor._keras_mask = self.mask
        return tensor


@dataclasses.dataclass(frozen=True)
class _Place:
    """What takes the mean of a kernel's outputs: a variable, or one row of it, and its sign."""

    variable: Any
    value: Any
    row: int | None = None
    sign: int = 1


def _place(model: Any, node: Any, kernel: Kernel) -> _Place | None:
    """The bias that is added to a product, or the mean that is taken away; None: there is none."""
    pairs = _values(node.operation)
    layer = inner(node.operation)
    owner = next(
        part
        for part in layer._flatten_layers()
        for v in [*part._trainable_variables, *part._non_trainable_variables]
        if v.path == kernel.path
    )
    outputs = kernel.size // math.prod(kernel.shape[axis] for axis in kernel.input_axes)
    stock = next((k for k in (*BIASED, *RECURRENT) if type(owner).call is k.call), None)
    if stock is None or kernel.path.rpartition("/")[2] == "depthwise_kernel":
        return None
    bias = getattr(owner, "bias", None)
    if bias is not None:
        value = next((one for v, one in pairs if v is bias), None)
        if isinstance(owner, RECURRENT) and len(bias.shape) == 2:
            row = int(kernel.path.endswith("recurrent_kernel"))
            return _Place(bias, value, row)
        return _Place(bias, value) if math.prod(bias.shape) == outputs else None
    if owner is not layer or getattr(owner, "activation", None) is not keras.activations.linear:
        return None
    made = node.output_tensors[0]
    readers = [one for one in graph.calls(model) if any(t is made for t in one.input_tensors)]
    calls = [one for one in graph.calls(model) if one.operation is node.operation]
    if len(readers) != 1 or len(calls) != 1 or any(made is end for end in model.outputs):
        return None
    norm = inner(readers[0].operation)
    norms = [one for one in graph.calls(model) if inner(one.operation) is norm]
    if type(norm) is not layers.BatchNormalization or len(norms) != 1:
        return None
    value = next(one for v, one in _values(readers[0].operation) if v is norm.moving_mean)
    return (
        _Place(norm.moving_mean, value, None, -1) if norm.moving_mean.shape[0] == outputs else None
    )


def _values(operation: Any) -> list[tuple[Any, Any]]:
    """(variable, its value as the layer sees it) of a layer; none of an operation."""
    layer = inner(operation)
    if not isinstance(layer, layers.Layer):
        return []
    if isinstance(operation, Parametrized):
        return [(v, operation.read(v)) for v in layer.weights]
    return [(v, v.value) for v in layer.weights]


def _rows(product: Product, each: int, random: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """About `each` rows of a product, float32, chosen by chance, and the groups of its blocks."""
    count = math.ceil(2 * each / max(product.places, 1)) if product.places else 1 << 30
    rows = keras.ops.convert_to_numpy(product.rows(count)).astype(np.float32)
    if rows.shape[1] > each:
        rows = rows[:, np.sort(random.choice(rows.shape[1], each, replace=False))]
    return rows, product.owner


def _parts(inputs: int) -> int:
    """Into how many equal parts so many inputs are cut."""
    if inputs <= MOST_INPUTS:
        return 1
    fitting = (n for n in range(math.ceil(inputs / PART), inputs) if inputs % n == 0)
    return next((n for n in fitting if inputs // n >= 64), 1)


def _in_parts(rows: np.ndarray, parts: int) -> np.ndarray:
    if parts == 1:
        return rows
    return rows[0].reshape(rows.shape[1], parts, -1).transpose(1, 0, 2)


def _count(batch: dict[int, Any]) -> int:
    return len(next(iter(batch.values())).value)
