"""The training engine: equal to stock Keras where it claims so, deterministic, and leak-free."""

import dataclasses
import gc
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from nas import backend
from nas.tasks import digits
from nas.tasks.task import Task

keras = backend.load()

from nas.training import loop  # noqa: E402

ROOT = pathlib.Path(__file__).parents[3]
on_tensorflow = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="the TensorFlow engine"
)


OPTIMIZERS = (
    {},
    {"optimizer": "adamw", "weight_decay": 0.3},
    {"optimizer": "sgd", "momentum": 0.8},
    {"clip": 0.1},
)


def network(size: int = 8, filters: int = 16, classes: int = 10) -> keras.Model:
    """A depthwise block between two convolutions, one shortcut, dropout."""
    layers = keras.layers
    inputs = keras.Input((size, size, 1))
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(inputs)
    x = stem = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9, scale=False)(x))
    x = layers.Conv2D(filters, 1, use_bias=False)(x)
    x = layers.Add()([layers.BatchNormalization(momentum=0.9, center=False)(x), stem])
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(classes)(x))


def seeded(seed: int, **options) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return network(**options)


@pytest.fixture(scope="module")
def task() -> Task:
    return digits.load(size=8)


def test_digits_are_learned_and_every_epoch_is_reported(task):
    model, seen = seeded(0, filters=24), []
    result = loop.fit(
        model, task, 6, seed=0, learning_rate=1e-2, on_epoch=lambda *now: seen.append(now)
    )
    assert result.quality > 0.8  # chance: 0.1
    assert [quality for _, quality in seen] == list(result.curve)
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert result.quality == result.curve[-1] == pytest.approx(loop.evaluate(model, task))
    assert 0 < sum(result.phases.values()) <= result.seconds


def test_on_epoch_stops_the_training(task):
    result = loop.fit(seeded(0), task, 5, seed=0, on_epoch=lambda epoch, quality: epoch == 2)
    assert len(result.curve) == 2


def test_the_seed_decides_the_curve(task):
    first, again = (loop.fit(seeded(3), task, 2, seed=5) for _ in range(2))
    other = loop.fit(seeded(3), task, 2, seed=6)
    assert first.curve == again.curve != other.curve


IN_A_NEW_PROCESS = """
import hashlib, json, sys
sys.path[:0] = [{folder!r}]
from test_train import digits, loop, seeded
model = seeded(7)
curve = loop.fit(model, digits.load(size=8), 2, seed=1).curve
digest = hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest()
print(json.dumps([curve, digest]))
"""


def test_two_processes_train_the_same_bits():
    environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": "2"}
    command = [
        sys.executable,
        "-c",
        IN_A_NEW_PROCESS.format(folder=str(pathlib.Path(__file__).parent)),
    ]
    outputs = [
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        for _ in range(2)
    ]
    assert json.loads(outputs[0]) == json.loads(outputs[1])


RECIPES = (
    {"optimizer": "adamw", "weight_decay": 0.1, "clip": 0.5, "ema": 0.9, "patience": 2},
    {"optimizer": "sgd"},
)


def curves(path):
    import families.layers  # noqa: F401

    found, task = [], digits.load(size=8)
    for changes in RECIPES:
        model = keras.models.load_model(path)
        done = loop.fit(model, task, 2, seed=1, learning_rate=3e-3, **changes)
        found.append([[e.loss, e.valid_loss, e.quality] for e in done.history])
        assert loop.evaluate(model, task) == pytest.approx(done.quality)
    return keras.config.backend(), found


