"""What each operation of a network asks of a device: its kind, and numbers that its time hangs on.

Read from the LiteRT graph, whatever the device runs in the end: the shapes are the same.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from latency.tflite import convert
from latency.tflite.graph import Operation, operations

# Logarithms: outputs' pixels, inputs' pixels, channels in, channels out, kernel area, stride,
# multiply-adds, activations read, activations written, weights. Then: an activation is fused.
FEATURES = (
    *("pixels_out", "pixels_in", "channels_in", "channels_out", "kernel", "stride"),
    *("macs", "read", "written", "weights", "fused"),
)
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
_TYPES = {code: name for name, code in vars(schema.TensorType).items() if name.isupper()}


@dataclasses.dataclass(frozen=True)
class Work:
    """One operation: times are learned by `kind` from `features`; equal works take equal time."""

    kind: str  # e.g. "CONV_2D 1x1"; with the type where it isn't float32
    features: tuple[float, ...]  # FEATURES

    @property
    def macs(self) -> float:
        return math.expm1(self.features[6])

    @property
    def elements(self) -> float:
        """Activations and weights that are read or written."""
        return sum(math.expm1(size) for size in self.features[7:10])


def of_model(model: Any, batch_size: int = 1) -> tuple[Work, ...]:
    """The works of a `keras.Model`, a `.keras` or a `.tflite` file, in the order of the graph.

    Takes tens of milliseconds and no TensorFlow. Raises `ValueError` where the network isn't of
    `batch_size`, or its sizes are open.
    """
    return read(model, batch_size)[0]


def read(model: Any, batch_size: int = 1) -> tuple[tuple[Work, ...], list[tuple[str, str]]]:
    """The works of a network, and what profilers call each: its type and its output's name.

    `model` may be the bytes of a `.tflite` file too.
    """
    name = "the network"
    if isinstance(model, bytes):
        tflite = model
    elif isinstance(model, (str, Path)) and Path(model).suffix == ".tflite":
        # Read and never run: `convert.file_of` would try it in a process of its own first.
        name, tflite = str(model), Path(model).read_bytes()
    else:
        tflite = convert.bytes_of(model)
    if tflite[4:8] != b"TFL3":
        raise ValueError(f"{name}: not a LiteRT file: identifier {tflite[4:8]!r}, not b'TFL3'")
    try:
        graph = operations(tflite)
        types, names = _results(tflite)
    except Exception as error:  # flatbuffers raises what it likes on a truncated file
        raise ValueError(f"{name}: not a readable LiteRT file: {error}") from error
    called = [(one.name, name) for one, name in zip(graph, names, strict=True)]
    return of_operations(graph, types, batch_size), called


def times(
    called: Sequence[tuple[str, str]], rows: Sequence[dict[str, Any]] | None
) -> np.ndarray | None:
    """The milliseconds of each operation of `read` from rows of `Latency.per_op`; nan: unknown.

    None where less than nine tenths of the time can be assigned. Fastest times are taken
    where all have one: they repeat on a busy device.
    """
    rows = [row for row in rows or () if row.get("within", "graph") == "graph"]
    field = "fastest_ms" if all("fastest_ms" in row for row in rows) else "ms"
    index: dict[str, int] = {}
    for number, (_, name) in enumerate(called):
        index.setdefault(name, number)
    found = np.full(len(called), np.nan)
    for row in rows:
        # LiteRT's benchmark tool writes "[name]:number of the operation".
        name = str(row["name"]).split(";")[0].partition("]:")[0].lstrip("[").rstrip("]")
        if name in index:
            place = index[name]
            found[place] = np.nansum([found[place], row[field]])
    total = sum(row[field] for row in rows)
    if total > 0 and np.nansum(found) >= 0.9 * total:
        return found
    if [row["type"] for row in rows] == [type_ for type_, _ in called]:
        return np.array([row[field] for row in rows])
    return None


def of_operations(
    graph: Sequence[Operation], types: Sequence[str] | None = None, batch_size: int = 1
) -> tuple[Work, ...]:
    """The works of operations; `types` are those of their results, float32 if None."""
    works = []
    for number, operation in enumerate(graph):
        work = _work(operation, types[number] if types else "float32")
        if any(size < 1 for shape in operation.outputs for size in shape):
            raise ValueError(f"{work.kind} makes {operation.outputs}: expected static shapes")
        works.append(work)
    first = graph[0].inputs[0] if graph and graph[0].inputs else ()
    if len(first) > 1 and first[0] != batch_size:
        raise ValueError(f"the network is for batch {first[0]}, not {batch_size}")
    return tuple(works)


def _work(operation: Operation, type_: str) -> Work:
    options, shapes = operation.options, [shape for shape in operation.inputs if shape]
    source = shapes[0] if shapes else ()
    result = operation.outputs[0] if operation.outputs else ()
    weighted = operation.name in _WEIGHTED
    weights = math.prod(operation.inputs[1]) if weighted else 0
    read = sum(math.prod(shape) for shape in (shapes[:1] if weighted else shapes))
    written = sum(math.prod(shape) for shape in operation.outputs)
    kernel, macs = _kernel(operation), 0
    if operation.name == "CONV_2D":
        # Groups: a kernel sees fewer channels than there are.
        macs = written * math.prod(operation.inputs[1][1:])
    elif operation.name == "DEPTHWISE_CONV_2D":
        macs = written * kernel
    elif weighted:
        macs = weights * math.prod(source[:-1])
    elif operation.name.endswith("POOL_2D"):
        macs = written * kernel
    strides = options.get("strideH", 1) * options.get("strideW", 1)
    sizes = (
        _pixels(result),
        _pixels(source),
        source[-1] if source else 1,
        result[-1] if result else 1,
        kernel,
        strides,
        macs,
        read,
        written,
        weights,
        min(options.get("fusedActivationFunction", 0), 1),
    )
    return Work(_kind(operation, kernel, type_), tuple(math.log1p(size) for size in sizes))


def _kernel(operation: Operation) -> int:
    """The kernel's height times width."""
    if operation.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"):
        return math.prod(operation.inputs[1][1:3])
    return operation.options.get("filterHeight", 1) * operation.options.get("filterWidth", 1)


