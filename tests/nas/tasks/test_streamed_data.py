"""Data in streams, and more of it than memory holds: the same task, from disk."""

import json
import subprocess
import sys

import numpy as np
import pytest

import nas
from nas.data import task_of
from nas.tasks import data_file
from nas.tasks.inputs.on_disk import LIMIT, OnDisk, Stack, chosen, mapped, sample

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 3


class Columns:
    """As `datasets.Dataset` is seen from outside: columns, formats, slices."""

    column_names = ["image", "label"]  # noqa: RUF012
    features = {"label": type("ClassLabel", (), {"names": ["a", "b", "c"]})}  # noqa: RUF012

    def with_format(self, kind):
        assert kind == "numpy"
        return self

    def __len__(self):
        return len(X)

    def __getitem__(self, rows):
        return {"image": X[rows], "label": Y[rows]}


def _dataset():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(7)


def _py_dataset():
    import keras

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 6

        def __getitem__(self, number):
            return X[10 * number : 10 * number + 10], Y[10 * number : 10 * number + 10]

    return Batches()


STREAMS = {
    "tf.data": _dataset,
    "PyDataset": _py_dataset,
    "Hugging Face": Columns,
    "DatasetDict": lambda: {"train": Columns(), "test": Columns()},
    "generator": lambda: ((X[at : at + 20], Y[at : at + 20]) for at in range(0, 60, 20)),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_is_the_same_task_in_memory_and_on_disk(kind, monkeypatch):
    monkeypatch.setenv(LIMIT, "100")
    held = task_of(STREAMS[kind]())
    monkeypatch.setenv(LIMIT, "0")
    streamed = task_of(STREAMS[kind]())
    assert isinstance(held.train[0], np.ndarray) and isinstance(streamed.train[0], OnDisk)
    assert streamed.recipe == held.recipe and streamed.fields == held.fields
    for ours, theirs in zip(streamed.train, held.train, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert held.labels == (("a", "b", "c") if kind in ("Hugging Face", "DatasetDict") else ())


def test_rows_on_disk_are_read_as_an_array_is():
    stack = Stack(most=0)
    for start in range(0, 60, 9):
        stack.append(X[start : start + 9])
    rows = stack.array()
    order = RANDOM.permutation(60)[:31]
    for index in (slice(3, 50, 4), order, 7, slice(0, 0), X.mean((1, 2, 3)) > 128):
        np.testing.assert_array_equal(rows[index], X[index])
    some = mapped(chosen(rows, order), lambda array: array.astype(np.float32) / 2)
    assert some.dtype == np.float32 and some.shape == (31, 8, 8, 3)
    np.testing.assert_array_equal(np.concatenate(list(some.parts())), X[order] / 2)
    seen = sample(rows)
    assert seen.min() == X.min() and seen.max() == X.max()


def test_batches_that_do_not_fit_together_are_named(monkeypatch):
    monkeypatch.setenv(LIMIT, "0")
    for batches in ([X[:3], X[:3, :4]], [X[:3], X[:3].astype("f")]):
        with pytest.raises(ValueError, match="the batches do not fit together"):
            task_of(batch for batch in batches)
    monkeypatch.setenv(LIMIT, "many")
    with pytest.raises(ValueError, match=f"{LIMIT}='many'; expected a whole number"):
        task_of(batch for batch in [X])


def _records(path, examples):
    import tensorflow as tf

    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        return tf.train.Feature(float_list=tf.train.FloatList(value=value))

    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            named = {name: feature(value) for name, value in example.items()}
            found = tf.train.Example(features=tf.train.Features(feature=named))
            writer.write(found.SerializeToString())


def test_tfrecords_of_pictures_numbers_and_bytes_are_data(tmp_path):
    import io

    from PIL import Image

    def png(pixels):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    names = [b"cat", b"dog", b"owl"]
    pictures = [
        {"image/encoded": png(x), "image/class/label": int(y), "image/class/text": names[y]}
        for x, y in zip(X, Y, strict=True)
    ]
    for shard in range(2):
        _records(tmp_path / f"train.tfrecord-{shard}-of-2", pictures[shard::2])
    task = data_file.load(f"{tmp_path}/train.tfrecord-*", size=8)
    assert task.labels == ("cat", "dog", "owl") and task.preprocessing.kind == "image"
    both = np.concatenate([task.train[0], task.valid[0]])
    assert {x.tobytes() for x in both} == {x.tobytes() for x in X}
    _records(tmp_path / "rows.tfrecord", [{"x": [y, 2.0 * y], "y": int(y)} for y in Y])
    task = data_file.load(f"{tmp_path}/rows.tfrecord", class_weights="1/2/3")
    np.testing.assert_array_equal(task.train[0][:, 0], task.train[1])
    _records(tmp_path / "raw.tfrecord", [{"raw": x.tobytes(), "kind": names[y]} for x, y in
                                         zip(X, Y, strict=True)])  # fmt: skip
    task = data_file.load(f"{tmp_path}/raw.tfrecord", shape="8x8x3", target="kind")
    assert task.labels == ("cat", "dog", "owl") and task.input_shape == (8, 8, 3)
    with pytest.raises(ValueError, match="no feature 'label'; the examples have kind, raw"):
        data_file.load(f"{tmp_path}/raw.tfrecord", target="label")
    whole = (tmp_path / "rows.tfrecord").read_bytes()
    (tmp_path / "cut.tfrecord").write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="cut.tfrecord: its last record is cut"):
        data_file.load(f"{tmp_path}/cut.tfrecord")


def test_a_network_trained_from_disk_is_the_one_trained_from_memory(monkeypatch):
    """A network, its loss and metric chosen, its examples for methods, all the same."""
    import keras

    from compress.ptq import PTQ

    found = []
    for limit in ("100", "0"):
        monkeypatch.setenv(LIMIT, limit)
        keras.utils.set_random_seed(0)
        layers = [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
        model = keras.Sequential(layers, name="small")
        task = task_of(_dataset())
        done = nas.train(model, task, epochs=1)
        small = nas.compress(model, [PTQ(bits=8)], task, by_layer=False)
        found.append((done.quality, done.record["valid_loss"], small.after["loss"]))
    assert found[0] == found[1]


PEAK = """
import json, resource
import keras, numpy as np, tensorflow as tf
import nas
from compress.ptq import PTQ

def batches():
    random = np.random.default_rng(0)
    noise = random.integers(0, 128, (64, 96, 96, 3), dtype=np.uint8)
    for _ in range(ROUNDS):
        y = random.integers(0, 2, 64)
        yield noise + (127 * y).astype(np.uint8)[:, None, None, None], y

def run(rounds):
    global ROUNDS
    ROUNDS = rounds
    layers = [keras.Input((96, 96, 3)), keras.layers.AveragePooling2D(8), keras.layers.Flatten(),
              keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    spec = (tf.TensorSpec((None, 96, 96, 3), tf.uint8), tf.TensorSpec((None,), tf.int64))
    data = tf.data.Dataset.from_generator(batches, output_signature=spec)
    done = nas.train(model, data, epochs=1)
    small = nas.compress(model, [PTQ(bits=8)], data, by_layer=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return peak, done.quality, small.after["quality"]

few, many = run(8), run(256)
print(json.dumps({"few": few, "many": many, "data_mb": 256 * 64 * 96 * 96 * 3 // 2**20}))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(monkeypatch):
    """432 MB of images, 1.7 GB as the float32 that networks see, at 64 MB allowed."""
    monkeypatch.setenv(LIMIT, "64")
    done = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, timeout=240, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["data_mb"] > 400
    assert found["many"][0] - found["few"][0] < 250, found
    assert found["many"][1] > 0.8 and found["many"][2] > 0.8, found
