"""Fashion-MNIST: photographs of clothes, 28x28 grey, ten classes.

Xiao, Rasul and Vollgraf, arXiv:1708.07747. The test images are never read: validation images are
held out of the training images, so the test set stays clean for the network that is found.
"""

import gzip
import os
import pathlib

import numpy as np

from nas.tasks.inputs.preprocessing import Preprocessing
from nas.tasks.npz import mirror_and_shift
from nas.tasks.task import Task, fingerprint, resize, split, whole_number

VALID = 1 / 6  # 10,000 of the 60,000, as many as the test set has
NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def load(
    size: int = 28,
    limit: int | None = None,
    path: str | None = None,
    augmented: bool = False,
    seed: int = 0,
) -> Task:
    """Training and validation images of `size` x `size` x 1, uint8.

    `limit` keeps that many images before the split, drawn from `seed`. `augmented` training images
    are mirrored and shifted by up to an eighth. The data comes from `path`
    (an .npz with x_train and y_train), else from Keras' cache, else from the folder NAS_DATA
    (images/fashion_mnist*.npz), else from the network through `keras.datasets`. Raises `ValueError`
    where none of them has it.

    >>> load(size=32, limit=1000).train[0].shape  # doctest: +SKIP
    (833, 32, 32, 1)
    """
    whole_number("size", size, 8)
    if augmented not in (True, False):
        raise ValueError(f"fashion_mnist: augmented={augmented!r}; expected true or false")
    images, labels = _read(path)
    if limit is not None and whole_number("limit", limit, 100) < len(labels):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(labels))[:limit])
        images, labels = images[chosen], labels[chosen]
    source = fingerprint(images, labels)
    images = images[..., np.newaxis]
    if images.shape[1:3] != (size, size):
        images = np.rint(resize(images, size)).astype(np.uint8)
    labels = labels.astype(np.int32)
    train, valid = split(labels, VALID, seed)
    return Task(
        name="fashion_mnist",
        train=(images[train], labels[train]),
        valid=(images[valid], labels[valid]),
        fields={"input_shape": (size, size, 1), "classes": 10},
        labels=NAMES,
        preprocessing=Preprocessing("image", scale=255.0, background="black"),
        recipe=f"fashion_mnist data={source} size={size} valid={VALID:.4f} seed={seed}"
        + (" augmented" if augmented else ""),
        augment=mirror_and_shift if augmented else None,
    )


def _read(path: str | None) -> tuple[np.ndarray, np.ndarray]:
    if path is not None:
        return _read_npz(pathlib.Path(path).expanduser())
    cached = home()
    if (cached / IMAGES).is_file() and (cached / LABELS).is_file():
        return _read_idx(cached / IMAGES, 16).reshape(-1, 28, 28), _read_idx(cached / LABELS, 8)
    shared = os.environ.get("NAS_DATA")
    found = sorted(pathlib.Path(shared, "images").glob("fashion_mnist*.npz")) if shared else []
    if found:
        return _read_npz(found[0])
    return _download()


def home() -> pathlib.Path:
    """The folder in which `keras.datasets` keeps this data set.

    >>> home().name
    'fashion-mnist'
    """
    keras_home = os.environ.get("KERAS_HOME", pathlib.Path.home() / ".keras")
    return pathlib.Path(keras_home, "datasets", "fashion-mnist")


def _read_npz(file: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    if not file.is_file():
        raise ValueError(f"fashion_mnist: no file {file}; expected an .npz")
    try:
        with np.load(file) as data:
            images, labels = data["x_train"], data["y_train"]
    except Exception as error:  # a damaged archive raises whatever zip, zlib or numpy meet first
        raise ValueError(
            f"fashion_mnist: cannot read x_train and y_train from {file}: {error}"
        ) from error
    if images.ndim != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"fashion_mnist: {file} holds x_train {images.dtype}{images.shape} and y_train "
            f"{labels.shape}; expected uint8 (count, height, width) and (count,)"
        )
    return images, labels


def _read_idx(file: pathlib.Path, header: int) -> np.ndarray:
    try:
        with gzip.open(file) as stream:
            return np.frombuffer(stream.read(), np.uint8, offset=header)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"fashion_mnist: {file} is damaged ({error}); delete it") from error


def _download() -> tuple[np.ndarray, np.ndarray]:
    from keras.datasets import fashion_mnist

    try:
        return fashion_mnist.load_data()[0]
    except Exception as error:  # get_file wraps HTTP and socket errors in bare Exception
        raise ValueError(
            f"fashion_mnist: not in {home()} and the download failed ({error}); give path=FILE.npz "
            "with x_train and y_train"
        ) from error
