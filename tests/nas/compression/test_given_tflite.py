"""`.tflite` files that users bring: compressed as they are, checked beside the original."""

import io
import zipfile

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

import nas
from compress.float16 import Float16
from compress.ptq import PTQ
from compress.qat import QAT
from latency.tflite import convert, examples
from latency.tflite.graph import AlignedBuilder
from nas.cli.command_line import main
from nas.files.writers.tflite.readback import read_codes

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((24, 12, 12, 3), np.float32)


def network(ending="softmax"):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((12, 12, 3), name="image")
    x = keras.layers.Conv2D(16, 3, activation="relu", name="conv")(inputs)
    x = keras.layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    x = keras.layers.Conv2D(24, 1, activation="relu", name="point")(x)
    x = keras.layers.Flatten(name="flat")(x)
    scores = keras.layers.Dense(10, activation=ending, name="scores")(x)
    model = keras.Model(inputs, scores, name="small")
    kernel = model.get_layer("scores").kernel
    kernel.assign(60 * kernel)  # so that each class is the answer to some image
    return model


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    path = tmp_path_factory.mktemp("given") / "given.tflite"
    path.write_bytes(convert.convert(network()))
    return path


def edited(tflite, change):
    """A file after `change` of its tables."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite))
    change(model)
    builder = AlignedBuilder(2 * len(tflite) + 4096)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def types(path):
    """Name of a type -> how many constants of at least two axes have it."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes()))
    names = {code: name for name, code in vars(schema.TensorType).items() if name.isupper()}
    found = [
        names[tensor.type]
        for tensor in model.subgraphs[0].tensors
        if tensor.shape is not None
        and len(tensor.shape) > 1
        and model.buffers[tensor.buffer].data is not None
    ]
    return {name: found.count(name) for name in found}


def shrunk(path, method, data=None, out="out.tflite", **options):
    done = nas.compress(path, method, data, out=path.with_name(out), by_layer=False, **options)
    return done, path.with_name(out)


def difference(path, other, inputs=IMAGES):
    """The distance of outputs, in what they vary by."""
    was, now = convert.run(path, inputs), convert.run(other, inputs)
    return float(np.sqrt(np.square(now - was).mean()) / was.std())


@pytest.mark.parametrize(
    ("method", "data", "kernels", "most"),
    [
        (PTQ(8, activations=None), None, {"INT8": 3, "FLOAT32": 1}, 0.05),
        (PTQ(4, activations=None), None, {"INT4": 3, "FLOAT32": 1}, 0.5),
        (PTQ(8), IMAGES, {"INT8": 4}, 0.1),
        (PTQ(8, activations=16), IMAGES, {"INT8": 4}, 0.05),
    ],
    ids=str,
)
def test_kernels_become_integers(given, method, data, kernels, most):
    done, path = shrunk(given, method, data)
    [file] = done.record["files"]
    assert types(path) == kernels
    assert difference(given, path) < most
    assert file["before"]["path"] == str(given)
    assert file["before"]["bytes"] == given.stat().st_size > 2 * path.stat().st_size
    assert "codes read back are all equal" in file["after"]["checked"]
    if data is not None:
        assert file["after"]["output_error"] == pytest.approx(difference(given, path), rel=0.2)
        assert file["after"]["same_answers"] > 0.8
    assert convert.Session(path).inputs == convert.Session(given).inputs


