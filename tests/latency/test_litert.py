"""The direct writer against the official converter and Keras: same operations, same outputs."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from families import mnasnet, mobilenet_v2
from latency.tflite import convert
from latency.tflite.graph import operations


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
    direct, official = convert.assemble(model), convert.convert(model)
    inputs = np.random.default_rng(1).uniform(-1, 1, (3, *model.input_shape[1:])).astype(np.float32)
    expected = np.asarray(model(inputs, training=False))
    scale = np.abs(expected).max()
    assert scale > 1e-3  # else the comparison would show nothing
    np.testing.assert_allclose(convert.run(direct, inputs), expected, atol=1e-5 * max(scale, 1))
    np.testing.assert_allclose(convert.run(official, inputs), expected, atol=1e-5 * max(scale, 1))
    assert operations(direct) == operations(official)


def test_sampled_mnasnets_are_the_converters():
    import optuna

    from search_spaces import mnasnet as space

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    for _ in range(2):
        model = trained(mnasnet.build(space.sample(study.ask())))
        assert operations(convert.assemble(model)) == operations(convert.convert(model))


def test_file_format(tmp_path):
    model = NETWORKS["mnasnet"]()
    tflite = convert.assemble(model)
    assert tflite[4:8] == b"TFL3"
    position = tflite.find(np.float32(model.get_layer("head_logits").kernel).T.tobytes())
    assert position > 0 and position % 64 == 0, "weights start at a multiple of 64 bytes"
    assert len(tflite) < 1.5 * 4 * model.count_params() + 100_000
    path = tmp_path / "network.tflite"
    path.write_bytes(tflite)
    inputs = np.zeros((1, *model.input_shape[1:]), np.float32)
    np.testing.assert_array_equal(convert.run(path, inputs), convert.run(tflite, inputs))


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
        convert.assemble(sequence(layer))
    assert all(word in str(error.value) for word in words)


def test_a_subclass_is_not_taken_for_its_base():
    class Doubled(layers.Dense):
        def call(self, inputs):
            return 2 * super().call(inputs)

    with pytest.raises(ValueError, match="Doubled"):
        convert.assemble(sequence(Doubled(3), shape=(4,)))


def test_the_converter_refuses_flex_operations():
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="needs Erf, which LiteRT does not have"):
        convert.convert(keras.Model(inputs, keras.ops.erf(inputs)))


def test_dynamic_shapes_are_refused():
    model = sequence(layers.Conv2D(4, 3), shape=(None, None, 3))
    for write in (convert.assemble, convert.convert):
        with pytest.raises(ValueError, match="static shape|open shape.*--shape"):
            write(model)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\x1c\x00\x00\x00TFL3" + b"\xff" * 60])
def test_bad_files_are_refused(tmp_path, content):
    path = tmp_path / "bad.tflite"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.tflite"):
        convert.run(path, np.zeros((1, 4), np.float32))


def test_wrong_input_shape_is_refused():
    tflite = convert.assemble(sequence(layers.Dense(3), shape=(4,)))
    with pytest.raises(ValueError, match="expected inputs of shape"):
        convert.run(tflite, np.zeros((1, 5), np.float32))


def test_writing_imports_neither_tensorflow_nor_keras():
    code = (
        "import sys, latency.tflite.direct_writer;"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_other_backends_write_too():
    pytest.importorskip("jax", reason="needs Keras on another backend than TensorFlow")
    code = (
        "import sys, keras, latency.tflite.direct_writer as flatbuffer\n"
        "from families import mnasnet\n"
        "tflite = flatbuffer.assemble(mnasnet.build(mnasnet.VARIANTS['tiny']))\n"
        "assert len(tflite) > 10_000 and 'tensorflow' not in sys.modules\n"
    )
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def _stream(order: str = "dict"):
    """A network of every kind of input: tokens, a position, a cache, an LSTM's state."""
    tokens = keras.Input((2,), dtype="int32", name="tokens")
    cache = keras.Input((6, 8), name="cache")
    position = keras.Input((), dtype="int32", name="position")
    hidden, cell = keras.Input((8,), name="hidden"), keras.Input((8,), name="cell")
    x = layers.Embedding(11, 8, name="embed")(tokens)
    new = keras.ops.concatenate([cache[:, 2:], x], axis=1)
    scores = keras.ops.einsum("btd,bsd->bts", x, new) + keras.ops.reshape(
        keras.ops.cast(position, "float32"), (-1, 1, 1)
    )
    mixed = keras.ops.einsum("bts,bsd->btd", keras.ops.softmax(scores), new)
    values, chosen = keras.ops.top_k(layers.Dense(4, name="router")(mixed), 2)
    expert = layers.Embedding(4, 8, name="experts")(chosen)
    mixed = mixed + keras.ops.sum(expert * keras.ops.softmax(values)[..., None], axis=2)
    lstm = layers.LSTM(8, return_state=True, unroll=True, name="lstm")
    out, hidden_new, cell_new = lstm(mixed, initial_state=[hidden, cell])
    inputs = {"tokens": tokens, "position": position, "cache": cache, "hidden": hidden}
    inputs["cell"] = cell
    outputs = {
        "logits": layers.Dense(11, name="head")(out),
        "cache": new,
        "hidden": hidden_new,
        "cell": cell_new,
        "a_chosen": chosen,  # integers, and first by name
    }
    if order == "list":
        inputs, outputs = list(inputs.values()), [outputs["logits"], outputs["cache"]]
    return trained(keras.Model(inputs, outputs))


