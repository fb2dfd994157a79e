"""Hidden units cut into blocks, a layer each: networks of fewer units made of the same layers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from compress.channels.hidden_units import Bundle, is_matrix
from compress.rewriting import graph
from compress.rewriting.record import Record, Weight
from compress.rewriting.weights import kernels

ROUND, WIDE = 8, 64  # wide layers keep multiples of 8 units: whole vectors


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """A bundle and, for each of its units, the highest level that still has it."""

    bundle: Bundle
    rank: np.ndarray

    def blocks(self, count: int) -> list[np.ndarray]:
        """Units that level 0 .. count - 1 each add to the next: the last level's come first."""
        units = [np.flatnonzero(self.rank == level) for level in reversed(range(count))]
        return [block for block in units if len(block)]

    def active(self, level: int) -> int:
        """How many of the blocks a level has."""
        return int(len(np.unique(self.rank[self.rank >= level])))


def kept_units(
    model: keras.Model, found: Sequence[Bundle], sparsities: Sequence[float]
) -> list[list[int]]:
    """For each bundle, units that are left at each sparsity: an equal share of every bundle.

    The share is the largest at which that sparsity of the kernels' weights is reached, all kernels
    of the bundles taken together.
    """
    sizes = {kernel.layer: kernel.size for kernel in kernels(model)}
    touched = {name for bundle in found for name in (*bundle.producers, *bundle.consumers)}
    total = sum(sizes[name] for name in touched)

    def left(share: float) -> tuple[list[int], float]:
        kept = [_rounded(bundle.size, share) for bundle in found]
        sizes_now = {name: float(sizes[name]) for name in touched}
        for bundle, count in zip(found, kept, strict=True):
            for name in (*bundle.producers, *bundle.consumers):
                sizes_now[name] *= count / bundle.size
        return kept, sum(sizes_now.values())

    counts = []
    for sparsity in sparsities:
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            fits = left(middle)[1] <= (1 - sparsity) * total
            low, high = (middle, high) if fits else (low, middle)
        counts.append(left(low)[0])
    return [list(kept) for kept in zip(*counts, strict=True)] if counts else []


