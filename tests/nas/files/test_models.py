"""Networks from what users have: files of every kind, old ones, odd ones, bad ones."""

import hashlib
import json
import os
import pathlib
import shutil
import time

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from families import mnasnet, vit
from nas.api import open as open_by_name
from nas.files.open_network import open_network
from nas.files.readers import keras_h5
from nas.files.writers import checkpoint
from nas.networks import build

RNG = np.random.default_rng(0)


def drawn(model):
    """The model with weights that are nothing special; variances stay positive."""
    for weight in model.weights:
        weight.assign(RNG.uniform(0.1, 0.6, weight.shape) * RNG.choice([-1, 1], weight.shape))
        if "variance" in weight.path:
            weight.assign(np.abs(weight))
    return model


def same(network, model, inputs) -> None:
    np.testing.assert_allclose(network.model(inputs), model(inputs), rtol=1e-5, atol=1e-5)
    paths = [weight.path for weight in network.model.weights]
    assert len(set(paths)) == len(paths)
    assert not any(isinstance(one, keras.Sequential) for one in network.model.layers)


def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.Flatten(name="flat"),
            layers.Dense(3, activation="softmax", name="logits"),
        ],
        name="row",
    )


def nested():
    """A backbone used twice, once frozen; a Sequential head; a name that occurs twice; x + y."""
    inputs = keras.Input((8, 8, 3))
    outputs = layers.BatchNormalization()(layers.Conv2D(3, 3, padding="same", name="conv")(inputs))
    backbone = keras.Model(inputs, outputs, name="backbone")
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(3, 3, padding="same", name="conv")(inputs)
    x = layers.Flatten()(backbone(x, training=False) + backbone(inputs))
    head = keras.Sequential([layers.Dense(5, name="hidden"), layers.Dense(2)], name="head")
    return keras.Model(inputs, head(x))


def composite():
    inputs = keras.Input((5, 6))
    x = layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs)
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="both")(x)
    return keras.Model(inputs, layers.GRU(3, name="gru")(x))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("build", [sequential, nested, composite])
def test_however_a_network_is_put_together(build, suffix, tmp_path):
    model = drawn(build())
    path = tmp_path / f"network{suffix}"
    model.save(path)
    network = open_network(str(path))
    inputs = RNG.normal(size=(2, *model.input_shape[1:])).astype(np.float32)
    same(network, model, inputs)
    assert network.config is None and str(path) in network.source
    network.model.save(tmp_path / "flat.keras")
    same(open_network(str(tmp_path / "flat.keras")), network.model, inputs)
    if build is composite:
        assert set(network.opaque) == {"attention", "both"}
        assert "query, key, value" in network.opaque["attention"]
    else:
        assert not network.opaque
    if build is sequential:
        assert [w.path for w in network.model.weights][:2] == ["conv/kernel", "conv/bias"]
    if build is nested:
        assert {"conv", "backbone_conv", "hidden"} <= {one.name for one in network.model.layers}


@keras.saving.register_keras_serializable("nas_tests")
class Subclassed(keras.Model):
    def __init__(self, units=3, **options):
        super().__init__(**options)
        self.units, self.hidden = units, layers.Dense(units, name="hidden")

    def build(self, shape):
        self.hidden.build(shape)

    def call(self, inputs):
        return self.hidden(inputs) * 2

    def get_config(self):
        return {"units": self.units, "name": self.name}


def test_a_subclassed_model_is_one_clear_error_with_a_remedy_that_works(tmp_path):
    model = Subclassed(name="mine")
    inputs = RNG.normal(size=(2, 4)).astype(np.float32)
    model(inputs)
    drawn(model).save(tmp_path / "network.keras")
    for source in (model, tmp_path / "network.keras"):
        with pytest.raises(ValueError, match=r"mine: .* subclassed .* model\.call\(inputs\)"):
            open_network(source)
    symbols = keras.Input((4,))
    network = open_network(keras.Model(symbols, model.call(symbols)))
    same(network, model, inputs)
    assert not network.opaque and "hidden" in [layer.name for layer in network.model.layers]


