"""What a writer says of the file that it wrote and checked, or why there is none."""

import dataclasses
import pathlib
import zipfile
from io import BytesIO
from typing import Any

REPORT = "; this is a defect of the writer: please report it, and write another format meanwhile"


class CannotWrite(ValueError):
    """A file that cannot be made right: the message says why, and what to do instead."""


@dataclasses.dataclass(frozen=True)
class WrittenFile:
    """A deployable file that was read back and compared.

    bytes, zipped_bytes: of the file, or of all files of a directory.
    bits_per_weight: of the network's parameters as counted in the file: stored bits of constants
        (codes, scales, positions of non-zeros, biases) / number of parameters.
    weights: path of the weight -> how the file stores it: "int2", "int4", "int8", "float32", ...
    left: path of a weight -> why it is stored wider than its bits in the record.
    checked: what was compared, with the figures, in words.
    notes: what whoever takes the file has to know, in sentences.
    ends: {"inputs": {name: ...}, "outputs": ...} of those that are integers: type, scale and zero
        point, where they stand for scale * (integer - zero point).
    """

    path: pathlib.Path
    bytes: int
    zipped_bytes: int
    bits_per_weight: float
    weights: dict[str, str]
    left: dict[str, str]
    checked: str
    notes: tuple[str, ...] = ()
    ends: dict[str, Any] = dataclasses.field(default_factory=dict)


def sizes(path: pathlib.Path) -> tuple[int, int]:
    """Bytes of a file, or of all files in a directory, as they are and zipped."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    memory = BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            name = file.name if file == path else str(file.relative_to(path))
            # Not `write`: a file's time would change the result.
            archive.writestr(zipfile.ZipInfo(name), file.read_bytes(), zipfile.ZIP_DEFLATED)
    return sum(file.stat().st_size for file in files), len(memory.getvalue())
