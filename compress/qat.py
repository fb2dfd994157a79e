"""Quantization-aware training: weights of 2, 3, 4 or 8 bits from the first step on.

Apple, arXiv 2507.13575 (2 bits, embeddings at 4, averaged weights);
compress/quantization/quantizers.py.
"""

import dataclasses

import keras
import numpy as np

from compress.examples.data import Data
from compress.method import Method, NotApplicable
from compress.quantization import bit_widths
from compress.quantization.on_data import OnData, round_on_data
from compress.quantization.quantizers import LearnedClip, scales
from compress.rewriting.parametrized import functions, parametrize
from compress.rewriting.record import Record
from compress.rewriting.weights import assign, kernel_values, kernels, masks, record_untouched

EDGE = 0.01  # of a step, that weights keep from the edges of their bins


@dataclasses.dataclass(frozen=True)
class QAT(Method):
    """Kernels on 2**bits levels (see `compress.quantization.quantizers.RANGES`), trained straight
    through.

    bits: 2, 3, 4 or 8; embeddings: those of embedding tables, edges: of the first and the last
        layer, 32 leaves them in float; None: as the others.
    depthwise: those of depthwise convolutions; None: as the others.
    which: a regular expression over the paths of weights; None: all kernels.
    rounding: where training begins: "data": with what `ptq` makes on examples, levels, biases and
        all; "nearest": with the weights as they are; "auto": on examples, where there are any.
    clip: how the distances of levels are found that inputs do not decide: "newton", "octav",
        "maxabs".
    fixed: whether they then stay; else they are trained, one an output (a row of a table).

    Without training this is rounding to the best levels. Averages of weights (`--ema`) are taken
    before rounding, and their codes are what is judged and kept. For training on what the float
    network says, add `distill`.

    >>> from compress.method import compress
    >>> inputs = keras.Input((8,))
    >>> model = keras.Model(inputs, keras.layers.Dense(4, name="head")(inputs))
    >>> weight = compress(model, [QAT(2)]).record.weights["head/kernel"]
    >>> weight.levels.tolist(), weight.scale.shape
    ([[-1.5, -0.5, 0.5, 1.5]], (1, 4))
    """

    bits: int = 2
    embeddings: int | None = 4
    edges: int | None = None
    depthwise: int | None = None
    which: str | None = None
    rounding: str = "auto"
    clip: str = "newton"
    fixed: bool = False

    def __post_init__(self):
        bit_widths.check(self)

    def prepare(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        taken = functions(model, LearnedClip)
        chosen = {
            path: bits
            for path, bits in bit_widths.choose_bits(self, model).items()
            if path not in taken
        }
        if not chosen:
            raise NotApplicable(bit_widths.reason_for_none(self, model, taken))
        bit_widths.check_data(self, data)
        record_untouched(model, chosen, record, bit_widths.reason_left(self))
        if data is not None and bit_widths.on_data(self, data):
            found = round_on_data(model, chosen, data, masks(model), self.clip)
            return self._begin(model, chosen, found)
        now = kernel_values(model)
        axes = {kernel.path: kernel.input_axes for kernel in kernels(model)}
        made = {}
        for path, bits in chosen.items():
            initial = scales(now[path], bits, axes[path], self.clip)
            made[path] = LearnedClip(initial, bits, self.fixed)
        return parametrize(model, made)

    def _begin(self, model: keras.Model, bits: dict[str, int], found: OnData) -> keras.Model:
        """The model to train, where it begins rounded on data.

        Weights are put where their bins are nearest to the values that they stand for: what
        training moves is whole, and the first step is at the levels that were found.
        """
        made = {p: LearnedClip(scale, bits[p], self.fixed) for p, scale in found.scales.items()}
        new = parametrize(model, made)
        values = dict(found.shifted)
        for path, value in found.values.items():
            edge = (0.5 - EDGE) * found.scales[path]
            values[path] = np.clip(found.targets[path], value - edge, value + edge)
        assign(new, values)
        return new

    def state(self, model: keras.Model) -> dict[str, float]:
        found = [one for chain in functions(model, LearnedClip).values() for one in chain]
        figures = {"bits": float(np.mean([one.bits for one in found]))}
        factors = [np.exp(np.asarray(one.clip)) for one in found if one.clip is not None]
        if factors:
            figures["clip"] = float(np.concatenate(factors).mean())
        return figures

    def finalize(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        bit_widths.record_bits(self, model, record)
        return model
