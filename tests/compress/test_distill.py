"""Distillation: distances against plain NumPy, graphs left as they were, students that learn."""

import dataclasses

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from compress.distill import Distill, Teach
from compress.distillation.distances import Classes, Features, Lattice
from compress.method import NotApplicable, compress
from compress.rewriting.record import Record
from families import conformer, decoder
from nas.tasks.task import Task
from nas.training.loop import fit
from nas.training.recipe import Recipe


def mlp(width: int = 16, softmax: bool = False, name: str = "mlp") -> keras.Model:
    inputs = keras.Input((64,), name="pixels")
    x = keras.layers.Dense(width, "relu", name="hidden")(inputs)
    activation = "softmax" if softmax else None
    return keras.Model(inputs, keras.layers.Dense(10, activation, name="head")(x), name=name)


@pytest.fixture(scope="module")
def digits() -> Task:
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    parts = (images[:1300], labels[:1300]), (images[1300:], labels[1300:])
    return Task(*parts, "digits", {"input_shape": (64,), "classes": 10}, "digits")


def trained(task: Task, epochs: int, methods=None, seed: int = 0, **recipe):
    recipe = Recipe(**({"batch_size": 64, "learning_rate": 3e-3} | recipe))

    def train(model, update):
        fit(model, task, epochs, seed, recipe=recipe, update=update)

    keras.utils.set_random_seed(seed)
    model = mlp()
    if methods is not None:
        return compress(model, methods, train)
    train(model, None)
    return model


def softmax(logits):
    logits = np.asarray(logits)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def divergence(theirs, mine):
    return np.sum(theirs * (np.log(theirs) - np.log(mine)), -1)


def test_classes_are_hot_divergences():
    generator = np.random.default_rng(0)
    mine, theirs = generator.normal(size=(2, 4, 3, 7)).astype(np.float32) * 3
    expected = 9 * divergence(softmax(theirs / 3), softmax(mine / 3)).mean()
    found = float(Classes(3.0, (False, False))([mine], [theirs], []))
    assert found == pytest.approx(expected, rel=1e-5)
    assert abs(float(Classes(3.0, (False, False))([mine], [mine], []))) < 1e-6
    # Probabilities are taken for what they are.
    found = float(Classes(3.0, (True, False))([softmax(mine)], [theirs], []))
    assert found == pytest.approx(expected, rel=1e-4)


def lattices():
    generator = np.random.default_rng(1)
    mine, theirs = generator.normal(size=(2, 2, 5, 4, 6)).astype(np.float32) * 2
    frames = np.array([9, 18], np.int32)  # of 4 a column
    labels = np.array([[3, 2, 0], [5, 5, 1]], np.int32)
    return mine, theirs, frames, labels


