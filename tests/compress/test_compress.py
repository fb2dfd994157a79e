"""The contract of compression: weights read through functions, order, record, one training."""

import dataclasses
from typing import ClassVar

import keras
import numpy as np
import pytest

from compress.examples.data import Data
from compress.method import LOSS, STRUCTURE, Method, NotApplicable, compress
from compress.rewriting import graph
from compress.rewriting.parametrized import Parametrization, fold, functions, parametrize
from compress.rewriting.record import Record, Weight
from latency.networks.random_inputs import random_inputs
from nas import registry
from nas.training import loop

FAMILIES = list(registry.listing("family"))


class Scaled(Parametrization):
    """Half of the weight, by a variable of its own."""

    def build(self, shape):
        self.factor = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(0.5), name="factor"
        )

    def call(self, weight):
        return weight * self.factor


class Masked(Parametrization):
    """The first half of the last axis stays."""

    last = True

    def build(self, shape):
        self.shape = shape

    def call(self, weight):
        return weight * (np.arange(self.shape[-1]) < self.shape[-1] // 2).astype("float32")

    def describe(self, value, before):
        return dataclasses.replace(before or Weight(), mask=value != 0)


def _mlp(seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((64,), name="pixels")
    x = keras.layers.Dense(16, activation="relu", name="first")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="second")(x))


def _outputs(model, inputs):
    return [np.asarray(tensor) for tensor in keras.tree.flatten(model(inputs, training=False))]


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_of_every_family_are_rewritten_and_folded(family):
    module, config = registry.network(f"{family}:tiny")
    model = module.build(config)
    inputs = random_inputs(model, 2)
    again = graph.rewrite(model, lambda layer, copy: copy)
    for one, two in zip(_outputs(model, inputs), _outputs(again, inputs), strict=True):
        np.testing.assert_array_equal(one, two)
    paths = [weight.path for weight in model.weights]
    assert [weight.path for weight in again.weights] == paths

    before = [np.asarray(weight) for weight in model.weights]
    kernels = [w.path for w in model.trainable_weights if len(w.shape) > 1]
    prepared = parametrize(model, {path: Scaled(name="scaled") for path in kernels})
    assert len(prepared.trainable_weights) == len(model.trainable_weights) + len(kernels)
    assert functions(prepared, Scaled).keys() == set(kernels)
    seen = _outputs(prepared, inputs)
    finished = fold(prepared, Record())
    for one, two in zip(seen, _outputs(finished, inputs), strict=True):
        np.testing.assert_array_equal(one, two)
    assert [weight.path for weight in finished.weights] == paths
    for path, weight, value in zip(paths, finished.weights, before, strict=True):
        np.testing.assert_array_equal(np.asarray(weight), value * (0.5 if path in kernels else 1))
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(np.asarray(weight), value)  # the model itself is as it was


def test_a_training_sees_through_functions_and_masks_come_last():
    task = registry.task("digits:8")
    task = dataclasses.replace(
        task, **{p: (getattr(task, p)[0].reshape(-1, 64), getattr(task, p)[1])
                 for p in ("train", "valid")}
    )  # fmt: skip
    model = _mlp()
    prepared = parametrize(model, {"first/kernel": Masked(name="mask")})
    prepared = parametrize(prepared, {"first/kernel": Scaled(name="scaled")})
    task = dataclasses.replace(task, fields={"input_shape": (64,), "classes": 10})
    done = loop.fit(prepared, task, 12, 0)
    assert done.quality > 0.7
    factor = functions(prepared, Scaled)["first/kernel"][0].factor
    assert float(factor) != 0.5
    record = Record()
    finished = fold(prepared, record)
    kernel = finished.get_layer("first").get_weights()[0]
    assert not kernel[:, 8:].any() and kernel[:, :8].all()
    np.testing.assert_array_equal(record.weights["first/kernel"].mask, kernel != 0)
    assert list(record.check(finished)) == []
    assert loop.evaluate(finished, task) == done.quality