@on_tensorflow
def test_tensorflow_and_jax_train_alike(tmp_path, on_jax):
    """A transformer with a normalization: its first epochs, to four digits."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((8, 8, 1))
    x = layers.BatchNormalization()(layers.Dense(16)(layers.Reshape((8, 8))(inputs)))
    normal = layers.LayerNormalization()(x)
    from families.layers import Attention

    query, key, value = (layers.Dense(16, name=name)(normal) for name in ("q", "k", "v"))
    x = layers.Add()([x, layers.Dense(16)(Attention(2)(query, key, value))])
    x = layers.Dense(32, "relu", activity_regularizer="l2")(layers.Flatten()(x))
    start = str(tmp_path / "start.keras")
    keras.Model(inputs, layers.Dense(10)(x)).save(start)
    backend, found = on_jax(curves, start)
    assert backend == "jax"
    np.testing.assert_allclose(found, curves(start)[1], rtol=1e-3)


@on_tensorflow
def test_fused_normalization_is_stock_normalization():
    import tensorflow as tf

    from nas.training.tensorflow_engine import fused_normalization

    model = seeded(1, filters=6)
    images = tf.random.stateless_normal((5, 8, 8, 1), (1, 2)) * 3 + 1
    start = model.get_weights()

    def gradients(training):
        model.set_weights(start)
        variables = [variable.value for variable in model.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch([images, *variables])
            outputs = model(images, training=training)
            loss = tf.reduce_sum(outputs**2)
        found = tape.gradient(loss, [images, *variables])
        return [outputs, *found, *(v.value for v in model.non_trainable_variables)]

    for layer in model.layers:  # dropout draws a new mask in every call
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    for training in (True, False):
        stock = [tensor.numpy() for tensor in gradients(training)]
        with fused_normalization(model):
            fused = [tensor.numpy() for tensor in gradients(training)]
        assert len(stock) > 10
        for expected, found in zip(stock, fused, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@on_tensorflow
def test_moving_averages_follow_faster_in_the_first_steps():
    import tensorflow as tf

    from nas.training.tensorflow_engine import fused_normalization

    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, keras.layers.BatchNormalization(momentum=0.99)(inputs))
    least_share = tf.Variable(0.9)
    with fused_normalization(model, least_share):
        model(tf.ones((3, 4, 4, 2)), training=True)
        np.testing.assert_allclose(model.layers[1].moving_mean, [0.9, 0.9], rtol=1e-6)
        least_share.assign(1e-6)  # later the momentum is the layer's own
        model(2 * tf.ones((3, 4, 4, 2)), training=True)
    np.testing.assert_allclose(model.layers[1].moving_mean, [0.911, 0.911], rtol=1e-6)


@on_tensorflow
def test_what_is_saved_are_stock_layers(task, tmp_path):
    model = seeded(0)
    stopped = []
    with pytest.raises(KeyboardInterrupt):  # even when the training is interrupted

        def interrupt(epoch, quality):
            stopped.append(epoch)
            raise KeyboardInterrupt

        loop.fit(model, task, 2, seed=0, on_epoch=interrupt)
    assert stopped == [1]
    assert all("call" not in vars(layer) for layer in model.layers)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in model.layers]
    assert loop.evaluate(loaded, task) == loop.evaluate(model, task)


@on_tensorflow
@pytest.mark.parametrize("changes", OPTIMIZERS, ids=lambda changes: "-".join(changes) or "adam")
def test_the_optimizers_are_those_of_keras(task, changes):
    """Three steps of the engine and of `train_on_batch` with Keras' own end at equal weights."""
    import tensorflow as tf

    from nas.training.tensorflow_engine import compiled

    def linear():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8, 8, 1))
        return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(inputs)))

    ours, stock = linear(), linear()
    names = {"weight_decay": "weight_decay", "momentum": "momentum", "clip": "global_clipnorm"}
    options = {names[name]: value for name, value in changes.items() if name in names}
    optimizer = {"adamw": keras.optimizers.AdamW, "sgd": keras.optimizers.SGD}
    optimizer = optimizer.get(changes.get("optimizer"), keras.optimizers.Adam)(0.01, **options)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    stock.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with compiled(ours, task, loop.Recipe(**changes), 64) as engine:
        for start in (0, 64, 128):
            part = slice(start, start + 64)
            engine.step(task.train[0][part], task.train[1][part], 0.01)
            stock.train_on_batch(task.train[0][part], task.train[1][part])
    assert not tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer")
    for found, expected in zip(ours.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_model_of_another_shape_is_refused(task):
    with pytest.raises(ValueError, match=r"maps \(None, 16, 16, 1\).*set input_shape"):
        loop.fit(network(size=16), task, 1, seed=0)
    with pytest.raises(ValueError, match=r"classes of its Config"):
        loop.fit(network(classes=3), task, 1, seed=0)
    with pytest.raises(ValueError, match="epochs=0"):
        loop.fit(network(), task, 0, seed=0)


def test_trees_of_arrays_and_a_loss_and_a_score_of_ones_own():
    """Two named inputs, two named outputs; what is learned needs both inputs."""
    generator = np.random.default_rng(0)
    numbers, kinds = generator.normal(size=(600, 3)), generator.integers(0, 4, 600)
    inputs = {"numbers": numbers.astype(np.float32), "kind": kinds.astype(np.uint8)}
    targets = {"sum": (numbers.sum(1) + kinds).astype(np.float32), "kind": kinds}
    parts = [
        tuple({name: array[part] for name, array in tree.items()} for tree in (inputs, targets))
        for part in (slice(0, 500), slice(500, 600))
    ]

    def loss(outputs, targets):
        ops = keras.ops
        kind = ops.sparse_categorical_crossentropy(targets["kind"], outputs["kind"], True)
        return ops.square(outputs["sum"][:, 0] - targets["sum"]) + kind

    def scorer(model, predict):
        again = keras.Model(model.inputs, model.output)

        def score(inputs, targets):
            outputs = predict(inputs)
            shorter = predict({name: array[:7] for name, array in inputs.items()})
            np.testing.assert_allclose(shorter["sum"], outputs["sum"][:7], atol=1e-5)
            given = {"numbers": inputs["numbers"], "kind": inputs["kind"].astype(np.int32)}
            live = np.asarray(again(given)["sum"])  # the model itself has the weights now
            np.testing.assert_allclose(live, outputs["sum"], atol=1e-5)
            return np.exp(-np.abs(outputs["sum"][:, 0] - targets["sum"]))

        return score

    task = Task(*parts, "sums", {"width": 3}, "sums", loss, scorer, metric="closeness")
    numbers = keras.Input((3,), name="numbers")
    kind = keras.Input((), dtype="int32", name="kind")
    x = keras.layers.Concatenate()([numbers, keras.layers.Embedding(4, 4)(kind)])
    x = keras.layers.Dense(32, "relu")(x)
    named = {"sum": keras.layers.Dense(1)(x), "kind": keras.layers.Dense(4)(x)}
    model = keras.Model({"numbers": numbers, "kind": kind}, named)
    done = loop.fit(model, task, 12, seed=0, batch_size=20, ema=0.9)
    assert done.quality > 0.7 > 2 * done.curve[0]
    assert done.quality == pytest.approx(loop.evaluate(model, task), abs=1e-6)
    losses = [epoch.valid_loss for epoch in done.history]
    assert losses[-1] < 0.1 * losses[0]
    with pytest.raises(ValueError, match=r"'kind': \(None,\).*set width of its Config"):
        loop.fit(keras.Model(numbers, keras.layers.Dense(1)(numbers)), task, 1, seed=0)
    vague = dataclasses.replace(task, loss=lambda outputs, targets: outputs["kind"])
    with pytest.raises(ValueError, match=r"loss gives \(64, 4\) for a batch of 64"):
        loop.fit(model, vague, 1, seed=0)


def test_examples_are_augmented_in_training_only(task):
    seen = []

    def noisy(inputs, targets, generator):
        seen.append((len(inputs), inputs.dtype, generator.integers(1 << 30)))
        return inputs + generator.normal(size=inputs.shape).astype(np.float32), targets

    with_noise = dataclasses.replace(task, augment=noisy)
    first, again = (loop.fit(seeded(3), with_noise, 1, seed=5) for _ in range(2))
    steps = len(task.train[1]) // 64
    assert len(seen) == 2 * steps and seen[:steps] == seen[steps:]  # follows from the seed
    assert len({number for *_, number in seen}) == steps
    assert first.history[0].loss == again.history[0].loss
    assert first.history[0].loss > loop.fit(seeded(3), task, 1, seed=5).history[0].loss


def test_patience_ends_the_training_with_the_best_weights(task):
    few = Task((task.train[0][:40], task.train[1][:40]), task.valid, "few", task.fields, "few")
    model = seeded(0, filters=24)
    done = loop.fit(model, few, 60, seed=0, patience=2, schedule="constant", learning_rate=0.03)
    losses = [epoch.valid_loss for epoch in done.history]
    assert done.kept.valid_loss == min(losses)
    assert len(losses) == done.kept.number + 2 < 60
    assert loop.evaluate(model, few) == pytest.approx(done.quality) != done.curve[-1]


def test_minutes_end_the_training_with_the_rate_at_its_end(task):
    done = loop.fit(seeded(0), task, None, seed=0, minutes=0.04, learning_rate=1e-2)
    assert 2.4 <= done.history[-1].seconds < 60
    rates = [rate for epoch in done.history for rate in epoch.rates]
    assert max(rates) > 5e-3 and rates[-1] < 0.3 * max(rates)
    with pytest.raises(ValueError, match="minutes=0"):
        loop.fit(seeded(0), task, None, seed=0, minutes=0)
    with pytest.raises(ValueError, match="epochs and minutes are both missing"):
        loop.fit(seeded(0), task, None, seed=0)


def test_a_batch_larger_than_the_data_is_all_of_it(task):
    few = Task((task.train[0][:20], task.train[1][:20]), task.valid, "few", task.fields, "few")
    assert len(loop.fit(seeded(0), few, 1, seed=0).curve) == 1


def test_schedules_warm_up_and_fall():
    def rates(schedule, **changes):
        recipe = loop.Recipe(learning_rate=1.0, schedule=schedule, **changes)
        return [recipe.rate(step, 100) for step in range(100)]

    for schedule in ("cosine", "linear"):
        found = rates(schedule)
        assert found[0] == pytest.approx(0.1) and max(found) == found[9] == 1.0
        assert found[9:] == sorted(found[9:], reverse=True) and 0 < found[-1] < 0.02
    assert rates("constant")[9:] == 91 * [1.0]
    assert rates("constant", warm_up=0) == 100 * [1.0]
    assert rates("constant", warm_up=20)[:20] == pytest.approx([n / 20 for n in range(1, 21)])
    stable = rates("wsd")
    assert stable[9:81] == 72 * [1.0] and stable[80:] == sorted(stable[80:], reverse=True)
    assert 0 < stable[-1] < 0.03


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"learning_rate": float("nan")},
        {"schedule": "exponential"},
        {"warm_up": -1},
        {"optimizer": "lion"},
        {"weight_decay": 0.1},
        {"clip": 0.0},
        {"ema": 1.0},
        {"patience": 0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_recipe_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}.*expected"):
        loop.Recipe(**wrong)


