"""The contract of compression: prepare in order, train once, finalize in reverse."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar

import keras
import numpy as np

from compress.examples.data import Data
from compress.rewriting import graph
from compress.rewriting.parametrized import fold
from compress.rewriting.record import Record


class NotApplicable(ValueError):
    """The method has nothing to act on in this model, or lacks what it needs; the message why."""


# Methods are prepared in this order, whatever the order they are named in: a weight is masked or
# quantized in the shape that it will have.
STRUCTURE, WEIGHTS, LOSS = range(3)


class Method:
    """One way to make a network smaller or faster: subclasses are frozen dataclasses, final.

    Their repr is the record of what was asked for. Every field has a default. All state of a run is
    in variables of the prepared model, so that a training that was killed goes on with it.

    >>> import compress.prune
    >>> compress.prune.Prune(0.5).trains, compress.prune.Prune.stage == WEIGHTS
    (True, True)
    """

    stage: ClassVar[int] = WEIGHTS
    trains: ClassVar[bool] = True  # whether it is to be trained with, where there are examples

    def prepare(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        """The model to train: rewritten, never changed in place. `NotApplicable` where nothing is.

        Weights that are to be trained through functions (masks, quantizers) become `Parametrized`.
        """
        return model

    def update(self, model: keras.Model, data: Data | None, step: int, steps: int) -> bool:
        """Called before every step 0 .. steps - 1 of the training, and with step == steps after it.

        May assign to variables of the model; whether it did. Without training there is one call,
        with step == steps == 1: the method takes its full effect.
        """
        return False

    def state(self, model: keras.Model) -> dict[str, float]:
        """Figures for the progress line, such as {"sparsity": 0.61}."""
        return {}

    def finalize(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        """The finished model of stock layers; `Parametrized` layers are folded beforehand.

        It notes in `record` what it did (`details`), what it left alone (`untouched`) and how
        files can store the weights.
        """
        return model


def check_fields(method: Method, **checks: tuple[bool, str]) -> None:
    """`ValueError` at the first field that is not sound: name -> (whether it is, what would be).

    >>> from compress.qat import QAT
    >>> check_fields(QAT(bits=4), bits=(False, "a whole number"))
    Traceback (most recent call last):
        ...
    ValueError: qat bits=4; expected a whole number
    """
    for name, (holds, expected) in checks.items():
        if not holds:
            kind = type(method).__module__.rpartition(".")[2]
            raise ValueError(f"{kind} {name}={getattr(method, name)!r}; expected {expected}")


@dataclasses.dataclass(frozen=True, eq=False)
class Compressed:
    """A finished model and what is known of how it became so."""

    model: keras.Model
    record: Record


Fit = Callable[[keras.Model, Callable[[int, int], bool]], None]


def compress(
    model: keras.Model,
    methods: Sequence[Method],
    fit: Fit | None = None,
    data: Data | None = None,
) -> Compressed:
    """`model` after `methods`; it is not changed itself.

    `fit(model, update)` trains a prepared model in place and calls `update(step, steps)` before
    each step; None: no training. Raises `NotApplicable` where a method has nothing to act on, and
    `ValueError` where one broke the contract: the result is not what the record says.

    >>> from compress.prune import Prune
    >>> inputs = keras.Input((8,))
    >>> model = keras.Model(inputs, keras.layers.Dense(4)(inputs))
    >>> small = compress(model, [Prune(0.5)]).model
    >>> int((small.get_weights()[0] == 0).sum())
    16
    """
    graph.check_flat(model)
    record = Record(original=model)
    methods = sorted(methods, key=lambda method: method.stage)
    prepared = model
    for method in methods:
        prepared = method.prepare(prepared, data, record)

    def update(step: int, steps: int) -> bool:
        changed = [method.update(prepared, data, step, steps) for method in methods]
        return any(changed)

    if fit is not None:
        fit(prepared, update)
    update(1, 1)
    finished = fold(prepared, record)
    for method in reversed(methods):
        finished = method.finalize(finished, data, record)
    changed_layers = {
        layer.name
        for layer in finished.layers
        if any(weight.path in record.weights for weight in layer.weights)
    }
    for name in changed_layers & record.untouched.keys():  # left by one method, not by another
        del record.untouched[name]
    problems = list(record.check(finished))
    if problems:
        raise ValueError(
            f"{model.name}: {'; '.join(problems)}; this is a defect of"
            f" {', '.join(map(repr, methods))}"
        )
    return Compressed(finished, record)


def changed(model: keras.Model, done: Compressed) -> bool:
    """Whether what was made of a network differs from it, or is to be stored otherwise.

    >>> inputs = keras.Input((8,))
    >>> model = keras.Model(inputs, keras.layers.Dense(4)(inputs))
    >>> changed(model, compress(model, []))
    False
    """
    stored = done.record
    if stored.weights or stored.activations or stored.variants or stored.floats != 32:
        return True
    before, after = ({w.path: w for w in one.weights} for one in (model, done.model))
    return before.keys() != after.keys() or any(
        weight.shape != after[path].shape
        or not np.array_equal(np.asarray(weight), np.asarray(after[path]))
        for path, weight in before.items()
    )