def _stream_inputs(count: int = 3) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    floats = {"cache": (count, 6, 8), "hidden": (count, 8), "cell": (count, 8)}
    return {
        "tokens": generator.integers(0, 11, (count, 2), np.int32),
        "position": generator.integers(0, 6, count, np.int32),
    } | {name: generator.normal(size=shape).astype("float32") for name, shape in floats.items()}


@pytest.fixture(scope="module")
def stream():
    model = _stream()
    return model, convert.convert(model)


def test_inputs_and_outputs_go_by_name(stream):
    model, tflite = stream
    inputs = _stream_inputs()
    expected = model({name: keras.ops.convert_to_tensor(x) for name, x in inputs.items()})
    outputs = convert.run(tflite, inputs)
    assert outputs.keys() == expected.keys()
    for name, ours in outputs.items():
        theirs = np.asarray(expected[name])
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=name)
    with pytest.raises(ValueError, match=r"\['cache', 'cell', 'hidden', .*got \['tokens'\]"):
        convert.run(tflite, {"tokens": inputs["tokens"]})


def test_state_stays_in_a_session(stream):
    model, tflite = stream
    session = convert.Session(tflite)
    assert session.state == ("cache", "cell", "hidden")
    state = {name: np.zeros((1, *model.input[name].shape[1:])) for name in session.state}
    for start_again in (False, True):
        carried = state
        if start_again:
            session.reset()
        for tokens in ([[1, 2]], [[3, 4]], [[10, 0]]):
            given = {"tokens": tokens, "position": [2]}
            told = session.step(given)
            assert told.keys() == {"logits", "a_chosen"}
            tensors = {
                name: keras.ops.convert_to_tensor(x, model.input[name].dtype)
                for name, x in (given | carried).items()
            }
            expected = model(tensors)
            carried = {name: np.asarray(expected[name]) for name in session.state}
            np.testing.assert_allclose(told["logits"], expected["logits"], atol=1e-5)
    with pytest.raises(TypeError, match="same_kind"):
        session.step({"tokens": [[1.5, 2.5]], "position": [2]})


def test_names_of_lists_are_those_of_layers():
    model = _stream("list")
    tflite = convert.convert(model)
    session = convert.Session(tflite)
    assert list(session.inputs) == ["tokens", "position", "cache", "hidden", "cell"]
    assert next(iter(session.outputs)) == "head"
    inputs = _stream_inputs(1)
    expected = model([keras.ops.convert_to_tensor(inputs[name]) for name in session.inputs])
    for ours, theirs in zip(session(inputs).values(), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_written_directly_it_has_the_names_too():
    images = {
        "left": keras.Input((4, 4, 3), name="left"),
        "right": keras.Input((4, 4, 3), name="right"),
    }
    both = layers.Add(name="both")(list(images.values()))
    model = trained(keras.Model(images, {"sum": both, "conv": named_conv("conv", 3)(both)}))
    generator = np.random.default_rng(0)
    inputs = {name: generator.normal(size=(2, 4, 4, 3)).astype("float32") for name in images}
    direct, official = (
        convert.run(write(model), inputs) for write in (convert.assemble, convert.convert)
    )
    expected = model(inputs)
    assert direct.keys() == official.keys() == expected.keys()
    for name, theirs in expected.items():
        np.testing.assert_allclose(direct[name], theirs, atol=1e-5)
        np.testing.assert_allclose(official[name], theirs, atol=1e-5)
    with pytest.raises(ValueError, match="int32"):  # what is written directly is float32
        convert.assemble(_stream())


def test_nested_inputs_go_by_the_names_of_their_keys():
    pair = {"pair": {"a": keras.Input((2,), name="a"), "b": keras.Input((2,), name="b")}}
    model = keras.Model(pair, layers.Subtract(name="gap")(list(pair["pair"].values())))
    inputs = {"pair_a": np.float32([[5, 1]]), "pair_b": np.float32([[2, 3]])}
    assert convert.run(convert.convert(model), inputs)["gap"].tolist() == [[3, -2]]


def test_a_file_without_names_goes_by_its_tensors(stream):
    """As files of other makers do."""
    from ai_edge_litert import schema_py_generated as schema

    from latency.tflite.graph import AlignedBuilder

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(stream[1]))
    model.signatureDefs = None
    builder = AlignedBuilder(2**20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    assert len(convert.Session(bytes(builder.Output())).inputs) == 5
    convert.runner(bytes(builder.Output()))()


def test_the_converters_weights_stay_aligned(stream):
    model, tflite = stream
    position = tflite.find(np.asarray(model.get_layer("head").kernel).T.tobytes())
    assert position > 0 and position % 64 == 0
