"""Networks as users bring them: what is timed or written is the network, or the error says why."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

import nas
from compress.method import Method, NotApplicable, compress
from compress.prune import Prune
from compress.ptq import PTQ
from latency.cpu import CPU
from latency.networks.random_inputs import random_inputs
from latency.tflite import convert, direct_writer, same_network
from latency.tflite.graph import operations
from nas import registry
from nas.files.flatten import check_copies, flatten
from nas.files.open_network import open_network
from nas.files.writers import litert, safetensors
from nas.files.writers.tflite.verify import constant_channels
from nas.files.writers.written_file import CannotWrite

RNG = np.random.default_rng(0)
IMAGE = (8, 8, 3)
CHANNELS = np.linspace(0.5, 2, 8, dtype=np.float32)
PLACES = RNG.uniform(0.5, 2, (8, 8, 1)).astype(np.float32)


def network(body, shape=IMAGE):
    inputs = keras.Input(shape)
    return keras.Model(inputs, body(inputs))


def conv(x, filters=8):
    return layers.Conv2D(filters, 3, padding="same")(x)


def trained_norm(x):
    layer = layers.BatchNormalization()
    x = layer(x)
    for weight in layer.weights:
        weight.assign(RNG.uniform(0.5, 2, weight.shape))
    return x


ARITHMETIC = {
    "numbers before": lambda x: conv(x * 2.0 + 1.0),
    "numbers after": lambda x: conv(x) * 2 - 1,
    "of channels": lambda x: (1.0 - conv(x) / 4.0) * CHANNELS,
    "of channels, 4-D": lambda x: conv(x) * CHANNELS.reshape(1, 1, 1, 8) + CHANNELS,
    "of channels, divided": lambda x: conv(x) / CHANNELS,
    "of places": lambda x: conv(x) * PLACES + PLACES,
    "of places, before": lambda x: conv(x * PLACES),
    "more channels come out": lambda x: conv(x, 1) * CHANNELS,
    "two tensors": lambda x: (conv(x, 3) - x) / (x * x + 2.0),
    "number over tensor": lambda x: 1 / (conv(x) ** 2 + 0.5),
    "negative": lambda x: -conv(x) + keras.ops.maximum(conv(x), 0.1),
    "normalized": lambda x: trained_norm(conv(x)) * 2.0,
    "padding before a product": lambda x: layers.Dense(4)(layers.ZeroPadding2D(1)(x)),
    "ReLU at 1.5": lambda x: layers.ReLU(max_value=1.5)(conv(x)),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_the_file_that_is_timed_is_the_network(name):
    model = network(ARITHMETIC[name])
    try:
        direct = convert.assemble(model)
    except ValueError:
        direct = None  # the converter's then
    for made in filter(None, (direct, convert.file_of(model))):
        assert same_network.check(model, convert.Session(made)) is None
        inputs = random_inputs(model, 1, seed=3)
        (name,) = same_network.names(model)[0]
        (ours,) = convert.Session(made)({name: inputs}).values()
        np.testing.assert_allclose(ours, model(inputs), rtol=1e-3, atol=1e-4)


def test_numbers_cost_what_the_converter_makes_of_them():
    model = network(ARITHMETIC["of channels"])
    names = [
        [o.name for o in operations(write(model))] for write in (convert.assemble, convert.convert)
    ]
    assert names[0] == names[1] == ["CONV_2D", "SUB", "MUL"]


def test_what_is_written_wrongly_is_left_to_the_converter(monkeypatch):
    wrong = direct_writer._WRITERS | {"ReLU": lambda graph, layer, inputs, shape: inputs[0]}
    monkeypatch.setattr(direct_writer, "_WRITERS", wrong)
    direct_writer._writers.cache_clear()
    model = network(lambda x: layers.ReLU()(conv(x)))
    assert same_network.check(model, convert.Session(convert.assemble(model))) is not None
    made = convert.file_of(model)
    assert same_network.check(model, convert.Session(made)) is None
    monkeypatch.setattr(convert, "convert", convert.assemble)
    with pytest.raises(ValueError, match=r"another network: output .* channel \d+"):
        convert.file_of(network(lambda x: layers.ReLU()(conv(x))))
    monkeypatch.undo()
    direct_writer._writers.cache_clear()


def adapted(kind):
    layer = layers.Normalization(axis=-1)
    layer.adapt(RNG.normal(100, 30, (64, *IMAGE)))
    parts = [layer, layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(5, activation="softmax")]
    if kind == "sequential":
        return keras.Sequential([keras.Input(IMAGE), *parts])
    if kind == "nested":
        return keras.Sequential([keras.Sequential([keras.Input(IMAGE), *parts[:2]]), *parts[2:]])
    return network(lambda x: parts[3](parts[2](parts[1](parts[0](x)))))


@pytest.mark.parametrize("kind", ["functional", "sequential", "nested"])
def test_adapted_statistics_are_kept_all_the_way(kind, tmp_path):
    model = adapted(kind)
    images = RNG.normal(100, 30, (16, *IMAGE)).astype(np.float32)
    expected = np.asarray(model(images))
    path = tmp_path / "own.keras"
    model.save(path)
    done = nas.compress(path, [PTQ(8)], images)
    np.testing.assert_allclose(done.network.model(images), expected, atol=1e-5)
    for suffix in (".tflite", ".safetensors", ".keras"):
        file = tmp_path / f"small{suffix}"
        done.write(file)
        if suffix == ".tflite":
            again = convert.run(file, images)
        else:
            again = open_network(file).model(images)
        assert np.abs(again - expected).max() < 0.05, suffix


def test_weights_of_no_dimension_are_kept(tmp_path):
    """Normalization's count is one."""
    model = adapted("functional")
    assert () in [tuple(weight.shape) for weight in model.weights]
    done = compress(model, [PTQ(4)])
    written = safetensors.write(tmp_path / "a.safetensors", done.model, done.record)
    again = safetensors.network(written.path)
    images = RNG.normal(100, 30, (4, *IMAGE)).astype(np.float32)
    np.testing.assert_allclose(again(images), done.model(images), atol=1e-5)


