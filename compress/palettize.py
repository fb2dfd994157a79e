"""Palettization: each weight one of few values of a table, found by k-means; 2 and 4 bits mixed.

Apple, arXiv 2407.21075, section 5 (tables for 16 outputs each, 3.5 bits a weight on average).
"""

import dataclasses
from typing import Any, ClassVar

import keras
import numpy as np

from compress.examples.data import Data
from compress.method import Method, NotApplicable, check_fields
from compress.quantization.k_means import nearest, tables
from compress.quantization.quantizers import LearnedClip, OnLevels
from compress.rewriting.parametrized import functions, parametrize
from compress.rewriting.record import Record, Weight
from compress.rewriting.weights import (
    Kernel,
    kernel_values,
    kernels,
    masks,
    plain_copy,
    record_untouched,
)

WIDTHS = (1, 2, 3, 4, 6, 8)  # bits of a code in Core ML
PAIRS = ((1, 2), (2, 4), (4, 8))  # that are mixed to a fractional target
ENTRY = 16  # bits of a value in a table
# A table serves at least so many weights for each of its values (a tenth of a bit a weight).
WEIGHTS_A_VALUE = 160


class Palette(OnLevels):
    """A weight that takes its values from tables once training is over and `settle` was called."""

    def __init__(self, kernel: Kernel, group: int):
        super().__init__(dtype="float32")
        self.kernel, self.group = kernel, group
        self.axis = 0 if kernel.kind == "experts" else kernel.output_axis
        self.made: dict[int, np.ndarray] = {}
        self.bits: int | None = None  # None: the weight as it is
        self.sensitivity: float | None = None

    def groups(self, bits: int) -> int:
        """How many tables: of equal parts of the axis, with enough outputs and weights each."""
        length, size = self.kernel.shape[self.axis], self.kernel.size
        least = 1 if self.kernel.kind == "experts" else self.group
        if not self.group:
            return 1
        fitting = [
            count
            for count in range(1, length + 1)
            if length % count == 0
            and length // count >= least
            and size // count >= WEIGHTS_A_VALUE * 2**bits
        ]
        return max(fitting, default=1)

    def stored(self, bits: int) -> int:
        """Bits of codes and tables."""
        return self.kernel.size * bits + self.groups(bits) * 2**bits * ENTRY

    def rows(self, array: np.ndarray, bits: int) -> np.ndarray:
        """The values that share a table, a row each: (tables, values)."""
        return np.moveaxis(array, self.axis, 0).reshape(self.groups(bits), -1)

    def settle(self, value: np.ndarray, bits: int, mask: np.ndarray | None) -> None:
        """Make the tables of so many bits, and use them."""
        mask = None if mask is None else self.rows(mask, bits)
        self.made[bits] = tables(self.rows(value, bits), 2**bits, mask)
        self.bits = bits

    def weight(self, value: np.ndarray, bits: int, mask: np.ndarray | None = None) -> Weight:
        """These values as codes into the tables of so many bits."""
        found = nearest(self.rows(value, bits), self.made[bits])
        moved = np.moveaxis(value, self.axis, 0).shape
        codes = np.moveaxis(found.reshape(moved), 0, self.axis)
        scale = np.ones((1,) * value.ndim, np.float32)
        return Weight(bits, codes, self.made[bits], scale, mask, self.axis)

    def dense(self, value: np.ndarray, bits: int) -> np.ndarray:
        """The values nearest to these in the tables of so many bits."""
        return self.weight(value, bits).dense()

    def call(self, weight: Any) -> Any:
        if self.bits is None:
            return keras.ops.convert_to_tensor(weight)
        return keras.ops.convert_to_tensor(
            self.dense(keras.ops.convert_to_numpy(weight), self.bits)
        )

    def describe(self, value: np.ndarray, before: Weight | None) -> Weight:
        return self.weight(value, self._bits(), None if before is None else before.mask)

    def _bits(self) -> int:
        if self.bits is None:
            raise ValueError("a palette has no tables yet; call `settle` first")
        return self.bits


