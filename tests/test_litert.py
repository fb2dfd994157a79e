"""The direct writer against the official converter and Keras: same operations, same outputs."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from families import mnasnet, mobilenet_v2
from latency import litert
from latency.graph import operations


def sequence(*parts, shape=(8, 8, 6)):
    inputs = x = keras.Input(shape, name="image")
    for part in parts:
        x = part(x)
    return keras.Model(inputs, x)


def branches(make, shape=(8, 8, 6)):
    inputs = keras.Input(shape, name="image")
    return keras.Model(inputs, make(inputs))


def trained(model, seed=0):
    """The model with weights as after training: no zeros or ones that a converter could drop."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.name in ("moving_variance", "gamma"):
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
        else:
            fan_in = np.prod(variable.shape[:-1]) if len(variable.shape) > 1 else 10
            variable.assign(generator.normal(0, (2 / fan_in) ** 0.5, variable.shape))
    return model


def named_conv(name, kernel, filters=6):
    return layers.Conv2D(filters, kernel, padding="same", name=name)


NETWORKS = {
    "mnasnet": lambda: mnasnet.build(mnasnet.VARIANTS["tiny"]),
    "mobilenet_v2": lambda: mobilenet_v2.build(mobilenet_v2.VARIANTS["tiny"]),
    "explicit_padding": lambda: sequence(
        layers.ZeroPadding2D(1),
        layers.Conv2D(4, 3, strides=2),
        layers.ZeroPadding2D(((0, 1), (0, 1))),
        layers.DepthwiseConv2D(3, strides=2),
        layers.ZeroPadding2D(((0, 1), (0, 1))),
        layers.MaxPooling2D(2, 1),
    ),
    "activations": lambda: sequence(
        *(
            layer
            for name in ("relu6", "sigmoid", "tanh", "silu", "hard_silu", "hard_sigmoid")
            for layer in (layers.Conv2D(4, 1), layers.Activation(name))
        ),
        layers.Activation("hard_sigmoid"),
        layers.ReLU(),
        layers.ReLU(6),
    ),
    "unfoldable_norm": lambda: sequence(
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Conv2D(4, 1, activation="relu"),
        layers.BatchNormalization(center=False),
        layers.ReLU(6),
        layers.Conv2D(5, 3, dilation_rate=2, padding="same"),
        layers.BatchNormalization(scale=False),
    ),
    "dense": lambda: sequence(
        layers.Rescaling(1 / 127.5, -1.0),
        layers.Conv2D(4, 3, padding="same"),
        layers.MaxPooling2D(3, 2, padding="same"),
        layers.ReLU(),
        layers.Flatten(),
        layers.Dense(5, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Dropout(0.5),
        layers.Dense(3),
        layers.Softmax(),
    ),
    "reshaped_pool": lambda: sequence(
        layers.Rescaling(1 / 255),
        layers.DepthwiseConv2D(3, depth_multiplier=2),
        layers.AveragePooling2D(2),
        layers.GlobalAveragePooling2D(),
        layers.Reshape((1, 1, 12)),
        layers.Conv2D(5, 1, activation="sigmoid"),
        layers.Flatten(),
        layers.Dense(4),
    ),
    "concatenation": lambda: branches(
        lambda x: layers.ReLU()(layers.Concatenate()([named_conv("a", 1)(x), x, x]))
    ),
    # The converter orders parallel branches by the names of their layers.
    "long_branch_named_first": lambda: branches(
        lambda x: layers.Add()([named_conv("b", 1)(x), named_conv("a2", 5)(named_conv("a1", 3)(x))])
    ),
    "long_branch_named_last": lambda: branches(
        lambda x: layers.Add()([named_conv("b2", 5)(named_conv("b1", 3)(x)), named_conv("a", 1)(x)])
    ),
    "three_readers": lambda: branches(
        lambda x: (
            lambda c: layers.Multiply()([layers.ReLU()(c), c, layers.BatchNormalization()(c)])
        )(named_conv("c", 3)(x))
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_written_directly_it_is_the_converters_network(name):
    model = trained(NETWORKS[name]())
    direct, official = litert.assemble(model), litert.convert(model)
    inputs = np.random.default_rng(1).uniform(-1, 1, (3, *model.input_shape[1:])).astype(np.float32)
    expected = np.asarray(model(inputs, training=False))
    scale = np.abs(expected).max()
    assert scale > 1e-3  # else the comparison would show nothing
    np.testing.assert_allclose(litert.run(direct, inputs), expected, atol=1e-5 * max(scale, 1))
    np.testing.assert_allclose(litert.run(official, inputs), expected, atol=1e-5 * max(scale, 1))
    assert operations(direct) == operations(official)


def test_sampled_mnasnets_are_the_converters():
    import optuna

    from search_spaces import mnasnet as space

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    for _ in range(2):
        model = trained(mnasnet.build(space.sample(study.ask())))
        assert operations(litert.assemble(model)) == operations(litert.convert(model))


def test_file_format(tmp_path):
    model = NETWORKS["mnasnet"]()
    tflite = litert.assemble(model)
    assert tflite[4:8] == b"TFL3"
    position = tflite.find(np.float32(model.get_layer("head_logits").kernel).T.tobytes())
    assert position > 0 and position % 64 == 0, "weights start at a multiple of 64 bytes"
    assert len(tflite) < 1.5 * 4 * model.count_params() + 100_000
    path = tmp_path / "network.tflite"
    path.write_bytes(tflite)
    inputs = np.zeros((1, *model.input_shape[1:]), np.float32)
    np.testing.assert_array_equal(litert.run(path, inputs), litert.run(tflite, inputs))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (layers.UpSampling2D(2, name="bigger"), ("bigger", "UpSampling2D", "Conv2D")),
        (layers.Conv2D(6, 3, groups=2, name="grouped"), ("grouped", "groups=2")),
        (layers.Activation("elu", name="bent"), ("bent", "elu", "silu")),
        (layers.ReLU(negative_slope=0.1, name="leaky"), ("leaky", "0.1")),
        (layers.BatchNormalization(axis=1, name="rows"), ("rows", "axis=1")),
    ],
)
def test_unsupported_layers_are_named(layer, words):
    with pytest.raises(ValueError) as error:
        litert.assemble(sequence(layer))
    assert all(word in str(error.value) for word in words)


def test_a_subclass_is_not_taken_for_its_base():
    class Doubled(layers.Dense):
        def call(self, inputs):
            return 2 * super().call(inputs)

    with pytest.raises(ValueError, match="Doubled"):
        litert.assemble(sequence(Doubled(3), shape=(4,)))


def test_the_converter_refuses_flex_operations():
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match=r"tf\.Erf.*Flex"):
        litert.convert(keras.Model(inputs, keras.ops.erf(inputs)))


