"""The door as a user's script uses it: any network, data in any form, results to keep."""

import io
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import nas
from nas import backend

keras = backend.load()

from compress.prune import Prune  # noqa: E402
from compress.ptq import PTQ  # noqa: E402
from compress.qat import QAT  # noqa: E402
from latency.cpu import CPU  # noqa: E402
from nas.cli.command_line import main  # noqa: E402
from nas.data import task_of  # noqa: E402
from nas.tasks.task import classification  # noqa: E402

layers = keras.layers
CLASSES = 3


def blobs(count=240, seed=0):
    """Points around three centres, and which: learned in a few steps."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    centres = 3 * np.eye(CLASSES, 8)[labels]
    return (centres + random.normal(size=(count, 8))).astype("float32"), labels


def sequential(last=None, width=16):
    keras.utils.set_random_seed(0)
    hidden = layers.Dense(width, "relu")
    return keras.Sequential([keras.Input((8,)), hidden, layers.Dense(CLASSES, last)], name="mine")


def built_by_its_first_call():
    model = keras.Sequential([layers.Dense(16, "relu"), layers.Dense(CLASSES)])
    model(np.zeros((1, 8), "float32"))
    return model


def nested():
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu")], name="inner")
    inputs = keras.Input((8,))
    return keras.Model(inputs, layers.Dense(CLASSES)(inner(inputs)))


def shared():
    inputs, twice = keras.Input((8,)), layers.Dense(8, "relu")
    return keras.Model(inputs, layers.Dense(CLASSES)(twice(twice(inputs))))


def two_inputs():
    first, second = keras.Input((5,), name="first"), keras.Input((3,), name="second")
    joined = layers.Concatenate()([first, second])
    return keras.Model([first, second], layers.Dense(CLASSES)(joined))


NETWORKS = [sequential, built_by_its_first_call, nested, shared]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_any_network_is_trained_in_place_and_compressed(network):
    keras.utils.set_random_seed(0)
    model = network()
    trained = nas.train(model, blobs(), epochs=12, recipe=nas.Recipe(batch_size=16))
    assert trained.model is model and trained.quality > 0.8 > 2 / CLASSES
    small = nas.compress(model, PTQ(bits=8), blobs())
    assert small.after["quality"] > trained.quality - 0.05 and small.record["metric"] == "accuracy"
    x = blobs()[0]
    np.testing.assert_allclose(small.model(x), model(x), atol=0.2)


class Batches(keras.utils.PyDataset):
    """A user's own batches."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        x, y = blobs()
        return x[60 * index : 60 * (index + 1)], y[60 * index : 60 * (index + 1)]


def data_of(kind):
    x, y = blobs()
    if kind == "one-hot":
        return x, np.eye(CLASSES)[y]
    if kind == "column":
        return x, y[:, None]
    if kind == "tf.data":
        tensorflow = pytest.importorskip("tensorflow")
        return tensorflow.data.Dataset.from_tensor_slices((x, y)).batch(50)
    if kind == "PyDataset":
        return Batches()
    if kind == "generator":
        return ((x[at : at + 60], y[at : at + 60]) for at in range(0, 240, 60))
    return x, y


KINDS = ["arrays", "one-hot", "column", "tf.data", "PyDataset", "generator"]


@pytest.mark.parametrize("kind", KINDS)
def test_data_in_any_form_are_the_same_task(kind):
    expected, found = task_of(blobs()), task_of(data_of(kind))
    assert found.fields == expected.fields and found.loss is classification
    for part in ("train", "valid"):
        for one, other in zip(getattr(found, part), getattr(expected, part), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (list(blobs()), "batches do not fit together"),
        (([blobs()[0], blobs()[0]], blobs()[1]), "dict of arrays by their names"),
        ((blobs()[0], blobs()[1] + 0.5), "integers from 0 on"),
        ((blobs()[0], blobs()[1].astype(str)), "integers from 0 on"),
        ((*blobs(), blobs()[1], blobs()[1]), "tuple of 4"),
        ("data.csv", "data is a str"),
        ([], "no batch"),
    ],
)
def test_other_data_are_refused_in_a_line(data, words):
    with pytest.raises(ValueError, match=words) as error:
        nas.train(sequential(), data)
    assert "\n" not in str(error.value)


def test_a_dataset_without_batches_or_without_end_is_refused():
    tensorflow = pytest.importorskip("tensorflow")
    data = tensorflow.data.Dataset.from_tensor_slices(blobs())
    with pytest.raises(ValueError, match=r"dataset.batch\(64\)"):
        task_of(data)
    with pytest.raises(ValueError, match=r"without repeat\(\)"):
        task_of(data.batch(8).repeat())


def test_several_inputs_go_by_name():
    x, y = blobs()
    data = {"first": x[:, :5], "second": x[:, 5:]}, y
    model, recipe = two_inputs(), nas.Recipe(batch_size=16, learning_rate=0.03)
    assert nas.train(model, data, epochs=6, recipe=recipe).quality > 0.8
    small = nas.compress(model, [QAT(bits=8)], data, epochs=1)
    assert small.after["quality"] > 0.8
    with pytest.raises(ValueError, match="needs"):
        nas.train(two_inputs(), blobs())