def _rounded(size: int, share: float) -> int:
    unit = ROUND if size >= WIDE and size % ROUND == 0 else 1
    return max(unit, int(size * share + 1e-6) // unit * unit)


def build_variants(
    model: keras.Model, cuts: Sequence[Cut], count: int, record: Record
) -> list[keras.Model]:
    """The networks of levels 0 .. count - 1, of the same layers; `record` learns their weights."""
    pieces = Pieces(model, cuts, count, record)
    networks = [_network(model, cuts, pieces, level) for level in range(count)]
    pieces.record_weights()
    return networks


def _network(model: keras.Model, cuts: Sequence[Cut], pieces: "Pieces", level: int) -> keras.Model:
    held = {key: cut for cut in cuts for key in cut.bundle.tensors}  # tensors in blocks

    def placed(node: Any, now: dict) -> list:
        layer = node.operation
        source = held.get(id(node.input_tensors[0]))
        target = held.get(id(node.output_tensors[0]))
        if is_matrix(layer) and (source or target):
            values = now[id(node.input_tensors[0])]
            values = values if source else [values]
            result = [
                pieces.product(layer, values, place, bool(source), bool(target))
                for place in range(target.active(level) if target else 1)
            ]
            return [result] if target else result
        if not target:
            return graph.call(layer, node, now)
        read = {id(tensor): now[id(tensor)] for tensor in node.input_tensors}
        blocks = []
        for place in range(target.active(level)):
            part = {key: x[place] if isinstance(x, list) else x for key, x in read.items()}
            blocks += graph.call(pieces.carrier(node, target, place), node, part)
        return [blocks]

    return graph.rebuild(model, placed)


class Pieces:
    """The layers of blocks, each made once, whatever the levels that it is called in."""

    def __init__(self, model: keras.Model, cuts: Sequence[Cut], count: int, record: Record):
        self._record = record
        self._made: dict[tuple, keras.layers.Layer] = {}
        self._weights: dict[str, Weight] = {}
        self._blocks = {id(cut): cut.blocks(count) for cut in cuts}
        self._outputs = {n: self._blocks[id(c)] for c in cuts for n in c.bundle.producers}
        self._inputs = {n: self._blocks[id(c)] for c in cuts for n in c.bundle.consumers}
        self._cut: set[str] = set()

    def product(
        self, layer: keras.layers.Layer, values: list, place: int, reads: bool, makes: bool
    ) -> Any:
        """One block of the outputs of a layer (all of them unless it `makes` blocks)."""
        parts = [
            self._matrix(layer, number if reads else None, place if makes else None)(value)
            for number, value in enumerate(values)
        ]
        if not reads:
            return parts[0]
        name = f"{layer.name}_block{place + 1}" if makes else layer.name
        total = parts[0]
        if len(parts) > 1:
            total = keras.layers.Add(name=f"{name}_sum")(parts)
        if layer.activation is keras.activations.linear:
            return total
        return self._once(
            ("activation", layer.name, place),
            lambda: keras.layers.Activation(layer.activation, name=f"{name}_activation"),
        )(total)

    def carrier(self, node: Any, cut: Cut, place: int) -> Any:
        """One block's part of a layer that treats each unit by itself."""

        def make():
            layer = node.operation
            name = f"{layer.name}_block{place + 1}"
            new = type(layer).from_config(layer.get_config() | {"name": name})
            if layer.weights:
                units = self._blocks[id(cut)][place]
                shape = node.input_tensors[0].shape
                new.build((*shape[:-1], len(units)))
                for source, target in zip(layer.weights, new.weights, strict=True):
                    self._take(source, target, [(_unit_axis(source, shape[-1]), units)])
            return new

        return self._once(("carrier", node.operation.name, place), make)

    def _matrix(self, layer: keras.layers.Layer, read: int | None, made: int | None) -> Any:
        """The part of a kernel between a block of inputs and one of outputs, None: all."""

        def make():
            config = layer.get_config()
            numbers = [number + 1 for number in (read, made) if number is not None]
            config["name"] = f"{layer.name}_block{'_'.join(map(str, numbers))}"
            inputs = outputs = None
            size = layer.kernel.shape[-2]
            if read is not None:
                inputs = self._inputs[layer.name][read]
                size = len(inputs)
                config |= {"activation": "linear", "use_bias": layer.use_bias and read == 0}
            if made is not None:
                outputs = self._outputs[layer.name][made]
                config["units" if "units" in config else "filters"] = len(outputs)
            new = type(layer).from_config(config)
            rank = 2 if "units" in config else len(layer.kernel.shape)
            new.build((*(None,) * (rank - 1), size))
            sources = [layer.kernel, layer.bias] if new.use_bias else [layer.kernel]
            targets = [new.kernel, new.bias] if new.use_bias else [new.kernel]
            for source, target in zip(sources, targets, strict=True):
                chosen = [(-1, outputs)]
                if source is layer.kernel:
                    chosen.append((-2, inputs))
                self._take(source, target, [(a, i) for a, i in chosen if i is not None])
            return new

        return self._once(("matrix", layer.name, read, made), make)

    def _take(self, source: Any, target: Any, chosen: list) -> None:
        value = keras.ops.convert_to_numpy(source)
        known = self._record.weights.get(source.path)
        self._cut.add(source.path)
        for axis, indices in chosen:
            value = value.take(indices, axis)
            if known is not None:
                try:
                    known = known.take(indices, axis)
                except ValueError as error:
                    known = None
                    self._record.untouched.setdefault(source.path, f"stored as float: {error}")
        target.assign(value)
        if known is not None:
            self._weights[target.path] = known

    def _once(self, key: tuple, make: Any) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def record_weights(self) -> None:
        """In the record the weights of the blocks take the place of those that were cut."""
        for path in self._cut:
            self._record.weights.pop(path, None)
        self._record.weights.update(self._weights)


def _unit_axis(weight: Any, units: int) -> int:
    """The axis of a carrier's weight that counts units: of depthwise kernels the last but one."""
    return -1 if weight.shape[-1] == units else -2
