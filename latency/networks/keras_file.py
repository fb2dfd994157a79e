"""`.keras` files: checks before Keras sees one, and how a model gets to another process."""

import contextlib
import importlib
import json
import re
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

_KERAS_PARTS = {"metadata.json", "config.json"}  # what every .keras file holds
_BROKEN_ZIP = (  # what Python's zipfile raises on damaged archives
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    UnicodeDecodeError,
)
_modules: set[str] = set()  # what `register_layers` named
_CONFIG_MB = 100  # an architecture of ten thousand layers takes 20


def check(path: Path) -> None:
    """Refuses what is no .keras file, or unpacks to more than fits, before Keras sees it."""
    start = first_bytes(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _look_at_parts(path, archive)
    except _BROKEN_ZIP as error:
        what = "a damaged .keras file"
        if not start.startswith(b"PK"):
            what = f"not a .keras file: {format_of(start)}"
        raise ValueError(f"{path}: {what} ({' '.join(str(error).split())})") from None


def _look_at_parts(path: Path, archive: zipfile.ZipFile) -> None:
    parts = {part.filename: part for part in archive.infolist()}
    missing = sorted(_KERAS_PARTS - parts.keys())
    if missing:
        raise ValueError(f"{path}: not a .keras file: a zip archive without {missing[0]}")
    unpacked_mb = sum(part.file_size for part in parts.values()) / 2**20
    if 2 * unpacked_mb > free_mb():
        raise ValueError(
            f"{path}: unpacks to {unpacked_mb / 1024:.1f} GB, and {free_mb() / 1024:.1f} GB of "
            "memory are free here"
        )
    config_mb = parts["config.json"].file_size / 2**20
    if config_mb > _CONFIG_MB:
        raise ValueError(
            f"{path}: an architecture of {config_mb:.0f} MB; expected at most {_CONFIG_MB}"
        )
    for name in parts:
        with archive.open(name) as part:  # to the end, where its checksum lies
            while part.read(2**20):
                pass
    try:
        json.loads(archive.read("config.json"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: its config.json cannot be read: {error}") from None


def for_worker(model: Any, folder: Path, reader: str) -> tuple[Path, list[str]]:
    """The .keras file of a model for another process, and the modules that define its own layers.

    A model in memory is saved into `folder`; a file is checked. `reader` is what reads it, for the
    message of the `ValueError` where it cannot.
    """
    if isinstance(model, (str, Path)):
        path = Path(model).resolve()
        if path.suffix != ".keras":
            raise ValueError(
                f"{model}: {reader} targets need a .keras file or a catalog model"
                + (": a .tflite file holds no Keras layers" if path.suffix == ".tflite" else "")
            )
        check(path)
        return path, registered()
    modules = {type(layer).__module__ for layer in model._flatten_layers()}
    own = sorted(name for name in modules if name.split(".")[0] != "keras")
    if "__main__" in own:
        raise ValueError(
            f"model {model.name!r} has layers that are defined in __main__: move them to a module, "
            f"for {reader} loads it in another process"
        )
    model.save(folder / "model.keras")
    return folder / "model.keras", own


def register_layers(module: str) -> None:
    """Files may name the layers that this module registers; it is imported where one is loaded."""
    _modules.add(module)


def registered() -> list[str]:
    """The modules whose layers a file may name: those of `register_layers`, and of this process.

    Only those that another process with the same paths can import.
    """
    modules = set(_modules)
    if (keras := sys.modules.get("keras")) is not None:
        modules |= {part.__module__ for part in keras.saving.get_custom_objects().values()}
    packages = {name.split(".")[0] for name in modules} - {"keras", "__main__"}
    # Not importlib.util.find_spec, which believes what was imported once.
    found = {
        name
        for name in packages
        if any(finder.find_spec(name, None) is not None for finder in sys.meta_path)
    }
    return sorted(name for name in modules if name.split(".")[0] in found)


def load(path: Path) -> Any:
    """The model in a `.keras` file, in safe mode; `ValueError`, one line, where it is none.

    What a file provokes, it provokes in this process: `latency.tflite.process` has another.
    """
    check(path)
    import keras

    for module in registered():
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever the user's code, or an installed package's, raises
            raise ValueError(f"{path}: cannot import {module}, for its layers: {error}") from error
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # whatever a damaged or foreign file makes Keras raise
        raise ValueError(f"{path}: Keras cannot load it: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """Why Keras cannot load a file, in one line, without the architecture that Keras prints."""
    text = " ".join(str(error).split()) or type(error).__name__
    if unknown := re.search(r"Could not locate (?:class|function) '([^']+)'", text):
        return (
            f"it names {unknown[1]!r}, which nothing here registers; import the file or module that"
            " does, on the command line by --import my_layers.py"
        )
    if "deserialization of a `Lambda` layer" in text:
        return (
            "it holds a Lambda layer, Python code that is not run from a file; make it a registered"
            " layer (on the command line with --import my_layers.py), or keras.ops in the network"
        )
    # "X could not be deserialized properly. ... config={...}. Exception encountered: why"
    text = text.rpartition(" Exception encountered: ")[2]
    return text if len(text) <= 400 else f"{text[:200]} ... {text[-180:]}"


def free_mb() -> float:
    """Memory that can be had without swapping; 2000 MB where the system does not report it."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable"))
        return int(available.split()[1]) / 1024
    return 2000.0


def first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(16)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def format_of(start: bytes) -> str:
    known = {
        b"\x89PNG": "a PNG picture",
        b"\xff\xd8\xff": "a JPEG picture",
        b"PK": "a zip archive (.keras and .pt files are)",
        b"\x89HDF": "an HDF5 file (as Keras wrote before .keras)",
        b"\x1f\x8b": "a gzip archive",
        b"%PDF": "a PDF file",
        b"\x7fELF": "a program",
        b"\x80": "a Python pickle",
    }
    for magic, what in known.items():
        if start.startswith(magic):
            return what
    if not start:
        return "an empty file"
    return f"it starts with {start[:8]!r}"
