"""The data and the networks of `bench_kinds.py`: each kind by the name of what it is."""

import io
import os
import pathlib

import numpy as np

DATA = pathlib.Path(os.environ.get("NAS_DATA", "../shared/data"))
MASK = 48  # pixels of a side of the U-Net's images


def fashion(classes: list[int] | None, train: int, test: int):
    """Images 0..1 (n, 28, 28, 1) and labels of Fashion-MNIST: to train and to judge with."""
    found = []
    with np.load(DATA / "images/fashion_mnist_20k.npz") as arrays:
        for part, count in (("train", train), ("test", test)):
            x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
            chosen = np.isin(y, classes) if classes else np.ones(len(y), bool)
            found.append(
                ((x[chosen][:count, ..., None] / 255).astype("float32"), y[chosen][:count])
            )
    return found


def autoencoder():
    (x, _), (held, _) = fashion(None, 6000, 1000)
    return (x, x), (held, held)


def binary():
    """T-shirts (0) or shirts (6), the two that are most alike."""
    parts = fashion([0, 6], 4000, 1000)
    return [(x, (y == 6).astype("float32")[:, None]) for x, y in parts]


def regression():
    """NAS-Bench-Macro: a network's CIFAR-10 accuracy in points from its eight choices of three."""
    with np.load(DATA / "nas/nasbench_macro.npz") as arrays:
        x, y = arrays["arch"], arrays["mean_acc"]
    x = np.eye(3, dtype="float32")[x].reshape(len(x), -1)
    order = np.random.default_rng(0).permutation(len(x))
    y = (y.astype("float32") - 90)[:, None]  # points above 90 %
    return [(x[part], y[part]) for part in (order[:4000], order[-1000:])]


def unet():
    """Blood cells: for each pixel nothing, a white cell, a red cell or a platelet, of its boxes."""
    from PIL import Image

    with np.load(DATA / "detection/bccd.npz") as arrays:
        ends = np.r_[0, arrays["end"]]
        jpeg, boxes, size = arrays["jpeg"], arrays["boxes"], arrays["size"]
        parts = [np.r_[arrays["idx_train"], arrays["idx_val"]], arrays["idx_test"]]
    found = []
    for part in parts:
        x, y = np.zeros((len(part), MASK, MASK, 3), "float32"), np.zeros((len(part), MASK, MASK))
        for place, index in enumerate(part):
            image = Image.open(io.BytesIO(jpeg[ends[index] : ends[index + 1]].tobytes()))
            x[place] = np.asarray(image.convert("RGB").resize((MASK, MASK))) / 255
            scale = MASK / np.tile(size[index], 2)
            rows = boxes[boxes[:, 0] == index]
            for row in sorted(rows, key=lambda row: row[1] != 1):  # red cells lie under the others
                x0, y0, x1, y1 = np.rint(row[2:] * scale).astype(int)
                y[place, y0:y1, x0:x1] = 1 + row[1]
        found.append((x, y.astype("int32")))
    return found


def two_inputs():
    """Which digit is said: 32 frames of a spectrogram, and which of the six speakers it is."""
    with np.load(DATA / "speech/fsdd.npz") as arrays:
        clips = {name: arrays[name] for name in arrays}
    ends = np.r_[0, clips["end"]]
    spectra = np.zeros((len(clips["end"]), 32, 32, 1), "float32")
    for index, row in enumerate(spectra):
        sound = clips["audio"][ends[index] : ends[index + 1]].astype("float32") / 2**15
        frames = np.lib.stride_tricks.sliding_window_view(np.pad(sound, (0, 8000)), 256)[::160][:32]
        power = np.abs(np.fft.rfft(frames * np.hanning(256)))[:, :128] ** 2
        row[..., 0] = np.log(power.reshape(32, 32, 4).mean(-1) + 1e-6) / 5 + 1
    speaker = np.eye(6, dtype="float32")[np.unique(clips["speaker"], return_inverse=True)[1]]
    held = clips["take"] < 5
    return [
        ({"sound": spectra[part], "speaker": speaker[part]}, clips["digit"][part].astype("int64"))
        for part in (~held, held)
    ]


TASKS = {one.__name__: one for one in (autoencoder, binary, regression, unet, two_inputs)}


def network(keras, kind: str, width: int = 16):
    """The network of a kind, of Keras 3 or of tf_keras; distill's student is half as wide."""
    layers = keras.layers

    def conv(x, filters, **options):
        return layers.Conv2D(filters, 3, padding="same", activation="relu", **options)(x)

    if kind == "autoencoder":
        x = image = keras.Input((28, 28, 1))
        for filters in (width, 2 * width):
            x = conv(x, filters, strides=2)
        x = layers.Dense(784)(layers.Dense(2 * width, activation="relu")(layers.Flatten()(x)))
        x = layers.Reshape((7, 7, 16))(x)
        for filters in (2 * width, width):
            x = layers.Conv2DTranspose(filters, 3, 2, padding="same", activation="relu")(x)
        return keras.Model(image, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x))
    if kind == "binary":
        image = keras.Input((28, 28, 1))
        x = layers.MaxPooling2D()(conv(image, width))
        x = layers.BatchNormalization()(conv(x, 2 * width, strides=2))
        x = layers.Dense(4 * width, activation="relu")(layers.Flatten()(x))
        return keras.Model(image, layers.Dense(1, activation="sigmoid")(x))
    if kind == "regression":
        x = choices = keras.Input((24,))
        for _ in range(3):
            x = layers.Dense(8 * width, activation="relu")(x)
        return keras.Model(choices, layers.Dense(1)(x))
    if kind == "unet":
        width //= 2  # at full resolution
        x = image = keras.Input((MASK, MASK, 3))
        skips = []
        for step in (1, 2):
            skips.append(conv(x, step * width))
            x = layers.MaxPooling2D()(skips[-1])
        x = conv(x, 4 * width)
        for step in (2, 1):
            x = layers.Concatenate()([layers.UpSampling2D()(x), skips.pop()])
            x = conv(x, step * width)
        return keras.Model(image, layers.Conv2D(4, 1, activation="softmax")(x))
    sound = keras.Input((32, 32, 1), name="sound")
    speaker = keras.Input((6,), name="speaker")
    x = layers.MaxPooling2D()(conv(sound, width))
    x = layers.MaxPooling2D()(conv(x, 2 * width))
    x = layers.Dense(4 * width, activation="relu")(layers.Flatten()(x))
    x = layers.Concatenate()([x, layers.Dense(width, activation="relu")(speaker)])
    return keras.Model([sound, speaker], layers.Dense(10, activation="softmax")(x))