def reduced(mine, theirs, frames, labels, heat):
    """Node by node."""
    found = []
    for n, (count, text) in enumerate(zip(frames, labels, strict=True)):
        text = [label for label in text if label]
        for t in range(-(-count // 4)):
            for u in range(len(text) + 1):
                pair = []
                for logits in (theirs, mine):
                    p = softmax(logits[n, t, u].astype(np.float64) / heat)
                    label = [p[text[u]]] if u < len(text) else []
                    pair.append(np.array([p[0], *label, 1 - p[0] - sum(label)]))
                found.append(divergence(*pair))
    return heat**2 * np.mean(found)


@pytest.mark.parametrize("heat", [1.0, 2.0])
def test_lattices_are_divergences_of_three_classes(heat):
    import tensorflow as tf

    mine, theirs, frames, labels = lattices()
    measure = Lattice(heat, (False, False), ratio=4)
    variable = tf.constant(mine)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        found = measure([variable, frames, labels], [theirs], [])
    assert float(found) == pytest.approx(reduced(mine, theirs, frames, labels, heat), rel=1e-5)
    gradient = tape.gradient(found, variable).numpy()
    expected = np.zeros_like(gradient)
    for place in np.ndindex(mine.shape):
        ends = []
        for step in (1e-4, -1e-4):
            moved = mine.astype(np.float64)
            moved[place] += step
            ends.append(reduced(moved, theirs, frames, labels, heat))
        expected[place] = (ends[0] - ends[1]) / 2e-4
    np.testing.assert_allclose(gradient, expected, atol=2e-6)
    # What no text can reach does not count.
    assert not gradient[0, 3:].any() and not gradient[0, :, 3:].any()
    assert gradient[1, 4, 3].any()


def test_features_of_other_widths_are_projected():
    generator = np.random.default_rng(0)
    mine, theirs = generator.normal(size=(3, 5, 4)), generator.normal(size=(3, 5, 6))
    matrix = generator.normal(size=(4, 6))
    found = Features("mse", ((4, 6),))([mine], [theirs], [matrix])
    assert float(found) == pytest.approx(
        np.mean((mine @ matrix - theirs) ** 2) / np.mean(theirs**2)
    )
    found = Features("cosine", ((4, 4),))([mine], [3 * mine], [])
    assert abs(float(found)) < 1e-6


def nothing(outputs, targets):
    return 0.0 * keras.ops.sum(outputs, axis=-1)


@pytest.mark.parametrize("kind", ["logits", "features"])
def test_a_student_learns_all_from_its_teacher(digits, kind):
    teacher = mlp(32, name="large")
    fit(teacher, digits, 8, 0, recipe=Recipe(batch_size=64, learning_rate=3e-3))
    before = [weight.copy() for weight in teacher.get_weights()]
    method = Distill(teacher, kind=kind, which="head" if kind == "features" else None)
    done = trained(dataclasses.replace(digits, loss=nothing), 8, [method], learning_rate=2e-2)
    for a, b in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    images = digits.valid[0]
    agree = [np.asarray(model(images)).argmax(-1) for model in (teacher, done.model, mlp())]
    assert np.mean(agree[0] == agree[1]) > 0.85 > 0.5 > np.mean(agree[0] == agree[2])
    told = done.record.details[repr(method)]
    assert told["steps"] == 8 * (1300 // 64) and 0 < told["last distance"] < 1
    assert done.model.to_json() == mlp().to_json()


def test_the_graph_is_as_before_and_evaluation_does_not_pay():
    keras.utils.set_random_seed(0)
    model, teacher = mlp(), mlp(24)
    calls = []
    hidden = teacher.get_layer("hidden")
    call = hidden.call
    hidden.call = lambda *args, **kwargs: calls.append(1) or call(*args, **kwargs)
    method = Distill(teacher, kind="features")
    record = Record(original=model)
    prepared = method.prepare(model, None, record)
    images = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    calls.clear()
    np.testing.assert_array_equal(prepared(images, training=False), model(images))
    assert not calls
    # Only what is learned and thrown away is added: no weight of the teacher.
    extra = {w.path for w in prepared.weights} - {w.path for w in model.weights}
    assert extra == {"distill/steps", "distill/seen", "distill/projection_0"}
    assert [tuple(w.shape) for w in prepared.trainable_weights][-1] == (16, 24)
    prepared(images, training=True)
    assert calls == [1] and len(prepared.losses) == 1
    finished = method.finalize(prepared, None, record)
    assert finished.to_json() == model.to_json()
    for a, b in zip(finished.weights, model.weights, strict=True):
        assert a.path == b.path and a is not b
        np.testing.assert_array_equal(a, b)


def test_the_original_teaches_and_softmaxed_networks_learn(digits):
    keras.utils.set_random_seed(0)
    model = mlp(softmax=True)
    logits = mlp()
    logits.set_weights(model.get_weights())
    prepared = Distill().prepare(model, None, Record(original=model))
    teach = next(layer for layer in prepared.layers if isinstance(layer, Teach))
    prepared(digits.train[0][:8], training=True)
    assert float(teach.seen) < 1e-6  # the same network
    prepared.get_layer("head").bias.assign(np.arange(10, dtype=np.float32))
    prepared(digits.train[0][:8], training=True)
    theirs = softmax(logits(digits.train[0][:8]) / 2)
    mine = softmax((logits(digits.train[0][:8]) + np.arange(10)) / 2)
    assert float(teach.seen) == pytest.approx(4 * divergence(theirs, mine).mean(), rel=1e-3)


def test_two_teachers_and_names(digits):
    methods = [Distill(mlp(8, name="one")), Distill(mlp(24, name="two"), kind="features")]
    assert "teacher='one'" in repr(methods[0])
    named = dataclasses.replace(methods[0], named="big.keras")
    assert "teacher='big.keras'" in repr(named) and "named" not in repr(named)
    done = trained(digits, 1, methods)
    assert set(done.record.details) == {repr(method) for method in methods}
    assert done.model.to_json() == mlp().to_json()


def lattice_batch(config, count=3):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(count, config.frames, config.mels)).astype(np.float32)
    frames = np.full(count, config.frames - 8, np.int32)
    labels = generator.integers(1, config.vocabulary, (count, config.labels)).astype(np.int32)
    labels[:, -1] = 0
    return {"features": features, "frames": frames, "labels": labels}


def small_conformer(**fields):
    tiny = dataclasses.replace(conformer.VARIANTS["tiny"], depth=1, frames=32, dropout=0.0)
    return dataclasses.replace(tiny, **fields)


def test_transducers_learn_lattices_of_larger_ones():
    config = small_conformer()
    keras.utils.set_random_seed(0)
    model, teacher = conformer.build(config), conformer.build(small_conformer(width=64))
    method = Distill(teacher, kind="lattice")
    prepared = method.prepare(model, None, Record(original=model))
    teach = next(layer for layer in prepared.layers if isinstance(layer, Teach))
    batch = lattice_batch(config)
    mine = np.asarray(prepared(batch, training=True))
    theirs = np.asarray(teacher(batch, training=False))
    expected = reduced(mine, theirs, batch["frames"], batch["labels"], 1.0)
    assert float(teach.seen) == pytest.approx(expected, rel=1e-4)


def test_decoders_with_caches_learn_logits():
    config = dataclasses.replace(
        decoder.VARIANTS["tiny"], layers=1, dim=16, hidden=16, length=1, cache=4
    )
    model = decoder.build(config)
    prepared = Distill().prepare(model, None, Record(original=model))
    assert prepared.output.keys() == model.output.keys()
    inputs = {
        name: np.zeros((2, *tensor.shape[1:]), tensor.dtype)
        for name, tensor in prepared.input.items()
    }
    prepared(inputs, training=True)
    assert len(prepared.losses) == 1


def test_what_does_not_apply_says_why():
    with pytest.raises(NotApplicable, match="training only"):
        compress(mlp(), [Distill()])
    with pytest.raises(NotApplicable, match="no transducer"):
        compress(mlp(), [Distill(kind="lattice")])
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="expected the same inputs"):
        compress(mlp(), [Distill(keras.Model(inputs, keras.layers.Dense(10)(inputs)))])
    with pytest.raises(NotApplicable, match="no layer that both"):
        compress(mlp(), [Distill(mlp(), kind="features", which="nowhere")])
    with pytest.raises(ValueError, match="expected a keras.Model"):
        compress(mlp(), [Distill("big.keras")])
    for wrong in ({"kind": "soft"}, {"distance": "l1"}, {"weight": -1.0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="expected"):
            Distill(**wrong)


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_one_output_is_a_number_or_a_share(activation):
    """The distance by hand: relative squares of numbers, divergences of shares."""
    inputs = keras.Input((4,))
    mine, theirs = (
        keras.Model(inputs, keras.layers.Dense(1, activation)(inputs)) for _ in range(2)
    )
    prepared = Distill(theirs, temperature=1.0).prepare(mine, None, Record(original=mine))
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    prepared(x, training=True)
    p, q = (keras.ops.convert_to_numpy(one(x)) for one in (mine, theirs))
    if activation is None:
        expected = np.mean((p - q) ** 2) / np.mean(q**2)
    else:
        expected = np.mean(q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p)))
    assert float(prepared.losses[0]) == pytest.approx(float(expected), rel=1e-3)


