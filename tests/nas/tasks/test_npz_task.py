"""Task npz: what files may hold, how inputs are mapped, what is refused and how."""

import io

import keras
import numpy as np
import pytest
from PIL import Image

from nas import registry
from nas.files.open_network import open_network
from nas.tasks import npz
from nas.tasks.task import classification, pixels

RNG = np.random.default_rng(0)


def saved(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def images(count=20, size=8):
    return RNG.integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def jpegs(count=10, size=16):
    contents = []
    for n in range(count):
        stream = io.BytesIO()
        Image.fromarray(np.full((size, size, 3), 20 * n, np.uint8)).save(stream, "jpeg")
        contents.append(stream.getvalue())
    end = np.cumsum([len(content) for content in contents])
    return {"jpeg": np.frombuffer(b"".join(contents), np.uint8), "end": end}


def test_labels_are_split_by_class(tmp_path):
    x, y = images(), np.arange(20) % 2
    task = npz.load(saved(tmp_path / "a.npz", x=x, y=y), valid=0.2)
    assert task.fields == {"input_shape": (8, 8, 3), "classes": 2}
    assert [len(part[1]) for part in (task.train, task.valid)] == [16, 4]
    assert np.bincount(task.valid[1]).tolist() == [2, 2]
    assert task.train[0].dtype == np.uint8 and task.augment is None


def test_arrays_of_keras_data_sets(tmp_path):
    x, y = images(), np.arange(20)[:, None] % 3  # labels as keras.datasets.cifar10 has them
    path = saved(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:5], y_test=y[:5])
    task = npz.load(path)
    assert len(task.train[1]) == 20 and len(task.valid[1]) == 5
    np.testing.assert_array_equal(task.valid[0], x[:5])
    hot = saved(tmp_path / "hot.npz", x=x, y=np.eye(3)[y[:, 0]])
    assert npz.load(hot, valid=path).train[1].tolist() == y[:, 0].tolist()


def test_scales(tmp_path):
    x, y = images(), np.arange(20) % 2
    path = saved(tmp_path / "a.npz", x=x, y=y)
    raw = npz.load(path, scale=1, valid=path)
    np.testing.assert_array_equal(pixels(raw.train[0]), x.astype(np.float32))
    np.testing.assert_allclose(pixels(npz.load(path, valid=path).train[0]), x / 255, rtol=1e-6)
    halves = npz.load(path, scale=127.5, offset=127.5, valid=path).train[0]
    np.testing.assert_allclose(halves, (x - 127.5) / 127.5, rtol=1e-5, atol=1e-6)


def test_an_affine_map_of_integers(tmp_path):
    x = RNG.integers(-128, 128, (20, 6, 5)).astype(np.int8)
    path = saved(tmp_path / "a.npz", x=x, y=np.arange(20) % 2)
    task = registry.task(f"npz:{path},offset=83,factor=0.5,valid={path}")
    assert task.input_shape == (6, 5, 1)
    np.testing.assert_allclose(task.train[0][..., 0], (x - 83.0) * 0.5)
    assert npz.load(path, shape="30", valid=path).input_shape == (30,)
    tokens = saved(tmp_path / "t.npz", x=np.arange(40).reshape(20, 2), y=np.zeros(20, int))
    assert npz.load(tokens).train[0].dtype == np.int32


def test_jpegs_are_decoded_and_augmented(tmp_path):
    path = saved(tmp_path / "a.npz", y=np.arange(10) % 2, **jpegs())
    task = npz.load(path, valid=path)
    means = task.train[0].reshape(10, -1).mean(1)
    np.testing.assert_allclose(means, 20 * np.arange(10), atol=2)
    changed, labels = task.augment(*task.train, np.random.default_rng(0))
    assert labels is task.train[1]
    assert changed.shape == task.train[0].shape and (changed != task.train[0]).any()
    assert npz.load(path, augmented=False).augment is None


