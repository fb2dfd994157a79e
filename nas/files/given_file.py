"""What the file that a user gave is: bytes, types, what in it is no weight of the network."""

import io
import pathlib
import zipfile
from typing import Any

from nas.files.writers.written_file import sizes

_WEIGHTS = "model.weights.h5"  # within a .keras file
_OPTIMIZER = "optimizer"  # group of it, and of .h5 files


def given(read_from: pathlib.Path | None, suffix: str) -> pathlib.Path | None:
    """The file, or folder of them, of a format that a network was read from; None: another format.

    >>> given(pathlib.Path("a.keras"), ".tflite") is None
    True
    """
    if read_from is None:
        return None
    if read_from.is_dir():
        return read_from if any(read_from.glob(f"*{suffix}")) else None
    return read_from if read_from.suffix.lower() == suffix else None


def describe(path: pathlib.Path, suffix: str, params: int) -> dict[str, Any]:
    """Of a file as it is: path, bytes, zipped_bytes, bits_per_weight, dtype; optimizer_bytes.

    Of a folder: all files of `suffix` together.
    """
    files = [path] if path.is_file() else sorted(path.glob(f"*{suffix}"))
    plain, zipped = (sum(size) for size in zip(*map(sizes, files), strict=True))
    types, optimizer = set(), 0
    for file in files:
        found, extra = _READERS.get(suffix, _nothing)(file)
        types |= found
        optimizer += extra
    return {
        "path": str(path),
        "bytes": plain,
        "zipped_bytes": zipped,
        "bits_per_weight": 8 * (plain - optimizer) / max(params, 1),
        "dtype": ", ".join(sorted(types)) or "unknown",
        "optimizer_bytes": optimizer,
        "weights": {},
        "left": {},
        "notes": [],
        "checked": "nothing: the file as it was given",
    }


def _nothing(path: pathlib.Path) -> tuple[set[str], int]:
    return set(), 0


def _keras(path: pathlib.Path) -> tuple[set[str], int]:
    with zipfile.ZipFile(path) as archive:
        return _hdf5(io.BytesIO(archive.read(_WEIGHTS)))


def _hdf5(file: Any) -> tuple[set[str], int]:
    import h5py

    types: set[str] = set()
    optimizer = 0

    def visit(name: str, item: Any) -> None:
        nonlocal optimizer
        if not isinstance(item, h5py.Dataset):
            return
        if name.startswith(_OPTIMIZER):
            optimizer += item.nbytes
        elif item.dtype.kind in "fV" and item.ndim:
            types.add("bfloat16" if item.dtype.kind == "V" else item.dtype.name)

    with h5py.File(file, "r") as opened:
        opened.visititems(visit)
    return types, optimizer


def _safetensors(path: pathlib.Path) -> tuple[set[str], int]:
    from safetensors import safe_open

    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    with safe_open(path, "numpy") as file:
        types = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return {names.get(kind, kind) for kind in types}, 0


def _tflite(path: pathlib.Path) -> tuple[set[str], int]:
    from ai_edge_litert import schema_py_generated as schema

    from nas.files.writers.tflite.editable_file import File

    kinds = {number: name.lower() for name, number in vars(schema.TensorType).items()}
    return {kinds[tensor.type] for _, _, tensor in File(path.read_bytes()).constants()}, 0


_READERS = {
    ".keras": _keras,
    ".h5": _hdf5,
    ".safetensors": _safetensors,
    ".tflite": _tflite,
}