def test_networks_of_the_catalog_with_weights(tmp_path):
    config = mnasnet.VARIANTS["tiny"]
    model = drawn(mnasnet.build(config))
    files = {suffix: tmp_path / f"w{suffix}" for suffix in (".keras", ".h5", ".weights.h5")}
    for path in files.values():
        (model.save_weights if path.name.endswith(".weights.h5") else model.save)(path)
    files["safetensors"] = tmp_path / "w.safetensors"
    checkpoint.write(files["safetensors"], model, config)
    for path in files.values():
        network = open_by_name(f"mnasnet:tiny,weights={path}")
        assert network.config == config
        for found, weight in zip(network.model.weights, model.weights, strict=True):
            np.testing.assert_array_equal(found, weight)
    other = vit.build(vit.VARIANTS["tiny"])
    other.save(tmp_path / "vit.keras")
    other.save_weights(tmp_path / "vit.weights.h5")
    for name in ("vit.keras", "vit.weights.h5"):
        with pytest.raises(ValueError, match=name) as error:
            open_by_name(f"mnasnet:tiny,weights={tmp_path / name}")
        assert "\n" not in str(error.value)
    untrained = open_by_name("mnasnet:tiny")
    assert "not trained" in untrained.source and untrained.config == config
    np.testing.assert_array_equal(untrained.model.weights[0], build.build(config).weights[0])


def test_a_trained_decoder_is_read_with_its_config(shared_data):
    network = open_network(str(shared_data / "checkpoints" / "stories260K.bin"))
    assert (network.config.dim, network.config.layers) == (64, 5) and not network.opaque


# --- Files of Keras 2 ---------------------------------------------------------------------------


def old(name, kind, inbound, **config):
    """A layer as Keras 2 wrote it; `inbound`: its calls."""
    own = {"name": name, "trainable": True, "dtype": "float32"} | config
    return {"class_name": kind, "config": own, "name": name, "inbound_nodes": inbound}


def tensor(of, call=0, **named):
    return [of, call, 0, named]


def legacy_network(inner_call=1):
    """Keras 2's words for a network: tuples, operations, a model within, slashes, gone options."""
    zeros = {"class_name": "Zeros", "config": {"dtype": "float32"}}
    items = {"class_name": "__tuple__", "items": [3, 3]}
    shape = {"class_name": "__tuple__", "items": [None, 6, 6, 2]}
    inner = {
        "name": "inner",
        "layers": [
            old("input_2", "InputLayer", [], batch_input_shape=shape, sparse=False, ragged=False),
            old("b/norm", "BatchNormalization", [[tensor("input_2")]], axis=[3], fused=True),
        ],
        "input_layers": [["input_2", 0, 0]],
        "output_layers": [["b/norm", 0, 0]],
    }
    calls = {
        "conv": old(
            "a/conv", "Conv2D", [[tensor("image")]], filters=2, kernel_size=items,
            padding="same", groups=1, bias_initializer=zeros, kernel_constraint=None,
        ),
        "depth": old(
            "depth", "DepthwiseConv2D", [[tensor("inner", inner_call)]], kernel_size=[3, 3],
            padding="same", groups=1, depthwise_initializer=zeros,
        ),
        "add": old(
            "tf.add", "TFOpLambda", [tensor("depth", y=["image", 0, 0], name=None)],
            function="__operators__.add",
        ),
        "relu": old("tf.relu6", "TFOpLambda", [tensor("tf.add")], function="nn.relu6"),
        "half": old("tf.half", "TFOpLambda", [tensor("tf.relu6", y=0.5)], function="math.multiply"),
        "minus": old(
            "tf.minus", "TFOpLambda", [["_CONSTANT_VALUE", -1, 1.0, {"y": ["tf.half", 0, 0]}]],
            function="math.subtract",
        ),
    }  # fmt: skip
    config = {
        "name": "old",
        "layers": [
            old("image", "InputLayer", [], batch_input_shape=[None, 6, 6, 2], ragged=False),
            calls["conv"],
            {
                "class_name": "Functional",
                "config": inner,
                "name": "inner",
                "inbound_nodes": [[tensor("a/conv")]],
            },
            *(calls[name] for name in ("depth", "add", "relu", "half", "minus")),
        ],
        "input_layers": [["image", 0, 0]],
        "output_layers": [["tf.minus", 0, 0]],
    }
    weights = {
        "a/conv": [RNG.normal(size=(3, 3, 2, 2)), RNG.normal(size=2)],
        "inner": [np.float32([1, 2]), np.float32([0, 1]), np.float32([0.5, 0]), np.float32([1, 4])],
        "depth": [RNG.normal(size=(3, 3, 2, 1)), RNG.normal(size=2)],
    }
    return {"class_name": "Functional", "config": config}, weights


