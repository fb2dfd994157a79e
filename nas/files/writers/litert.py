"""`.tflite` files of compressed networks: weights as the integers that LiteRT's kernels run on.

The float file is edited: each constant that holds a recorded weight becomes INT2, INT4 or INT8 with
a scale per channel; activations stay float and are quantized on the fly by the kernels.
"""

import dataclasses
import pathlib
from typing import Any

import keras
import numpy as np

from compress.rewriting.record import Record
from latency.networks.random_inputs import random_inputs
from latency.tflite import convert, examples
from latency.tflite.signature import names
from nas.files.readers import tflite_layers
from nas.files.writers.tflite import integer_codes, integer_ends
from nas.files.writers.tflite.editable_file import File, merge, text
from nas.files.writers.tflite.find_weights import Place, find_places
from nas.files.writers.tflite.half_constants import halve
from nas.files.writers.tflite.integer_activations import EXAMPLES, OWN, calibrate
from nas.files.writers.tflite.integer_kernels import Kernels
from nas.files.writers.tflite.readback import read_codes
from nas.files.writers.tflite.sparse_constants import make_sparse
from nas.files.writers.tflite.user_parts import UserParts
from nas.files.writers.tflite.verify import verify
from nas.files.writers.written_file import CannotWrite, WrittenFile, sizes

__all__ = ["WrittenFile", "read_codes", "write"]

PREFER = ("size", "speed")
_LOOPS = {"WHILE", "IF"}  # the quantizer sees no tensor within
MAIN = "serving_default"  # what TensorFlow calls a model's one signature


def write(
    path: pathlib.Path | str, model: Any, record: Record, data: Any = None, prefer: str = "size"
) -> WrittenFile:
    """Write `model` to a `.tflite` file, with its weights as `record` says they can be stored.

    data: `compress.Data` or arrays as the network takes them: outputs are compared on them, and
    activations are calibrated on them where the record says that they are integers.
    prefer: "size", the narrowest type that a kernel takes; "speed", the fastest.
    The record's variants become further signatures of the file, under their names.
    Where loops are in the graph (LSTM, GRU), activations stay float, which `left` says.
    Raises `CannotWrite` where the file read back is not the network.
    """
    if prefer not in PREFER:
        raise ValueError(f"prefer={prefer!r}; expected one of {PREFER}")
    path, asked = pathlib.Path(path), record.activations
    models = {**record.variants}
    if next(iter(models.values()), None) is not model:  # the main graph's comes first
        models = {MAIN: model, **models}
    arrays = {weight.path: np.asarray(weight) for weight in model.weights}
    given = tflite_layers.graph_of(model)
    if given is None:
        floats = merge({name: _float_file(one) for name, one in models.items()}).pack()
    else:
        floats = tflite_layers.file_of(model, given)
        models = {text(File(floats).model.signatureDefs[0].signatureKey): model}
    file = File(floats)
    if given is not None:
        places = tflite_layers.places(model, given)
    else:  # folded into others, or laid out anew: by value
        sought = arrays if record.floats == 16 else {name: arrays[name] for name in record.weights}
        places = find_places(file, sought)
    found = [place for place in places if place.path in record.weights]
    inputs = {name: _inputs(one, data) for name, one in models.items()}
    forms = {name: integer_codes.forms(weight) for name, weight in record.weights.items()}
    loops = {file.name(one) for graph in file.graphs for one in graph.operators} & _LOOPS
    if loops and record.activations is not None:
        record = dataclasses.replace(record, activations=None)
    if record.io is not None and record.activations is None:
        raise CannotWrite(
            f"io={record.io}: activations stay float in this file, for"
            + (
                f" loops ({', '.join(sorted(loops))}) cannot be calibrated"
                if loops
                else " there are no examples of what its deployed form takes"
            )
            + "; leave io out"
        )
    if record.activations is None:
        kinds, left = _store(file, forms, found, prefer)
        if record.floats == 16:
            half = set(halve(file))
            for place in places:
                if (place.graph, place.index) in half:
                    kinds.setdefault(place.path, set()).add("float16")
        tflite = file.pack()
    else:
        tflite, kinds, left = _calibrate(floats, models, inputs, record, found, forms, data)
    stored, left = _reported(record, kinds, left)
    checked = verify(tflite, floats, models, inputs, record, found, arrays, left)
    ends = integer_ends.ends(File(tflite))
    if record.io is not None and (floating := integer_ends.floating(File(tflite))):
        raise CannotWrite(
            f"io={record.io}: {', '.join(floating)} stay float32, for their operators have no"
            " kernels in integers; leave io out"
        )
    if loops and asked is not None:
        left["activations"] = (
            f"float, beside integer weights: loops ({', '.join(sorted(loops))}), as of LSTM and GRU"
            " layers, cannot be calibrated by ai-edge-quantizer"
        )
    notes: tuple[str, ...] = ()
    if len(tflite) > len(floats):
        notes = (
            f"larger than with float32 weights, {len(tflite):,} bytes against {len(floats):,}: the"
            " network is too small to make up for the tables of its integers",
        )
    constants = sum(len(buffer.data) for buffer in File(tflite).model.buffers[1:])
    if given is not None:
        tflite = UserParts(**given.parts).put_back(tflite)
        convert.load(tflite)
    path.write_bytes(tflite)
    size, zipped = sizes(path)
    return WrittenFile(
        path=path,
        bytes=size,
        zipped_bytes=zipped,
        bits_per_weight=8 * constants / max(model.count_params(), 1),
        weights={name: stored.get(name, "float32") for name in arrays},
        left=left,
        checked=checked,
        notes=notes,
        ends=ends,
    )


