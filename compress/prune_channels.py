"""Structured pruning: whole filters, hidden units and heads go, and a smaller dense network stays.

Fang et al., "DepGraph", arXiv 2301.12900; importance by Taylor expansion: Molchanov et al.,
arXiv 1906.10771; by activations and weights: Sun et al., "Wanda", arXiv 2306.11695.
"""

import dataclasses
import itertools
import re
from typing import Any

import keras
import numpy as np
from keras import ops

from compress.channels.channel_graph import Channels, Group, Slot
from compress.channels.layer_rules import rule
from compress.examples.data import Data
from compress.method import STRUCTURE, Method, NotApplicable, check_fields
from compress.rewriting import graph
from compress.rewriting.gradients import gradient
from compress.rewriting.record import Record

IMPORTANCES = ("magnitude", "taylor", "activation")
EXAMPLES = 256  # most whose gradients are taken, each on its own


@dataclasses.dataclass(frozen=True)
class PruneChannels(Method):
    """Leaves out `fraction` of the units of each group that can do without some.

    A group are the filters of a convolution with all that depends on them (norms, depthwise, what
    is added or multiplied, inputs of what comes after), hidden units of an MLP, of an expert, of a
    recurrent layer, or heads of attention. The rest is the same function as the whole network with
    zeros for what went. Channels that are seen as a whole (layer normalization, softmax, outputs)
    stay, as do those of layers without a rule.

    importance: "magnitude" of the weights that make and read a unit, each weight's mean being 1;
        "taylor", the change of each example's loss to first order; "activation", the mean square of
        what the unit adds to what reads it. The last two look at data.
    round_to: channels left are a multiple of it, or all stay.
    which: regex over the paths of kernels that make a unit; None: all.

    >>> from compress.method import compress
    >>> inputs = keras.Input((8,))
    >>> x = keras.layers.Dense(16, "relu", name="hidden")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(4)(x))
    >>> compress(model, [PruneChannels(0.5)]).model.get_layer("hidden").units
    8
    """

    fraction: float = 0.25
    importance: str = "magnitude"
    which: str | None = None
    round_to: int = 1

    stage = STRUCTURE

    def __post_init__(self):
        check_fields(
            self,
            fraction=(0 < self.fraction < 1, "between 0 and 1"),
            importance=(self.importance in IMPORTANCES, f"one of {IMPORTANCES}"),
            round_to=(self.round_to >= 1, "at least 1"),
        )

    def prepare(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        channels = Channels(model, rule)
        groups = [group for group in channels.groups() if self._is_meant(channels, group)]
        leaving = {group: self._count(group) for group in groups}
        if not any(leaving.values()):
            widths = ", ".join(f"{g.makers[0]}: {len(g.units)}" for g in groups[:5])
            reasons = "; ".join(list(channels.stays.values())[:2])
            raise NotApplicable(
                f"prune_channels: no channels of {model.name} can go"
                + (f" with fraction={self.fraction} of units ({widths})" if groups else "")
                + ("" if self.which is None else f" with which={self.which!r}")
                + (f": {reasons}" if reasons and not groups else "")
            )
        scores = self._scores(model, channels, data)
        removed: list[int] = []
        cut: dict[tuple, dict] = {}
        for group, count in leaving.items():
            order = np.argsort(scores[group.units], kind="stable")
            removed += group.units[order[:count]].tolist()
            names = tuple(name.split("[")[0] for name in group.makers)  # experts of a layer: once
            units = len(group.units)
            cut[names] = {"layers": list(names), "units": units, "left": units - count}
        small = remove_units(model, channels, removed)
        _record_untouched(channels, removed, model, record, self)
        record.details[repr(self)] = {
            "params": [model.count_params(), small.count_params()],
            "groups": [one for one in cut.values() if one["left"] < one["units"]],
        }
        return small

    def _is_meant(self, channels: Channels, group: Group) -> bool:
        if self.which is None:
            return True
        for slot in channels.slots:
            path = slot.layer.weights[slot.weight].path
            if slot.role != "out" or not re.search(self.which, path):
                continue
            if np.isin(channels.find(slot.labels), group.units).any():
                return True
        return False

    def _count(self, group: Group) -> int:
        """How many units of a group leave."""
        units = len(group.units)
        for left in range(units - int(units * self.fraction + 1e-9), units):
            if left and left * group.grain % self.round_to == 0:
                return units - left
        return 0

    def _scores(self, model: keras.Model, channels: Channels, data: Data | None) -> np.ndarray:
        """Importance of every unit, by the number of its channel."""
        if self.importance == "magnitude":
            return _magnitudes(channels)
        if self.importance == "activation" and data is not None:
            return _contributions(model, channels, data)
        if data is not None and data.targets is not None and data.loss is not None:
            return _changes(model, channels, data)
        needs = {"taylor": "inputs, targets and their loss", "activation": "inputs"}
        raise NotApplicable(
            f"prune_channels: importance={self.importance!r} looks at {needs[self.importance]}; "
            "none were given"
        )


def _sums(slot: Slot, value: np.ndarray) -> np.ndarray:
    """Sums over all but the slot's axes, flat."""
    order = [*slot.axes, *(axis for axis in range(value.ndim) if axis not in slot.axes)]
    return value.transpose(order).reshape(slot.labels.size, -1).sum(1)


def _added(channels: Channels, slots: list[Slot], values: Any) -> np.ndarray:
    """Sums of values at the places of each channel."""
    total = np.zeros(channels.total)
    for slot, value in zip(slots, values, strict=True):
        labels = channels.find(slot.labels).ravel()
        total += np.bincount(labels, value, channels.total)
    return total


def _magnitudes(channels: Channels) -> np.ndarray:
    slots = [slot for slot in channels.slots if slot.role != "other"]
    values = []
    for slot in slots:
        weight = ops.convert_to_numpy(slot.layer.weights[slot.weight].value)
        squares = _sums(slot, weight.astype(np.float64) ** 2)
        values.append(squares / max(squares.mean(), 1e-30))
    return _added(channels, slots, values)


def _changes(model: keras.Model, channels: Channels, data: Data) -> np.ndarray:
    """|d loss / d gate| of a gate, now 1, before all that reads a unit; summed over examples.

    One by one: in a trained network the changes of many examples cancel.
    """
    slots = [slot for slot in channels.slots if slot.role == "in"]
    variables = [slot.layer.weights[slot.weight] for slot in slots]
    compute = gradient(model, data.measured_loss(), variables)
    total = np.zeros(channels.total)
    for inputs, targets in itertools.islice(data.batches(1), EXAMPLES):
        products = [
            _sums(slot, ops.convert_to_numpy(one * variable.value).astype(np.float64))
            for slot, variable, one in zip(slots, variables, compute(inputs, targets), strict=True)
        ]
        total += np.abs(_added(channels, slots, products))
    return total


def _contributions(model: keras.Model, channels: Channels, data: Data) -> np.ndarray:
    """Mean squares of what is read, times the squares of the weights that read it."""
    slots = [slot for slot in channels.slots if slot.role == "in"]
    seen = [slot.source for slot in slots]
    tensors = {id(t): t for t in seen if t is not None}
    watched = keras.Model(model.input, list(tensors.values()))
    means: list[Any] = [0.0] * len(slots)
    for inputs, _ in data.batches():
        found = watched(inputs, training=False)
        found = dict(zip(tensors, found if isinstance(found, list) else [found], strict=True))
        for number, (slot, tensor) in enumerate(zip(slots, seen, strict=True)):
            if tensor is None:
                means[number] = np.ones(slot.labels.size)
                continue
            value = found[id(tensor)]
            if slot.multiplied is None:
                value = ops.reshape(value, (-1, value.shape[-1]))
            else:
                value = slot.multiplied(value)
            squares = ops.convert_to_numpy(ops.cast(value, "float32")).astype(np.float64) ** 2
            means[number] += squares.sum(-2).ravel()
    values = []
    for slot, mean in zip(slots, means, strict=True):
        weight = ops.convert_to_numpy(slot.layer.weights[slot.weight].value)
        values.append(mean / len(data) * _sums(slot, weight.astype(np.float64) ** 2))
    return _added(channels, slots, values)


def remove_units(model: keras.Model, channels: Channels, removed: list[int]) -> keras.Model:
    """The model without these units, its weights those of the model."""

    def stay(labels: np.ndarray) -> np.ndarray:
        return ~np.isin(channels.find(labels), removed)

    def count(labels: np.ndarray) -> int:
        return int(np.count_nonzero(stay(labels)))

    cut: dict[str, list[Slot]] = {}
    for slot in channels.slots:
        if not stay(slot.labels).all():
            cut.setdefault(slot.layer.name, []).append(slot)

    remade = []

    def change(layer, copy):
        sizes = channels.sizes.get(layer.name, {})
        options = {name: size(count) for name, size in sizes.items()}
        config = layer.get_config() if sizes else {}
        same = all(config[name] == value for name, value in options.items())
        if same and layer.name not in cut:
            return copy
        remade.append(layer)
        return type(layer).from_config(layer.get_config() | options)

    small = graph.rewrite(model, change)
    for layer in remade:
        values = layer.get_weights()
        for slot in cut.get(layer.name, ()):
            values[slot.weight] = take(values[slot.weight], slot.axes, stay(slot.labels))
        small.get_layer(layer.name).set_weights(values)
    return small


def take(value: np.ndarray, axes: tuple[int, ...], mask: np.ndarray) -> np.ndarray:
    """What stays along the last of `axes`; with two, for each index of the first on its own.

    >>> take(np.arange(6).reshape(2, 3), (1,), np.array([True, False, True])).tolist()
    [[0, 2], [3, 5]]
    """
    if len(axes) == 1:
        return value.compress(mask, axis=axes[0])
    kept = np.stack([np.flatnonzero(row) for row in mask])
    shape = [1] * value.ndim
    shape[axes[0]], shape[axes[1]] = kept.shape
    return np.take_along_axis(value, kept.reshape(shape), axis=axes[1])


def _record_untouched(
    channels: Channels, removed: list[int], model: keras.Model, record: Record, method: Any
) -> None:
    """The reason for every layer with weights from which nothing was taken."""
    by_layer: dict[str, list[Slot]] = {}
    for slot in channels.slots:
        by_layer.setdefault(slot.layer.name, []).append(slot)
    for layer in model.layers:
        slots = by_layer.get(layer.name, [])
        if not layer.weights or any(
            np.isin(channels.find(slot.labels), removed).any() for slot in slots
        ):
            continue
        made = [slot.labels for slot in slots if slot.role != "in"]
        reasons = [channels.stays[layer.name]] if layer.name in channels.stays else []
        reasons += [reason for labels in made for reason in channels.reasons(labels)]
        meant = "" if method.which is None else f"not matched by which={method.which!r}, or "
        few = f"{meant}too few units to leave out {method.fraction:g} of them"
        record.untouched.setdefault(layer.name, reasons[0] if reasons else few)
