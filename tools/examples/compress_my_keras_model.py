"""A Keras model of your own in 4-bit weights: files, sizes, quality before and after.

$ python compress_my_keras_model.py
"""

import keras
from sklearn.datasets import load_digits

import nas
from compress.qat import QAT
from latency.cpu import CPU

digits = load_digits()
x, y = digits.images[..., None].astype("float32") / 16, digits.target

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(1024, activation="relu"),
        keras.layers.Dense(10),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss, metrics=["accuracy"])
model.fit(x[:1500], y[:1500], epochs=10, verbose=0)

small = nas.compress(
    model,  # stays as it is
    QAT(bits=4),
    data=(x[:1500], y[:1500]),
    valid=(x[1500:], y[1500:]),
    epochs=5,
    out=["small.tflite", "small.keras"],  # each is read back and compared with the model
    targets=[CPU(threads=1)],
)
print(small)
print(f"{small.before['quality']:.1%} -> {small.after['quality']:.1%}")
