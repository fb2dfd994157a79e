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
from compress.quantization.on_data import round_on_data
from compress.quantization.quantizers import OnLevels, Quantizer, round_to_levels, scales
from compress.rewriting.parametrized import functions, parametrize
from compress.rewriting.record import Record
from compress.rewriting.weights import assign, kernel_values, kernels, masks, record_untouched

# Bits of activations -> types that inputs and outputs may have.
ENDS: dict[int | None, tuple[str, ...]] = {8: ("int8", "uint8"), 16: ("int16",)}


class Rounded(Quantizer):
    """A weight that is put on levels once training is over: `settle` says on which."""

    def __init__(self, bits: int, method: "PTQ"):
        """method: the one that decides the levels, where several are stacked."""
        super().__init__(dtype="float32")
        self.bits, self.method = bits, method
        self._scale: np.ndarray | None = None
        self._values: np.ndarray | None = None
        self.examples = 0  # that were looked at
        self.blind: str | None = None  # why none were, where there are some
        self.before: dict[str, np.ndarray] = {}  # path -> a bias or mean as it was

    def settle(self, values: np.ndarray | None, scale: np.ndarray | None) -> None:
        """From now on these values, on levels of this scale; None: pass the weight on."""
        self._values, self._scale = values, scale

    def scale(self) -> Any:
        """That of `settle`; `ValueError` before it."""
        if self._scale is None:
            raise ValueError("no scale yet: `update` with step == steps comes before `finalize`")
        return self._scale

    def call(self, weight: Any) -> Any:
        return keras.ops.convert_to_tensor(weight if self._values is None else self._values)


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
    depthwise: those of depthwise convolutions, few of the bytes; None: as the others.
    which: a regular expression over the paths of weights; None: all kernels.
    rounding: "data": layer by layer so that the outputs on examples, no labels needed, change least
        (compress/quantization/on_data.py), with biases that make up for shifted means; "nearest":
        each weight to the level nearest to it; "auto": on examples, where there are any.
    clip: how the distances of levels are found that inputs do not decide: "newton", "octav",
        "maxabs".

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
    depthwise: int | None = 8
    which: str | None = None
    rounding: str = "auto"
    clip: str = "newton"

    def __post_init__(self):
        if str(self.activations) == "none":  # as flags write it
            object.__setattr__(self, "activations", None)
        bit_widths.check(self)
        if self.activations not in (None, 8, 16):
            raise ValueError(f"activations={self.activations!r}; expected 8, 16 or none")
        if self.io is not None and self.io not in ENDS.get(self.activations, ()):
            wanted = ", ".join(ENDS.get(self.activations, ())) or "none, as activations are float"
            raise ValueError(f"ptq io={self.io!r}; expected {wanted}")

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
        bit_widths.check_data(self, data)
        record_untouched(model, {*chosen, *taken}, record, bit_widths.reason_left(self))
        rounded = {path: Rounded(bits, self) for path, bits in chosen.items()}
        record.details[repr(self)] = {"rounded": rounded}  # `finalize` makes figures of them
        return parametrize(model, {**rounded})

    def update(self, model: keras.Model, data: Data | None, step: int, steps: int) -> bool:
        if step < steps:
            return False
        rounded = {path: chain[0] for path, chain in functions(model, Rounded).items()}
        first = next(iter(rounded.values()), None)
        if first is None or first.method != self:  # the first of several settles all
            return first is not None
        for one in rounded.values():
            one.settle(None, None)
        assign(model, first.before)  # what an earlier call shifted
        by_data = {
            p: one.bits for p, one in rounded.items() if bit_widths.on_data(one.method, data)
        }
        now, masked = kernel_values(model), masks(model)
        axes = {kernel.path: kernel.input_axes for kernel in kernels(model)}
        for path in rounded.keys() - by_data.keys():
            one, mask = rounded[path], masked.get(path)
            scale = scales(now[path], one.bits, axes[path], one.method.clip, mask)
            one.settle(round_to_levels(now[path], scale, one.bits), scale)
        if by_data and data is not None:
            found = round_on_data(model, by_data, data, masked, self.clip)
            for path in by_data:
                rounded[path].settle(found.values[path], found.scales[path])
                rounded[path].blind = found.blind.get(path)
                rounded[path].examples = found.examples
            # No functions of these: training goes by the classes of layers, such as norms.
            shifted = found.shifted
            moved = [weight for weight in model.weights if weight.path in shifted]
            first.before.update({w.path: keras.ops.convert_to_numpy(w.value) for w in moved})
            assign(model, shifted)
        return True

    def finalize(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        rounded: dict[str, Rounded] = record.details[repr(self)]["rounded"]
        bit_widths.record_bits(self, model, record)
        bit_widths.record_examples(
            self,
            record,
            max((one.examples for one in rounded.values()), default=0),
            {path: one.blind for path, one in rounded.items() if one.blind},
        )
        record.activations, record.io = self.activations, self.io or record.io
        return model