def test_batches_cover_the_images_once_and_differ_between_epochs():
    first = np.concatenate(list(loop.batches(100, 30, seed=0, epoch=1)))
    assert len(first) == len(set(first)) == 90
    assert list(first) != list(np.concatenate(list(loop.batches(100, 30, seed=0, epoch=2))))


@pytest.mark.slow
@on_tensorflow
def test_memory_does_not_grow_with_the_networks_trained(task):
    few = Task((task.train[0][:64], task.train[1][:64]), task.valid, "few", task.fields, "few")
    resident = []
    for number in range(27):
        loop.fit(seeded(number, filters=4 + number % 7), few, 1, seed=0)
        keras.backend.clear_session()
        gc.collect()
        resident.append(_resident_mb())
    # 0.5 MB a network are 250 MB in a search of 500.
    assert (resident[-1] - resident[6]) / 20 < 0.5, resident


def _resident_mb() -> float:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"KERAS_BACKEND": "jax"}, "jax"), ({"CUDA_VISIBLE_DEVICES": "-1"}, "tensorflow")],
)
def test_the_backend_is_chosen_before_keras_is_imported(environment, expected):
    code = (
        "import sys; from nas import backend; name = backend.choose();"
        "print(name, [m for m in ('keras', 'jax', 'tensorflow') if m in sys.modules])"
    )
    clean = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean | environment
    )
    if expected == "tensorflow" and backend.accelerator():
        pytest.skip("this machine has an accelerator")
    assert done.stdout.strip() == f"{expected} []", done.stderr


def test_threads_are_at_least_one():
    with pytest.raises(ValueError, match="threads=0"):
        backend.threads(0)
