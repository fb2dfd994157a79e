"""Test images of Fashion-MNIST, which no search and no training of this project has seen."""

import os
import pathlib

import numpy as np

DATA = pathlib.Path(os.environ.get("NAS_DATA", "../shared/data")) / "images/fashion_mnist_20k.npz"


def accuracy(file: pathlib.Path) -> float:
    """Share of the test images that a .keras file is right on; at the size of its input."""
    from nas import backend

    keras = backend.load()
    from nas.tasks.task import pixels, resize

    with np.load(DATA) as arrays:
        images, labels = arrays["x_test"][..., None], arrays["y_test"]
    model = keras.models.load_model(file, compile=False)
    side = model.input_shape[1]
    if images.shape[1] != side:
        images = np.rint(resize(images, side)).astype(np.uint8)
    found = np.argmax(model.predict(pixels(images), 500, verbose=0), -1)
    return float(np.mean(found == labels))