def write_h5(path, config, weights):
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in weights]
        for name, arrays in weights.items():
            part = group.create_group(name)
            part.attrs["weight_names"] = [f"{n}:0".encode() for n in range(len(arrays))]
            for number, array in enumerate(arrays):
                part[f"{number}:0"] = np.asarray(array, np.float32)
    return str(path)


def test_words_of_keras_2_are_understood(tmp_path):
    config, weights = legacy_network()
    network = open_network(write_h5(tmp_path / "old.h5", config, weights))
    x = RNG.normal(size=(2, 6, 6, 2)).astype(np.float32)
    kernel, bias = (np.float32(one) for one in weights["a/conv"])
    y = tf.nn.conv2d(x, kernel, 1, "SAME") + bias
    gamma, beta, mean, variance = weights["inner"]
    y = (y - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    kernel, bias = (np.float32(one) for one in weights["depth"])
    y = tf.nn.depthwise_conv2d(y, kernel, [1, 1, 1, 1], "SAME") + bias
    expected = 1 - 0.5 * tf.nn.relu6(y + x)
    np.testing.assert_allclose(network.model(x), expected, rtol=1e-4, atol=1e-5)
    names = [layer.name for layer in network.model.layers]
    assert {"a_conv", "b_norm", "depth"} <= set(names)
    assert network.model.input.shape == (None, 6, 6, 2), "not a list of one input"


def test_an_operation_without_a_layer_is_named(tmp_path):
    config, weights = legacy_network()
    config["config"]["layers"][-1]["config"]["function"] = "signal.rfft2d"
    with pytest.raises(ValueError, match=r"tf.minus.*signal.rfft2d"):
        open_network(write_h5(tmp_path / "old.h5", config, weights))


def test_a_saved_model_gives_what_its_graph_gives(shared_data):
    """MLPerf Tiny's keyword spotting network, against TensorFlow running the folder itself.

    SOURCE.md's 0.900 is that of the .tflite beside it, which holds other weights.
    """
    folder = shared_data / "checkpoints" / "kws_ref_model"
    with np.load(shared_data / "checkpoints" / "eval_kws01_mfcc_int8.npz") as data:
        inputs = ((data["x"] - np.float32(83)) * np.float32(0.5847))[..., None]
        labels = data["y"]
    outputs = open_network(str(folder)).model.predict(inputs, verbose=0)
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
        signature = loaded.signature_def["serving_default"]
        (place,), (out,) = signature.inputs.values(), signature.outputs.values()
        expected = session.run(out.name, {place.name: inputs})
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    assert (outputs.argmax(1) == labels).sum() == 913


# --- Bad files ----------------------------------------------------------------------------------


def refused(path, seconds=30) -> str:
    """The one line with which a file is refused; nothing at its path changes."""
    before = digest(path)
    started = time.monotonic()
    with pytest.raises(ValueError) as error:
        open_network(str(path))
    assert time.monotonic() - started < seconds
    text = str(error.value)
    assert "\n" not in text and len(text) < 700 and pathlib.Path(path).name in text, text
    assert digest(path) == before, "the input is only read"
    return text


def digest(path) -> list:
    path = pathlib.Path(path)
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    return [
        (str(file), file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in files
    ]


@pytest.fixture
def small(tmp_path):
    inputs = keras.Input((4,))
    path = tmp_path / "small.h5"
    drawn(keras.Model(inputs, layers.Dense(3, name="dense")(inputs))).save(path)
    return path


@pytest.mark.parametrize("suffix", [".h5", ".keras", ".safetensors", ".bin", ".txt"])
def test_foreign_files(suffix, tmp_path):
    for content in (b"", b"hello world, this is a text", b"\x89PNG\r\n\x1a\n" + b"\0" * 99):
        path = tmp_path / f"network{suffix}"
        path.write_bytes(content)
        refused(path)
    refused_folder = tmp_path / "folder"
    refused_folder.mkdir(exist_ok=True)
    refused(refused_folder)
    with pytest.raises(ValueError, match="no file nowhere.h5"):
        open_by_name("nowhere.h5")
    with pytest.raises(ValueError, match="no family 'nothing'"):
        open_by_name("nothing:tiny")


def test_truncated_and_changed_h5_files(small):
    content = small.read_bytes()
    for size in (9, 100, len(content) // 2, len(content) - 9):
        small.write_bytes(content[:size])
        refused(small)
    generator, told = np.random.default_rng(0), 0
    for _ in range(6):
        changed = bytearray(content)
        for position in generator.integers(8, 2000, 60):
            changed[position] = generator.integers(256)
        small.write_bytes(bytes(changed))
        try:
            open_network(str(small))
        except ValueError as error:
            assert "small.h5" in str(error) and "\n" not in str(error)
            told += 1
    assert told > 3


def changed_config(path, change):
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config = change(config) or config
        file.attrs["model_config"] = json.dumps(config)


CONFIGS = {
    "lambda": (
        {"class_name": "Lambda", "config": {"name": "l", "function": ["abc", None, None]}},
        "Python code",
    ),
    "module": ({"class_name": "mkdir", "module": "os", "config": {}}, "module 'os'"),
    "unknown": ({"class_name": "Mine"}, "Mine"),
    "wide": ({"units": 10**11}, "weights"),
    "other": ({"units": 4}, "weights"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_descriptions_that_do_harm_or_do_not_fit(name, small):
    change, words = CONFIGS[name]

    def apply(config):
        layer = config["config"]["layers"][1]
        (layer["config"] if "units" in change else layer).update(change)

    changed_config(small, apply)
    assert words in refused(small)


def test_an_h5_file_that_leads_elsewhere(small, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(np.ones(12, np.float32).tobytes())
    with h5py.File(small, "r+") as file:
        (path,) = [
            name for name in _datasets(file) if name.endswith("kernel") or "kernel:0" in name
        ]
        del file[path]
        file.create_dataset(path, (4, 3), "f4", external=[(str(secret), 0, 48)])
    assert "another file" in refused(small)
    with h5py.File(small, "r+") as file:
        del file[path]
        file[path] = h5py.ExternalLink("/etc/hostname", "/x")
    assert "link" in refused(small)


def _datasets(file) -> list[str]:
    found = []
    file.visititems(lambda name, one: found.append(name) if isinstance(one, h5py.Dataset) else None)
    return found


def test_an_h5_file_that_unpacks_to_more_than_memory(small):
    with h5py.File(small, "r+") as file:
        size = (2**36,)
        file["model_weights"].create_dataset("big", size, "f4", chunks=(2**20,), compression="gzip")
    assert "memory" in refused(small)


def test_a_file_of_weights_only_says_what_is_needed(tmp_path):
    model = mnasnet.build(mnasnet.VARIANTS["tiny"])
    model.save_weights(tmp_path / "w.weights.h5")
    assert "weights=" in refused(tmp_path / "w.weights.h5")


def test_weights_that_are_not_finite(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3, name="dense")(inputs))
    model.layers[1].kernel.assign(np.full((4, 3), np.nan))
    model.save(tmp_path / "nan.keras")
    assert "dense/kernel" in refused(tmp_path / "nan.keras")


def test_damaged_saved_models(shared_data, tmp_path):
    folder = tmp_path / "network"
    shutil.copytree(shared_data / "checkpoints" / "kws_ref_model", folder)
    for file in (folder, *folder.rglob("*")):
        os.chmod(file, 0o755)
    data = "variables/variables.data-00000-of-00001"
    for name in ("saved_model.pb", "variables/variables.index", data):
        content = (folder / name).read_bytes()
        for changed in (b"", content[: len(content) // 2], b"x" * 1000):
            (folder / name).write_bytes(changed)
            refused(folder)
        (folder / name).unlink()
        refused(folder)
        (folder / name).write_bytes(content)
    assert open_network(str(folder)).model.count_params() == 24908


def test_a_saved_model_without_layers(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "bare"))
    assert "save it as .keras" in refused(tmp_path / "bare")


def test_hdf5_is_looked_at_in_another_process(small, monkeypatch, tmp_path):
    (tmp_path / "aborting.py").write_text("import os; os.abort()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(keras_h5, "_WORKER", "aborting")
    assert "crashes HDF5" in refused(small)
