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
from nas.writers.flatfile import File, merged, text
from nas.writers.kernels import Kernels
from nas.writers.places import Place, places
from nas.writers.readback import read_codes
from nas.writers.sparse import thin
from nas.writers.verified import verified
from nas.writers.written import Written, sizes

__all__ = ["Written", "read_codes", "write"]

PREFER = ("size", "speed")
MAIN = "serving_default"  # what TensorFlow calls a model's one signature


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
    models = {**record.variants}
    if next(iter(models.values()), None) is not model:  # the main graph's comes first
        models = {MAIN: model, **models}
    floats = merged({name: _float_file(one) for name, one in models.items()}).pack()
    file = File(floats)
    arrays = {weight.path: np.asarray(weight) for weight in model.weights}
    found = places(file, {name: arrays[name] for name in record.weights})
    stored, left = _store(file, record, found, prefer)
    tflite = file.pack()
    inputs = {name: _inputs(one, data) for name, one in models.items()}
    checked = verified(tflite, floats, models, inputs, record, found)
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
    file: File, record: Record, found: list[Place], prefer: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Puts integers in the file; (how each weight is stored, why not in as many bits as it has)."""
    forms = {path: integers.forms(weight) for path, weight in record.weights.items()}
    kernels = Kernels(file, prefer)
    kinds, left = {}, {}
    for place in found:
        file.graphs[place.graph].tensors[place.index].name = place.path
        kind, reason = "float32", "its levels are not evenly spaced"
        if forms[place.path]:
            kind, reason = kernels.store(place, forms[place.path])
        kinds.setdefault(place.path, set()).add(kind)
        if record.weights[place.path].codes is not None and reason is not None:
            left[place.path] = reason
    for (graph, index), kind in thin(file).items():
        path = text(file.graphs[graph].tensors[index].name)
        if path in kinds:
            kinds[path] = kinds[path] - {"float32"} | {kind}
    for path in record.weights:
        if path not in kinds:
            left[path] = "the converter left no constant that holds it"
    stored = {path: max(kind, key=_bits) for path, kind in kinds.items()}  # the widest counts
    return stored, {
        path: reason
        for path, reason in left.items()
        if _bits(stored.get(path, "float32")) > record.weights[path].bits
    }


def _bits(kind: str) -> int:
    return int(kind[3:]) if kind.startswith("int") else 32
