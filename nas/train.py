"""The proxy training engine: a new small network every few seconds.

What costs time per network is tracing and small operations, not arithmetic: on TensorFlow the step
is one function of our own (nas/tensorflow_step.py), elsewhere it is Keras' stock compiled step.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import numpy as np

from nas.tasks.task import Task, pixels

BATCH_SIZE = 64
LEARNING_RATE = 6e-3  # of 1.5e-3, 3e-3 and 6e-3 the best after 4 and 5 epochs
WARM_UP = 0.1  # share of all steps in which the rate rises from 0
# What a quality depends on besides the task, the network, the epochs and the seed.
RECIPE = f"adam {LEARNING_RATE} cosine warm-up {WARM_UP} batch {BATCH_SIZE}, version 1"


@dataclasses.dataclass(frozen=True)
class Training:
    """Result of `fit`: validation accuracy 0..1 at the end and after every epoch; seconds."""

    quality: float
    curve: tuple[float, ...]
    seconds: float
    phases: dict[str, float]  # seconds of "trace" (with each first run), "train", "evaluate"


def fit(
    model,
    task: Task,
    epochs: int,
    seed: int,
    *,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    on_epoch: Callable[[int, float], bool] | None = None,
) -> Training:
    """Train `model` (inputs -> logits) in place on `task`.

    `on_epoch(epoch, quality)` is called after every epoch, the first is 1; True stops training.
    The order of the images depends on `seed` only. The same model, weights included (seed them
    with `keras.utils.set_random_seed` before building), gives the same curve, bit for bit, on the
    same machine with the same number of threads.
    """
    _check(model, task, epochs)
    inputs, labels = task.train[0], task.train[1].astype(np.int32)
    batch_size = min(batch_size, len(labels))
    rates = schedule(epochs * (len(labels) // batch_size), learning_rate)
    seconds = {"trace": 0.0, "train": 0.0, "evaluate": 0.0}
    started = time.perf_counter()
    curve: list[float] = []
    with _engine(model, batch_size) as (step, predict):
        seconds["trace"] = time.perf_counter() - started
        for epoch in range(1, epochs + 1):
            since = time.perf_counter()
            for chosen in batches(len(labels), batch_size, seed, epoch):
                step(pixels(inputs[chosen]), labels[chosen], next(rates))
            seconds["train"] += time.perf_counter() - since
            since = time.perf_counter()
            curve.append(_accuracy(predict, task.valid, 4 * batch_size))
            seconds["evaluate"] += time.perf_counter() - since
            if on_epoch is not None and on_epoch(epoch, curve[-1]):
                break
    return Training(curve[-1], tuple(curve), time.perf_counter() - started, seconds)


def evaluate(model, task: Task) -> float:
    """Accuracy 0..1 of `model` on the validation part of `task`."""
    return _accuracy(lambda x: np.asarray(model(x, training=False)), task.valid, 256)


def schedule(steps: int, peak: float) -> Iterator[float]:
    """Learning rate of every step: linear warm-up to `peak`, then half a cosine to 0."""
    warm_up = max(1, round(WARM_UP * steps))
    for step in range(steps):
        if step < warm_up:
            yield peak * (step + 1) / warm_up
        else:
            yield peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def batches(count: int, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Index arrays of one epoch, all of `batch_size`: what is left over waits for another epoch."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    for start in range(0, count - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def _check(model, task: Task, epochs: int) -> None:
    if epochs < 1:
        raise ValueError(f"epochs={epochs}; expected at least 1")
    if (task.loss, task.metric) != ("sparse_categorical_crossentropy", "accuracy"):
        raise ValueError(
            f"task {task.name} has loss {task.loss!r} and metric {task.metric!r}; the engine knows "
            "'sparse_categorical_crossentropy' and 'accuracy'"
        )
    expected = ((None, *task.input_shape), (None, task.classes))
    found = (tuple(model.input_shape), tuple(model.output_shape))
    if found != expected:
        raise ValueError(
            f"the model maps {found[0]} to {found[1]}, the task {task.name} needs "
            f"{expected[0]} to {expected[1]}: set input_shape and classes of its Config"
        )


def _accuracy(predict, part: tuple[np.ndarray, np.ndarray], batch_size: int) -> float:
    inputs, labels = part
    batch_size = min(batch_size, len(labels))
    correct = 0
    for start in range(0, len(labels), batch_size):
        first = min(start, len(labels) - batch_size)  # the last batch overlaps: one shape only
        logits = predict(pixels(inputs[first : first + batch_size]))[start - first :]
        correct += int((np.argmax(logits, -1) == labels[start : start + batch_size]).sum())
    return correct / len(labels)


def _engine(model, batch_size: int):
    import keras

    if keras.config.backend() == "tensorflow":
        from nas import tensorflow_step

        return tensorflow_step.compiled(model, batch_size)
    return _stock(model)


@contextlib.contextmanager
def _stock(model) -> Iterator[tuple[Callable, Callable]]:
    """Keras' own compiled step, for GPU and TPU; `model` itself stays uncompiled."""
    import keras

    twin = keras.Model(model.inputs, model.outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    twin.compile(keras.optimizers.Adam(), loss)

    def step(x, y, rate):
        twin.optimizer.learning_rate = rate
        twin.train_on_batch(x, y)

    yield step, twin.predict_on_batch
