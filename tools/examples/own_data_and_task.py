"""Data of your own as a `tf.data.Dataset`, a task with its own loss and score, a trained network.

$ python own_data_and_task.py
$ nas train mnasnet:tiny --task ./own_data_and_task.py --out other.keras --epochs 2
"""

import keras
import numpy as np
import tensorflow as tf

import nas


def load(count: int = 512) -> nas.Task:
    """Images of one bright square; the network is to say how bright it is, from 0 to 1."""
    generator = np.random.default_rng(0)
    light = generator.random((count, 1), np.float32)
    images = np.zeros((count, 16, 16, 1), np.float32)
    images[:, 4:12, 4:12] = light[:, None, None]
    data = tf.data.Dataset.from_tensor_slices((images, light)).shuffle(count, seed=0).batch(64)
    x, y = (np.concatenate(part) for part in zip(*data.as_numpy_iterator(), strict=True))
    cut = count * 3 // 4
    return nas.Task(
        name="brightness",
        train=(x[:cut], y[:cut]),
        valid=(x[cut:], y[cut:]),
        fields={"input_shape": (16, 16, 1), "classes": 1},
        loss=lambda outputs, y: keras.ops.mean(keras.ops.square(outputs - y), -1),
        scorer=lambda model, predict: lambda x, y: (abs(predict(x) - y) < 0.1).mean(-1),
        metric="share within 0.1",
    )


if __name__ == "__main__":
    trained = nas.train("mnasnet:tiny", load(), epochs=8, out="net.keras")
    print(trained)
    print(trained.files)