class Counter(layers.Layer):
    """Counts what its configuration does not tell."""

    factor = 1.0

    def call(self, inputs):
        return inputs * self.factor


def test_copies_that_compute_something_else_are_an_error_before_any_work():
    layer = Counter(name="counter")
    layer.factor = 3.0
    model = network(lambda x: layers.Dense(2)(layer(x)), (6,))
    assert flatten(model).model is model, "nothing is copied as it is opened"
    with pytest.raises(ValueError, match=r"layer 'counter' \(Counter\) gives other outputs"):
        check_copies(model)
    with pytest.raises(ValueError, match="'counter'"):
        nas.compress(model, [PTQ(8)])
    layer.factor = 1.0
    check_copies(model)


def boxes_and_scores(split=False):
    def body(x):
        x = layers.Conv2D(8, 3, activation="relu")(x)
        boxes = layers.Rescaling(640.0)(layers.Conv2D(4, 1, activation="sigmoid")(x))
        scores = layers.Rescaling(0.2)(layers.Conv2D(3, 1, activation="sigmoid")(x))
        return [boxes, scores] if split else layers.Concatenate(name="found")([boxes, scores])

    return network(body)


def scaled_regression():
    """One layer, two quantities: thousands and hundredths."""
    scales = np.float32([5000, 0.01])
    return network(lambda x: layers.Dense(2)(layers.Flatten()(x)) * scales)


@pytest.mark.parametrize("build", [boxes_and_scores, scaled_regression])
def test_a_channel_whose_signal_is_gone_is_an_error_with_a_remedy(build, tmp_path):
    images = RNG.random((16, *IMAGE), dtype=np.float32)
    done = nas.compress(build(), [PTQ(8)], images)
    with pytest.raises(CannotWrite, match=r"channels .* constant in the file.*activations=none"):
        done.write(tmp_path / "a.tflite")
    assert not (tmp_path / "a.tflite").exists()
    nas.compress(build(), [PTQ(8, activations=None)], images).write(tmp_path / "b.tflite")


def test_parts_of_their_own_keep_their_signal(tmp_path):
    images = RNG.random((16, *IMAGE), dtype=np.float32)
    done = nas.compress(boxes_and_scores(split=True), [PTQ(8)], images)
    done.write(tmp_path / "a.tflite")
    ours = convert.run(tmp_path / "a.tflite", {done.model.inputs[0].name: images[:4]})
    for name, theirs in zip(same_network.names(done.model)[1], done.model(images[:4]), strict=True):
        spread = np.asarray(theirs).std((0, 1, 2))
        assert np.all(np.abs(ours[name] - theirs).mean((0, 1, 2)) < 0.5 * spread)


