"""Is a `.tflite` file the network that it was made of? Read back, run, compared by channel."""

import dataclasses
from typing import Any

import keras
import numpy as np

from compress.rewriting.record import Record
from latency.tflite import convert, examples, same_network
from latency.tflite.same_network import by_channel
from latency.tflite.signature import names
from nas.files.readers import tflite_layers
from nas.files.writers.tflite.editable_file import File
from nas.files.writers.tflite.find_weights import Place
from nas.files.writers.tflite.integer_activations import OWN
from nas.files.writers.tflite.readback import in_floats, stored_weights
from nas.files.writers.written_file import REPORT, CannotWrite

_EXAMPLES = 8  # that are run
_EXACT = 1e-3  # of the largest value of a channel: float32 in another order
_HALF = 1e-2  # the same where constants were rounded to float16 after they were multiplied
_FLOOR = 1e-5  # of the largest value of the output, whose rounding is in all its channels
_CLOSE = 1e-5  # of the largest value of a weight: codes are further apart
# Of the outputs' length: activations in 8 bits, each layer anew, on networks of 50 layers.
_NOISE = 0.3
_GONE = 0.1  # of what a channel varies by in the network: with less, it is constant in the file
_SHARED_STEPS = 5 / 256  # probabilities vary by more where the examples have their class
_NAMED = 8  # channels in a message


def verify(
    tflite: bytes,
    plain: bytes,
    models: dict[str, Any],
    inputs: dict[str, Any],
    record: Record,
    found: list[Place],
    arrays: dict[str, np.ndarray],
    left: dict[str, str],
) -> str:
    """What was compared, in words; `CannotWrite` where the file is wrong.

    Weights that were `left` to ai-edge-quantizer may be half a step of its integers off.

    The same file with its integers as floats must give what Keras gives, each channel of each
    output by its own size; the file itself, with the noise of its activations, must still vary
    where the network varies.
    """
    stored = _read_weights(tflite, record, found, arrays, left)
    # Integer activations are part of the graph: no float file is the same network.
    floats = in_floats(tflite) if record.activations is None else plain
    relative = _EXACT if record.floats == 32 else _HALF
    given = any(map(tflite_layers.graph_of, models.values()))
    theirs = "the given file" if given else "Keras"
    checked, worst, noise = [], 0.0, 0.0
    for name, model in models.items():
        few = _some(inputs[name], model.inputs[0].shape[0] or _EXAMPLES)
        count = len(keras.tree.flatten(few)[0])
        expected = same_network.outputs(model, few)
        # Which objects are kept is decided by comparisons, which the noise of integers may turn;
        # how high they score, from the first to the last, is not.
        chooses = any(getattr(layer, "chooses_outputs", False) for layer in model.layers)
        exact = _litert(floats, name, model, few)
        real = _litert(tflite, name, model, few)
        for output, values in expected.items():
            if not np.isfinite(values).all():
                raise CannotWrite(
                    f"{name}: output {output!r} of the network itself is not finite; train it again"
                    " or give other data"
                )
        wrong = same_network.difference(exact, expected, relative=relative, floor=_FLOOR)
        if wrong is not None:  # or does rounding alone move it as much?
            moved = same_network.outputs(model, same_network.nudged(few))
            wrong = same_network.difference(exact, expected, moved, relative=relative, floor=_FLOOR)
        if wrong is not None:
            raise CannotWrite(
                f"{name}: {wrong}: differs from {theirs} with all weights as they were read back"
                f"{REPORT}"
            )
        probabilities = _probabilities(model)
        for output, values in expected.items():
            distance = np.abs(exact[output] - values).max() / max(np.abs(values).max(), 1e-6)
            worst = max(worst, float(distance))
            if not np.isfinite(real[output]).all():
                raise CannotWrite(
                    f"{name}: output {output!r} has values that are not finite{REPORT}"
                )
            if chooses and output in ("boxes", "classes"):
                continue
            share = _noise(real[output], values)
            if not share <= _NOISE:
                raise CannotWrite(
                    f"{name}: output {output!r} differs from {theirs} by {share:.2g} of its length:"
                    f" integer activations are too coarse for it; {REMEDY}"
                )
            noise = max(noise, share)
            gone = constant_channels(real[output], values, output in probabilities)
            if gone.size and record.activations:
                listed = ", ".join(map(str, gone[:_NAMED])) + (" ..." if gone[_NAMED:].size else "")
                raise CannotWrite(
                    f"{name}: output {output!r}: channels {listed} of {values.shape[-1]} vary in"
                    " the network and are constant in the file: one step of its integers, which"
                    f" all channels share, is more than they vary by; {REMEDY}, or give the parts"
                    " outputs of their own"
                )
        checked.append(name)
    form = "in float32" if record.activations else "with the weights read back"
    return (
        f"{stored}; {', '.join(checked)} on {count} examples: as {theirs}"
        f" to {worst:.1g} of the largest output {form}, to {noise:.1g} of the length as LiteRT"
        " runs it"
    )


