"""Tasks: what they hold, that their splits are fixed, and what they say to bad input."""

import gzip
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from nas.tasks import digits, fashion_mnist, image_folder
from nas.tasks.task import pixels, resize, split


def test_importing_tasks_imports_nothing_heavy():
    code = (
        "import sys; from nas.tasks import digits, fashion_mnist, image_folder;"
        "print([m for m in ('tensorflow', 'keras', 'sklearn', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_digits_are_split_by_class_and_seed():
    task = digits.load(size=8)
    assert len(task.train[1]) + len(task.valid[1]) == 1797
    assert task.train[0].shape[1:] == task.input_shape == (8, 8, 1)
    counts = np.bincount(task.valid[1], minlength=task.classes)
    assert counts.min() >= 34 and counts.max() <= 37  # 20 % of 174..183 per class
    again, other = digits.load(size=8), digits.load(size=8, seed=1)
    np.testing.assert_array_equal(task.valid[0], again.valid[0])
    assert not np.array_equal(task.valid[0], other.valid[0])
    assert task.recipe == again.recipe != other.recipe
    assert task.recipe != digits.load(size=16).recipe


def test_digits_train_and_valid_share_no_image():
    task = digits.load(size=8)
    seen = {image.tobytes() for image in task.train[0]}
    shared = sum(image.tobytes() in seen for image in task.valid[0])
    assert shared == 0


def test_digits_are_scaled_to_one_and_brightness_survives_resizing():
    small, large = digits.load(size=8), digits.load(size=32)
    assert large.train[0].dtype == np.float32
    assert small.train[0].min() == 0 and small.train[0].max() == 1
    np.testing.assert_allclose(small.train[0].mean(), large.train[0].mean(), rtol=1e-3)


@pytest.mark.parametrize("size", [5, 8, 20, 28])
def test_resize_is_pillows_bilinear(size):
    images = np.random.default_rng(0).random((3, 8, 12, 2), dtype=np.float32)
    resized = resize(images, size)
    for image, result in zip(images, resized, strict=True):
        for channel in range(2):
            expected = Image.fromarray(image[..., channel]).resize((size, size), Image.BILINEAR)
            np.testing.assert_allclose(result[..., channel], expected, atol=1e-5)


def test_split_holds_out_the_share_of_every_class():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    train, valid = split(labels, 0.2, seed=3)
    assert sorted([*train, *valid]) == list(range(160))
    assert list(np.bincount(labels[valid])) == [20, 10, 2]


def test_pixels_are_divided_and_floats_are_not():
    np.testing.assert_array_equal(pixels(np.array([0, 255], np.uint8)), [0, 1])
    np.testing.assert_array_equal(pixels(np.array([0, 7], np.float32)), [0, 7])


def test_fashion_mnist_reads_a_given_file(shared_data):
    path = str(shared_data / "images" / "fashion_mnist_20k.npz")
    task = fashion_mnist.load(size=32, limit=600, path=path)
    assert task.train[0].shape == (500, 32, 32, 1) and task.valid[0].shape == (100, 32, 32, 1)
    assert task.train[0].dtype == np.uint8 and task.train[0].max() > 200
    assert len(np.unique(task.valid[1])) == 10
    assert task.recipe != fashion_mnist.load(size=32, limit=700, path=path).recipe


def _clothes(count: int = 300):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, (np.arange(count) % 10).astype(np.uint8)


def test_fashion_mnist_prefers_the_cache_of_keras_to_nas_data(tmp_path, monkeypatch):
    images, labels = _clothes()
    folder = tmp_path / "keras" / "datasets" / "fashion-mnist"
    folder.mkdir(parents=True)
    (folder / fashion_mnist.IMAGES).write_bytes(gzip.compress(bytes(16) + images.tobytes()))
    (folder / fashion_mnist.LABELS).write_bytes(gzip.compress(bytes(8) + labels.tobytes()))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("NAS_DATA", str(tmp_path / "nowhere"))
    task = fashion_mnist.load()
    assert len(task.train[1]) == 250 and len(task.valid[1]) == 50
    held_out = split(labels, fashion_mnist.VALID, 0)[1]
    np.testing.assert_array_equal(task.valid[0][..., 0], images[held_out])
    (folder / fashion_mnist.LABELS).write_bytes(b"not gzip")
    with pytest.raises(ValueError, match="labels-idx1-ubyte.gz is damaged"):
        fashion_mnist.load()


def test_fashion_mnist_finds_the_file_in_nas_data(tmp_path, monkeypatch):
    images, labels = _clothes()
    (tmp_path / "images").mkdir()
    np.savez(tmp_path / "images" / "fashion_mnist_small.npz", x_train=images, y_train=labels)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("NAS_DATA", str(tmp_path))
    assert len(fashion_mnist.load().train[1]) == 250


def test_fashion_mnist_is_augmented_where_it_is_asked_for(tmp_path):
    path, generator = tmp_path / "a.npz", np.random.default_rng(0)
    images = generator.integers(0, 256, (300, 28, 28), np.uint8)
    np.savez(path, x_train=images, y_train=(np.arange(300) % 10).astype(np.uint8))
    plain = fashion_mnist.load(path=str(path))
    task = fashion_mnist.load(path=str(path), augmented=True)
    assert plain.augment is None and task.recipe == f"{plain.recipe} augmented"
    changed, labels = task.augment(*task.train, generator)
    assert labels is task.train[1] and (changed != task.train[0]).any()
    with pytest.raises(ValueError, match="augmented='many'; expected true or false"):
        fashion_mnist.load(path=str(path), augmented="many")


def test_fashion_mnist_says_what_is_wrong_with_a_file(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        fashion_mnist.load(path=str(tmp_path / "missing.npz"))
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK not really")
    with pytest.raises(ValueError, match="cannot read x_train"):
        fashion_mnist.load(path=str(broken))
    np.savez(tmp_path / "flat.npz", x_train=np.zeros((5, 784)), y_train=np.zeros(5))
    with pytest.raises(ValueError, match=r"float64\(5, 784\)"):
        fashion_mnist.load(path=str(tmp_path / "flat.npz"))


@pytest.mark.parametrize("options", [{"size": 4}, {"size": "big"}, {"limit": 5}])
def test_options_out_of_range_are_named(options, tmp_path):
    images, labels = _clothes()
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels)
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.*expected a whole number"):
        fashion_mnist.load(path=str(tmp_path / "data.npz"), **options)


def _photos(folder, names, count: int = 40, seed: int = 0):
    generator = np.random.default_rng(seed)
    for level, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 100, (12, 10, 3), dtype=np.uint8) + 100 * level
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")


