"""What a user's `.tflite` file has beside its graphs: metadata, files packed behind it, signatures.

TensorFlow Lite's model metadata: a buffer of their own, and associated files (such as labels) as a
ZIP archive behind the flatbuffer. https://ai.google.dev/edge/litert/models/metadata
"""

import base64
import dataclasses
import io
import zipfile
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nas.files.writers.tflite.editable_file import File, text

_OF_CONVERTER = ("min_runtime_version", "CONVERSION_METADATA")  # of the file as it was, not kept


@dataclasses.dataclass(frozen=True)
class UserParts:
    """metadata, files: name -> content, base64. description: what the file says of itself.

    signatures: whether it has any. inputs, outputs: what the tensors of its main graph are called.
    """

    metadata: dict[str, str]
    files: dict[str, str]
    description: str
    signatures: bool
    inputs: list[str]
    outputs: list[str]

    @classmethod
    def of(cls, tflite: bytes) -> "UserParts":
        """Those of a file."""
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite))
        metadata = {
            text(one.name): _text(bytes(model.buffers[one.buffer].data))
            for one in model.metadata or ()
            if text(one.name) not in _OF_CONVERTER and model.buffers[one.buffer].data is not None
        }
        files: dict[str, str] = {}
        if zipfile.is_zipfile(io.BytesIO(tflite)):
            with zipfile.ZipFile(io.BytesIO(tflite)) as archive:
                files = {name: _text(archive.read(name)) for name in archive.namelist()}
        main = model.subgraphs[0]
        inputs, outputs = (
            [text(main.tensors[index].name) for index in side]
            for side in (main.inputs, main.outputs)
        )
        signatures = bool(model.signatureDefs)
        return cls(metadata, files, text(model.description), signatures, inputs, outputs)

    def put_back(self, tflite: bytes) -> bytes:
        """A file with these parts: `tflite` was made of the user's and has lost them."""
        file = File(tflite)
        if not self.signatures:
            file.model.signatureDefs = None
        main = file.graphs[0]
        for side, names in ((main.inputs, self.inputs), (main.outputs, self.outputs)):
            for index, name in zip(side, names, strict=True):
                main.tensors[index].name = name
        file.model.description = self.description
        file.model.metadata = [
            schema.MetadataT(name=name, buffer=file.buffer(np.frombuffer(_bytes(data), np.uint8)))
            for name, data in self.metadata.items()
        ]
        whole = io.BytesIO(file.pack())
        if self.files:
            with zipfile.ZipFile(whole, "a") as archive:
                for name, data in self.files.items():
                    # Not by name alone: the time of day would change the file.
                    archive.writestr(zipfile.ZipInfo(name), _bytes(data))
        return whole.getvalue()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(data: Any) -> bytes:
    return base64.b64decode(data)
