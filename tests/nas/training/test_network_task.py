"""Networks and data of every kind: the loss, the metric and the scale are the network's."""

import json

import numpy as np
import pytest

import nas
from nas import backend
from nas.data import task_of

keras = backend.load()

from compress.distill import Distill  # noqa: E402
from compress.prune import Prune  # noqa: E402
from compress.ptq import PTQ  # noqa: E402
from compress.qat import QAT  # noqa: E402
from nas.cli.command_line import main  # noqa: E402
from nas.tasks.task import classification  # noqa: E402
from nas.training import loop  # noqa: E402
from nas.training.network_task import network_task  # noqa: E402

layers = keras.layers
RNG = np.random.default_rng(0)
FAST = nas.Recipe(batch_size=16, learning_rate=0.01)


def dense(width, units, activation=None):
    inputs = keras.Input((width,))
    hidden = layers.Dense(16, "relu")(inputs)
    return keras.Model(inputs, layers.Dense(units, activation)(hidden))


def binary():
    x = RNG.normal(size=(300, 4)).astype("float32")
    return dense(4, 1, "sigmoid"), (x, (x[:, 0] > 0).astype("int64")), {}


def binary_logits():
    return dense(4, 1), binary()[1], {}


def regression():
    x = RNG.normal(size=(300, 4)).astype("float32")
    return dense(4, 1), (x, x @ np.array([1, 2, 3, 4], "float32") + 1), {}


def several_numbers():
    x = RNG.normal(size=(300, 4)).astype("float32")
    return dense(4, 3), (x, x[:, :3] * 2), {}


def multi_label():
    x = RNG.normal(size=(300, 4)).astype("float32")
    return dense(4, 3, "sigmoid"), (x, (x[:, :3] > 0).astype("float32")), {}


def soft_labels():
    x = RNG.normal(size=(300, 4)).astype("float32")
    scores = np.exp(2 * x[:, :3])
    return dense(4, 3, "softmax"), (x, scores / scores.sum(1, keepdims=True)), {}


def autoencoder():
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(inputs)
    outputs = layers.Conv2DTranspose(1, 3, strides=2, padding="same")(hidden)
    rows = np.linspace(0, 1, 8)[:, None] * RNG.random((200, 1, 8))
    return (
        keras.Model(inputs, outputs),
        rows[..., None].astype("float32"),
        {"target_is_input": True},
    )


def segmentation():
    """A U-Net of one step."""
    x = RNG.random((120, 8, 8, 1), dtype="float32")
    inputs = keras.Input((8, 8, 1))
    fine = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    coarse = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.MaxPooling2D()(fine))
    joined = layers.Concatenate()([layers.UpSampling2D()(coarse), fine])
    outputs = layers.Conv2D(2, 1, activation="softmax")(joined)
    return keras.Model(inputs, outputs), (x, (x[..., 0] > 0.5).astype("int64")), {}


def two_inputs():
    x = RNG.normal(size=(300, 5)).astype("float32")
    one, two = keras.Input((3,), name="one"), keras.Input((2,), name="two")
    hidden = layers.Dense(16, "relu")(layers.Concatenate()([one, two]))
    model = keras.Model([one, two], layers.Dense(2, "softmax")(hidden))
    return model, ({"one": x[:, :3], "two": x[:, 3:]}, (x[:, 0] + x[:, 3] > 0).astype("int64")), {}


def two_outputs():
    x = RNG.normal(size=(300, 4)).astype("float32")
    inputs = keras.Input((4,))
    hidden = layers.Dense(16, "relu")(inputs)
    outputs = [layers.Dense(1, name="size")(hidden), layers.Dense(3, name="kind")(hidden)]
    targets = {"size": x[:, :1] * 2, "kind": x[:, 1:].argmax(1)}
    return keras.Model(inputs, outputs), (x, targets), {}


