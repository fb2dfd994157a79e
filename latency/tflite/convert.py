"""Keras models to LiteRT (`.tflite`) by the official converter, and running the result.

`assemble` writes the same graph in milliseconds where it knows all layers; `convert` is for all.
"""

import hashlib
import logging
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from latency.networks import keras_file
from latency.networks.float32 import in_float32, quantized
from latency.networks.functional import functional
from latency.networks.input_shape import Input
from latency.system.silent_stderr import silent_stderr
from latency.tflite import examples, fixed_shapes, process, same_network
from latency.tflite.branch_constants import with_own_constants
from latency.tflite.direct_writer import assemble
from latency.tflite.plain_operations import plain_argmax
from latency.tflite.refusals import reason
from latency.tflite.signature import names, signed

__all__ = ["Session", "assemble", "bytes_of", "convert", "file_of", "load", "run", "runner"]

Arrays = dict[str, np.ndarray]
VALUES = "random from 0 to 1 of a fixed seed, integers 0"  # what `runner` fills inputs with


def convert(model: Any) -> bytes:
    """The `.tflite` file of `model` by TensorFlow's converter: static shapes at batch 1.

    Inputs and outputs are named as in the dicts that the model takes and gives, else as its layers
    are (`Session` and `run` go by these names), and keep their types: int32 stays int32.

    The variables are frozen first: several times faster than through a SavedModel
    (`tools/bench_latency.py`), and without it the converter leaves READ_VARIABLE operations in the
    file, which fail when it runs. Where Keras is on another backend, another process does this.
    Layers in half precision compute in float32. Raises `ValueError` where an operation has no
    builtin form: a Flex operation would not run on devices.
    """
    import keras  # noqa: PLC0415 (the backend is the caller's choice, made before Keras is imported)

    model = functional(model)
    _check_possible(model)
    inputs, outputs = names(model)
    if keras.backend.backend() != "tensorflow":
        with tempfile.TemporaryDirectory(prefix="nas_litert_") as folder:
            path, _ = keras_file.for_worker(model, Path(folder), "LiteRT")
            return process.convert(path)
    import tensorflow as tf  # noqa: PLC0415
    from tensorflow.python.framework import convert_to_constants  # noqa: PLC0415

    def infer(*inputs):
        # What layers write as they run, such as the seeds of dropout in an LSTM, stays out.
        with in_float32(model), keras.StatelessScope(), plain_argmax():
            outputs = model(keras.tree.pack_sequence_as(model.input, inputs), training=False)
        return keras.tree.flatten(outputs)

    signature = [tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs]
    freeze = convert_to_constants.convert_variables_to_constants_v2
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)  # it warns of a trackable object, which a frozen graph lacks
    placed: dict[str, str] = {}
    try:
        function = tf.function(infer, autograph=False).get_concrete_function(*signature)
        placed = {one.type: one.name for one in function.graph.get_operations()}
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [with_own_constants(freeze(function, lower_control_flow=False))]
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        with silent_stderr():  # what it says there is in its error, too
            made = converter.convert()
    except Exception as error:  # whatever TensorFlow, or the code of a layer, raises
        raise ValueError(reason(model, error, placed)) from error
    finally:
        logging.disable(disabled)
    return signed(made, inputs, outputs)


def _check_possible(model: Any) -> None:
    """`ValueError`, with the remedy, where a network has no `.tflite` form."""
    for tensor in model.inputs:
        if any(size is None for size in tensor.shape[1:]):
            raise ValueError(Input(tensor.name, tuple(tensor.shape), tensor.dtype).question())
        if tensor.dtype == "string":
            raise ValueError(
                f"input {tensor.name!r}: text is looked up outside of a .tflite file; give the "
                "part of the network that begins with integers"
            )
    stateful = [one.name for one in model._flatten_layers() if getattr(one, "stateful", False)]
    if stateful:
        raise ValueError(
            f"layer {stateful[0]!r} is stateful: a .tflite file keeps nothing from call to call; "
            "build it with stateful=False, its state as an input and an output"
        )
    if codes := quantized(model):
        name, mode = next(iter(codes.items()))
        raise ValueError(
            f"layer {name!r} was quantized by Keras ({mode}), whose integers LiteRT cannot run; "
            "give the float network, and --method ptq:8"
        )


def file_of(model: Any, batch_size: int = 1) -> bytes | Path:
    """The LiteRT file of a model or of a .keras file; the path of a .tflite file as it is.

    batch_size: of another than 1 a file is made that takes so many examples at once.

    Files may come from anywhere: they are loaded and run in another process first, with a limit on
    time and memory. `ValueError`, in one line, where that fails. The file of a model is run beside
    it, on one input: what `assemble` writes otherwise than Keras computes is left to `convert`.
    """
    if isinstance(model, (str, Path)):
        path = Path(model)
        if path.suffix == ".tflite":
            return _given(path, batch_size)
        if path.suffix != ".keras":
            raise ValueError(f"{path}: expected a .tflite or .keras file")
        return _at_batch(process.convert(path), batch_size)
    model = functional(model)
    if getattr(model, "_nodes_by_depth", None) is not None:
        _check_possible(model)
    try:
        tflite = assemble(model)
        _check(model, tflite)
    except ValueError:  # a layer that is not written directly
        tflite = convert(model)
        _check(model, tflite)
    return _at_batch(tflite, batch_size)


