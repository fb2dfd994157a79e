"""What a network takes, told without running it: names, shapes and types of its inputs."""

import json
import zipfile
from pathlib import Path
from typing import Any

from latency.networks import keras_file
from latency.networks.input_shape import Input
from latency.tflite import fixed_shapes

_CONFIG_BYTES = 2**27  # an architecture of ten thousand layers takes 20 MB


def inputs_of(model: Any) -> tuple[Input, ...]:
    """The inputs of a `keras.Model`, or of a `.keras` or `.tflite` file; () where none are told.

    >>> import keras
    >>> inputs_of(keras.Sequential([keras.Input((4,), name="x"), keras.layers.ReLU()]))
    (Input(name='x', shape=(None, 4), dtype='float32'),)
    """
    if not isinstance(model, (str, Path)):
        tensors = getattr(model, "inputs", None) or ()
        return tuple(Input(one.name, tuple(one.shape), str(one.dtype)) for one in tensors)
    if Path(model).suffix == ".tflite":
        takes = _signature(model)
        return () if takes is None else takes.inputs
    try:
        return _of_keras_file(Path(model))
    except Exception:  # of a damaged file: whoever loads it says what is wrong
        return ()


def batch_of(model: Any) -> int | None:
    """The batch that a Keras network is built for; None where it takes any, and of other files."""
    if isinstance(model, (str, Path)) and Path(model).suffix != ".keras":
        return None
    first = next((one.shape for one in inputs_of(model) if one.shape), (None,))
    return first[0]


def check_sizes(model: Any) -> None:
    """`ValueError`, saying how to give them, where a network leaves sizes open beside its batch."""
    takes = _signature(model)
    if takes is not None:
        missing = takes.missing()
    else:
        missing = [one for one in inputs_of(model) if None in one.shape[1:]]
    if missing:
        name = f"{model}: " if isinstance(model, (str, Path)) else ""
        raise ValueError(f"{name}{missing[0].question()}")


def as_run(model: Any, batch_size: int) -> dict[str, Any]:
    """What a network was called with: the conditions "inputs" and "signature" of a `Latency`."""
    found: dict[str, Any] = {}
    if inputs := inputs_of(model):
        found["inputs"] = {
            one.name: f"{one.dtype} {_shown(one.shape, batch_size)}" for one in inputs
        }
    takes = _signature(model)
    if takes is not None and takes.others:
        not_run = ", ".join(takes.others)
        found["signature"] = f"{takes.name or 'of the main graph'} (not run: {not_run})"
    elif takes is not None and takes.name is not None:
        found["signature"] = takes.name
    return found


def _signature(model: Any) -> fixed_shapes.Signature | None:
    """What a `.tflite` file takes; None of other networks, and of a damaged file."""
    if not isinstance(model, (str, Path)) or Path(model).suffix != ".tflite":
        return None
    if Path(model).stat().st_size > keras_file.free_mb() * 2**20 / 2:
        return None  # it will be refused
    try:
        return fixed_shapes.read(Path(model).read_bytes())
    except ValueError:  # whoever loads it says what is wrong
        return None


def _shown(shape: tuple[int | None, ...], batch_size: int) -> str:
    sizes = [batch_size if size in (None, 1) else size for size in shape[:1]]
    return "x".join("?" if size is None else str(size) for size in (*sizes, *shape[1:])) or "scalar"


def _of_keras_file(path: Path) -> tuple[Input, ...]:
    """The input layers of the Functional or Sequential model in a file, in its order."""
    with zipfile.ZipFile(path) as archive:
        if archive.getinfo("config.json").file_size > _CONFIG_BYTES:
            return ()
        layers = json.loads(archive.read("config.json"))["config"]["layers"]
    found = [one["config"] for one in layers if one["class_name"] == "InputLayer"]
    return tuple(Input(one["name"], tuple(one["batch_shape"]), str(one["dtype"])) for one in found)