def _pixels(shape: tuple[int, ...]) -> int:
    return math.prod(shape[:-1])


def _kind(operation: Operation, kernel: int, type_: str) -> str:
    name = operation.name
    if name == "CONV_2D":
        source, weights = operation.inputs[:2]
        if source[-1] != weights[-1]:
            name += " grouped"
        elif kernel == 1:
            name += " 1x1" if _pixels(operation.outputs[0]) > 1 else " vector"
    elif (
        name in ("ADD", "MUL", "SUB", "DIV")
        and len({math.prod(shape) for shape in operation.inputs}) > 1
    ):
        name += " broadcast"
    dilation = operation.options.get("dilationHFactor", 1)
    name += f" dilated {dilation}" if dilation > 1 else ""
    return name if type_ == "float32" else f"{name} {type_}"


def _results(tflite: bytes) -> tuple[list[str], list[str]]:
    """The type, e.g. float32, and the name of the first result of each operation."""
    graph = schema.Model.GetRootAs(tflite).Subgraphs(0)
    results = [graph.Tensors(graph.Operators(i).Outputs(0)) for i in range(graph.OperatorsLength())]
    names = [(tensor.Name() or b"").decode("utf-8", "replace") for tensor in results]
    types = [_TYPES[tensor.Type()].lower() for tensor in results]
    return types, [name.split(";")[0] for name in names]


def matrix(networks: Sequence[Sequence[Work]]) -> tuple[list[Work], np.ndarray]:
    """The different works of some networks, and how often each network has each (n, works)."""
    different = sorted(
        {work for works in networks for work in works}, key=lambda w: (w.kind, w.features)
    )
    index = {work: position for position, work in enumerate(different)}
    counts = np.zeros((len(networks), len(different)))
    for row, works in zip(counts, networks, strict=True):
        for work in works:
            row[index[work]] += 1
    return different, counts
