"""Adapters: begin as nothing, end merged or beside the codes, and make up for what was lost."""

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from compress.distill import Distill
from compress.examples.data import Data
from compress.method import NotApplicable, compress
from compress.ptq import PTQ
from compress.qat import QAT
from compress.recover import Recover
from compress.rewriting.parametrized import fold
from compress.rewriting.record import Record
from nas.tasks.task import Task
from nas.training.loop import evaluate, fit
from nas.training.recipe import Recipe

RECIPE = Recipe(batch_size=64, learning_rate=3e-3)


def mlp() -> keras.Model:
    inputs = keras.Input((64,), name="pixels")
    x = keras.layers.Dense(48, "relu", name="hidden")(inputs)
    x = keras.layers.LayerNormalization(name="norm")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="head")(x), name="mlp")


def convolutions() -> keras.Model:
    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(16, 3, 2, "same", activation="relu", name="spatial")(inputs)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Conv2D(24, 1, name="point")(x)
    x = keras.layers.Reshape((4, 24), name="sequence")(x)
    x = keras.layers.Conv1D(12, 2, padding="causal", dilation_rate=2, name="causal")(x)
    x = keras.layers.EinsumDense("abc,cde->abde", (4, 4, 6), activation="tanh", name="heads")(x)
    x = keras.layers.EinsumDense("abde,def->abf", (4, 8), name="joined")(x)
    return keras.Model(inputs, x, name="convolutions")


@pytest.fixture(scope="module")
def digits() -> Task:
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    parts = (images[:1300], labels[:1300]), (images[1300:], labels[1300:])
    return Task(*parts, "digits", {"input_shape": (64,), "classes": 10}, "digits")


@pytest.fixture(scope="module")
def float_model(digits) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = mlp()
    fit(model, digits, 10, 0, recipe=RECIPE)
    return model


def training(task, epochs, seed=0):
    return lambda model, update: fit(model, task, epochs, seed, recipe=RECIPE, update=update)


def noise(model, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(32, *model.input_shape[1:])).astype(np.float32)