def test_image_folder_splits_by_name_and_keeps_the_split_when_images_are_added(tmp_path):
    _photos(tmp_path, ["cats", "dogs"])
    task = image_folder.load(str(tmp_path), size=8)
    assert task.classes == 2 and task.input_shape == (8, 8, 3)
    assert len(task.train[1]) + len(task.valid[1]) == 80 and 5 <= len(task.valid[1]) <= 30
    brightness = task.valid[0].mean((1, 2, 3))
    np.testing.assert_array_equal(brightness > 100, task.valid[1] == 1)
    before = {image.tobytes() for image in task.valid[0]}
    Image.new("RGB", (9, 9), "red").save(tmp_path / "cats" / "new.jpg")
    more = image_folder.load(str(tmp_path), size=8)
    assert before <= {image.tobytes() for image in more.valid[0]}
    assert more.recipe != task.recipe


def test_image_folder_uses_the_folders_train_and_valid(tmp_path):
    _photos(tmp_path / "train", ["a", "b", "c"], count=3)
    _photos(tmp_path / "val", ["a", "c"], count=2, seed=1)
    task = image_folder.load(str(tmp_path), size=8, channels=1)
    assert task.input_shape == (8, 8, 1) and task.classes == 3
    assert list(task.train[1]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert list(task.valid[1]) == [0, 0, 2, 2]
    (tmp_path / "val" / "z").mkdir()
    with pytest.raises(ValueError, match="class 'z'"):
        image_folder.load(str(tmp_path))


def test_image_folder_names_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        image_folder.load(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="found none"):
        image_folder.load(str(tmp_path))
    _photos(tmp_path, ["cats"], count=3)
    with pytest.raises(ValueError, match="found only 'cats'"):
        image_folder.load(str(tmp_path))
    (tmp_path / "dogs").mkdir()
    with pytest.raises(ValueError, match="no images in .*dogs"):
        image_folder.load(str(tmp_path))
    corrupt = tmp_path / "dogs" / "broken.jpg"
    corrupt.write_bytes((tmp_path / "cats" / "0.png").read_bytes()[:60])
    with pytest.raises(ValueError, match="cannot read .*broken.jpg"):
        image_folder.load(str(tmp_path), valid=0.5)
