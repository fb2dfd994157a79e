"""`.tflite` files of compressed networks: weights as the integers that LiteRT's kernels run on.

The float file is edited: each constant that holds a recorded weight becomes INT2, INT4 or INT8 with
a scale per channel; activations stay float and are quantized on the fly by the kernels.
"""

import pathlib
from typing import Any

import numpy as np

from compress.record import Record
from latency import litert
from latency.examples import random_inputs
from nas.writers import integers
from nas.writers.flatfile import File, merged
from nas.writers.kernels import Kernels
from nas.writers.places import places
from nas.writers.readback import read_codes
from nas.writers.verified import verified
from nas.writers.written import Written, sizes

__all__ = ["Written", "read_codes", "write"]

PREFER = ("size", "speed")
_SPARSE = 2  # dimensions that a weight has at least


def write(
    path: pathlib.Path | str, model: Any, record: Record, data: Any = None, prefer: str = "size"
) -> Written:
    """Write `model` to a `.tflite` file, with its weights as `record` says they can be stored.

    data: `compress.Data` or arrays as the network takes them: outputs are compared on them, and
    activations calibrated where the record says they are integers.
    prefer: "size", the narrowest type that a kernel takes; "speed", the fastest.
    The record's variants become further signatures of the file, under their names.
    Raises `RuntimeError` where the file read back is not the network.
    """
    if prefer not in PREFER:
        raise ValueError(f"prefer={prefer!r}; expected one of {PREFER}")
    path = pathlib.Path(path)
    models = {"serving_default": model, **record.variants}
    floats = {name: _float_file(one) for name, one in models.items()}
    whole = merged(floats)
    plain = whole.pack()
    file = File(plain)
    arrays = {weight.path: np.asarray(weight) for weight in model.weights}
    stored, left = _store(file, record, arrays, prefer)
    tflite = file.pack()
    inputs = {name: _inputs(one, data) for name, one in models.items()}
    checked = verified(tflite, plain, models, inputs, record, stored)
    path.write_bytes(tflite)
    size, zipped = sizes(path)
    constants = sum(len(buffer.data) for buffer in File(tflite).model.buffers[1:])
    return Written(
        path=path,
        bytes=size,
        zipped_bytes=zipped,
        bits_per_weight=8 * constants / max(model.count_params(), 1),
        weights={name: stored.get(name, "float32") for name in arrays},
        left=left,
        checked=checked,
    )


def _float_file(model: Any) -> bytes:
    made = litert.file_of(model)
    return made if isinstance(made, bytes) else made.read_bytes()


def _inputs(model: Any, data: Any) -> Any:
    if data is None:
        return random_inputs(model, 4)
    return getattr(data, "inputs", data)


def _store(
    file: File, record: Record, arrays: dict[str, np.ndarray], prefer: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Puts integers in the file; (how each weight is stored, why not narrower)."""
    stored, left = {}, {}
    forms = {}
    for path, weight in record.weights.items():
        if weight.codes is None:
            continue
        forms[path] = integers.forms(weight)
        if not forms[path]:
            left[path] = "its levels are not evenly spaced"
    kernels = Kernels(file, prefer)
    wanted = {path: arrays[path] for path in record.weights}
    found = places(file, wanted)
    for place in found:
        if forms.get(place.path):
            kind, reason = kernels.store(place, forms[place.path])
            _tell(stored, left, place.path, kind, reason)
    for path in forms:
        if forms[path] and path not in {place.path for place in found}:
            left[path] = "the converter left no constant that holds it"
    return stored, left


def _tell(stored: dict, left: dict, path: str, kind: str, reason: str | None) -> None:
    """Of several constants that hold a weight, the widest counts."""
    if path not in stored or int(kind.strip("intfloa")) > int(stored[path].strip("intfloa")):
        stored[path] = kind
        if reason is not None:
            left[path] = reason