REMEDY = "give them 16 bits, or leave them float: ptq:8,activations=16 or ptq:8,activations=none"


def constant_channels(
    values: np.ndarray, expected: np.ndarray, probabilities: bool = False
) -> np.ndarray:
    """The channels, numbers of the last axis, that vary in `expected` and no longer in `values`.

    probabilities: they come from one softmax or sigmoid, so that little is nothing; elsewhere a
    channel may be of any size. One that is 0 but for a few places is not judged.

    >>> expected = np.array([[640.0, 0.1], [320.0, 0.2], [0.0, 0.0]])
    >>> constant_channels(expected * [1, 0], expected).tolist()
    [1]
    """
    if expected.dtype.kind != "f" or not expected.size:
        return np.zeros(0, int)
    ours, theirs = by_channel(values), by_channel(expected)
    size = np.abs(theirs).max(0)
    varies = theirs.std(0)
    least = _SHARED_STEPS if probabilities else 1e-6 * size + 1e-7 * size.max()
    judged = (varies > least) & ((theirs != 0).mean(0) > 0.1)
    return np.flatnonzero(judged & (ours.std(0) < _GONE * varies))


def _probabilities(model: Any) -> set[str]:
    """The outputs that come straight from softmax or sigmoid."""
    activations = keras.activations
    functions = (activations.softmax, activations.sigmoid, activations.hard_sigmoid)
    tensor = keras.KerasTensor((1, 2))
    kinds = (keras.layers.Softmax,) + tuple(
        type(operation(tensor)._keras_history.operation)
        for operation in (keras.ops.softmax, keras.ops.sigmoid, keras.ops.hard_sigmoid)
    )
    found = set()
    for name, output in zip(names(model)[1], model.outputs, strict=True):
        last = output._keras_history.operation
        if isinstance(last, kinds) or getattr(last, "activation", None) in functions:
            found.add(name)
    return found


@dataclasses.dataclass
class _Stored:
    """How many values of a file were read back and compared: as integers, as floats."""

    codes: int = 0
    floats: int = 0

    def __str__(self) -> str:
        if not self.codes:
            return f"{self.floats} values of codes, as float32" if self.floats else "no codes"
        wide = f", {self.floats} of them stored in float32" if self.floats else ""
        return f"{self.codes + self.floats} codes read back are all equal{wide}"


def _read_weights(
    tflite: bytes, record: Record, found: list[Place], arrays: dict, left: dict
) -> _Stored:
    """What codes are in the file; `CannotWrite` where one is not the network's value."""
    file, count, read = File(tflite), _Stored(), {}
    for place in found:
        weight = record.weights[place.path]
        if place.graph not in read:
            read[place.graph] = stored_weights(file, place.graph)
        stored = read[place.graph].get(place.name)
        if stored is None:
            raise CannotWrite(f"{place.path}: is not in the file{REPORT}")
        if weight.codes is None:
            continue
        live = np.broadcast_to(place.factors != 0, place.shape)
        factors = np.where(place.factors == 0, 1, place.factors)
        values = (stored.dense() * stored.gain).reshape(place.shape) / factors
        back = place.restore(values, weight.codes.shape)
        live = place.restore(live, weight.codes.shape)
        value = arrays[place.path]
        close = _CLOSE * np.abs(value).max()
        if own := OWN in left.get(place.path, ""):
            step = np.max(stored.scale) / np.broadcast_to(np.abs(factors), place.shape)
            close = close + 0.5 * place.restore(step, weight.codes.shape)
        wrong = live & ~(np.abs(back - value) <= close)
        if wrong.any():
            raise CannotWrite(
                f"{place.path}: {np.count_nonzero(wrong)} of {wrong.size} codes read back are not"
                f" the network's values{REPORT}"
            )
        if stored.kind.startswith("int"):
            count.codes += 0 if own else wrong.size
        else:
            count.floats += wrong.size
    return count


def _noise(values: np.ndarray, expected: np.ndarray) -> float:
    """The distance of the outputs, by their length: of the example in the middle."""
    if values.dtype.kind != "f":
        return 0.0
    rows = [array.reshape(len(array), -1).astype(np.float64) for array in (values, expected)]
    distance = np.linalg.norm(rows[0] - rows[1], axis=1)
    return float(np.median(distance / np.maximum(np.linalg.norm(rows[1], axis=1), 1e-6)))


def _some(inputs: Any, count: int) -> Any:
    return keras.tree.map_structure(lambda array: np.asarray(array)[:count], inputs)


def _litert(tflite: bytes, name: str, model: Any, inputs: Any) -> dict[str, np.ndarray]:
    named = dict(zip(names(model)[0], keras.tree.flatten(inputs), strict=True))
    return examples.run(convert.Session(tflite, signature=name), named)