def _float_file(model: Any) -> bytes:
    made = convert.file_of(model)
    return made if isinstance(made, bytes) else made.read_bytes()


def _inputs(model: Any, data: Any) -> Any:
    if data is None:
        return random_inputs(model, 4)
    return getattr(data, "inputs", data)


def _store(
    file: File, forms: dict[str, list[integer_codes.Integers]], found: list[Place], prefer: str
) -> tuple[dict[str, set[str]], dict[str, str]]:
    """Puts integers in the file; (how each weight is stored, why not narrower)."""
    kernels = Kernels(file, prefer)
    kinds: dict[str, set[str]] = {}
    left: dict[str, str] = {}
    for place in found:
        file.graphs[place.graph].tensors[place.index].name = place.name
        kind, reason = "float32", integer_codes.UNEVEN
        if forms[place.path]:
            kind, reason = kernels.store(place, forms[place.path])
        kinds.setdefault(place.path, set()).add(kind)
        if reason is not None:
            left[place.path] = reason
    for (graph, index), kind in make_sparse(file, prefer).items():
        path = text(file.graphs[graph].tensors[index].name)
        path = path.removesuffix("/normed")
        if path in kinds:
            kinds[path] = kinds[path] - {"float32"} | {kind}
    return kinds, left


def _calibrate(
    floats: bytes,
    models: dict[str, Any],
    inputs: dict[str, Any],
    record: Record,
    found: list[Place],
    forms: dict[str, list[integer_codes.Integers]],
    data: Any,
) -> tuple[bytes, dict[str, set[str]], dict[str, str]]:
    if record.floats != 32:
        raise CannotWrite(
            "float16 beside activations in integers, which take integer weights only: leave"
            " float16 out, or activations float (ptq:8,activations=none)"
        )
    if data is None:
        raise ValueError(
            "integer activations need examples to take their ranges from: give --data or --task"
            " (data= in Python), or leave them float: ptq:8,activations=none"
        )
    rows = {}
    for name, model in models.items():
        arrays = dict(zip(names(model)[0], keras.tree.flatten(inputs[name]), strict=True))
        some = {key: np.asarray(array[:EXAMPLES]) for key, array in arrays.items()}
        rows[name] = examples.batches(*convert.Session(floats, signature=name).shapes, some)
    return calibrate(floats, rows, found, forms, record.activations or 8, record.io)


def _reported(
    record: Record, kinds: dict[str, set[str]], left: dict[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The widest of the constants that hold each weight, and why it is wider, or rounded again."""
    stored = {path: max(kind, key=_bits) for path, kind in kinds.items()}
    found = {}
    for path, weight in record.weights.items():
        if weight.codes is None:
            continue
        bits, reason = _bits(stored.get(path, "float32")), left.get(path)
        if bits > max(weight.bits, 2) or (reason is not None and OWN in reason):
            found[path] = reason or (
                "the converter left no constant that holds it"
                if path not in stored
                else f"LiteRT stores {weight.bits} bits as INT{bits} here"
            )
    return stored, found


def _bits(kind: str) -> int:
    return int(kind[3:]) if kind.startswith("int") else 32
