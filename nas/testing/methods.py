"""The contract of a method: a network in, a smaller or faster one out."""

import dataclasses
from typing import Any

import keras
import numpy as np

from compress.examples.data import Data
from compress.method import LOSS, STRUCTURE, WEIGHTS, Method, NotApplicable, changed, compress
from compress.rewriting import graph
from compress.rewriting.parametrized import Parametrized
from nas.tasks.task import Task
from nas.testing.expectations import (
    expect,
    expect_flat,
    expect_frozen,
    expect_saved,
    inputs_of,
    outputs,
)
from nas.training import loop


def check_method(method: Method, model: Any = None, data: Data | None = None) -> None:
    """What every method holds: a changed network, the original as it was, no silent no-op.

    model: a flat `keras.Model` on which it can act; None: a small convolutional classifier.
    data: examples of it; None: random ones, with a loss.

    The result is flat, takes and gives what the original does, comes back from its .keras file, is
    what the record says, and is the same a second time; a network without weights is refused with
    `NotApplicable`. Raises `AssertionError` at the first promise that is not kept.

    >>> from compress.prune import Prune
    >>> check_method(Prune(0.5))
    """
    name = repr(method)
    expect(isinstance(method, Method), f"{name} is no compress.method.Method: make it a subclass")
    _check_class(method, name)
    model = _network() if model is None else model
    data = _examples(model) if data is None else data
    before = _state(model)
    finished = _compressed(method, model, data)
    expect(
        _state(model) == before,
        f"{name} changes the model that it is given; expected a new one (compress.rewriting.graph)",
    )
    _check_result(finished.model, model, name)
    expect(
        _changes(method, model, finished, data),
        f"{name} changes nothing and says nothing; expected NotApplicable",
    )
    again = _compressed(method, model, data)
    expect(
        _state(again.model) == _state(finished.model),
        f"{name}: done twice, the weights differ; draw from a seed",
    )
    _check_weightless(method, name)


def _check_class(method: Method, name: str) -> None:
    kind = type(method)
    frozen = dataclasses.is_dataclass(kind) and getattr(kind, "__dataclass_params__").frozen  # noqa: B009
    expect(frozen, f"{name}: {kind.__name__} is no frozen dataclass; @dataclass(frozen=True)")
    if all(isinstance(value, _PLAIN) for value in vars(method).values()):  # no teacher in memory
        expect_frozen(method, name)
    missing = dataclasses.MISSING
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        default = field.default is not missing or field.default_factory is not missing
        expect(default, f"{name}: field {field.name!r} has no default")
    expect(
        method.stage in (STRUCTURE, WEIGHTS, LOSS),
        f"{name}: stage {method.stage!r}; expected STRUCTURE, WEIGHTS or LOSS of compress.method",
    )


_PLAIN = (type(None), bool, int, float, str, tuple)


def _network() -> Any:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(16, 3, padding="same", name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.ReLU(name="relu")(x)
    x = keras.layers.Conv2D(32, 1, name="point")(x)
    x = keras.layers.ReLU(name="relu2")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(32, "relu", name="hidden")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="head")(x), name="classifier")


def _examples(model: Any) -> Data:
    def loss(found: Any, targets: Any) -> Any:
        return keras.ops.sparse_categorical_crossentropy(targets, found, from_logits=True)

    inputs = inputs_of(model, 32)
    classification = not isinstance(model.output, dict) and len(model.output.shape) == 2
    if not classification:
        return Data(inputs)
    classes = model.output.shape[-1]
    return Data(inputs, np.arange(32) % classes, loss)


def _compressed(method: Method, model: Any, data: Data) -> Any:

    def fit(prepared: Any, update: Any) -> None:
        assert data.loss is not None
        examples = (data.inputs, data.targets)
        task = Task(examples, examples, "random", recipe="random", loss=data.loss, fields={"": 0})
        loop.fit(prepared, task, 1, 0, update=update)

    keras.utils.set_random_seed(0)
    try:
        return compress(model, [method], data=data)
    except NotApplicable:
        if not method.trains or data.loss is None:
            raise
        return compress(model, [method], fit, data)


def _state(model: Any) -> list[tuple[str, bytes]]:
    return [(weight.path, np.asarray(weight).tobytes()) for weight in model.weights]


def _shapes(tree: Any) -> Any:
    return keras.tree.map_structure(lambda tensor: (tuple(tensor.shape), tensor.dtype), tree)


def _check_result(model: Any, original: Any, name: str) -> None:
    expect_flat(model, name)
    left = [layer.name for layer in model.layers if isinstance(layer, Parametrized)]
    expect(not left, f"{name}: {', '.join(left)} are still computed through functions")
    for part in ("input", "output"):
        ours, theirs = (_shapes(getattr(one, part)) for one in (model, original))
        expect(ours == theirs, f"{name}: the {part} is {ours}; expected {theirs}, as before")
    inputs = inputs_of(model, 2)
    finite = all(np.isfinite(output).all() for output in outputs(model, inputs))
    expect(finite, f"{name}: outputs are not finite")
    expect_saved(model, inputs, name)


def _changes(method: Method, model: Any, finished: Any, data: Data) -> bool:
    """Whether anything is other than it was: weights, layers, the record, or the loss to train."""
    record = finished.record
    if changed(model, finished):
        return True
    described = [
        [(type(layer), str(layer.get_config())) for layer in one.layers]
        for one in (model, finished.model)
    ]
    if described[0] != described[1]:
        return True
    prepared = method.prepare(model, data, type(record)(original=model))
    return prepared is not model and [type(one) for one in prepared.layers] != [
        type(one) for one in model.layers
    ]


def _check_weightless(method: Method, name: str) -> None:
    inputs = keras.Input((4, 4, 2), name="image")
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(inputs)
    model = keras.Model(inputs, pooled, name="weightless")
    graph.check_flat(model)
    data = Data(np.ones((4, 4, 4, 2), "float32"))
    try:
        finished = compress(model, [method], data=data)
    except NotApplicable:
        return
    except Exception as error:
        raise AssertionError(
            f"{name} on a network without weights: {type(error).__name__}: {error}; expected"
            " compress.method.NotApplicable"
        ) from error
    expect(
        _changes(method, model, finished, data),
        f"{name} does nothing to a network without weights; expected NotApplicable",
    )
