"""Is a `.tflite` file the network that it was made of? Read back, run, compared."""

from typing import Any

import keras
import numpy as np

from compress.rewriting.record import Record
from latency.tflite import convert
from latency.tflite.signature import names
from nas.files.writers.tflite.editable_file import File
from nas.files.writers.tflite.find_weights import Place
from nas.files.writers.tflite.integer_activations import OWN
from nas.files.writers.tflite.readback import in_floats, stored_weights
from nas.files.writers.written_file import REPORT, CannotWrite

_EXAMPLES = 8  # that are run
_EXACT = 1e-3  # of the largest output: float32 in another order
_CLOSE = 1e-5  # of the largest value of a weight: codes are further apart
# Of the outputs' length: activations in 8 bits, each layer anew, on networks of 50 layers.
_NOISE = 0.3


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
    """What was compared, in words; `CannotWrite` where the file is wrong or grew.

    Weights that were `left` to ai-edge-quantizer may be half a step of its integers off.

    The same file with its integers as floats must give what Keras gives; the file itself, with
    the noise of its activations.
    """
    if len(tflite) > len(plain):
        raise CannotWrite(
            f"the file has {len(tflite)} bytes, with float32 weights {len(plain)}: it grew; "
            "the network is too small for codes: write it uncompressed"
        )
    codes = _codes(tflite, record, found, arrays, left)
    # Integer activations are part of the graph: no float file is the same network.
    floats = in_floats(tflite) if record.activations is None else plain
    checked, worst, noise = [], 0.0, 0.0
    for name, model in models.items():
        few = _some(inputs[name])
        count = len(keras.tree.flatten(few)[0])
        expected = _keras(model, few)
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
            distance = np.abs(exact[output] - values).max() / max(np.abs(values).max(), 1e-6)
            worst = max(worst, float(distance))
            if not distance <= _EXACT:
                raise CannotWrite(
                    f"{name}: output {output!r} differs from Keras by {distance:.2g} of its largest"
                    f" value, with all weights as they were read back{REPORT}"
                )
            if not np.isfinite(real[output]).all():
                raise CannotWrite(
                    f"{name}: output {output!r} has values that are not finite{REPORT}"
                )
            if chooses and output in ("boxes", "classes"):
                continue
            share = _noise(real[output], values)
            if not share <= _NOISE:
                raise CannotWrite(
                    f"{name}: output {output!r} differs from Keras by {share:.2g} of its length:"
                    " integer activations are too coarse for it; leave them float"
                )
            noise = max(noise, share)
        checked.append(name)
    form = "in float32" if record.activations else "with the weights read back"
    return (
        f"{codes} codes read back are all equal; {', '.join(checked)} on {count} examples: as Keras"
        f" to {worst:.1g} of the largest output {form}, to {noise:.1g} of the length as LiteRT"
        " runs it"
    )


def _codes(tflite: bytes, record: Record, found: list[Place], arrays: dict, left: dict) -> int:
    """How many codes are in the file; `CannotWrite` where one is not the network's value."""
    file, count, read = File(tflite), 0, {}
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
        count += 0 if own else wrong.size
    return count


def _noise(values: np.ndarray, expected: np.ndarray) -> float:
    """The distance of the outputs, by their length: of the example in the middle."""
    if values.dtype.kind != "f":
        return 0.0
    rows = [array.reshape(len(array), -1).astype(np.float64) for array in (values, expected)]
    distance = np.linalg.norm(rows[0] - rows[1], axis=1)
    return float(np.median(distance / np.maximum(np.linalg.norm(rows[1], axis=1), 1e-6)))


def _some(inputs: Any) -> Any:
    return keras.tree.map_structure(lambda array: np.asarray(array)[:_EXAMPLES], inputs)


def _keras(model: Any, inputs: Any) -> dict[str, np.ndarray]:
    outputs = model(inputs, training=False)
    values = [keras.ops.convert_to_numpy(value) for value in keras.tree.flatten(outputs)]
    return dict(zip(names(model)[1], values, strict=True))


def _litert(tflite: bytes, name: str, model: Any, inputs: Any) -> dict[str, np.ndarray]:
    arrays = keras.tree.flatten(inputs)
    session = convert.Session(tflite, signature=name)
    named = dict(zip(names(model)[0], arrays, strict=True))
    rows = [
        session({key: array[n : n + 1] for key, array in named.items()})
        for n in range(len(arrays[0]))
    ]
    return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
