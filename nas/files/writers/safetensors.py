"""Networks as safetensors: codes packed bit by bit, kept weights only where others were pruned.

Of a weight `path` the file holds `path`, float32 or float16; or `path:codes`, `path:levels`,
`path:scale`; or `path:values`. With `path:mask`, a bit a weight, codes and values are those of the
kept ones only. Codes of b bits follow each other without gaps, lowest first: 4 a byte of 2 bits, 2
of 4 bits, 8 in 3 bytes of 3 bits. The layers are in the metadata, as Keras' JSON, and the paths in
their order: a layer that holds others may name them anew when it is built again.
"""

import base64
import dataclasses
import json
import math
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from compress.examples.data import Data
from compress.rewriting.record import Record, Weight
from latency.networks import keras_file
from latency.networks.random_inputs import random_inputs
from latency.system.atomic_write import atomic_write
from latency.tflite import same_network
from nas.files.writers.checkpoint import metadata_of
from nas.files.writers.written_file import REPORT, CannotWrite, WrittenFile, sizes

FORMAT = "nas packed 1"  # what the metadata say
EXAMPLES = 8
NOISE = 1e-4  # of outputs, relative: the same float32 operations on weights rounded once more
_JSON_MB = 100


def write(
    path: str | pathlib.Path,
    model: Any,
    record: Record,
    data: Data | None = None,
    config: Any | None = None,
) -> WrittenFile:
    """The weights of `model` in the bits of `record`; read back, compared, and run.

    `config` is its family's Config, where it has one. The file is whole or not there.
    """
    from safetensors.numpy import save_file

    path = pathlib.Path(path)
    if (reason := _keeps_more(model)) is not None:
        raise CannotWrite(
            f"{model.name}: {reason}, which a .safetensors file does not hold; write a .keras file"
        )
    parts: dict[str, np.ndarray] = {}
    forms: dict[str, dict[str, Any]] = {}
    stored, left = {}, {}
    for variable in model.weights:
        value = np.array(np.asarray(variable), np.float32, order="C")  # () stays ()
        known = record.weights.get(variable.path)
        packed = _packed(variable.path, value, known)
        if known is not None and packed.bytes() >= value.nbytes:
            left[variable.path] = "levels, scales and codes take no less than float32"
            packed = _PackedWeight({variable.path: value}, None, "float32")
        if record.floats == 16:
            packed = packed.halved()
        stored[variable.path] = packed.kind
        parts |= packed.arrays
        if packed.form is not None:
            forms[variable.path] = packed.form
    paths = [variable.path for variable in model.weights]
    if len(set(paths)) < len(paths):
        twice = next(one for one in paths if paths.count(one) > 1)
        raise CannotWrite(
            f"{model.name}: two weights are named {twice!r}, of which a .safetensors file can hold "
            "one; give them names of their own in add_weight(name=...)"
        )
    metadata = {"format": FORMAT, "weights": json.dumps(forms), "model": _compact(model.to_json())}
    metadata |= {"order": _compact("\n".join(paths))}
    if config is not None:
        metadata |= metadata_of(config)
    with atomic_write(path) as partial:
        save_file(parts, partial, metadata)
        try:
            checked = _check(partial, model, record, set(forms), data)
        except ValueError as error:
            reason = str(error).removeprefix(f"{partial}: ").removeprefix(f"{model.name}, ")
            raise CannotWrite(f"{model.name}, as .safetensors: {reason}") from error
    bits = 8 * sum(array.nbytes for array in parts.values())
    return WrittenFile(path, *sizes(path), bits / model.count_params(), stored, left, checked)


def _keeps_more(model: Any) -> str | None:
    """What a network has beside its weights, in words."""
    for layer in model._flatten_layers():
        named = f"layer {layer.name!r} ({type(layer).__name__})"
        if hasattr(layer, "load_assets"):
            return f"{named} looks words up in a table"
        if getattr(layer, "stateful", False):
            return f"{named} carries state from batch to batch"
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class PackedFile:
    """What a file holds: `weights`, path -> float32; `record`, those that it has as codes or masks;
    the JSON of the layers; `order`, the paths as the layers have them (empty in older files)."""

    weights: dict[str, np.ndarray]
    record: dict[str, Weight]
    architecture: str
    order: tuple[str, ...] = ()


def is_packed(metadata: Mapping[str, str]) -> bool:
    """Whether a safetensors file with these metadata is one of ours."""
    return metadata.get("format") == FORMAT