@dataclasses.dataclass(frozen=True)
class Told(Method):
    """Writes down what it is asked to do."""

    name: str
    calls: list
    stage: ClassVar[int] = 1

    def prepare(self, model, data, record):
        self.calls.append(("prepare", self.name))
        return model

    def update(self, model, data, step, steps):
        self.calls.append(("update", self.name, step, steps))
        return False

    def finalize(self, model, data, record):
        self.calls.append(("finalize", self.name))
        return model


@dataclasses.dataclass(frozen=True)
class First(Told):
    stage: ClassVar[int] = STRUCTURE


@dataclasses.dataclass(frozen=True)
class Last(Told):
    stage: ClassVar[int] = LOSS


def test_methods_are_prepared_by_stage_trained_once_and_finalized_in_reverse():
    calls = []

    def fit(model, update):
        calls.append("fit")
        assert not update(0, 2) and not update(1, 2)

    compress(_mlp(), [Last("c", calls), Told("b", calls), First("a", calls)], fit)
    names = ("a", "b", "c")
    updates = [("update", name, *at) for at in ((0, 2), (1, 2), (1, 1)) for name in names]
    assert calls == [
        *[("prepare", name) for name in names],
        "fit",
        *updates,
        *[("finalize", name) for name in reversed(names)],
    ]


@dataclasses.dataclass(frozen=True)
class Wrong(Method):
    """Says of a weight what is not so."""

    def finalize(self, model, data, record):
        shape = model.get_layer("first").kernel.shape
        record.weights["first/kernel"] = Weight(mask=np.zeros(shape, bool))
        record.weights["third/kernel"] = Weight(mask=np.zeros(shape, bool))
        return model


def test_a_record_that_is_not_so_is_an_error():
    with pytest.raises(ValueError, match=r"first/kernel: 1024 pruned.*third/kernel: no such"):
        compress(_mlp(), [Wrong()])


def test_models_that_cannot_be_rewritten_say_which_layer():
    inner = _mlp()
    inputs = keras.Input((64,))
    with pytest.raises(ValueError, match=f"layer {inner.name} is a model itself"):
        compress(keras.Model(inputs, inner(inputs)), [_Halved()])

    class Own(keras.Model):
        pass

    with pytest.raises(ValueError, match="Own, not a Functional model"):
        compress(Own(), [_Halved()])


@dataclasses.dataclass(frozen=True)
class _Halved(Method):
    def prepare(self, model, data, record):
        return parametrize(model, {"first/kernel": Scaled(name="scaled")})


def test_weights_are_what_codes_levels_scales_and_masks_say():
    codes = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.uint8)
    levels = np.array([[-1.5, -0.5, 0.5, 1.5]], np.float32)
    scale = np.array([[1, 2, 3, 4]], np.float32)
    weight = Weight(2, codes, levels, scale)
    np.testing.assert_array_equal(weight.dense(), [[-1.5, -1, 1.5, 6], [1.5, 1, -1.5, -6]])
    mask = codes > 0
    masked = dataclasses.replace(weight, mask=mask)
    np.testing.assert_array_equal(masked.dense(), np.where(mask, weight.dense(), 0))
    np.testing.assert_array_equal(
        masked.take(np.array([0, 3]), 1).dense(), masked.dense()[:, [0, 3]]
    )
    two = Weight(1, codes % 2, np.array([[1, 2], [10, 20]], np.float32), np.ones((1, 1), "f"))
    np.testing.assert_array_equal(two.dense(), [[1, 2, 10, 20], [2, 1, 20, 10]])
    with pytest.raises(ValueError, match="2 tables"):
        two.take(np.array([0]), 1)
    rows = dataclasses.replace(two, axis=0)
    np.testing.assert_array_equal(rows.dense(), [[1, 2, 1, 2], [20, 10, 20, 10]])


def test_data_comes_in_batches():
    data = Data({"a": np.arange(5), "b": np.arange(10).reshape(5, 2)}, np.arange(5))
    parts = list(data.batches(2))
    assert len(data) == 5 and [len(targets) for _, targets in parts] == [2, 2, 1]
    np.testing.assert_array_equal(parts[2][0]["b"], [[8, 9]])


def test_what_cannot_be_applied_is_a_value_error():
    assert issubclass(NotApplicable, ValueError)