def test_dynamic_shapes_are_refused():
    model = sequence(layers.Conv2D(4, 3), shape=(None, None, 3))
    for write in (litert.assemble, litert.convert):
        with pytest.raises(ValueError, match="static shape"):
            write(model)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\x1c\x00\x00\x00TFL3" + b"\xff" * 60])
def test_bad_files_are_refused(tmp_path, content):
    path = tmp_path / "bad.tflite"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.tflite"):
        litert.run(path, np.zeros((1, 4), np.float32))


def test_wrong_input_shape_is_refused():
    tflite = litert.assemble(sequence(layers.Dense(3), shape=(4,)))
    with pytest.raises(ValueError, match="expected inputs of shape"):
        litert.run(tflite, np.zeros((1, 5), np.float32))


def test_writing_imports_neither_tensorflow_nor_keras():
    code = (
        "import sys, latency.flatbuffer; print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_other_backends_write_too():
    pytest.importorskip("jax", reason="needs Keras on another backend than TensorFlow")
    code = (
        "import sys, keras, latency.flatbuffer as flatbuffer\n"
        "from families import mnasnet\n"
        "tflite = flatbuffer.assemble(mnasnet.build(mnasnet.VARIANTS['tiny']))\n"
        "assert len(tflite) > 10_000 and 'tensorflow' not in sys.modules\n"
    )
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