ACCURACY, RMSE = ("accuracy", True, True), ("RMSE", False, False)
KINDS = {
    binary: ("binary_crossentropy", *ACCURACY),
    binary_logits: ("binary_crossentropy", *ACCURACY),
    regression: ("mean_squared_error", *RMSE),
    several_numbers: ("mean_squared_error", *RMSE),
    multi_label: ("binary_crossentropy", *ACCURACY),
    soft_labels: ("categorical_crossentropy", *ACCURACY),
    autoencoder: ("mean_squared_error", *RMSE),
    segmentation: ("sparse_categorical_crossentropy", "mean IoU", True, True),
    two_inputs: ("sparse_categorical_crossentropy", *ACCURACY),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_is_trained_and_judged_in_its_own_terms(kind, tmp_path):
    """Quality by hand: with Keras' own metric on the same examples; through all four methods."""
    model, data, options = kind()
    said = []
    trained = nas.train(model, data, epochs=6, recipe=FAST, on_event=said.append, **options)
    loss, metric, higher, percent = KINDS[kind]
    record = trained.record
    assert any(f"loss: {loss} (output" in str(event) for event in said)
    assert (record["metric"], record["higher_is_better"], record["percent"]) == KINDS[kind][1:]
    losses = [epoch["valid_loss"] for epoch in trained.history]
    assert losses[-1] < losses[0]
    task, _ = network_task(task_of(data), model, **options)
    inputs, targets = task.valid
    outputs = model.predict(inputs, verbose=0)
    assert trained.quality == pytest.approx(by_hand(kind, outputs, targets), abs=1e-5)
    for methods in ([PTQ(bits=8)], [QAT(bits=4)], [Prune(0.5)], [Prune(0.5), Distill()]):
        out = tmp_path / "small.tflite"
        epochs = 0 if methods == [PTQ(bits=8)] else 2
        small = nas.compress(
            model, methods, data, epochs=epochs, recipe=FAST, out=out, by_layer=False, **options
        )
        expected = by_hand(kind, small.model.predict(inputs, verbose=0), targets)
        assert small.before["quality"] == pytest.approx(trained.quality, abs=1e-5)
        assert small.after["quality"] == pytest.approx(expected, abs=1e-5)
        [file] = small.record["files"]
        slack = 0.05 if percent else 0.1 * max(expected, 0.05)
        assert file["after"]["quality"] == pytest.approx(expected, abs=slack)
        assert metric in small.table() and ("%" in small.table()) == percent
        assert ("lower is better" in small.table()) == (not higher)


def by_hand(kind, outputs, targets):
    if kind is segmentation:
        metric = keras.metrics.MeanIoU(2, sparse_y_pred=False)
    elif KINDS[kind][1] == "RMSE":
        metric = keras.metrics.RootMeanSquaredError()
        outputs = outputs.reshape(targets.shape)
    elif kind is two_inputs:
        metric = keras.metrics.SparseCategoricalAccuracy()
    elif kind is soft_labels:
        metric = keras.metrics.CategoricalAccuracy()
    else:
        metric = keras.metrics.BinaryAccuracy(threshold=0.0 if kind is binary_logits else 0.5)
        targets = targets.reshape(outputs.shape)
    metric.update_state(targets, outputs)
    return float(metric.result())


def test_losses_of_several_outputs_are_summed():
    model, data, _ = two_outputs()
    task, notes = network_task(task_of(data), model)
    assert "mean_squared_error + sparse_categorical_crossentropy" in notes[0]
    inputs, targets = task.valid
    size, kind = (keras.ops.convert_to_tensor(one) for one in model.predict(inputs, verbose=0))
    expected = np.square(np.asarray(size) - targets["size"]).mean()
    expected += np.asarray(classification(kind, targets["kind"])).mean()
    assert loop.measure(model, task)[1] == pytest.approx(expected, rel=1e-4)
    trained = nas.train(model, data, epochs=4, recipe=FAST)
    assert trained.history[-1]["valid_loss"] < trained.history[0]["valid_loss"]
    small = nas.compress(model, [QAT(bits=8)], data, epochs=1)
    assert small.after["loss"] < 1.3 * small.before["loss"] + 0.1
    with pytest.raises(ValueError, match="by these names"):
        nas.train(model, (data[0], data[1]["kind"]))


def test_the_order_is_given_then_compiled_then_shapes():
    model, data, _ = regression()
    model.compile("adam", "mae", metrics=["r2_score"])
    first = nas.train(model, data, epochs=1)
    assert first.record["metric"] == "r2_score" and first.record["higher_is_better"]
    task, notes = network_task(task_of(data), model, loss="huber", metric="mae")
    assert "huber (as given)" in notes[0] and task.metric == "MAE" and not task.higher_is_better
    inputs, targets = task.valid
    found = np.asarray(task.loss(keras.ops.convert_to_tensor(model(inputs)), targets))
    huber = keras.losses.Huber(reduction=None)(targets, model(inputs))
    np.testing.assert_allclose(found, np.asarray(huber), rtol=1e-5)
    quality = loop.measure(model, task)[0]
    assert quality == pytest.approx(np.abs(np.asarray(model(inputs)) - targets).mean(), rel=1e-5)

    def largest_error(targets, outputs):
        return keras.ops.max(keras.ops.abs(targets - outputs), -1)

    mine, _ = network_task(task_of(data), model, metric=largest_error)
    assert mine.metric == "largest_error" and not mine.higher_is_better
    objects, _ = network_task(
        task_of(binary()[1]), dense(4, 1, "sigmoid"), metric=keras.metrics.AUC(name="auc")
    )
    assert objects.metric == "auc" and objects.higher_is_better


def test_what_a_file_was_compiled_with_is_read_from_it(tmp_path, capsys):
    model, (x, y), _ = multi_label()
    model.compile("adam", keras.losses.BinaryFocalCrossentropy(gamma=1.0), metrics=["AUC"])
    model.save(tmp_path / "m.keras")
    np.savez(tmp_path / "m.npz", x=x, y=y)
    arguments = ["compress", str(tmp_path / "m.keras"), "--method", "ptq:8", "--no-sensitivity"]
    arguments += ["--data", str(tmp_path / "m.npz"), "--out", str(tmp_path / "o.tflite")]
    assert main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["metric"] == "auc" and "binary_focal_crossentropy" in record["judged_by"][0]
    assert main([*arguments, "--loss", "mse", "--metric", "rmse"]) == 0
    assert "RMSE" in capsys.readouterr().out
    assert main([*arguments, "--metric", "nonsense"]) == 2


def test_a_compiled_loss_that_does_not_fit_is_said_and_a_given_one_refused():
    model, data, _ = binary()
    model.compile("adam", "sparse_categorical_crossentropy")
    _, notes = network_task(
        task_of(data), model, compiled=("sparse_categorical_crossentropy", None)
    )
    assert "does not fit" in notes[0] and "binary_crossentropy" in notes[0]
    with pytest.raises(ValueError, match="loss sparse_categorical_crossentropy: .*0 to 0"):
        network_task(task_of(data), model, loss="sparse_categorical_crossentropy")


def test_sample_weights_count_in_the_loss(tmp_path):
    model, (x, y), _ = regression()
    weights = np.where(x[:, 0] > 0, 1.0, 0.0)
    task, _ = network_task(task_of((x, y, weights)), model)
    inputs, targets = task.valid
    [goal] = [array for name, array in targets.items() if name != "sample_weight"]
    errors = np.square(model.predict(inputs, verbose=0) - goal)[:, 0]
    found = loop.measure(model, task)[1]
    assert found == pytest.approx((errors * targets["sample_weight"]).mean(), rel=1e-4)
    np.savez(tmp_path / "w.npz", x=x, y=y, w=weights)
    from nas.tasks import data_file

    again, _ = network_task(data_file.load(str(tmp_path / "w.npz")), model)
    assert loop.measure(model, again)[1] == pytest.approx(found, rel=1e-4)
    trained = nas.train(model, (x, y, weights), epochs=2, recipe=FAST)
    assert trained.record["metric"] == "RMSE"


def pixels_of(scale, offset=0.0, rescaling=None):
    """A network that was trained on (x - offset) / scale, and its data, uint8."""
    y = np.arange(400) % 4
    images = RNG.integers(0, 60, (400, 6, 6, 1))
    images[np.arange(400), 1 + y, 2:5] += 180
    inputs = keras.Input((6, 6, 1))
    hidden = layers.Rescaling(rescaling)(inputs) if rescaling else inputs
    if rescaling is None and scale == 1:  # nothing below 100 passes
        hidden = layers.Activation("sigmoid")(layers.Rescaling(0.1, -12.0)(hidden))
    model = keras.Model(inputs, layers.Dense(4, "softmax")(layers.Flatten()(hidden)))
    seen = (images - offset) / scale
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(seen, y, epochs=8, verbose=0)
    return model, (images.astype("uint8"), y)


@pytest.mark.parametrize(
    ("trained_on", "words"),
    [
        ({"scale": 255}, None),
        ({"scale": 1, "rescaling": 1 / 255}, "rescales them itself"),
        ({"scale": 1}, "rescales them itself"),  # by a layer and an operation
        ({"scale": 127.5, "offset": 127.5}, None),
    ],
)
def test_the_scale_of_pixels_is_the_networks(trained_on, words):
    keras.utils.set_random_seed(0)
    model, data = pixels_of(**trained_on)
    small = nas.compress(model, PTQ(bits=8), data, by_layer=False)
    assert small.before["quality"] > 0.9 and small.after["quality"] > 0.9
    assert not small.record["warnings"]
    said = [one for one in small.record["judged_by"] if "inputs:" in one]
    assert (words is None) or words in said[0]


def test_a_network_at_chance_on_its_own_data_is_told_first():
    model, data = pixels_of(255)
    for weight in model.weights:
        weight.assign(weight * 0)
    table = nas.compress(model, Prune(0.5), data, epochs=1, by_layer=False).table()
    assert table.startswith("WARNING: the network is at chance") and "scale" in table


def test_data_that_do_not_fit_are_a_line_before_any_work(tmp_path):
    model, (x, y), _ = regression()
    bad = x.copy()
    bad[7, 2] = np.nan
    for data, words in (
        ((bad, y), "inputs .*: 1 values are NaN or infinite"),
        ((x, np.where(y > 3, np.inf, y)), "targets .* NaN or infinite"),
        ((x, np.stack([y, y], 1)), r"the targets are float32 \(None, 2\).*targets of the output"),
        (({"a": x, "b": x}, y), "network has the inputs .*the data hold a, b"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            nas.compress(model, PTQ(bits=8), data)
        assert "\n" not in str(error.value)
    classes = dense(4, 3, "softmax")
    with pytest.raises(ValueError, match="labels go from -1 to 1"):
        nas.train(classes, (x, np.arange(300) % 3 - 1))
    _, notes = network_task(task_of((x, np.zeros(300, int))), classes)
    assert any("one class only" in note for note in notes)
    with pytest.raises(ValueError, match="no probabilities"):
        nas.train(classes, (x, np.abs(x[:, :3])))


def test_without_labels_several_inputs_calibrate_and_the_outputs_error_is_told(tmp_path, capsys):
    model, (inputs, _), _ = two_inputs()
    model.save(tmp_path / "m.keras")
    np.savez(tmp_path / "m.npz", **inputs)
    arguments = ["compress", str(tmp_path / "m.keras"), "--method", "ptq:8", "--no-sensitivity"]
    arguments += ["--data", str(tmp_path / "m.npz"), "--out", str(tmp_path / "o.tflite")]
    assert main(arguments) == 0
    assert "output error" in capsys.readouterr().out
    small = nas.compress(model, PTQ(bits=8), inputs)
    expected, found = (one.predict(inputs, verbose=0) for one in (model, small.model))
    error = np.sqrt(np.mean((found - expected) ** 2) / np.var(expected))
    assert small.record["output_error"] == pytest.approx(error, rel=0.5) and error < 0.1


def test_the_command_line_trains_on_a_file_in_the_networks_terms(tmp_path, capsys):
    model, (x, y), _ = regression()
    model.save(tmp_path / "m.keras")
    rows = np.concatenate([x, y[:, None]], 1)
    lines = [",".join(map(str, row)) for row in rows]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,c,d,price", *lines]))
    arguments = ["train", str(tmp_path / "m.keras"), "--data", f"{tmp_path}/rows.csv,target=price"]
    assert main([*arguments, "--out", str(tmp_path / "o.keras"), "--epochs", "2"]) == 0
    assert "RMSE" in capsys.readouterr().out
    assert main([*arguments, "--task", "digits", "--out", str(tmp_path / "p.keras")]) == 2
    assert "expected one of them" in capsys.readouterr().err
