"""Sizes that `.tflite` files leave open, batches, and files with several signatures."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from latency.cpu import CPU
from latency.networks import inputs
from latency.tflite import convert, fixed_shapes, process
from latency.tflite.graph import AlignedBuilder


def packed(model) -> bytes:
    builder = AlignedBuilder(2**16)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def convolutions(size) -> keras.Model:
    image = keras.Input((size, size, 3), name="image")
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu")(image)
    return keras.Model(image, keras.layers.GlobalAveragePooling2D(name="mean")(x))


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    """A file whose image may be of any size, and the Keras network that it is of."""
    model = convolutions(32)
    file = schema.ModelT.InitFromObj(schema.Model.GetRootAs(convert.assemble(model)))
    graph = file.subgraphs[0]
    for tensor in graph.tensors:
        if file.buffers[tensor.buffer].data is None and len(tensor.shape) == 4:
            channels = int(tensor.shape[-1])
            tensor.shape, tensor.shapeSignature = [1, 1, 1, channels], [-1, -1, -1, channels]
    path = tmp_path_factory.mktemp("dynamic") / "dynamic.tflite"
    path.write_bytes(packed(file))
    return path, model


def test_open_sizes_are_asked_for_and_never_taken_for_1(dynamic):
    path, _ = dynamic
    with pytest.raises(ValueError, match=r"of the open shape \(\?, \?, \?, 3\).*--shape"):
        CPU(threads=1).profile(path, runs=1)
    with pytest.raises(ValueError, match="open shape"):
        fixed_shapes.fixed(path.read_bytes(), {})


@pytest.mark.parametrize("batch", [1, 3])
def test_given_sizes_make_a_static_file_of_the_same_network(dynamic, batch):
    path, model = dynamic
    tflite = process.fixed(path, {"image": (batch, 32, 32, 3)})
    takes = fixed_shapes.read(tflite)
    assert takes.inputs[0].shape == (batch, 32, 32, 3) and not takes.missing()
    images = np.random.default_rng(0).normal(size=(batch, 32, 32, 3)).astype(np.float32)
    ours = convert.Session(tflite)({"image": images})["mean"]
    np.testing.assert_allclose(ours, model(images), atol=1e-5)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"image": (1, 32, 32, 4)}, "fixes it to"),
        ({"image": (32, 32, 3)}, "fixes it to"),
        ({"picture": (1, 32, 32, 3)}, "no input 'picture' in it; its inputs are image"),
        ({"image": (1, 2, 2, 3)}, "it does not take the shapes|cannot run"),
    ],
)
def test_what_does_not_fit_is_refused(dynamic, shapes, said):
    with pytest.raises(ValueError, match=said):
        fixed_shapes.fixed(dynamic[0].read_bytes(), shapes)


def test_vectors_of_open_length_are_asked_for():
    """A waveform: nobody can say whether its one dimension counts examples."""
    takes = fixed_shapes.Signature(None, (fixed_shapes.Input("waveform", (None,), "float32"),))
    assert takes.missing() and "waveform=224" in takes.missing()[0].question()
    rows = fixed_shapes.Input("rows", (None, 8), "float32")
    assert not fixed_shapes.Signature(None, (*takes.inputs, rows)).missing()


def test_a_batch_of_a_file_for_one_example():
    """RESHAPE to one example's shape, too, takes as many as there are; checked row by row."""
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(image))
    model = keras.Model(image, keras.layers.Dense(5, name="out")(keras.layers.Reshape((72,))(x)))
    tflite = convert.file_of(model, 4)
    images = np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype(np.float32)
    ours = convert.Session(tflite)({"image": images})["out"]
    np.testing.assert_allclose(ours, model(images), atol=1e-4)


def test_one_signature_of_several():
    """The chosen graph becomes the main one; the other's weights are left out."""
    first, second = (
        schema.ModelT.InitFromObj(schema.Model.GetRootAs(convert.assemble(convolutions(size))))
        for size in (8, 16)
    )
    offset = len(first.buffers)
    for tensor in second.subgraphs[0].tensors:
        tensor.buffer += offset
    for operator in second.subgraphs[0].operators:
        operator.opcodeIndex += len(first.operatorCodes)
    (signature,) = second.signatureDefs
    signature.signatureKey, signature.subgraphIndex = b"large", 1
    first.buffers += second.buffers
    first.operatorCodes += second.operatorCodes
    first.subgraphs += second.subgraphs
    first.signatureDefs += second.signatureDefs
    both = packed(first)
    takes = fixed_shapes.read(both)
    assert (takes.name, takes.others) == ("serving_default", ("large",))
    large = fixed_shapes.fixed(both, {}, "large")
    assert fixed_shapes.read(large).name == "large" and not fixed_shapes.read(large).others
    images = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    expected = convert.Session(both, signature="large")({"image": images})["mean"]
    np.testing.assert_allclose(convert.Session(large)({"image": images})["mean"], expected)
    with pytest.raises(ValueError, match="no signature 'small' in it; it has serving_default, la"):
        fixed_shapes.read(both, "small")


def test_a_figure_says_what_was_run(dynamic, tmp_path):
    file = tmp_path / "fixed.tflite"
    file.write_bytes(process.fixed(dynamic[0], {"image": (1, 16, 16, 3)}))
    assert inputs.as_run(file, 1) == {
        "inputs": {"image": "float32 1x16x16x3"},
        "signature": "serving_default",
    }
    latency = CPU(threads=1).profile(convolutions(16), batch_size=2, runs=1)
    assert latency.conditions["inputs"] == {"image": "float32 2x16x16x3"}
    assert "random" in latency.conditions["values"]
    model = convolutions(16)
    model.save(tmp_path / "a.keras")
    assert inputs.inputs_of(tmp_path / "a.keras") == inputs.inputs_of(model)


def test_a_network_that_is_built_for_a_batch_runs_with_it():
    row = keras.Input(batch_shape=(8, 4))
    latency = CPU(threads=1).profile(keras.Model(row, keras.layers.Dense(2)(row)), runs=1)
    assert latency.batch_size == 8