def load(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Path of each weight -> its float32 values."""
    return read(path).weights


def read(path: str | pathlib.Path) -> PackedFile:
    """All that a file holds; `ValueError`, one line, where it is damaged or another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            if not is_packed(metadata):
                raise ValueError(f"{path}: not a file of packed weights ({FORMAT})")
            arrays = {name: file.get_tensor(name) for name in names}
        forms = json.loads(metadata["weights"])
        found = _unpacked(arrays, forms, _expanded(metadata["model"]))
        order = _expanded(metadata["order"]).split("\n") if "order" in metadata else ()
        return dataclasses.replace(found, order=tuple(order))
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged: {' '.join(str(error).split())}") from error
    except ValueError as error:
        text = " ".join(str(error).split())
        raise ValueError(text if str(path) in text else f"{path}: damaged: {text}") from error


def network(path: str | pathlib.Path) -> Any:
    """The `keras.Model` in a file."""
    packed = read(path)
    import importlib

    import keras

    for module in keras_file.registered():
        importlib.import_module(module)
    from families.layers.shapes import shapes_only

    def made():
        with keras.src.saving.serialization_lib.SafeModeScope(True):
            return keras.models.model_from_json(packed.architecture)

    try:
        with shapes_only():
            shapes = [(weight.path, tuple(weight.shape)) for weight in made().weights]
    except Exception as error:  # whatever a foreign description makes Keras raise
        raise ValueError(f"{path}: Keras cannot build it: {keras_file.cause(error)}") from error
    names = packed.order or tuple(name for name, _ in shapes)
    if len(names) != len(shapes):
        raise ValueError(f"{path}: it has {len(names)} weights; its layers want {len(shapes)}")
    wanted = {name: shape for name, (_, shape) in zip(names, shapes, strict=True)}
    found = {name: value.shape for name, value in packed.weights.items()}
    if wanted != found:
        name = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))[0]
        raise ValueError(
            f"{path}: weight {name!r} is {found.get(name)}; its layers want {wanted.get(name)}"
        )
    model = made()
    for name, weight in zip(names, model.weights, strict=True):
        weight.assign(packed.weights[name])
    for layer in model._flatten_layers(include_self=False):  # what they make of weights on loading
        if type(layer).load_own_variables is not keras.layers.Layer.load_own_variables:
            store: dict[str, Any] = {}
            layer.save_own_variables(store)
            layer.load_own_variables(store)
    return model


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 codes below 2**bits, one after the other, as bytes.

    >>> pack(np.uint8([1, 2, 3, 0, 1]), 2).tolist()
    [57, 1]
    """
    flat = codes.reshape(-1)
    if flat.size and int(flat.max()) >= 2**bits:
        raise ValueError(f"code {flat.max()} takes more than {bits} bits")
    parts = []
    for start in range(0, flat.size, 2**20):  # whole bytes: bounds the memory of single bits
        part = flat[start : start + 2**20]
        single = (part[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
        parts.append(np.packbits(single.reshape(-1), bitorder="little"))
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


def unpack(content: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The uint8 codes of `pack`."""
    if content.dtype != np.uint8 or content.size != math.ceil(count * bits / 8):
        raise ValueError(f"{content.size} bytes are not {count} codes of {bits} bits")
    codes = np.zeros(count, np.uint8)
    for start in range(0, count, 2**20):
        part = codes[start : start + 2**20]
        begin = start * bits // 8
        single = np.unpackbits(
            content[begin : begin + math.ceil(part.size * bits / 8)],
            count=part.size * bits,
            bitorder="little",
        )
        weights = (1 << np.arange(bits)).astype(np.uint8)
        np.matmul(single.reshape(-1, bits), weights, out=part, casting="unsafe")
    return codes


@dataclasses.dataclass(frozen=True, eq=False)
class _PackedWeight:
    """The arrays of a weight by their names, what the metadata say of it, the kind of storage."""

    arrays: dict[str, np.ndarray]
    form: dict[str, Any] | None
    kind: str

    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def halved(self) -> "_PackedWeight":
        """Without codes: the same values, which float16 holds, in its bytes."""
        if not self.kind.endswith("float32"):
            return self
        arrays = {
            name: array.astype(np.float16) if array.dtype == np.float32 else array
            for name, array in self.arrays.items()
        }
        kind = f"{self.kind.removesuffix('float32')}float16"
        return _PackedWeight(arrays, self.form, kind)


def _packed(path: str, value: np.ndarray, known: Weight | None) -> _PackedWeight:
    if known is None or (known.codes is None and known.mask is None):
        return _PackedWeight({path: value}, None, "float32")
    form: dict[str, Any] = {"shape": list(value.shape)}
    parts: dict[str, np.ndarray] = {}
    kept, kind = np.ones(value.size, bool), ""
    if known.mask is not None:
        parts[f"{path}:mask"] = pack(known.mask.astype(np.uint8), 1)
        kept, kind = known.mask.reshape(-1), "sparse "
    if known.codes is None:
        parts[f"{path}:values"] = value.reshape(-1)[kept]
        return _PackedWeight(parts, form, f"{kind}float32")
    form |= {"bits": known.bits, "axis": known.axis % value.ndim}
    parts[f"{path}:codes"] = pack(known.codes.reshape(-1)[kept], known.bits)
    parts[f"{path}:levels"] = np.ascontiguousarray(known.levels, np.float32)
    parts[f"{path}:scale"] = np.ascontiguousarray(known.scale, np.float32)
    return _PackedWeight(parts, form, f"{kind}int{known.bits}")


