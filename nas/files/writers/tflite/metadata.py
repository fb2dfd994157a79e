"""TensorFlow Lite's model metadata: what a `.tflite` file says of itself to the apps that run it.

A flatbuffer in a buffer named TFLITE_METADATA, and associated files as a ZIP archive behind the
model: https://ai.google.dev/edge/litert/models/metadata. Read by MediaPipe's tasks, Android Studio
and the TFLite Support Library; `tests/nas/files/test_hand_over.py` reads it back by the schema.
"""

import io
import json
import zipfile
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nas.files.hand_over.use import CARD, LABELS
from nas.files.writers.tflite.editable_file import File, shape, text

NAME, IDENTIFIER, PARSER = "TFLITE_METADATA", b"M001", "1.3.0"
AXIS_LABELS = np.int8(2)  # AssociatedFileType
IMAGE, AUDIO = np.uint8(2), np.uint8(4)  # ContentProperties
RGB, GRAY = np.int8(1), np.int8(2)  # ColorSpaceType
NORMALIZATION = np.uint8(1)  # ProcessUnitOptions
Table = dict[int, Any]  # field -> a number of NumPy, text, an array, a table or a list of them


def with_metadata(tflite: bytes, card: dict[str, Any]) -> bytes:
    """The file with a model card (`nas.files.hand_over.model_card`), to be read by any reader.

    What a user's own file says of itself stays; the card is added to it then.
    """
    file, files = File(tflite), _associated(tflite)
    card = _as_in_file(card, file)
    labels = card.pop("labels", [])
    if labels:
        files.setdefault(LABELS, "\n".join(labels).encode())
    files[CARD] = json.dumps(card, ensure_ascii=False, separators=(",", ":")).encode()
    found = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite))
    own = {text(one.name): bytes(found.buffers[one.buffer].data) for one in found.metadata or ()}
    own.setdefault(NAME, _described(file, card, bool(labels)))
    file.model.metadata = [
        schema.MetadataT(name=name, buffer=file.buffer(np.frombuffer(data, np.uint8)))
        for name, data in own.items()
    ]
    whole = io.BytesIO(file.pack())
    with zipfile.ZipFile(whole, "a") as archive:
        for name, data in files.items():
            # Not by name alone: the time of day would change the file. Not deflated: MediaPipe
            # maps the file into memory and refuses it ("Expected uncompressed zip archive").
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_STORED)
    return whole.getvalue()


def _as_in_file(card: dict[str, Any], file: File) -> dict[str, Any]:
    """A card with the sizes that a file has, where its network leaves them open, and its names."""
    sides, graph = {}, file.graphs[0]
    for side, known in zip(("inputs", "outputs"), _names(file), strict=True):
        if {one["name"] for one in card[side]}.isdisjoint(known) and len(card[side]) == len(known):
            # A user's own file, that calls them otherwise than the network that was read from it.
            renamed = [one | {"name": name} for one, name in zip(card[side], known, strict=True)]
            card = card | {side: renamed}
        shapes = {
            name: [int(size) for size in shape(graph.tensors[index])[1:]]
            for name, index in zip(known, getattr(graph, side), strict=True)
        }
        sides[side] = [one | {"shape": shapes.get(one["name"], one["shape"])} for one in card[side]]
    return card | sides


def _associated(tflite: bytes) -> dict[str, bytes]:
    """The files that are packed behind a model."""
    if not zipfile.is_zipfile(io.BytesIO(tflite)):
        return {}
    with zipfile.ZipFile(io.BytesIO(tflite)) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name != CARD}


def _described(file: File, card: dict[str, Any], labelled: bool) -> bytes:
    """The ModelMetadata flatbuffer; fields by their numbers in metadata_schema.fbs."""
    inputs, outputs = (
        [_tensor(name, known.get(name, {"name": name}), labelled) for name in side]
        for side, known in zip(
            _names(file),
            ({one["name"]: one for one in card[side]} for side in ("inputs", "outputs")),
            strict=True,
        )
    )
    made = card["made"]
    said = "; ".join(f"{name}: {value}" for name, value in made.items() if name != "version")
    model: Table = {
        0: card["name"],
        1: said,
        2: made["version"],
        3: [{2: inputs, 3: outputs}],
        7: PARSER,
    }
    builder = flatbuffers.Builder(1024)
    builder.Finish(_written(builder, model), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _names(file: File) -> tuple[list[str], list[str]]:
    """What a file's main graph calls its inputs and outputs, in the order of its tensors."""
    graph = file.graphs[0]
    found = []
    signature = next((s for s in file.model.signatureDefs or () if s.subgraphIndex == 0), None)
    for side in ("inputs", "outputs"):
        entries = getattr(signature, side, None) or ()
        named = {int(entry.tensorIndex): text(entry.name) for entry in entries}
        indices = [int(index) for index in getattr(graph, side)]
        found.append([named.get(one, text(graph.tensors[one].name)) for one in indices])
    return found[0], found[1]


def _tensor(name: str, entry: dict[str, Any], labelled: bool) -> Table:
    """TensorMetadata of an input or output of the card."""
    found: Table = {0: name}
    kind, sizes = entry.get("kind"), entry.get("shape", [])
    if kind == "image":
        color = RGB if sizes[-1] == 3 else GRAY
        size = {0: np.uint32(sizes[1]), 1: np.uint32(sizes[0])}
        found[3] = {0: IMAGE, 1: {0: color, 1: size}}
    elif kind == "audio":
        rate = {0: np.uint32(entry["sample_rate"]), 1: np.uint32(1)}
        found[3] = {0: AUDIO, 1: rate}
    scale = entry.get("scale", 1.0)
    means, stds = (np.array(entry.get(part, [end]), np.float32) * np.float32(scale)
                   for part, end in (("mean", 0.0), ("std", 1.0)))  # fmt: skip
    if kind in ("image", "audio", "array") and "float" in entry.get("dtype", ""):
        found[4] = [{0: NORMALIZATION, 1: {0: means, 1: stds}}]
    if labelled and entry.get("classes") == "labels":
        found[6] = [{0: LABELS, 1: "the names of classes, in order", 2: AXIS_LABELS}]
    return found


def _written(builder: flatbuffers.Builder, table: Table) -> int:
    """Writes a table; where it begins."""
    children = {}
    for field, value in table.items():
        if isinstance(value, str):
            children[field] = builder.CreateString(value)
        elif isinstance(value, dict):
            children[field] = _written(builder, value)
        elif isinstance(value, np.ndarray):
            children[field] = builder.CreateNumpyVector(value)
        elif isinstance(value, list):
            places = [_written(builder, one) for one in value]
            builder.StartVector(4, len(places), 4)
            for place in reversed(places):
                builder.PrependUOffsetTRelative(place)
            children[field] = builder.EndVector()
    builder.StartObject(max(table) + 1)
    for field, value in table.items():
        if field in children:
            builder.PrependUOffsetTRelativeSlot(field, children[field], 0)
        else:
            prepend = {1: builder.PrependUint8Slot, 4: builder.PrependUint32Slot}
            prepend[value.itemsize](field, int(value), 0)
    return builder.EndObject()