@pytest.mark.parametrize("build", [mlp, convolutions])
def test_an_adapter_begins_as_nothing_and_merges_exactly(build):
    keras.utils.set_random_seed(1)
    model = build()
    method, record = Recover(4), Record(original=model)
    prepared = method.prepare(model, None, record)
    images = noise(model)
    np.testing.assert_array_equal(prepared(images), model(images))
    assert method.update(prepared, None, 0, 10) and not method.update(prepared, None, 1, 10)
    names = [
        name
        for name in (layer.name for layer in model.layers)
        if name + "_adapter_up" in {layer.name for layer in prepared.layers}
    ]
    expected = {"mlp": ["hidden", "head"]}.get(
        model.name, ["spatial", "point", "causal", "heads", "joined"]
    )
    assert names == expected
    # Only adapters are trained.
    assert len(prepared.trainable_weights) == 2 * len(names)
    generator = np.random.default_rng(0)
    for weight in prepared.trainable_weights:
        weight.assign(0.3 * generator.normal(size=weight.shape))
    unmerged = np.asarray(prepared(images))
    assert np.abs(unmerged - np.asarray(model(images))).max() > 0.1
    finished = method.finalize(fold(prepared, record), None, record)
    np.testing.assert_allclose(finished(images), unmerged, atol=2e-5)
    assert finished.to_json() == model.to_json()
    assert record.details[repr(method)] == {
        "adapters": len(names),
        "merged": len(names),
        "parameters": 0,
    }
    if build is convolutions:
        assert "dense and convolution" in record.untouched["depthwise"]
    # The network itself is as it was.
    keras.utils.set_random_seed(1)
    for a, b in zip(model.get_weights(), build().get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_training_it_makes_up_for_what_rounding_took():
    keras.utils.set_random_seed(2)
    model = mlp()
    images = noise(model)
    errors = []
    for methods in ([QAT(2)], [QAT(2), Recover(4)], [Recover(8), PTQ(2)]):
        done = compress(model, methods)
        errors.append(np.abs(np.asarray(done.model(images)) - np.asarray(model(images))).mean())
        for path, weight in done.record.weights.items():
            found = next(w for w in done.model.weights if w.path == path)
            np.testing.assert_allclose(found, weight.dense(), atol=1e-6)
        assert set(done.record.weights) == {"hidden/kernel", "head/kernel"}
    assert errors[0] > errors[1] > errors[2]
    # The best of its rank: what is left of the error is what is left of its singular values.
    lost = np.asarray(model.get_layer("hidden").kernel) - record_of(done, "hidden/kernel")
    adapter = [done.model.get_layer(f"hidden_adapter_{end}").kernel for end in ("down", "up")]
    left = lost - np.asarray(adapter[0]) @ np.asarray(adapter[1])
    values = np.linalg.svd(lost, compute_uv=False)
    assert np.linalg.norm(left) == pytest.approx(np.linalg.norm(values[8:]), rel=1e-2)
    for kernel in adapter:
        np.testing.assert_array_equal(kernel, np.asarray(kernel).astype(np.float16))
    told = done.record.details[repr(Recover(8))]
    # 2 (64 + 48) are many for 64 x 48, and rank 8 for 48 x 10 would be no adapter.
    assert told == {"adapters": 2, "merged": 0, "parameters": 8 * (64 + 48) + 4 * (48 + 10)}


def test_convolutions_are_made_up_for():
    keras.utils.set_random_seed(2)
    model = convolutions()
    images = noise(model)
    errors = []
    for methods in ([QAT(2)], [QAT(2), Recover(6)]):
        done = compress(model, methods)
        errors.append(np.abs(np.asarray(done.model(images)) - np.asarray(model(images))).mean())
    assert errors[1] < errors[0], errors
    lost = np.asarray(model.get_layer("spatial").kernel) - record_of(done, "spatial/kernel")
    ends = [np.asarray(done.model.get_layer(f"spatial_adapter_{e}").kernel) for e in ("down", "up")]
    assert ends[0].shape == (3, 3, 3, 5) and ends[1].shape == (1, 1, 5, 16)
    left = lost - ends[0] @ ends[1][0, 0]
    values = np.linalg.svd(lost.reshape(27, 16), compute_uv=False)
    assert np.linalg.norm(left) == pytest.approx(np.linalg.norm(values[5:]), rel=1e-2)


def record_of(done, path):
    return done.record.weights[path].dense()


def test_examples_say_which_inputs_matter():
    keras.utils.set_random_seed(3)
    model = mlp()
    generator = np.random.default_rng(0)
    images = generator.normal(size=(256, 64)).astype(np.float32)
    images *= np.where(np.arange(64) < 8, 10, 0.1).astype(np.float32)
    methods = [QAT(2, which="hidden"), Recover(4, which="hidden")]
    errors = []
    for data in (None, Data(images)):
        done = compress(model, methods, data=data)
        errors.append(np.square(np.asarray(done.model(images)) - np.asarray(model(images))).mean())
    assert errors[1] < 0.5 * errors[0], errors


def test_codes_stay_and_adapters_learn_in_the_last_part(digits, float_model):
    seen, model = [], float_model

    def train(prepared, update):
        def watched(step, steps):
            changed = update(step, steps)
            values = [weight.copy() for weight in prepared.get_weights()]
            seen.append(
                dict(zip((weight.path for weight in prepared.weights), values, strict=True))
            )
            return changed

        fit(prepared, digits, 5, 0, recipe=RECIPE, update=watched)

    methods = [QAT(2), Recover(2)]
    done = compress(model, methods, train)
    steps = 5 * (1300 // 64)
    up = [state["hidden_adapter_up/kernel"] for state in seen]
    assert not np.any(up[round(0.75 * steps)]) and np.any(up[-1])
    hidden = [state["hidden/kernel"] for state in seen]
    begin = int(np.ceil(0.75 * steps))
    before = np.abs(hidden[begin] - hidden[begin - 10]).max()
    after = np.abs(hidden[-1] - hidden[-11]).max()
    assert before > 1e-4 and after < 0.03 * before  # what momentum was left has died out
    clips = [name for name in seen[0] if name.endswith("clip")]
    assert clips and all(np.abs(seen[-1][name] - seen[-5][name]).max() < 1e-4 for name in clips)
    names = {layer.name for layer in done.model.layers}
    ends = {f"{name}_adapter_{end}" for name in ("hidden", "head") for end in ("down", "up", "add")}
    assert names == {"pixels", "hidden", "norm", "head", "hidden_adapter_activation", *ends}
    assert all(layer.trainable for layer in done.model.layers)
    assert set(done.record.weights) == {"hidden/kernel", "head/kernel"}


def test_adapters_bring_back_what_rounding_took(digits, float_model):
    """Rounded at once, the network frozen, only adapters trained; the teacher is the network."""
    rounded = compress(float_model, [QAT(2, clip="maxabs")])
    methods = [QAT(2, clip="maxabs"), Recover(4, start=0), Distill()]
    done = compress(float_model, methods, training(digits, 6))
    before, naive, ours = (evaluate(m, digits) for m in (float_model, rounded.model, done.model))
    assert naive < before - 0.05 and ours > 0.5 * (naive + before), (before, naive, ours)
    for path, weight in rounded.record.weights.items():
        np.testing.assert_array_equal(weight.codes, done.record.weights[path].codes)
    np.testing.assert_array_equal(
        done.model.get_layer("norm").gamma, float_model.get_layer("norm").gamma
    )


def test_a_network_alone_is_tuned_and_merged(digits, float_model):
    done = compress(float_model, [Recover(4)], training(digits, 2))
    assert done.model.to_json() == float_model.to_json()
    assert done.model.count_params() == float_model.count_params()
    changed = [
        weight.path
        for weight, old in zip(done.model.weights, float_model.weights, strict=True)
        if not np.array_equal(weight, old)
    ]
    assert changed == ["hidden/kernel", "head/kernel"]


def test_what_does_not_apply_says_why():
    with pytest.raises(NotApplicable, match="has lost anything"):
        compress(mlp(), [Recover()])
    inputs = keras.Input((8, 4))
    alone = keras.Model(inputs, keras.layers.LayerNormalization()(inputs))
    with pytest.raises(NotApplicable, match="no dense or convolution"):
        compress(alone, [Recover()])
    with pytest.raises(NotApplicable, match="nowhere"):
        compress(mlp(), [Recover(which="nowhere")])
    for wrong in ({"rank": 0}, {"rank": 1.5}, {"start": 2.0}):
        with pytest.raises(ValueError, match="expected"):
            Recover(**wrong)


def makes_up_for_what_was_lost():
    assert keras.config.backend() == "jax"
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    parts = [(images[part], labels[part]) for part in (slice(0, 640), slice(640, 896))]
    task = Task(*parts, "digits", {"input_shape": (64,), "classes": 10}, "digits")
    keras.utils.set_random_seed(0)
    model = mlp()
    training(task, 12)(model, None)
    done = compress(model, [QAT(2), Recover(4), Distill()], training(task, 8))
    assert np.any(done.model.get_layer("head_adapter_up").kernel)
    assert evaluate(done.model, task) > 0.7, evaluate(done.model, task)
    done = compress(model, [Recover(4)], training(task, 1))
    assert done.model.to_json() == model.to_json()


@pytest.mark.slow
def test_with_jax(on_jax):
    on_jax(makes_up_for_what_was_lost)
