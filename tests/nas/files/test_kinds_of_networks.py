"""Further networks of the kinds that users bring, each with the right answer beside it."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from compress.method import compress
from compress.ptq import PTQ
from compress.rewriting import graph
from latency.tflite import convert, same_network
from nas.data import task_of
from nas.files.flatten import check_copies
from nas.files.open_network import open_network
from nas.files.writers import coreml, safetensors
from nas.tasks.scoring.compiled import compiled_of
from nas.training import loop
from nas.training.network_task import network_task, rescales

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(60, 6)).astype(np.float32)
PLACES = RNG.normal(size=(60, 4, 4, 2)).astype(np.float32)
STEPS = RNG.normal(size=(60, 5, 6)).astype(np.float32)
VOLUME = RNG.normal(size=(60, 3, 3, 3, 1)).astype(np.float32)
registered = keras.saving.register_keras_serializable("kinds")


def network(body, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, body(inputs))


def compiled(model, loss):
    model.compile("adam", loss)
    return model


@registered
def pinball(targets, outputs):
    wrong = targets - outputs  # (batch, 1) and (batch, 3)
    shares = ops.convert_to_tensor([0.1, 0.5, 0.9])
    return ops.mean(ops.maximum(shares * wrong, (shares - 1) * wrong), -1)


@registered
class Cox(keras.losses.Loss):
    """Targets (time, event), one risk: the negative partial likelihood."""

    def call(self, targets, risks):
        later = ops.cast(targets[None, :, 0] >= targets[:, None, 0], "float32")
        total = ops.log(ops.sum(later * ops.exp(risks[None, :, 0]), 1))
        return (total - risks[:, 0]) * targets[:, 1]


def _pinball(outputs, targets):
    wrong = targets - outputs
    return np.mean(np.maximum([0.1, 0.5, 0.9] * wrong, [-0.9, -0.5, -0.1] * wrong))


def _iou(found, right):
    each = [
        np.sum((found == c) & (right == c)) / np.sum((found == c) | (right == c)) for c in (0, 1)
    ]
    return np.mean(each)


# name -> network, inputs, targets, loss, metric, its value of (outputs, targets)
JUDGED = {
    "one logit": (
        network(layers.Dense(1), (6,)), ROWS, (ROWS[:, 0] > 0).astype(np.int64),
        "binary_crossentropy", "accuracy", lambda y, t: np.mean((y > 0) == t),
    ),
    "logits of several labels": (
        network(layers.Dense(3), (6,)), ROWS, (ROWS[:, :3] > 0).astype(np.float32),
        "binary_crossentropy", "accuracy", lambda y, t: np.mean((y > 0) == t),
    ),
    "a mask": (
        network(layers.Conv2D(1, 1, activation="sigmoid"), (4, 4, 2)), PLACES,
        (PLACES[..., :1] > 0).astype(np.float32),
        "binary_crossentropy", "mean IoU", lambda y, t: _iou(y > 0.5, t),
    ),
    "a mask of a volume, classes without an axis": (
        network(layers.Conv3D(2, 1, activation="softmax"), (3, 3, 3, 1)), VOLUME,
        (VOLUME[..., 0] > 0).astype(np.int64),
        "sparse_categorical_crossentropy", "mean IoU", lambda y, t: _iou(y.argmax(-1), t),
    ),
    "a class at each step": (
        network(layers.Dense(4, activation="softmax"), (5, 6)), STEPS, STEPS.argmax(-1) % 4,
        "sparse_categorical_crossentropy", "accuracy", lambda y, t: np.mean(y.argmax(-1) == t),
    ),
    "noise taken away": (
        network(layers.Conv2D(2, 3, padding="same"), (4, 4, 2)), PLACES + 0.1, PLACES,
        "mean_squared_error", "RMSE", lambda y, t: np.sqrt(np.mean((y - t) ** 2)),
    ),
    "three quantiles of one number": (
        compiled(network(layers.Dense(3), (6,)), pinball), ROWS, ROWS[:, :1],
        "pinball", "pinball", _pinball,
    ),
    "absolute error": (
        compiled(network(layers.Dense(2), (6,)), "mae"), ROWS, ROWS[:, :2] * [1000, 0.01],
        "mean_absolute_error", "MAE", lambda y, t: np.mean(np.abs(y - t)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JUDGED)
def test_loss_and_metric_are_the_network_s(name):
    model, inputs, targets, loss, metric, value = JUDGED[name]
    task, notes = network_task(task_of((inputs, targets)), model, compiled=compiled_of(model))
    assert notes[0].startswith(f"loss: {loss} (") and task.metric == metric, notes
    held, right = task.valid
    outputs = np.asarray(model(held))
    quality, valid_loss = loop.measure(model, task)[:2]
    assert quality == pytest.approx(value(outputs, right), rel=1e-4)
    assert np.isfinite(valid_loss)


def test_a_loss_of_one_s_own_takes_targets_of_any_shape(tmp_path):
    targets = np.stack([np.exp(ROWS[:, 0]), ROWS[:, 1] > 0], 1).astype(np.float32)
    model = compiled(network(layers.Dense(1), (6,)), Cox())
    model.save(tmp_path / "risk.keras")
    opened = open_network(tmp_path / "risk.keras")
    found = compiled_of(opened.model, opened.read_from)
    task, _ = network_task(task_of((ROWS, targets)), opened.model, compiled=found)
    assert task.metric == "cox" and not task.higher_is_better
    with pytest.raises(ValueError, match=r"loss cox: it fails on targets .*index 1"):
        network_task(task_of((ROWS, targets[:, 0])), model, compiled=compiled_of(model))


@pytest.mark.parametrize(
    ("labels", "words"),
    {
        "nothing is -1": (RNG.integers(-1, 4, 60), "labels go from -1"),
        "ignored is 255": (np.where(RNG.random(60) < 0.1, 255, 1), "255, but the network has 4"),
        "one-hot of more": (np.eye(7)[RNG.integers(0, 7, 60)], "labels go from 0 to 6"),
        "not a number": (np.where(RNG.random((60, 4)) < 0.1, np.nan, 0.5), "NaN"),
    }.values(),
)
def test_targets_that_do_not_fit_are_told_before_any_work(labels, words):
    model = network(layers.Dense(4, activation="softmax"), (6,))
    with pytest.raises(ValueError, match=words):
        network_task(task_of((ROWS, labels)), model)


@pytest.mark.parametrize("kind", [str, object])
def test_text_is_told_to_be_looked_up(kind):
    with pytest.raises(ValueError, match=r"inputs are text \(2, 1\).*TextVectorization"):
        task_of((np.array([["good"], ["bad"]], kind), np.array([1, 0])))


def flips(x):
    return layers.RandomFlip()(layers.GaussianNoise(0.1)(x))


PIXELS = {  # what comes first in a network of pixels -> what brings them to its scale
    "rescaling": (lambda x: layers.Rescaling(1 / 255)(flips(x)), "rescaling"),
    "an operation": (lambda x: layers.Resizing(6, 6)(x) / 255.0, "true_divide"),
    "mean and deviation": (
        lambda x: (flips(x) - np.float32([120, 110])) / np.float32([60, 50]),
        "true_divide",
    ),
    "normalization": (
        lambda x: layers.Normalization(mean=[120.0, 110.0], variance=[3600.0, 2500.0])(x),
        "normalization",
    ),
    "the mean alone": (lambda x: x - np.float32([103.9, 116.8]), None),
    "nothing": (flips, None),
}


@pytest.mark.parametrize("name", PIXELS)
def test_a_network_that_rescales_pixels_itself_is_seen(name):
    first, expected = PIXELS[name]
    model = network(lambda x: layers.Conv2D(3, 3)(first(x)), (8, 8, 2))
    found = rescales(open_network(model).model, (8, 8, 2))
    assert (found is None) == (expected is None) and (found or "").startswith(expected or "")


def spectral():
    layer = layers.SpectralNormalization(layers.Dense(4))
    model = network(layer, (6,))
    model(ROWS, training=True)  # moves its vectors
    return model


STATE = {
    "bins": (lambda: network(layers.Discretization([0.0, 1.0], output_mode="one_hot"), (1,))),
    "a table": (
        lambda: network(layers.IntegerLookup(vocabulary=[7, 3], output_mode="one_hot"), (1,))
    ),
    "a norm": spectral,
    "a scale, taken back": (
        lambda: network(layers.Normalization(mean=3.0, variance=4.0, invert=True), (6,))
    ),
}


@pytest.mark.parametrize("name", STATE)
def test_state_outside_of_weights_is_kept(name, tmp_path):
    model = STATE[name]()
    inputs = np.round(4 * ROWS[:, : model.input_shape[1]])
    expected = np.asarray(model(inputs))
    nested = keras.Sequential([keras.Input(model.input_shape[1:]), model])
    flat = open_network(nested).model
    np.testing.assert_allclose(flat(inputs), expected, atol=1e-5)
    check_copies(flat, inputs)
    nested.save(tmp_path / "a.keras")
    np.testing.assert_allclose(
        open_network(tmp_path / "a.keras").model(inputs), expected, atol=1e-5
    )


def told(x):
    states = layers.Dense(4)(x[:, 0])
    return layers.GRU(4, dropout=0.2)(x, initial_state=states)


RECURRENT = {  # dropout draws seeds even where nothing is dropped
    "LSTM with dropout": layers.LSTM(4, dropout=0.2),
    "both directions": layers.Bidirectional(layers.LSTM(4, recurrent_dropout=0.2)),
    "a state to begin with": told,
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_reach_every_file(name, tmp_path):
    model = network(lambda x: layers.Dense(2)(RECURRENT[name](x)), (5, 6))
    done = compress(model, [PTQ(8, activations=None)])
    assert same_network.check(done.model, convert.Session(convert.convert(done.model))) is None
    written = safetensors.write(tmp_path / "a.safetensors", done.model, done.record)
    again = safetensors.network(written.path)
    np.testing.assert_allclose(again(STEPS), done.model(STEPS), atol=1e-5)
    pytest.importorskip("coremltools")
    coreml.write(tmp_path / "a.mlpackage", done.model, done.record)


@registered
class Mixed(layers.Layer):
    """Layers within whose names Keras counts anew at each build, and a weight of no dimension."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second = layers.Dense(8), layers.Dense(8)

    def build(self, shape):
        self.first.build(shape)
        self.second.build(shape)
        self.share = self.add_weight(name="share", shape=(), initializer="ones")

    def call(self, inputs):
        return self.first(inputs) * self.share + ops.tanh(self.second(inputs))


