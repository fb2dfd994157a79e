"""Handwritten digits of scikit-learn: 1,797 images of 8x8, ten classes, nothing to download.

Alpaydin and Kaynak, "Cascading Classifiers", Kybernetika 34(4), 1998 (UCI ML repository, digits).
"""

import numpy as np

from nas.tasks.inputs.preprocessing import Preprocessing
from nas.tasks.task import Task, resize, split, whole_number

VALID = 0.2  # 360 images: one image is 0.28 points of accuracy
PEAK = 16.0  # the brightest pixel of the data set


def load(size: int = 32, seed: int = 0) -> Task:
    """1,437 training and 360 validation images of `size` x `size` x 1, values 0..1.

    The split is stratified and depends on `seed` only.

    >>> load(size=16).input_shape
    (16, 16, 1)
    """
    whole_number("size", size, 8)
    from sklearn.datasets import load_digits

    data = load_digits()
    images = resize(data.images[..., np.newaxis] / PEAK, size)
    labels = data.target.astype(np.int32)
    train, valid = split(labels, VALID, seed)
    return Task(
        name="digits",
        train=(images[train], labels[train]),
        valid=(images[valid], labels[valid]),
        fields={"input_shape": (size, size, 1), "classes": 10},
        labels=tuple("0123456789"),
        preprocessing=Preprocessing("image", scale=255.0, background="black"),
        recipe=f"digits size={size} valid={VALID} seed={seed}",
    )
