"""Post-training quantization: weights of 8, 4, 3 or 2 bits by rounding, activations of 8.

The activations' ranges are found on data by the writer of the file (nas/files/writers/litert.py).
"""

import dataclasses
from typing import Any, ClassVar

import keras
import numpy as np

from compress.examples.data import Data
from compress.method import Method, NotApplicable
from compress.quantization import bit_widths
from compress.quantization.quantizers import OnLevels, Quantizer, round_to_levels, scales
from compress.rewriting.parametrized import Parametrization, functions, parametrize
from compress.rewriting.record import Record
from compress.rewriting.weights import kernel_values, kernels, record_untouched

# Bits of activations -> types that inputs and outputs may have.
ENDS: dict[int | None, tuple[str, ...]] = {8: ("int8", "uint8"), 16: ("int16",)}


class Rounded(Quantizer):
    """A weight that is rounded once training is over: `settle` decides to which levels."""

    def __init__(self, bits: int, method: "PTQ | None" = None):
        """method: the one that decides the levels, where several are stacked."""
        super().__init__(dtype="float32")
        self.bits, self.method = bits, method
        self._scale: np.ndarray | None = None

    def settle(self, scale: np.ndarray | None) -> None:
        """From now on round to levels of this scale; None: pass the weight on."""
        self._scale = scale

    def scale(self) -> Any:
        """That of `settle`; `ValueError` before it."""
        if self._scale is None:
            raise ValueError("no scale yet: `update` with step == steps comes before `finalize`")
        return self._scale

    def call(self, weight: Any) -> Any:
        if self._scale is None:
            return keras.ops.convert_to_tensor(weight)
        values = keras.ops.convert_to_numpy(weight)
        return keras.ops.convert_to_tensor(round_to_levels(values, self._scale, self.bits))


@dataclasses.dataclass(frozen=True)
class PTQ(Method):
    """Kernels rounded to 2**bits levels at the end of training, or without any.

    bits: 8, 4, 3 or 2; embeddings: those of embedding tables, edges: of the first and the last
        layer, 32 leaves them in float; None: as the others.
    activations: bits of the activations in files that compute in integers, 8 or 16; their ranges
        are found on examples when the file is written. None: float, which LiteRT quantizes on the
        fly ("none" on the command line). Keras itself computes in float either way.
    io: type of the inputs and outputs of such files, "int8" or "uint8" ("int16" beside
        activations=16), as microcontrollers and the EdgeTPU take them; None: as they were.
    which: a regular expression over the paths of weights; None: all kernels.
    clip: how the distances of levels are found: "newton", "octav", "maxabs".

    Kernels that other methods have put on levels stay as they are.

    >>> from compress.method import compress
    >>> inputs = keras.Input((8,))
    >>> model = keras.Model(inputs, keras.layers.Dense(4, name="head")(inputs))
    >>> record = compress(model, [PTQ(4)]).record
    >>> record.weights["head/kernel"].bits, record.activations
    (4, 8)
    """

    trains: ClassVar[bool] = False

    bits: int = 8
    activations: int | None = 8
    io: str | None = None
    embeddings: int | None = None
    edges: int | None = None
    which: str | None = None
    clip: str = "newton"

    def __post_init__(self):
        if str(self.activations) == "none":  # as flags write it
            object.__setattr__(self, "activations", None)
        bit_widths.check(self)
        if self.activations not in (None, 8, 16):
            raise ValueError(f"activations={self.activations!r}; expected 8, 16 or none")
        if self.io is not None and self.io not in ENDS.get(self.activations, ()):
            wanted = ", ".join(ENDS.get(self.activations, ())) or "none beside activations=none"
            raise ValueError(f"io={self.io!r}; expected {wanted}")

    def prepare(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        taken = functions(model, OnLevels)
        chosen = {
            p: bits for p, bits in bit_widths.choose_bits(self, model).items() if p not in taken
        }
        if not chosen and not (taken and self.activations):
            raise NotApplicable(bit_widths.reason_for_none(self, model, taken))
        for chain in functions(model, Rounded).values():
            other = chain[0].method
            if other is not None and other.activations != self.activations:
                raise ValueError(
                    f"ptq activations={self.activations} beside another ptq's "
                    f"{other.activations}: a file computes in one way; give both the same"
                )
        record_untouched(model, {*chosen, *taken}, record, bit_widths.reason_left(self))
        return parametrize(model, {path: Rounded(bits, self) for path, bits in chosen.items()})

    def update(self, model: keras.Model, data: Data | None, step: int, steps: int) -> bool:
        if step < steps:
            return False
        found = {
            path: chain[0]
            for path, chain in functions(model, Rounded).items()
            if chain[0].method == self
        }
        for one in found.values():
            one.settle(None)
        now, axes = (
            kernel_values(model),
            {kernel.path: kernel.input_axes for kernel in kernels(model)},
        )
        masked = functions(model, Parametrization)
        for path, one in found.items():
            value = now[path]
            mask = value != 0 if any(function.last for function in masked[path]) else None
            one.settle(scales(value, one.bits, axes[path], self.clip, mask))
        return bool(found)

    def finalize(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        bit_widths.record_bits(self, model, record)
        record.activations, record.io = self.activations, self.io or record.io
        return model