def _unpacked(
    arrays: dict[str, np.ndarray], forms: dict[str, Any], architecture: str
) -> PackedFile:
    weights = {n: np.asarray(array, np.float32) for n, array in arrays.items() if ":" not in n}
    record = {}
    for path, form in forms.items():
        shape = tuple(form["shape"])
        count = math.prod(shape)
        mask = arrays.get(f"{path}:mask")
        stored = sum(array.size for name, array in arrays.items() if name.startswith(f"{path}:"))
        if not all(isinstance(n, int) and n > 0 for n in shape) or count > 8 * stored:
            raise ValueError(f"{path}: {stored} numbers are no weight of shape {shape}")
        if mask is not None:
            mask = unpack(mask, 1, count).astype(bool)
        kept = count if mask is None else int(mask.sum())
        if "bits" not in form:
            if mask is None:
                raise ValueError(f"{path}: neither codes nor a mask")
            values = np.zeros(count, np.float32)
            values[mask] = arrays[f"{path}:values"]
            weights[path] = values.reshape(shape)
            record[path] = Weight(mask=mask.reshape(shape))
            continue
        bits = int(form["bits"])
        if not 1 <= bits <= 8:
            raise ValueError(f"{path}: codes of {bits} bits")
        codes = np.zeros(count, np.uint8)
        found = unpack(arrays[f"{path}:codes"], bits, kept)
        codes[slice(None) if mask is None else mask] = found
        record[path] = Weight(
            bits=bits,
            codes=codes.reshape(shape),
            levels=arrays[f"{path}:levels"],
            scale=arrays[f"{path}:scale"],
            mask=None if mask is None else mask.reshape(shape),
            axis=int(form["axis"]),
        )
        try:
            weights[path] = record[path].dense()
        except IndexError:
            raise ValueError(f"{path}: a code has no level") from None
        if weights[path].shape != shape:
            raise ValueError(f"{path}: is {weights[path].shape}; expected {shape}")
    return PackedFile(weights, record, architecture)


def _check(
    path: pathlib.Path, model: Any, record: Record, packed: set[str], data: Data | None
) -> str:
    """Reads a file again; what was compared, in words; CannotWrite where it differs."""
    found = read(path)
    codes = 0
    for variable in model.weights:
        name, value = variable.path, np.asarray(variable, np.float32)
        read_value = found.weights.get(name)
        if read_value is None or not np.isfinite(read_value).all():
            raise CannotWrite(f"{path}: {name} is missing or not finite when read back{REPORT}")
        if name not in packed:
            if not np.array_equal(read_value, value):
                raise CannotWrite(f"{path}: {name} differs when read back{REPORT}")
            continue
        known, again = record.weights[name], found.record[name]
        if known.codes is None:
            if not np.array_equal(read_value, value):
                raise CannotWrite(f"{path}: {name} differs when read back{REPORT}")
            continue
        kept = slice(None) if known.mask is None else known.mask
        if again.codes is None or not np.array_equal(known.codes[kept], again.codes[kept]):
            raise CannotWrite(f"{path}: {name} has other codes when read back{REPORT}")
        if not np.allclose(read_value, value, atol=1e-6):
            raise CannotWrite(
                f"{path}: {name} differs from the network by {np.abs(read_value - value).max():g}"
            )
        codes += known.codes[kept].size
    error = _difference(model, network(path), data)
    return f"{codes} codes equal, outputs within {error:.1g} of the network's, relative"


def _difference(model: Any, again: Any, data: Data | None) -> float:
    """How far the outputs of two networks are apart, of the largest output; CannotWrite if a
    channel is by more than `NOISE` of its own."""
    import keras

    inputs = random_inputs(model, EXAMPLES) if data is None else next(data.batches(EXAMPLES))[0]
    names = [str(number) for number in range(len(model.outputs))]
    first, second = (
        dict(zip(names, map(keras.ops.convert_to_numpy, keras.tree.flatten(given)), strict=True))
        for given in (one(inputs, training=False) for one in (model, again))
    )
    if not all(np.isfinite(value).all() for value in first.values() if value.dtype.kind == "f"):
        raise CannotWrite(
            f"{model.name}: outputs are not finite; train it again, or give other data"
        )
    wrong = same_network.difference(second, first, relative=NOISE)
    if wrong is not None:
        moved = same_network.outputs(model, same_network.nudged(inputs))
        moved = dict(zip(names, moved.values(), strict=True))
        wrong = same_network.difference(second, first, moved, relative=NOISE)
    if wrong is not None:
        raise CannotWrite(f"{model.name}, read back: {wrong}{REPORT}")
    sizes = {name: max(np.abs(value).max(), 1e-9) for name, value in first.items()}
    return max(float(np.abs(second[n] - first[n]).max() / size) for n, size in sizes.items())


def _compact(text: str) -> str:
    return base64.b85encode(zlib.compress(text.encode(), 9)).decode()


def _expanded(text: str) -> str:
    limit = _JSON_MB * 2**20
    engine = zlib.decompressobj()
    try:
        content = engine.decompress(base64.b85decode(text), limit)
        if engine.unconsumed_tail:
            raise ValueError(f"an architecture of more than {_JSON_MB} MB")
        return content.decode()
    except zlib.error as error:
        raise ValueError(f"its architecture cannot be unpacked: {error}") from error