@pytest.mark.parametrize("end", ["activation", "layer"])
def test_a_softmax_is_trained_as_logits_are(end):
    """Same first weights, same data: the loss is of the logarithm of the probabilities."""
    plain, ending = sequential(), sequential("softmax" if end == "activation" else None)
    if end == "layer":
        ending.add(layers.Softmax())
    said = []
    expected = nas.train(plain, blobs(), epochs=2, seed=1)
    found = nas.train(ending, blobs(), epochs=2, seed=1, on_event=said.append)
    np.testing.assert_allclose(
        [epoch["loss"] for epoch in found.history],
        [epoch["loss"] for epoch in expected.history],
        rtol=1e-4,
    )
    assert found.record["valid_loss"] == pytest.approx(expected.record["valid_loss"], rel=1e-4)
    assert any("ends in softmax" in str(event) for event in said)
    small = nas.compress(ending, [Prune(0.5)], blobs(), epochs=4, recipe=nas.Recipe(batch_size=16))
    assert small.before["loss"] == pytest.approx(found.record["valid_loss"], rel=1e-4)
    assert small.after["loss"] < 0.7 * small.before["loss"]


def test_too_few_outputs_are_refused_and_more_are_not():
    x, y = blobs()
    with pytest.raises(ValueError, match="labels go from 0 to 3, but the network has 3 outputs"):
        nas.train(sequential(), (x, y + 1))
    wide = keras.Sequential([keras.Input((8,)), layers.Dense(10)])
    assert nas.train(wide, (x, y), epochs=1).history


def test_unlabelled_arrays_calibrate_and_nothing_else():
    x, _ = blobs()
    small = nas.compress(sequential(), PTQ(bits=8, activations=8), x)
    assert "quality" not in small.after and small.record["task"] == "data"
    for judge in (
        lambda: nas.train(sequential(), x),
        lambda: nas.compress(sequential(), QAT(), x, epochs=1),
    ):
        with pytest.raises(ValueError, match="label"):
            judge()


def test_the_command_line_calibrates_with_an_unlabelled_file(tmp_path, capsys):
    sequential(width=512).save(tmp_path / "x.keras")
    np.savez(tmp_path / "unlabelled.npz", x=blobs()[0])
    command = ["compress", str(tmp_path / "x.keras"), "--method", "ptq:8,activations=8", "--data"]
    command += [str(tmp_path / "unlabelled.npz"), "--out", str(tmp_path / "a.tflite")]
    assert main(command) == 0, capsys.readouterr().err
    assert "int8" in (tmp_path / "a.json").read_text()


def test_results_are_rich_and_kept(tmp_path):
    trained = nas.train(sequential(), blobs(), epochs=1)
    small = nas.compress(trained.model, [QAT(bits=4)], blobs(), epochs=1)
    for result, name in ((trained, "trained"), (small, "small")):
        assert "accuracy" in repr(result) and "<" in result._repr_html_()
        assert json.loads(json.dumps(result.to_json(), default=str))["metric"] == "accuracy"
        result.save(tmp_path / name)
        result.save(tmp_path / f"{name}.keras")
        for stem in (tmp_path / name / "best", tmp_path / name):
            for suffix in (".keras", ".json", ".png"):
                assert stem.with_suffix(suffix).stat().st_size, (name, suffix)
        opened = nas.open(tmp_path / name).model
        x = blobs()[0]
        np.testing.assert_allclose(opened(x), result.model(x), atol=1e-6)
        with pytest.raises(ValueError, match="a folder, or a name that ends in .keras"):
            result.save(tmp_path / "a.tflite")


def test_a_variant_is_kept_with_its_config(tmp_path):
    from nas.tasks import digits

    trained = nas.train("mnasnet:tiny", digits.load(size=8), epochs=1)
    trained.save(tmp_path / "run")
    assert nas.open(tmp_path / "run").config == trained.config


def test_networks_of_every_kind_are_profiled():
    networks = [sequential("softmax"), nas.open(nested())]
    found = nas.profile(networks, CPU(threads=1), runs=5, warmup=1)
    assert len(found) == 2 and all(latency.measured for latency in found)
    assert "mine" in repr(found)


def test_in_a_thread_it_is_the_same(tmp_path):
    done = []

    def work():
        done.append(nas.train(sequential(), blobs(), epochs=1, out=tmp_path / "a.keras"))
        done.append(
            nas.compress(done[0].model, [QAT()], blobs(), epochs=1, out=tmp_path / "b.keras")
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(done) == 2 and done[0].quality == nas.train(sequential(), blobs(), epochs=1).quality


def test_ctrl_c_without_out_is_a_plain_keyboard_interrupt():
    def interrupt(event):
        if getattr(event, "step", 0) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as error:
        nas.train(sequential(), blobs(), epochs=1, on_event=interrupt)
    assert error.type is KeyboardInterrupt


def everything():
    """The door in a process that has imported Keras already: its backend, and qualities."""
    trained = nas.train(sequential("softmax"), blobs(), epochs=2)
    small = nas.compress(trained.model, [QAT(bits=8)], blobs(), epochs=1)
    buffer = io.StringIO(repr(nas.profile(trained.model, CPU(threads=1), runs=5)))
    return keras.config.backend(), trained.quality, small.after["quality"], buffer.getvalue()


def test_the_door_on_jax(on_jax):
    here, there = everything(), on_jax(everything)
    assert there[0] == "jax" and "measured" in there[3]
    np.testing.assert_allclose(there[1:3], here[1:3], atol=0.05)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_a_backend_that_cannot_serve_is_one_error(name):
    code = "import nas\ntry:\n nas.train(None, None)\nexcept ValueError as error:\n print(error)"
    environment = os.environ | {"KERAS_BACKEND": name}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert b"expected tensorflow or jax: set KERAS_BACKEND=tensorflow" in done.stdout, done.stderr


def test_importing_nas_imports_nothing_heavy():
    heavy = "{'keras', 'numpy', 'optuna', 'tensorflow', 'jax'}"
    code = f"import sys, nas, nas.api; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_target_is_an_object():
    with pytest.raises(ValueError, match="is a str; expected an object such as latency.cpu.CPU"):
        nas.profile({}, ["cpu:threads=1"])