@dataclasses.dataclass(frozen=True)
class Palettize(Method):
    """Kernels as codes into tables of values, at the end of training or without any.

    bits: a whole number, 1, 2, 3, 4, 6 or 8: codes of that width everywhere. Another, such as 3.5:
        bits a weight on average, tables counted; kernels get 2 or 4 (below 2: 1 or 2, above 4: 4
        or 8) so that the loss on the data rises least, one measured alone at fewer bits. Without
        examples and their loss the rise is taken to be the squared relative error of the kernel.
    group: outputs that share a table, at least; experts have one each; 0: one table a kernel.
    which: a regular expression over the paths of weights; None: all kernels.

    >>> from compress.method import compress
    >>> inputs = keras.Input((8,))
    >>> model = keras.Model(inputs, keras.layers.Dense(4, name="head")(inputs))
    >>> len(np.unique(compress(model, [Palettize(2)]).model.get_weights()[0]))
    4
    """

    trains: ClassVar[bool] = False

    bits: float = 4
    group: int = 16
    which: str | None = None

    def __post_init__(self):
        sound = self.bits in WIDTHS or PAIRS[0][0] < self.bits < PAIRS[-1][1]
        check_fields(
            self,
            bits=(sound, f"{WIDTHS} or a number between 1 and 8"),
            group=(self.group >= 0, "0 or a number of outputs"),
        )

    def prepare(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        taken = {**functions(model, LearnedClip), **functions(model, Palette)}
        chosen = [k for k in kernels(model, self.which) if k.path not in taken]
        if not chosen:
            reason = "all are on few levels already" if taken else f"which={self.which!r} fits none"
            raise NotApplicable(f"no kernel of {model.name} to palettize: {reason}")
        made = {kernel.path: Palette(kernel, self.group) for kernel in chosen}
        if self.bits not in WIDTHS:
            low, _ = self._pair()
            least = sum(p.stored(low) for p in made.values()) / sum(k.size for k in chosen)
            if least > self.bits:
                raise NotApplicable(
                    f"{model.name} takes {least:.3f} bits a weight with {low}-bit codes and their "
                    f"tables; bits={self.bits} is out of reach"
                )
        record_untouched(model, made, record, f"left in float, as {self!r} says")
        record.details[repr(self)] = {"palettes": made}  # `finalize` makes figures of them
        return parametrize(model, made)

    def update(self, model: keras.Model, data: Data | None, step: int, steps: int) -> bool:
        if step < steps:
            return False
        palettes = {path: chain[0] for path, chain in functions(model, Palette).items()}
        for palette in palettes.values():
            palette.bits = None
        now, masked = kernel_values(model), masks(model)
        widths = (int(self.bits),) if self.bits in WIDTHS else self._pair()
        for bits in widths:  # the last stays
            for path, palette in palettes.items():
                palette.settle(now[path], bits, masked.get(path))
        if len(widths) > 1:
            self._sense(model, data, palettes, now, masked)
            self._share_out(palettes)
        return True

    def finalize(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        made = record.details[repr(self)]["palettes"]
        stored = sum(palette.stored(palette.bits) for palette in made.values())
        details = {
            "bits_per_weight": stored / sum(palette.kernel.size for palette in made.values()),
            "bits": {path: palette.bits for path, palette in made.items()},
        }
        sensed = {p: one.sensitivity for p, one in made.items() if one.sensitivity is not None}
        record.details[repr(self)] = details | ({"sensitivity": sensed} if sensed else {})
        return model

    def _pair(self) -> tuple[int, int]:
        return next(pair for pair in PAIRS if pair[0] < self.bits < pair[1])

    def _sense(
        self, model: keras.Model, data: Data | None, palettes: Any, now: Any, masked: Any
    ) -> None:
        """What each kernel alone at fewer bits costs."""
        low, high = self._pair()
        if data is None or data.loss is None or data.targets is None:
            for path, palette in palettes.items():
                value = now[path]
                error = np.square(palette.dense(value, low) - value)
                error = error if path not in masked else error[masked[path]]
                power = float(np.square(value).sum())  # what is masked is 0
                palette.sensitivity = float(error.sum()) / (power or 1.0)
            return
        tried = plain_copy(model)  # all palettes have the many bits now
        weights = {weight.path: weight for weight in tried.weights}
        before = _loss(tried, data)
        for path, palette in palettes.items():
            many = keras.ops.convert_to_numpy(weights[path])
            few = palette.dense(now[path], low)
            weights[path].assign(few if path not in masked else few * masked[path])
            palette.sensitivity = _loss(tried, data) - before
            weights[path].assign(many)

    def _share_out(self, palettes: Any) -> None:
        """Fewer bits where a saved bit costs least, until the target is met."""
        low, high = self._pair()
        target = self.bits * sum(palette.kernel.size for palette in palettes.values())
        total = sum(palette.stored(high) for palette in palettes.values())

        def saved(palette):
            return palette.stored(high) - palette.stored(low)

        order = sorted(palettes.values(), key=lambda one: one.sensitivity / saved(one))
        for palette in order:
            if total <= target:
                break
            palette.bits, total = low, total - saved(palette)
        for palette in reversed(order):  # the last one taken may have been a large one
            if palette.bits == low and total + saved(palette) <= target:
                palette.bits, total = high, total + saved(palette)


def _loss(model: keras.Model, data: Data) -> float:
    losses: list[Any] = []
    measure = data.measured_loss()
    for inputs, targets in data.batches():
        inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
        losses.append(keras.ops.convert_to_numpy(measure(model(inputs, training=False), targets)))
    return float(np.mean(np.concatenate(losses)))