def _given(path: Path, batch_size: int) -> bytes | Path:
    """A `.tflite` file, checked, or what takes so many examples at once."""
    process.check(path)
    if batch_size == 1:
        return path
    takes = fixed_shapes.read(path.read_bytes())
    if takes.inputs and takes.inputs[0].shape[:1] == (batch_size,):
        return path
    return process.fixed(path, fixed_shapes.at_batch(takes, batch_size))


def _at_batch(tflite: bytes, size: int) -> bytes:
    if size == 1:
        return tflite
    return fixed_shapes.fixed(tflite, fixed_shapes.at_batch(fixed_shapes.read(tflite), size))


def _check(model: Any, tflite: bytes) -> None:
    """`ValueError` unless the file gives on one input what the network gives, by channel."""
    digest = hashlib.sha256(tflite).digest()
    if _checked.get(model) == digest:  # several targets ask for it
        return
    chooses = any(getattr(layer, "chooses_outputs", False) for layer in model.layers)
    session = Session(tflite)
    with in_float32(model):
        # Which objects are kept is decided by comparisons, which rounding may turn.
        leave = tuple(session.outputs) if chooses else ()
        wrong = same_network.check(model, session, leave=leave)
    if wrong is not None:
        raise ValueError(f"model {model.name!r}: its LiteRT file is another network: {wrong}")
    _checked[model] = digest


_checked: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # model -> digest of its file


def bytes_of(model: Any) -> bytes:
    """What the LiteRT file of a model, or of a .keras or .tflite file, holds: see `file_of`."""
    file = file_of(model)
    return file if isinstance(file, bytes) else file.read_bytes()


def load(tflite: bytes | str | Path, threads: int = 1) -> Interpreter:
    """A LiteRT interpreter (XNNPACK) of a `.tflite` file or its bytes; `ValueError` if bad."""
    path = None
    if not isinstance(tflite, bytes):
        path = Path(tflite)
        if not path.is_file():
            raise ValueError(f"{path}: expected a .tflite file, found none")
        tflite = path.read_bytes()
    name = path or "the given bytes"
    if tflite[4:8] != b"TFL3":
        raise ValueError(f"{name}: not a LiteRT file: identifier {tflite[4:8]!r}, not b'TFL3'")
    try:
        with silent_stderr():  # it announces its delegate
            interpreter = Interpreter(model_content=tflite, num_threads=threads)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: LiteRT cannot load it: {str(error).splitlines()[0]}") from error
    return interpreter


def runner(tflite: bytes | str | Path, threads: int = 1) -> Callable[[], None]:
    """What runs a network once. Its inputs are filled: what memory held before may be denormals."""
    interpreter = load(tflite, threads)
    random = np.random.default_rng(0)
    for entry in interpreter.get_input_details():
        values = np.asarray(random.random(tuple(entry["shape"]), np.float32)).astype(entry["dtype"])
        interpreter.set_tensor(entry["index"], values)
    return interpreter.invoke