@pytest.mark.parametrize("io_type", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("source", ["file", "keras"])
def test_inputs_and_outputs_in_integers(given, source, io_type):
    """What the report says of them is what LiteRT itself, without our code, computes with."""
    network_ = given if source == "file" else network()
    method = PTQ(8, activations=16 if io_type == "int16" else 8, io=io_type)
    path = given.with_name("integers.tflite")
    done = nas.compress(network_, method, IMAGES, out=path, by_layer=False)
    ends = done.record["files"][0]["after"]["ends"]
    (taken,), (made,) = ends["inputs"].values(), ends["outputs"].values()
    interpreter = Interpreter(model_content=path.read_bytes())
    interpreter.allocate_tensors()
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert {np.dtype(entry["dtype"]).name, np.dtype(result["dtype"]).name} == {io_type}
    limits = np.iinfo(entry["dtype"])
    scores = []
    for image in IMAGES:
        codes = np.round(image / taken["scale"]) + taken["zero_point"]
        codes = np.clip(codes, limits.min, limits.max).astype(entry["dtype"])
        interpreter.set_tensor(entry["index"], codes[None])
        interpreter.invoke()
        found = interpreter.get_tensor(result["index"])[0].astype(np.float64)
        scores.append(made["scale"] * (found - made["zero_point"]))
    expected = convert.run(given, IMAGES)
    assert np.sqrt(np.square(scores - expected).mean()) < 0.1 * expected.std()
    np.testing.assert_allclose(convert.run(path, IMAGES), scores, atol=made["scale"])
    assert f"{taken['scale']:.6g} * ({io_type} - {taken['zero_point']})" in done.table()


def test_half_the_bytes(given):
    done, path = shrunk(given, Float16())
    assert types(path) == {"FLOAT16": 4}
    assert path.stat().st_size < 0.6 * given.stat().st_size
    assert difference(given, path) < 1e-2
    before = {name: one.values for name, one in read_codes(given).items()}
    halves = [one.values for one in read_codes(path).values() if one.kind == "float16"]
    for half in halves:
        same = [v for v in before.values() if v.shape == half.shape]
        assert any(np.array_equal(v.astype(np.float16), half) for v in same)
    with pytest.raises(nas.NotApplicable, match="float16 already"):
        shrunk(path, Float16(), out="again.tflite")
    again, smaller = shrunk(path, PTQ(8, activations=None), out="from_half.tflite")
    assert types(smaller)["INT8"] == 3 and difference(given, smaller) < 0.05
    assert "float16 are read as float32" in again.table()


def test_half_the_bytes_of_a_keras_network(tmp_path):
    model, files = network(), [tmp_path / "half.tflite", tmp_path / "half.safetensors"]
    done = nas.compress(model, Float16(), IMAGES, out=files, by_layer=False)
    assert types(files[0]) == {"FLOAT16": 4}
    for file in done.record["files"]:
        assert file["after"]["bytes"] < 0.65 * file["before"]["bytes"]
        assert file["after"]["weights"]["scores/kernel"] == "float16"
    back = nas.open(files[1]).model
    for now, was in zip(back.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(now, was.astype(np.float16).astype(np.float32))
    with pytest.raises(nas.CannotWrite, match="activations=none"):
        nas.compress(model, [PTQ(8), Float16()], IMAGES, out=files[0], by_layer=False)


def test_labels_judge_the_users_own_file(given):
    """Labels that only some of its answers are: the share is that of the file, before and after."""
    answers = convert.run(given, IMAGES).argmax(1)
    labels = np.where(np.arange(24) % 3 == 0, (answers + 1) % 10, answers)
    data = (IMAGES, labels)
    done, path = shrunk(given, PTQ(8), data, valid=data)
    [file] = done.record["files"]
    assert done.before["quality"] == file["before"]["quality"] == pytest.approx(16 / 24)
    right = (convert.run(path, IMAGES).argmax(1) == labels).mean()
    assert file["after"]["quality"] == pytest.approx(right)
    assert "output softmax" in done.table()


def test_files_of_before_2020(given):
    """No signature, names of tensors with slashes, the narrow operator codes only."""

    def old(model):
        main, model.signatureDefs = model.subgraphs[0], None
        main.tensors[main.inputs[0]].name = "net/image:0"
        main.tensors[main.outputs[0]].name = "net/Softmax:0"
        for code in model.operatorCodes:
            assert code.builtinCode < 127
            code.deprecatedBuiltinCode, code.builtinCode = code.builtinCode, 0

    path = given.with_name("old.tflite")
    path.write_bytes(edited(given.read_bytes(), old))
    for method, data in ((PTQ(8, activations=None), None), (PTQ(8, io="int8"), IMAGES)):
        _, small = shrunk(path, method, data)
        interpreter = Interpreter(model_content=small.read_bytes())
        assert not interpreter.get_signature_list()
        assert interpreter.get_input_details()[0]["name"] == "net/image:0"
        assert interpreter.get_output_details()[0]["name"] == "net/Softmax:0"
        found = convert.run(small, {"net/image:0": IMAGES})["net/Softmax:0"]
        expected = convert.run(given, IMAGES)
        assert np.sqrt(np.square(found - expected).mean()) < 0.1 * expected.std()


def test_metadata_and_packed_files_stay(given):
    def described(model):
        data = np.frombuffer(b"what the user's app reads", np.uint8)
        model.buffers.append(schema.BufferT(data=data))
        entry = schema.MetadataT(name="TFLITE_METADATA", buffer=len(model.buffers) - 1)
        model.metadata = [*(model.metadata or ()), entry]

    whole = io.BytesIO(edited(given.read_bytes(), described))
    with zipfile.ZipFile(whole, "a") as archive:
        archive.writestr("labels.txt", "cat\ndog")
    path = given.with_name("described.tflite")
    path.write_bytes(whole.getvalue())
    _, small = shrunk(path, PTQ(8, activations=None))
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(small.read_bytes()))
    kept = {one.name.decode(): bytes(model.buffers[one.buffer].data) for one in model.metadata}
    assert kept["TFLITE_METADATA"] == b"what the user's app reads"
    assert zipfile.ZipFile(small).read("labels.txt") == b"cat\ndog"


def concrete(function, *specs):
    import tensorflow as tf

    made = tf.function(function).get_concrete_function(*specs)
    return tf.lite.TFLiteConverter.from_concrete_functions([made]).convert()


def test_batches_vectors_and_integers_as_files_have_them(tmp_path):
    """A batch of 4, a vector that is no batch, look-ups of integers: each of any number."""
    import tensorflow as tf

    kernel = tf.constant(RANDOM.normal(size=(32, 48)), tf.float32)
    table = tf.constant(RANDOM.normal(size=(50, 32)), tf.float32)
    files = {
        "batch": (concrete(lambda x: tf.nn.relu(x @ kernel), tf.TensorSpec((4, 32))), (32,)),
        "vector": (
            concrete(lambda x: tf.reshape(x, (1, 32)) @ kernel, tf.TensorSpec((32,))),
            (32,),
        ),
        "words": (
            concrete(lambda x: tf.gather(table, x) @ kernel, tf.TensorSpec((1, 6), tf.int32)),
            (6,),
        ),
    }
    for name, (tflite, size) in files.items():
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(tflite)
        inputs = RANDOM.normal(size=(10, *size)).astype(np.float32)
        if name == "words":
            inputs = RANDOM.integers(0, 50, (10, *size)).astype(np.int32)
        for method in (PTQ(8, activations=None), PTQ(8)):
            done, small = shrunk(path, method, inputs, out=f"{name}_small.tflite")
            assert "INT8" in types(small), name
            assert done.record["files"][0]["after"]["output_error"] < 0.1, name
            [was] = examples.run(
                convert.Session(path), dict.fromkeys(_names(path), inputs)
            ).values()
            assert len(was) == 10 and was.shape[-1] == 48


def _names(path):
    return convert.Session(path).inputs


@pytest.mark.slow
def test_a_saved_model_without_layers_is_taken_as_its_graph(tmp_path):
    network().export(str(tmp_path / "served"), verbose=False)
    served, path = nas.open(tmp_path / "served"), tmp_path / "small.tflite"
    done = nas.compress(served, PTQ(8, activations=None), IMAGES, out=path, by_layer=False)
    assert types(path) == {"INT8": 3, "FLOAT32": 1}
    [file] = done.record["files"]
    assert file["after"]["output_error"] < 0.05 and "path" not in file["before"]
    assert "graph" in done.table() and "made of the network here" in done.table()
    with pytest.raises(nas.NotApplicable, match="without the layers of a Keras network"):
        nas.compress(served, QAT(4), (IMAGES, np.arange(24) % 10))


def twice(model):
    first = model.signatureDefs[0]
    model.signatureDefs.append(
        schema.SignatureDefT(first.inputs, first.outputs, signatureKey=b"second")
    )


@pytest.mark.parametrize(
    ("change", "flags", "said"),
    [
        (None, ["--method", "qat:4"], "qat needs the layers of a network"),
        (None, ["--method", "prune_channels:.5"], "prune_channels needs the layers"),
        (None, ["--method", "ptq:8"], "give --data or --task"),
        (None, ["--method", "ptq:8,activations=none,io=int8"], "ptq io='int8'"),
        (None, ["--method", "ptq:8,activations=none", "--out", "a.keras"], "another .tflite"),
        (twice, ["--method", "ptq:8,activations=none"], "--signature"),
        ("quantized", ["--method", "ptq:4,activations=none"], "quantized already (3 constants"),
        ("damaged", ["--method", "ptq:8,activations=none"], "LiteRT"),
    ],
)
def test_refusals_are_one_line(given, tmp_path, monkeypatch, capsys, change, flags, said):
    monkeypatch.chdir(tmp_path)
    content = given.read_bytes()
    if change == "quantized":
        content = shrunk(given, PTQ(8, activations=None))[1].read_bytes()
    elif change == "damaged":
        content = content[: len(content) // 2]
    elif change is not None:
        content = edited(content, change)
    (tmp_path / "mine.tflite").write_bytes(content)
    out = [] if "--out" in flags else ["--out", "out.tflite"]
    assert main(["compress", "mine.tflite", *flags, *out]) == 2
    [line] = [one for one in capsys.readouterr().err.splitlines() if one.startswith("nas: ")]
    assert said in line
    assert not (tmp_path / "out.tflite").exists()


def test_relus_apart_are_taken_in(tmp_path):
    """As MediaPipe's files of 2019 have them; one that two operators read, and an output, stay."""
    from nas.files.writers.tflite.editable_file import File
    from nas.files.writers.tflite.fused_relu import fuse_relus

    inputs = keras.Input((12, 12, 3), name="image")
    x = keras.layers.Conv2D(8, 3, name="first")(inputs)
    file = File(convert.convert(keras.Model(inputs, keras.layers.Conv2D(8, 3)(x))))
    graph = file.graphs[0]
    first = graph.operators[0]
    size = tuple(map(int, graph.tensors[first.outputs[0]].shape))
    relu = file.tensor(0, size, "relu")
    graph.operators.insert(1, file.operator("RELU", [int(first.outputs[0])], [relu]))
    graph.operators[2].inputs = graph.operators[2].inputs.copy()
    graph.operators[2].inputs[0] = relu
    apart = file.pack()
    path = tmp_path / "apart.tflite"
    path.write_bytes(apart)
    fused = File(apart)
    fuse_relus(fused)
    assert [fused.name(one) for one in fused.graphs[0].operators] == ["CONV_2D", "CONV_2D"]
    np.testing.assert_allclose(
        convert.run(fused.pack(), IMAGES), convert.run(apart, IMAGES), atol=1e-5
    )
    kept = File(apart)
    kept.graphs[0].outputs = np.append(kept.graphs[0].outputs, kept.graphs[0].operators[0].outputs)
    fuse_relus(kept)
    assert "RELU" in {kept.name(one) for one in kept.graphs[0].operators}