def learns_from_a_teacher():
    import jax

    assert keras.config.backend() == "jax"
    images = np.random.default_rng(0).normal(size=(256, 64)).astype(np.float32)
    labels = np.arange(256) % 10
    task = Task((images, labels), (images, labels), "t", {"input_shape": (64,), "classes": 10}, "t")
    recipe = Recipe(batch_size=64, learning_rate=1e-2)
    for kind in ("logits", "features"):
        method = Distill(mlp(24), kind=kind, weight=10.0)
        distances = []
        for epochs in (1, 8):
            keras.utils.set_random_seed(0)

            def train(model, update, epochs=epochs):
                fit(model, task, epochs, 0, recipe=recipe, update=update)

            details = compress(mlp(), [method], train).record.details
            distances.append(details[repr(method)]["last distance"])
        assert distances[1] < 0.8 * distances[0], distances
    mine, theirs, frames, labels = lattices()
    measure = Lattice(2.0, (False, False), ratio=4)
    value, gradient = jax.value_and_grad(lambda x: measure([x, frames, labels], [theirs], []))(mine)
    assert abs(float(value) - reduced(mine, theirs, frames, labels, 2.0)) < 1e-4
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[0, 3:].any()


@pytest.mark.slow
def test_with_jax(on_jax):
    on_jax(learns_from_a_teacher)


@pytest.mark.parametrize("named", [True, False])
def test_several_outputs_are_taught_each_in_its_own_way(named):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(8, activation="relu", name="hidden")(inputs)
    ends = {"kind": ("softmax", 3), "flags": ("sigmoid", 2), "size": (None, 1)}
    outputs = {n: keras.layers.Dense(k, activation=a, name=n)(hidden) for n, (a, k) in ends.items()}
    ends_of = outputs if named else list(outputs.values())
    model = keras.Model({"x": inputs} if named else inputs, ends_of)
    teacher = keras.models.clone_model(keras.Model(inputs, ends_of))  # which goes by order
    x = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    given = {"x": x} if named else x
    goal = [np.asarray(one) for one in keras.tree.flatten(teacher(x))]

    def apart(network):
        found = [np.asarray(one) for one in keras.tree.flatten(network(given))]
        return [float(np.mean(np.abs(one - two))) for one, two in zip(found, goal, strict=True)]

    def train(prepared, update):
        prepared.compile(keras.optimizers.Adam(0.03), loss=None)
        prepared.fit(given, batch_size=64, epochs=60, verbose=0)

    small = compress(model, [Distill(teacher=teacher, temperature=1.0)], train).model
    before, after = apart(model), apart(small)
    assert all(two < 0.8 * one for one, two in zip(before, after, strict=True)), (before, after)
    assert small.output.keys() == ends.keys() if named else len(small.outputs) == 3
    with pytest.raises(NotApplicable, match="name their layers by which="):
        compress(model, [Distill(teacher=teacher, kind="features")], train)