class Session:
    """A `.tflite` file that is loaded once and called by the names of its inputs and outputs.

    A name on both sides, of one shape and type, is state: a cache, or what a stream carries on.
    `step` keeps it inside, from zeros on; a plain call takes and gives all of it. Of a file with
    several signatures the session runs `signature`; None: that of its main graph. Inputs and
    outputs that the file keeps in integers with a scale are taken and given as the floats that
    these stand for.

    >>> import keras
    >>> inputs = {"x": keras.Input((2,), name="x"), "sum": keras.Input((2,), name="sum")}
    >>> total = keras.layers.Add()([inputs["x"], inputs["sum"]])
    >>> session = Session(assemble(keras.Model(inputs, {"sum": total})))
    >>> session({"x": np.ones((1, 2)), "sum": np.ones((1, 2))})["sum"].tolist()
    [[2.0, 2.0]]
    """

    def __init__(
        self, tflite: bytes | str | Path, threads: int = 1, *, signature: str | None = None
    ):
        self._interpreter = load(tflite, threads)
        inputs, outputs = _details(self._interpreter, signature)
        self.inputs = {
            name: (tuple(map(int, d["shape"])), d["dtype"]) for name, d in inputs.items()
        }
        self.outputs = {
            name: (tuple(map(int, d["shape"])), d["dtype"]) for name, d in outputs.items()
        }
        self.state = tuple(
            name for name, kind in self.inputs.items() if self.outputs.get(name) == kind
        )
        self._codes = [
            {name: detail["quantization"] for name, detail in side.items()}
            for side in (inputs, outputs)
        ]
        self._reads = {name: detail["index"] for name, detail in inputs.items()}
        self._writes = {name: detail["index"] for name, detail in outputs.items()}
        self._told = {name: self._writes[name] for name in outputs if name not in self.state}
        self._branch = _branch(self._interpreter, signature)
        self._kept: Arrays = {}
        if self._branch is not None:
            self.reset()
            return
        tensor = self._interpreter.tensor  # a view of the memory in place
        self._carried = [(tensor(self._reads[n]), tensor(self._writes[n])) for n in self.state]
        self.reset()

    @property
    def shapes(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """The shapes of inputs and outputs, by name."""
        inputs, outputs = (
            {name: shape for name, (shape, _) in side.items()}
            for side in (self.inputs, self.outputs)
        )
        return inputs, outputs

    def __call__(self, inputs: Arrays) -> Arrays:
        """All outputs for all inputs, each with the file's batch."""
        if inputs.keys() != self._reads.keys():
            raise ValueError(f"expected the inputs {sorted(self._reads)}, got {sorted(inputs)}")
        return self._invoke(inputs, self._writes)

    def step(self, inputs: Arrays) -> Arrays:
        """The outputs other than state, for the inputs other than state; the state is kept."""
        if self._branch is not None:
            outputs = self._invoke(inputs | self._kept, self._writes)
            self._kept = {name: outputs.pop(name) for name in self.state}
            return outputs
        outputs = self._invoke(inputs, self._told)
        for read, write in self._carried:
            np.copyto(read(), write())
        return outputs

    def reset(self) -> None:
        """The state is zeros again."""
        if self._branch is not None:
            self._kept = {name: np.zeros(*self.inputs[name]) for name in self.state}
            return
        for read, _ in self._carried:
            read()[...] = 0

    def _invoke(self, inputs: Arrays, outputs: dict[str, int]) -> Arrays:
        interpreter, given = self._interpreter, {}
        for name, value in inputs.items():
            value = np.asarray(value)
            dtype = self.inputs[name][1]
            scale, zero = self._codes[0][name]
            if scale and value.dtype.kind == "f" and np.issubdtype(dtype, np.integer):
                least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
                value = np.clip(np.rint(value / scale) + zero, least, most).astype(dtype)
            if value.dtype != dtype:
                value = value.astype(dtype, casting="same_kind")
            given[name] = value
        if self._branch is not None:
            return self._in_floats(self._branch(**given))
        for name, value in given.items():
            interpreter.set_tensor(self._reads[name], value)
        interpreter.invoke()
        return self._in_floats(
            {name: interpreter.get_tensor(index) for name, index in outputs.items()}
        )

    def _in_floats(self, outputs: Arrays) -> Arrays:
        """Outputs, those in integers with a scale as what they stand for."""
        for name, value in outputs.items():
            scale, zero = self._codes[1][name]
            if scale and value.dtype.kind in "iu":
                outputs[name] = (value.astype(np.float32) - np.float32(zero)) * np.float32(scale)
        return outputs


def run(tflite: bytes | str | Path, inputs: np.ndarray | Arrays) -> np.ndarray | Arrays:
    """The outputs of a `.tflite` file for `inputs` (n, ...), as many at a time as it takes.

    By name, except that a single array gives an array where there is one output.
    """
    session = Session(tflite)
    by_name = inputs if isinstance(inputs, dict) else {next(iter(session.inputs)): inputs}
    outputs = examples.run(session, by_name)
    single = not isinstance(inputs, dict) and len(outputs) == 1
    return next(iter(outputs.values())) if single else outputs


def _branch(interpreter: Interpreter, signature: str | None) -> Any | None:
    """What runs a signature; None: it is that of the main graph, and that is simply invoked."""
    known = interpreter.get_signature_list()
    if signature is None:
        return None
    if signature not in known:
        raise ValueError(f"no signature {signature!r}; the file has {', '.join(known)}")
    runner = interpreter.get_signature_runner(signature)
    return runner if runner._subgraph_index else None


def _details(
    interpreter: Interpreter, signature: str | None = None
) -> tuple[dict[str, dict], dict[str, dict]]:
    """What LiteRT says of inputs and outputs, by name, in the file's order.

    Files of other makers may have no names, or several signatures of which none is of the main
    graph: they go by their tensors.
    """
    runner = _branch(interpreter, signature)
    if runner is not None:
        return runner.get_input_details(), runner.get_output_details()
    sides = interpreter.get_input_details(), interpreter.get_output_details()
    runners = map(interpreter.get_signature_runner, interpreter.get_signature_list())
    main = next((runner for runner in runners if not runner._subgraph_index), None)
    if main is None:
        inputs, outputs = ({detail["name"]: detail for detail in details} for details in sides)
        return inputs, outputs
    named = main.get_input_details(), main.get_output_details()
    orders = ([detail["index"] for detail in details] for details in sides)
    inputs, outputs = (
        dict(sorted(details.items(), key=lambda item: order.index(item[1]["index"])))
        for details, order in zip(named, orders, strict=True)
    )
    return inputs, outputs
