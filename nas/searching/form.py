"""The form of a network that runs on a device: what is counted, timed and written as .tflite."""

import dataclasses
import pathlib
from typing import Any


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """What of a network runs on a device.

    model: the `keras.Model` that is counted. artifact: what targets take: the model, or its file.
    network, name: its key where figures are kept, and what it is called there. config: its Config,
    where it is not that of the trained network.
    """

    model: Any
    artifact: Any
    network: str
    name: str
    config: Any = None

    def file_bytes(self, card: dict[str, Any]) -> int:
        """Of its `.tflite` file, as it is handed over with its model card."""
        from latency.tflite import convert
        from nas.files.writers.tflite.metadata import with_metadata

        file = self.artifact
        tflite = file.read_bytes() if isinstance(file, pathlib.Path) else convert.bytes_of(file)
        return len(with_metadata(tflite, card))
