"""However a network is put together, the flat one is the same and goes through every command."""

import keras
import numpy as np
import pytest
from keras import applications, layers
from keras.src.applications.convnext import ConvNeXt
from keras.src.applications.efficientnet import EfficientNet

from compress.method import compress
from compress.ptq import PTQ
from latency.cpu import CPU
from latency.networks.count import count
from latency.networks.random_inputs import random_inputs
from nas.files.flatten import flatten
from nas.files.open_network import open_network

RNG = np.random.default_rng(0)
IMAGE = (32, 32, 3)


def fitted_cnn():
    """Built by its first batch, whose size is not the network's."""
    model = keras.Sequential(
        [layers.Conv2D(8, 3, activation="relu"), layers.BatchNormalization(), layers.Flatten()]
        + [layers.Dropout(0.3), layers.Dense(10)]
    )
    model.compile("adam", "mse")
    images = RNG.normal(size=(8, 12, 12, 3)).astype(np.float32)
    model.fit(images, np.zeros((8, 10)), batch_size=4, verbose=0)
    return model


def three_deep():
    """Models in models, all of whose layers and operations have the same names."""
    model = None
    for name in ("first", "second", "third"):
        inputs = keras.Input((6,))
        x = layers.Dense(6, name="dense")(inputs if model is None else model(inputs))
        x = keras.ops.add(x, 1.0)
        x._keras_history.operation.name = "add"
        model = keras.Model(inputs, x, name=name)
    return keras.Sequential([model, layers.Dense(2, name="dense")])


def siamese():
    """One Sequential encoder for two named inputs; two named outputs."""
    encoder = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(6)]
    )
    first, second = keras.Input((8, 8, 1), name="first"), keras.Input((8, 8, 1), name="second")
    outputs = {
        "apart": layers.Subtract()([encoder(first), encoder(second)]),
        "first": encoder(first),
    }
    return keras.Model({"first": first, "second": second}, outputs)


def named_inputs():
    """A model within, called with a dict in another order than its inputs."""
    inputs = {"b": keras.Input((3,), name="b"), "a": keras.Input((4,), name="a")}
    x = layers.Concatenate()([layers.Dense(2)(inputs["a"]), inputs["b"]])
    inner = keras.Model(inputs, [x, layers.Dense(1)(inputs["b"])])
    a, b = keras.Input((4,)), keras.Input((3,))
    return keras.Model([b, a], inner({"a": a, "b": b}))


def transfer():
    """A frozen base: statistics of its normalizations are not to move, however often it trains."""
    base = applications.MobileNetV2(
        weights=None, input_shape=IMAGE, include_top=False, pooling="avg", alpha=0.35
    )
    base.trainable = False
    inputs = keras.Input(IMAGE)
    x = base(layers.Rescaling(1 / 127.5, -1)(inputs), training=False)
    return keras.Model(inputs, layers.Dense(3)(layers.Dropout(0.2)(x)))


def adapted():
    """State that is set by `adapt`, in a model within a model; and constants."""
    table = layers.Normalization()
    table.adapt(RNG.normal(3, 2, (64, 5)))
    inner = keras.Sequential([keras.Input((5,)), table, layers.Dense(4)])
    given = layers.Normalization(mean=[1.0, 2, 3, 4], variance=[4.0, 5, 6, 7])
    return keras.Sequential([inner, given, layers.Dense(2)])


def looked_up():
    """Buckets found by `adapt`, and a table of integers."""
    buckets = layers.Discretization(num_bins=4)
    buckets.adapt(RNG.normal(size=200))
    inner = keras.Sequential([keras.Input((3,)), buckets, layers.Embedding(20, 4)])
    return keras.Sequential([inner, layers.GlobalAveragePooling1D(), layers.Dense(2)])


def recurrent():
    both = layers.Bidirectional(layers.LSTM(4, return_sequences=True))
    inner = keras.Sequential([keras.Input((7, 5)), both, layers.LSTM(3)])
    return keras.Sequential([inner, layers.Dense(2)])


def masked():
    """Embeddings that mask, in a model within a model."""
    words = keras.Sequential([keras.Input((9,), dtype="int32")])
    words.add(layers.Embedding(20, 8, mask_zero=True))
    inputs = keras.Input((9,), dtype="int32")
    return keras.Model(inputs, layers.Dense(2)(layers.LSTM(4)(words(inputs))))


def mobilenet():
    return applications.MobileNetV2(weights=None, input_shape=IMAGE, classes=10, alpha=0.35)


def lambda_layer():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(4)])
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Lambda(lambda x: 2 * x, name="twice")(inner(inputs)))


def efficientnet():
    """Keras' own, narrow: Rescaling and Normalization before the first convolution."""
    model = EfficientNet(0.1, 0.2, 224, weights=None, input_shape=IMAGE, classes=10, name="narrow")
    return keras.Sequential([model])


def convnext():
    """Keras' own, small: its stem and every downsampling is a Sequential model within."""
    return ConvNeXt([1] * 4, [8, 12, 16, 24], weights=None, input_shape=IMAGE, classes=10)


BUILD = [fitted_cnn, three_deep, siamese, named_inputs, transfer, adapted, looked_up, recurrent]
BUILD += [masked, mobilenet, lambda_layer, efficientnet, convnext]


def outputs(model, inputs):
    return [
        keras.ops.convert_to_numpy(x) for x in keras.tree.flatten(model(inputs, training=False))
    ]