def test_which_channels_are_judged():
    row = RNG.random((50, 1))
    rare = np.where(np.arange(50)[:, None] == 7, 1e-3, 0)  # one place in fifty
    values = np.concatenate([row, row * 1e-4, np.full((50, 1), 0.3), rare], 1).astype(np.float32)
    coarse = np.round(values * 255) / 255
    assert constant_channels(coarse, values).tolist() == [1]
    assert constant_channels(coarse, values, probabilities=True).tolist() == []
    assert constant_channels(values, values).tolist() == []


def test_a_sequential_network_is_timed_from_a_file_and_from_memory(tmp_path):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4), layers.Dense(2)])
    model.save(tmp_path / "row.keras")
    assert CPU(threads=1).profile(model, warmup=0, runs=2).median_ms > 0
    assert CPU(threads=1).profile(tmp_path / "row.keras", warmup=0, runs=2).median_ms > 0


def test_integer_weights_and_float_activations_for_recurrent_layers(tmp_path):
    model = network(lambda x: layers.Dense(2)(layers.GRU(16, name="gru")(x)), (6, 8))
    for data in (RNG.normal(size=(16, 6, 8)).astype(np.float32), None):  # needs no examples then
        done = nas.compress(model, [PTQ(8)], data)
        file = done.write(tmp_path / "a.tflite")
        assert "LSTM and GRU" in file["after"]["left"]["activations"]
        assert "LSTM and GRU" in " ".join(done.table().split())
        assert file["after"]["weights"]["gru/gru_cell/kernel"] == "int8"


def test_a_file_that_grew_is_written_with_a_warning(tmp_path):
    model = network(lambda x: layers.Dense(1)(layers.Dense(16, activation="relu")(x)), (8,))
    done = nas.compress(model, [PTQ(8)], RNG.normal(size=(64, 8)).astype(np.float32))
    file = done.write(tmp_path / "a.tflite")
    assert file["after"]["bytes"] > file["before"]["bytes"] and (tmp_path / "a.tflite").is_file()
    assert "warning: .tflite: larger than with float32 weights" in done.table()


@pytest.mark.parametrize("policy", ["mixed_float16", "float16", "mixed_bfloat16", "bfloat16"])
def test_half_precision_is_computed_in_float32_and_said(policy, tmp_path):
    def body(x):
        x = layers.Conv2D(8, 3, activation="relu", dtype=policy)(x)
        x = layers.BatchNormalization(dtype=policy)(x)
        x = layers.Reshape((6, 48), dtype=policy)(x)
        cell = layers.SimpleRNN(4, dtype=policy, recurrent_initializer="glorot_uniform")
        x = layers.Bidirectional(cell, dtype=policy)(x)
        return layers.Dense(3, dtype="float32")(x)

    model = network(body)
    images = RNG.normal(size=(8, *IMAGE)).astype(np.float32)
    opened = open_network(model)
    assert {str(weight.dtype) for weight in opened.model.weights} == {"float32"}
    assert "computed in float32" in opened.notes[0] and policy in opened.notes[0]
    largest = np.abs(np.asarray(model(images), np.float32)).max()
    assert (
        np.abs(opened.model(images) - np.asarray(model(images), np.float32)).max() < 0.05 * largest
    )
    assert policy in {layer.dtype_policy.name for layer in model.layers}, "the user's is as before"
    done = nas.compress(model, [PTQ(8, activations=None)])
    done.write(tmp_path / "a.tflite")
    assert "computed in float32" in done.table()
    model.save(tmp_path / "half.keras")
    assert convert.file_of(tmp_path / "half.keras")[4:8] == b"TFL3"


def test_before_is_the_user_s_own_file(tmp_path):
    path = tmp_path / "mine.keras"
    model = network(lambda x: layers.Dense(64)(layers.Dense(64)(x)), (64,))
    model.compile("adam", "mse")
    model.fit(np.ones((4, 64)), np.ones((4, 64)), verbose=0)
    model.save(path)
    done = nas.compress(path, [PTQ(4)])
    file = done.write(tmp_path / "a.keras")
    assert file["before"]["bytes"] == path.stat().st_size
    assert file["before"]["optimizer_bytes"] > 2 * 4 * model.count_params()
    text = " ".join(done.table().split())
    assert f"{path} as it is, float32" in text and "an optimizer's state" in text
    assert ".keras: holds float32 values, codes included" in text
    done.write(tmp_path / "a.safetensors")
    assert ".safetensors before: float32, made of the network here" in done.table()
    again = nas.compress(tmp_path / "a.safetensors", [Prune(0.5)])
    kept = again.write(tmp_path / "b.safetensors")
    assert kept["before"]["bytes"] == (tmp_path / "a.safetensors").stat().st_size


