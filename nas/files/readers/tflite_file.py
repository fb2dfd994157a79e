"""`.tflite` files as Keras models: a leaf layer for each float constant, one that runs the graph.

What changes kernels in place, as quantization after training does, finds them as in any network.
The rest of the graph is LiteRT's and has no gradients. Weights in float16 are read as float32.
"""

import base64
import collections
import dataclasses
import itertools
import pathlib
import re
from typing import Any

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from latency.networks.random_inputs import random_inputs
from latency.tflite import convert, examples, fixed_shapes, process, same_network
from latency.tflite.signature import distinct, names, signed
from nas.files.readers.tflite_layers import Constant, Graph, Output
from nas.files.writers.tflite.editable_file import FLOAT16, FLOAT32, File, shape, text
from nas.files.writers.tflite.fused_relu import fuse_relus
from nas.files.writers.tflite.readback import in_floats
from nas.files.writers.tflite.user_parts import UserParts

Axes = tuple[str, int, tuple[int, ...]]
# An operator, and which of its inputs is a kernel -> kind, axis of outputs, axes summed over.
KERNELS: dict[tuple[str, int], Axes] = {
    ("FULLY_CONNECTED", 1): ("dense", 0, (-1,)),
    ("CONV_2D", 1): ("conv", 0, (1, 2, 3)),
    ("CONV_3D", 1): ("conv", -1, (0, 1, 2, 3)),
    ("DEPTHWISE_CONV_2D", 1): ("depthwise", -1, (0, 1, 2)),
    ("TRANSPOSE_CONV", 1): ("conv", 0, (1, 2, 3)),
    ("GATHER", 0): ("embedding", 0, (-1,)),
    ("EMBEDDING_LOOKUP", 1): ("embedding", 0, (-1,)),
    ("BATCH_MATMUL", 1): ("dense", -1, (-2,)),
}
_TYPES = {code: name for name, code in vars(schema.TensorType).items() if name.isupper()}
_INTEGERS = ("INT2", "INT4", "INT8", "UINT8", "INT16")
_STATE = {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"}
_ENDINGS = {"SOFTMAX": "softmax", "LOGISTIC": "sigmoid"}
_LINEAR = ("FULLY_CONNECTED", "CONV_2D")  # where no activation is fused
_PASSED = ("RESHAPE", "SQUEEZE")
_COMPARED = 2  # random examples


def network(path: pathlib.Path) -> tuple[Any, list[str]]:
    """The `keras.Model` of a file, and what was changed as it was read, in sentences.

    It is compared with the file on random inputs. Raises `ValueError`, one line, where the file is
    damaged, is quantized already, keeps state from call to call, has several signatures, or leaves
    sizes open other than the batch.
    """
    given = path.read_bytes()
    if given[4:8] == b"TFL3":  # with sizes that are open it could not be run
        takes = fixed_shapes.read(given)
        if missing := takes.missing():
            raise ValueError(f"{path}: {missing[0].question()}")
    process.check(path)
    original = File(given)
    _check(path, original, takes)
    file = File(in_floats(given))
    fuse_relus(file)
    if not file.model.signatureDefs:
        main = file.graphs[0]
        inputs, outputs = (
            distinct([text(main.tensors[index].name) for index in side])
            for side in (main.inputs, main.outputs)
        )
        file = File(signed(file.pack(), inputs, outputs))
    session = convert.Session(file.pack())
    taken: set[str] = set()
    sizes = _example_shapes(session)
    ins = _side(session.inputs, sizes[0], taken)
    outs = _side(session.outputs, sizes[1], taken)
    endings = [_ending(file, int(index)) for index in file.graphs[0].outputs]
    constants, values = _take_constants(file, taken)
    graph = Graph(
        graph=base64.b64encode(file.pack()).decode(),
        constants=[one.name for one in constants],
        inputs=ins,
        outputs=outs,
        parts=dataclasses.asdict(UserParts.of(given)),
        name=_free("graph", taken),
    )
    tensors = [keras.Input(size, dtype=kind, name=ours) for ours, _, size, kind in ins]
    made = graph(tensors, [constant(tensors[0]) for constant in constants])
    ends = [
        Output(ending, name=ours)(tensor)
        for tensor, ending, (ours, *_) in zip(made, endings, outs, strict=True)
    ]
    model = keras.Model(
        tensors if len(tensors) > 1 else tensors[0],
        ends if len(ends) > 1 else ends[0],
        name=re.sub(r"\W", "_", path.stem),
    )
    for constant, value in zip(constants, values, strict=True):
        constant.value.assign(value)
    _compare(path, model)
    return model, _notes(original)


def _check(path: pathlib.Path, file: File, takes: fixed_shapes.Signature) -> None:
    """`ValueError` for files whose kernels are no floats, or which are more than a function."""
    if takes.others:
        known = ", ".join((*([takes.name] if takes.name else []), *takes.others))
        raise ValueError(
            f"{path}: has the signatures {known}, of which one can be compressed; keep it by"
            " --signature NAME, in Python by nas.open(path, signature=...)"
        )
    if text_input := next((one.name for one in takes.inputs if one.dtype == "string"), None):
        raise ValueError(f"{path}: input {text_input!r} is text; expected one that takes numbers")
    operators = {file.name(one) for graph in file.graphs for one in graph.operators}
    if state := sorted(operators & _STATE):
        raise ValueError(
            f"{path}: keeps state from call to call ({', '.join(state)}), as streams do; give the"
            " network that it was made of, with its state as an input and an output"
        )
    codes: collections.Counter[str] = collections.Counter()
    for _, _, tensor in file.constants():
        scale = None if tensor.quantization is None else tensor.quantization.scale
        if len(shape(tensor)) > 1 and _TYPES[tensor.type] in _INTEGERS and scale is not None:
            codes[_TYPES[tensor.type]] += 1
    if codes:
        counted = ", ".join(f"{count} constants of {kind}" for kind, count in codes.items())
        raise ValueError(
            f"{path}: is quantized already ({counted}); give the float file, or the .keras, .h5 or"
            " SavedModel, that it was made of"
        )


def _example_shapes(session: convert.Session) -> tuple[examples.Sizes, examples.Sizes]:
    """Of inputs and outputs, as a run on zeros finds them."""
    zeros = {name: np.zeros(size, kind) for name, (size, kind) in session.inputs.items()}
    made = session(zeros)
    return examples.example_shapes(
        {name: array.shape for name, array in zeros.items()},
        {name: array.shape for name, array in made.items()},
    )


def _side(known: dict[str, Any], shapes: examples.Sizes, taken: set[str]) -> list[tuple]:
    """(name in the model, name in the file, shape of an example, type) of inputs or outputs."""
    return [
        (_free(name, taken), name, tuple(shapes[name]), np.dtype(kind).name)
        for name, (_, kind) in known.items()
    ]


def _free(name: str, taken: set[str]) -> str:
    """A name that a layer of Keras may have, and none has yet; it is taken from then on."""
    plain = re.sub(r"[^\w.-]+", "_", name.split(";")[0]).strip("_.-") or "constant"
    numbered = itertools.chain([plain], (f"{plain}_{number}" for number in itertools.count(1)))
    found = next(one for one in numbered if one not in taken)
    taken.add(found)
    return found


def _take_constants(file: File, taken: set[str]) -> tuple[list[Constant], list[np.ndarray]]:
    """A layer for each different float constant, and its values; the file gets their numbers."""
    numbers: dict[Any, int] = {}
    layers: list[Constant] = []
    values: list[np.ndarray] = []
    for graph, index, tensor in list(file.constants()):
        if tensor.type != FLOAT32:
            continue
        axes, size = _axes(file, graph, index), shape(tensor)
        key = tensor.buffer, size, axes
        if key not in numbers:
            numbers[key] = len(layers)
            layers.append(Constant(size, axes, name=_free(text(tensor.name), taken)))
            values.append(file.value(tensor).copy())
        tensor.buffer = file.buffer(np.array([numbers[key]], np.int32))
    return layers, values


def _axes(file: File, graph: int, index: int) -> Axes | None:
    """Of a constant that operators read as a kernel: kind, output axis, input axes."""
    rank = len(shape(file.graphs[graph].tensors[index]))
    for operator, position in file.readers(graph, index):
        name, options = file.name(operator), operator.builtinOptions
        found = KERNELS.get((name, position))
        if found is None or rank < 2:
            continue
        if name == "GATHER" and (rank != 2 or options.axis or options.batchDims):
            continue
        if name == "BATCH_MATMUL" and options.adjY:
            return "dense", -2, (-1,)
        return found
    return None


def _ending(file: File, index: int) -> str | None:
    """The function that an output of the main graph comes out of, if that is known."""
    makers = {int(made): one for one in file.graphs[0].operators for made in one.outputs}
    while (operator := makers.get(index)) is not None:
        name = file.name(operator)
        if name in _LINEAR and not operator.builtinOptions.fusedActivationFunction:
            return "linear"
        if name not in _PASSED:
            return _ENDINGS.get(name)
        index = int(operator.inputs[0])
    return None


def _compare(path: pathlib.Path, model: Any) -> None:
    """`ValueError` unless the model gives what its file gives, channel by channel."""
    inputs = random_inputs(model, _COMPARED)
    named = dict(zip(names(model)[0], keras.tree.flatten(inputs), strict=True))
    ours, theirs = same_network.outputs(model, inputs), examples.run(convert.Session(path), named)
    if (wrong := same_network.difference(ours, theirs)) is not None:
        raise ValueError(f"{path}: is read as another network: {wrong}; please report it")


def _notes(file: File) -> list[str]:
    constants = [tensor for _, _, tensor in file.constants()]
    half = sum(tensor.type == FLOAT16 for tensor in constants)
    sparse = sum(tensor.sparsity is not None for tensor in constants)
    notes = [f"its {half} constants of float16 are read as float32"] if half else []
    return notes + ([f"its {sparse} sparse constants are read as dense"] if sparse else [])