def test_weights_are_found_though_layers_within_are_named_anew(tmp_path):
    model = network(lambda x: layers.Dense(2)(Mixed()(Mixed()(x))), (8,))
    model.layers[1].share.assign(0.3)
    done = compress(model, [PTQ(8)])
    written = safetensors.write(tmp_path / "a.safetensors", done.model, done.record)
    inputs = RNG.normal(size=(4, 8)).astype(np.float32)
    for _ in range(2):
        again = safetensors.network(written.path)
        assert [w.path for w in again.weights] != [w.path for w in done.model.weights]
        assert float(again.layers[1].share) == np.float32(0.3)
    np.testing.assert_allclose(again(inputs), done.model(inputs), atol=1e-5)


@registered
class Residual(keras.Model):
    """A block as users write them."""

    def __init__(self, **options):
        super().__init__(**options)
        self.conv, self.norm = layers.Conv2D(2, 3, padding="same"), layers.BatchNormalization()

    def call(self, inputs, training=False):
        return inputs + ops.relu(self.norm(self.conv(inputs), training=training))


@registered
class Noisy(Residual):
    """One whose code does something else in training."""

    def call(self, inputs, training=False):
        return self.conv(inputs) * 0.5 if training else self.conv(inputs)


def test_blocks_that_are_subclassed_models_give_way_to_their_layers(tmp_path):
    block = Residual()
    model = network(lambda x: layers.Flatten()(block(block(x))), (4, 4, 2))
    model.save(tmp_path / "a.keras")
    for source in (model, tmp_path / "a.keras"):
        flat = open_network(source).model
        assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
        np.testing.assert_allclose(flat(PLACES), model(PLACES), atol=1e-5)
        (norm,) = (one for one in flat.layers if isinstance(one, layers.BatchNormalization))
        before = norm.get_weights()[2]
        flat(PLACES, training=True)
        assert np.any(before != norm.get_weights()[2]), "training reaches it"
    hidden = network(Noisy(name="hidden"), (4, 4, 2))
    with pytest.raises(ValueError, match=r"'hidden' \(Noisy\) is a subclassed model.*in the netw"):
        graph.check_flat(open_network(hidden).model)


def test_what_litert_lacks_is_told_with_the_layer():
    table = layers.IntegerLookup(vocabulary=[7, 3], name="table")
    lacking = {
        r"layer 'pool' \(MaxPooling3D\) needs MaxPool3D": network(
            lambda x: layers.MaxPooling3D(2, name="pool")(x), (3, 3, 3, 1)
        ),
        r"layer 'table' \(IntegerLookup\) needs LookupTableFind": network(
            lambda x: layers.Embedding(3, 2)(table(x)), (2,)
        ),
    }
    for words, model in lacking.items():
        with pytest.raises(ValueError, match=rf"{words}.*, which LiteRT does not have; give"):
            convert.file_of(model)