@pytest.mark.parametrize("build", BUILD)
def test_from_any_network_to_every_command(build):
    model = build()
    network = open_network(model)
    flat = network.model
    assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
    assert len({weight.path for weight in flat.weights}) == len(flat.weights)
    assert flat.count_params() == model.count_params()
    assert [t.shape[0] for t in flat.inputs] == [None] * len(flat.inputs), "the batch is open"
    inputs = random_inputs(flat, 4, seed=7)
    for ours, theirs in zip(outputs(flat, inputs), outputs(model, inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert count(flat).total_params == model.count_params()
    assert CPU(threads=1).profile(flat, warmup=0, runs=2).median_ms > 0
    small = compress(flat, [PTQ(8)]).model
    for ours, theirs in zip(outputs(small, inputs), outputs(model, inputs), strict=True):
        assert np.abs(ours - theirs).max() <= 0.1 * max(1, np.abs(theirs).max())
    assert ("twice" in network.opaque) == (build is lambda_layer)


def test_names_structure_and_training_are_those_of_the_network():
    flat = flatten(siamese()).model
    assert list(flat.input) == ["first", "second"] and list(flat.output) == ["apart", "first"]
    names = [layer.name for layer in flatten(three_deep()).model.layers]
    assert len(set(names)) == len(names) and {"dense", "first_dense"} & set(names)
    model = transfer()
    flat = flatten(model).model
    assert len(flat.trainable_weights) == len(model.trainable_weights) == 2
    images = RNG.normal(size=(4, *IMAGE)).astype(np.float32)
    frozen = [w for w in flat.weights if "moving" in w.path]
    before = [keras.ops.convert_to_numpy(weight) for weight in frozen]
    flat(images, training=True)
    assert frozen and all(np.array_equal(*pair) for pair in zip(before, frozen, strict=True))


def test_a_flat_network_is_taken_as_it_is():
    model = mobilenet()
    assert flatten(model).model is model


def test_tables_of_words_are_kept():
    words = layers.TextVectorization(20, output_sequence_length=5)
    words.adapt(np.array(["the network", "a cat", "network of the"]))
    model = keras.Sequential([keras.Input((), dtype="string"), words, layers.Embedding(20, 4)])
    flat = flatten(model).model
    text = np.array(["the cat", "network unheard-of"])
    np.testing.assert_array_equal(flat(text), model(text))


class Forgetful(layers.Layer):
    """Keeps a number that its configuration does not tell."""

    factor = 1.0

    def call(self, inputs):
        return inputs * self.factor


def test_a_layer_whose_state_would_be_lost_is_named():
    layer = Forgetful(name="forgetful")
    layer.factor = 3.0
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), layer, layers.Dense(2)])
    with pytest.raises(ValueError, match=r"layer 'forgetful' .*get_config"):
        flatten(model)


class Unsaved(layers.Layer):
    def __init__(self, function, **options):
        super().__init__(**options)
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


def test_a_layer_that_cannot_be_copied_is_named():
    model = keras.Sequential([keras.Input((6,)), Unsaved(lambda x: 2 * x, name="unsaved")])
    with pytest.raises(ValueError, match=r"'unsaved' \(Unsaved\) cannot be copied.*get_config"):
        flatten(model)


class Noise(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, inputs):
        return inputs + keras.random.normal(keras.ops.shape(inputs), seed=self.seeds)


def test_a_network_that_draws_numbers_is_not_held_to_equal_outputs():
    model = keras.Sequential([keras.Input((6,)), Noise(), layers.Dense(2)])
    assert len(flatten(model).model.layers) == 3


def test_what_is_no_network_with_a_graph():
    with pytest.raises(ValueError, match=r"without an input shape; begin it with keras.Input"):
        open_network(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(ValueError, match=r"a int is no network.*keras.Model"):
        open_network(3)


def test_a_search_s_folder_is_a_network(tmp_path):
    from families import mnasnet
    from nas.files.network_files import write_network
    from nas.networks.build import build

    with pytest.raises(ValueError, match="expected .*safetensors"):
        open_network(tmp_path)
    config = mnasnet.VARIANTS["tiny"]
    model = build(config)
    write_network(model, config, tmp_path / "best")
    (tmp_path / "best.py").rename(tmp_path / "config.py")
    network = open_network(tmp_path)
    assert network.config == config and str(tmp_path) in network.source
    for found, weight in zip(network.model.weights, model.weights, strict=True):
        np.testing.assert_array_equal(found, weight)
    assert network.for_target(CPU(threads=1)) == tmp_path / "best.tflite"
    assert network.read_from == tmp_path / "best.keras", "which nothing is to overwrite"
    (tmp_path / "best.keras").rename(tmp_path / "so_far.keras")
    with pytest.raises(ValueError, match=r"no best.keras.*so far is .*so_far.keras"):
        open_network(tmp_path)


def test_what_is_flat_is_timed_as_its_file_and_other_files_as_models(tmp_path):
    for build, flat in ((mobilenet, True), (three_deep, False)):
        path = tmp_path / f"{build.__name__}.keras"
        build().save(path)
        network = open_network(path)
        assert (network.for_target(CPU(threads=1)) == path) == flat and network.read_from == path


def test_a_tflite_file_has_no_layers_and_is_timed_as_it_is(tmp_path):
    from latency.tflite import convert

    path = tmp_path / "network.tflite"
    path.write_bytes(convert.assemble(flatten(fitted_cnn()).model))
    network = open_network(path)
    assert network.for_target(CPU(threads=1)) == path
    with pytest.raises(ValueError, match=r"network.tflite.*holds no Keras layers"):
        network.model  # noqa: B018
