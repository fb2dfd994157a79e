"""Is a `.tflite` file the network that it was made of? Both are run, and compared by channel."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from latency.networks.random_inputs import random_inputs
from latency.tflite.signature import names

Arrays = dict[str, np.ndarray]
RELATIVE = 1e-4  # of the largest value of a channel: float32 in another order
FLOOR = 1e-6  # of the largest value of the output, which other channels' rounding is part of
NUDGE = 1e-5  # of an input: 80 times float32's rounding, which every layer adds to
AMPLIFIED = 3  # a file may move by so many times what the network moves by under a nudge
CHAOTIC = 1e-2  # a network that moves by more says nothing of its file: other inputs are tried
INPUTS = 4


@dataclasses.dataclass(frozen=True)
class Difference:
    """Where two sides differ most, beyond what is allowed.

    channel: the index of the last axis; share: the difference in the channel's largest value.
    """

    output: str
    channel: int
    share: float

    def __str__(self) -> str:
        return (
            f"output {self.output!r}, channel {self.channel}, differs by {self.share:.2g} of the"
            " channel's largest value"
        )


def by_channel(values: np.ndarray) -> np.ndarray:
    """(places of all examples, channels) in float64; the last axis of an output counts channels.

    >>> by_channel(np.zeros((2, 8, 8, 3))).shape, by_channel(np.zeros(2)).shape
    ((128, 3), (2, 1))
    """
    rows = values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)
    return rows.astype(np.float64)


def difference(
    ours: Arrays,
    theirs: Arrays,
    moved: Arrays | None = None,
    relative: float = RELATIVE,
    floor: float = FLOOR,
) -> Difference | None:
    """The worst channel of all outputs; None where each is within what is allowed.

    relative, floor: of the largest value of the channel, and of the output, that are allowed.
    moved: what `theirs` becomes as the inputs are nudged; that much is allowed, too.

    >>> boxes = np.array([[640.0, 0.1], [320.0, 0.2]])
    >>> str(difference({"o": boxes * [1, 0]}, {"o": boxes}))
    "output 'o', channel 1, differs by 1 of the channel's largest value"
    """
    worst: Difference | None = None
    for output, expected in theirs.items():
        found = _worst(
            output,
            ours[output],
            expected,
            None if moved is None else moved[output],
            relative,
            floor,
        )
        if found is not None and not (worst is not None and worst.share >= found.share):
            worst = found
    return worst


def _worst(
    output: str,
    values: np.ndarray,
    expected: np.ndarray,
    moved: np.ndarray | None,
    relative: float,
    floor: float,
) -> Difference | None:
    if values.shape != expected.shape:
        return Difference(output, 0, float("inf"))
    if not expected.size:
        return None
    first, second = by_channel(values), by_channel(expected)
    gone = ~np.isfinite(first) & ~np.isfinite(second)  # both of them: the network is like that
    with np.errstate(invalid="ignore"):
        apart = np.where(gone, 0, np.abs(first - second))
    apart = np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max(0)
    size = np.where(np.isfinite(second), np.abs(second), 0).max(0)
    allowed = np.zeros_like(size)
    if expected.dtype.kind in "fc":
        allowed = relative * size + floor * size.max() + 1e-12
    if moved is not None:
        change = np.nan_to_num(np.abs(by_channel(moved) - second)).max(0)
        allowed = allowed + AMPLIFIED * change
    beyond = apart - allowed
    channel = int(np.argmax(beyond / np.maximum(size, 1e-30)))
    if not beyond.max() > 0:
        return None
    return Difference(output, channel, float(apart[channel] / max(size[channel], 1e-30)))


def check(
    model: Any,
    run: Callable[[Arrays], Arrays],
    relative: float = RELATIVE,
    leave: tuple[str, ...] = (),
) -> Difference | None:
    """Where `run`, inputs by name to outputs by name, is not what `model` gives; None: nowhere.

    On one random input; where rounding alone is amplified beyond what is allowed, what the model
    itself moves by as its inputs do by `NUDGE` is allowed, too; where it moves wildly, on another
    input. leave: outputs that are not compared. A model that draws random numbers passes.
    """
    found = None
    for seed in range(INPUTS):
        inputs = random_inputs(model, model.inputs[0].shape[0] or 1, seed)
        named = dict(zip(names(model)[0], _flatten(inputs), strict=True))
        expected = outputs(model, inputs)
        ours = _row_by_row(run, named)
        for name in leave:
            expected.pop(name, None)
        found = difference(ours, expected, relative=relative)
        if found is None:
            return None
        moved = outputs(model, nudged(inputs))
        if difference(ours, expected, moved, relative) is None:
            if difference(moved, expected, relative=CHAOTIC, floor=CHAOTIC) is None:
                return None
            continue
        again = outputs(model, inputs)
        if any(not np.array_equal(again[n], expected[n], equal_nan=True) for n in expected):
            return None
        if difference(moved, expected, relative=CHAOTIC, floor=CHAOTIC) is None:
            return found
    return found


def _row_by_row(run: Callable[[Arrays], Arrays], inputs: Arrays) -> Arrays:
    """A file takes one example at a time, whatever batch its network was made for."""
    count = len(next(iter(inputs.values())))
    if count == 1:
        return run(inputs)
    rows = [run({name: array[n : n + 1] for name, array in inputs.items()}) for n in range(count)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def outputs(model: Any, inputs: Any) -> Arrays:
    """What a Keras model gives, by the names of a file's signature."""
    import keras  # noqa: PLC0415 (whoever has a model has imported it)

    tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    given = keras.tree.flatten(_called(model, tensors))
    values = [keras.ops.convert_to_numpy(value) for value in given]
    return dict(zip(names(model)[1], values, strict=True))


def _called(model: Any, tensors: Any) -> Any:
    """The outputs of a model; JAX, which would compile each operation alone, compiles it whole."""
    import keras  # noqa: PLC0415

    if keras.backend.backend() != "jax":
        return model(tensors, training=False)
    import jax  # noqa: PLC0415

    weights = (model.trainable_variables, model.non_trainable_variables)
    values = [[variable.value for variable in group] for group in weights]
    call = jax.jit(lambda values, x: model.stateless_call(*values, x, training=False)[0])
    return call(values, tensors)


def _flatten(inputs: Any) -> list[np.ndarray]:
    import keras  # noqa: PLC0415

    return keras.tree.flatten(inputs)


def nudged(inputs: Any) -> Any:
    """The inputs, each number moved by `NUDGE` of itself up or down."""
    import keras  # noqa: PLC0415

    def moved(value: np.ndarray) -> np.ndarray:
        if value.dtype.kind != "f":
            return value
        signs = np.random.default_rng(0).choice([-NUDGE, NUDGE], value.shape)
        return (value * (1 + signs)).astype(value.dtype)

    return keras.tree.map_structure(moved, inputs)