@dataclasses.dataclass(frozen=True)
class Idle(Method):
    """Does nothing."""


def test_a_method_that_changed_nothing_is_an_error():
    model = network(lambda x: layers.Dense(4)(x), (8,))
    with pytest.raises(NotApplicable, match=r"Idle\(\) changed nothing.*trained on nothing"):
        nas.compress(model, [Idle()])


def test_codes_that_are_none_are_not_counted(tmp_path):
    model = network(lambda x: layers.Dense(64)(x), (64,))
    done = compress(model, [Prune(0.5)])
    written = litert.write(tmp_path / "a.tflite", done.model, done.record)
    assert written.checked.startswith("no codes;")


def test_each_of_several_ptqs_settles_its_own_weights():
    model = network(lambda x: layers.Dense(4, name="b")(layers.Dense(16, name="a")(x)), (8,))
    alone = {
        which: compress(model, [PTQ(2, which=which, clip=clip)]).record.weights[f"{which}/kernel"]
        for which, clip in (("a", "maxabs"), ("b", "newton"))
    }
    methods = [PTQ(2, which="a", clip="maxabs"), PTQ(2, which="b", clip="newton")]
    for order in (methods, methods[::-1]):
        both = compress(model, order).record.weights
        for which, weight in alone.items():
            np.testing.assert_array_equal(both[f"{which}/kernel"].scale, weight.scale)
    with pytest.raises(ValueError, match="a file computes in one way"):
        compress(model, [methods[0], PTQ(2, which="b", activations=None)])


def test_methods_as_the_readme_writes_them():
    assert registry.method("prune:2:4") == Prune(pattern="2:4")
    assert registry.method("prune:0.75,pattern=1x4") == Prune(0.75, pattern="1x4")
    assert registry.method("ptq:8,activations=none") == PTQ(8, activations=None)
    with pytest.raises(ValueError, match="expected 'unstructured', 'N:M'"):
        registry.method("prune:half")
    model = network(lambda x: layers.Dense(4)(x), (8,))
    kernel = compress(model, [registry.method("prune:2:4")]).model.get_weights()[0]
    assert ((kernel.reshape(2, 4, 4) != 0).sum(1) == 2).all()


def test_integer_activations_without_examples_say_the_flags(tmp_path):
    model = network(lambda x: layers.Dense(4)(x), (8,))
    done = nas.compress(model, [PTQ(8)])
    with pytest.raises(ValueError, match=r"give --data or --task.*ptq:8,activations=none"):
        done.write(tmp_path / "a.tflite")


def test_inputs_are_in_the_range_of_the_first_layer():
    model = network(lambda x: layers.Rescaling(1 / 127.5, offset=-1)(x), (1000,))
    assert 0.9 < np.std(model(random_inputs(model, 1))) < 1.1
    pixels = keras.Input((1000,), dtype="uint8")
    drawn = random_inputs(keras.Model(pixels, layers.Rescaling(1 / 255)(pixels)), 1)
    assert drawn.dtype == np.uint8 and drawn.max() > 200


def test_what_has_no_file_says_the_remedy():
    def of(body, *shape, **options):
        inputs = keras.Input(*shape, **options)
        return keras.Model(inputs, body(inputs))

    fixed = of(lambda x: layers.Dense(4)(x), batch_shape=(4, 8))
    assert convert.file_of(fixed)[4:8] == b"TFL3", "one example at a time"
    words = layers.StringLookup(vocabulary=["a"])
    integers = of(lambda x: layers.Dense(4)(x), (8,))
    integers.quantize("int8")
    refused = {
        "open shape.*--shape": of(lambda x: conv(x), (None, None, 3)),
        "is stateful.*stateful=False": of(
            lambda x: layers.LSTM(2, stateful=True)(x), batch_shape=(1, 6, 8)
        ),
        "begins with integers": of(
            lambda x: layers.Embedding(3, 2)(words(x)), (3,), dtype="string"
        ),
        r"quantized by Keras \(int8\).*give the float network": integers,
    }
    for why, model in refused.items():
        with pytest.raises(ValueError, match=why):
            convert.file_of(model)
    with pytest.raises(ValueError, match="already; give the float network"):
        nas.compress(integers, [PTQ(8)])


def test_one_layer_may_make_several_outputs():
    head = layers.Dense(2, name="head")
    model = network(lambda x: [head(x), head(x * 2.0)], (4,))
    assert same_network.names(model)[1] == ["head", "head_1"]
    assert same_network.check(model, convert.Session(convert.file_of(model))) is None