def test_augmented_images_are_the_same_mirrored_or_moved():
    ramp = np.tile(np.arange(1, 33, dtype=np.uint8)[:, None], (1, 32, 1))[None].repeat(64, 0)
    ramp = ramp.reshape(64, 32, 32, 1) + np.arange(32, dtype=np.uint8).reshape(1, 1, 32, 1)
    moved, _ = npz.mirror_and_shift(ramp, None, np.random.default_rng(0))
    padded = np.pad(ramp[0, ..., 0], 4)
    windows = [padded[y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    allowed = {one.tobytes() for w in windows for one in (w, w[:, ::-1])}
    assert all(one.tobytes() in allowed for one in moved[..., 0])
    assert len({one.tobytes() for one in moved}) > 30


def test_without_labels_a_file_calibrates(tmp_path):
    task = npz.load(saved(tmp_path / "a.npz", x=images()))
    assert task.train[1] is None and "classes" not in task.fields
    for judge in (
        lambda: task.loss(np.zeros((2, 3)), None),
        lambda: task.scorer(None, lambda x: x)(task.valid[0], task.valid[1]),
    ):
        with pytest.raises(ValueError, match="no labels"):
            judge()


def test_the_loss_takes_logits_and_probabilities():
    logits = RNG.normal(size=(6, 4)).astype(np.float32)
    labels = np.arange(6) % 4
    expected = keras.ops.convert_to_numpy(
        keras.ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    )
    shares = keras.ops.softmax(logits)
    for outputs in (logits, shares):
        found = classification(keras.ops.convert_to_tensor(outputs), labels)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(found), expected, rtol=1e-4)


BAD = {
    "no arrays": ({"images": np.zeros(3)}, "images; expected x and y"),
    "counts": ({"x": images(), "y": np.zeros(3, int)}, "20 inputs"),
    "scalars": ({"x": np.zeros(5), "y": np.zeros(5, int)}, r"numbers \(count"),
    "objects": ({"x": np.array([{}] * 3, object), "y": np.zeros(3, int)}, "cannot read"),
    "not finite": ({"x": np.full((9, 2), np.nan), "y": np.arange(9) % 2}, "not finite"),
    "no ends": ({"jpeg": np.zeros(9, np.uint8), "y": np.zeros(1, int)}, "end of each"),
    "ends": ({"jpeg": np.zeros(9, np.uint8), "end": np.array([10])}, "at most 9"),
    "no jpeg": ({"jpeg": np.zeros(9, np.uint8), "end": np.array([9])}, "cannot read image 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_told_in_a_line(name, tmp_path):
    arrays, words = BAD[name]
    path = saved(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=words) as error:
        npz.load(path)
    assert "\n" not in str(error.value) and "bad.npz" in str(error.value)


def test_other_files_are_told_in_a_line(tmp_path):
    path = tmp_path / "bad.npz"
    for content in (b"", b"hello", b"PK\x03\x04" + b"\0" * 50, b"\x80\x04N."):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="npz: cannot read"):
            npz.load(str(path))
    with pytest.raises(ValueError, match="no file"):
        npz.load("nowhere.npz")
    good = saved(tmp_path / "good.npz", x=images(), y=np.arange(20) % 2)
    for options, words in (
        ({"scale": 0}, "scale=0"),
        ({"scale": "x"}, "expected a number"),
        ({"valid": 2}, "share between"),
        ({"shape": "7x7"}, "expected sizes"),
        ({"augmented": 3}, "True or False"),
        ({"limit": 0}, "limit"),
    ):
        with pytest.raises(ValueError, match=words):
            npz.load(good, **options)


def test_resnet_8_has_its_published_quality(shared_data):
    """MLPerf Tiny's ResNet-8 takes raw pixels; the float network gets 171 of its 200 right."""
    folder = shared_data / "checkpoints"
    file = folder / "eval_ic01.npz"
    model = open_network(str(folder / "pretrainedResnet.h5")).model
    inputs, labels = npz.load(str(file), scale=1, valid=str(file)).valid
    assert (np.argmax(model.predict(inputs, verbose=0), 1) == labels).sum() == 171


def test_mean_and_std_of_channels_come_after_the_scale(tmp_path):
    path = saved(tmp_path / "a.npz", x=np.full((20, 2, 2, 3), 255, np.uint8), y=np.arange(20) % 2)
    seen = npz.load(path, mean="0.5/0.25/0", std=0.5).train[0]
    np.testing.assert_allclose(seen[0, 0, 0], [1, 1.5, 2])
    assert npz.load(path).train[0].dtype == np.uint8  # the scale is still the network's to choose
    assert npz.load(path, scale=255).train[0].dtype == np.float32
    with pytest.raises(ValueError, match="one number, not 0, or 3 of them"):
        npz.load(path, std="1/0/1")
