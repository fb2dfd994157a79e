"""Test images of Fashion-MNIST, which no search and no training of this project has seen."""

import os
import pathlib

import numpy as np

DATA = pathlib.Path(os.environ.get("NAS_DATA", "../shared/data")) / "images/fashion_mnist_20k.npz"


def test(size: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, size, size, 1), uint8, and labels."""
    from nas.tasks.task import resize

    with np.load(DATA) as arrays:
        images, labels = arrays["x_test"][..., None], arrays["y_test"].astype(np.int32)
    if images.shape[1] != size:
        images = np.rint(resize(images, size)).astype(np.uint8)
    return images, labels


def accuracy(file: pathlib.Path) -> float:
    """Share of the test images that a .keras file is right on; at the size of its input."""
    from nas import backend

    keras = backend.load()
    from nas.tasks.task import pixels

    model = keras.models.load_model(file, compile=False)
    images, labels = test(model.input_shape[1])
    found = np.argmax(model.predict(pixels(images), 500, verbose=0), -1)
    return float(np.mean(found == labels))
