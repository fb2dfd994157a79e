"""Keras models to LiteRT (`.tflite`) by the official converter, and running the result.

`assemble` writes the same graph in milliseconds where it knows all layers; `convert` is for all.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from latency import litert_process
from latency.flatbuffer import assemble
from latency.quiet import silent_stderr

__all__ = ["assemble", "convert", "file_of", "load", "run", "runner"]


def convert(model: Any) -> bytes:
    """The `.tflite` file of `model` by TensorFlow's converter: float32, static shapes at batch 1.

    The variables are frozen first: several times faster than through a SavedModel
    (`tools/bench_latency.py`), and without it the converter leaves READ_VARIABLE operations in the
    file, which fail when it runs. Raises `ValueError` on another Keras backend than TensorFlow, and
    where an operation has no builtin form (a Flex operation would not run on devices).
    """
    import keras  # noqa: PLC0415 (the backend is the caller's choice, made before Keras is imported)

    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "the official LiteRT converter needs Keras on TensorFlow, got "
            f"{keras.backend.backend()}: set KERAS_BACKEND=tensorflow, or use `assemble`"
        )
    for tensor in model.inputs:
        if any(size is None for size in tensor.shape[1:]):
            raise ValueError(f"input {tensor.name!r}: expected a static shape, got {tensor.shape}")
    import tensorflow as tf  # noqa: PLC0415
    from tensorflow.lite.python.convert_phase import ConverterError  # noqa: PLC0415
    from tensorflow.python.framework import convert_to_constants  # noqa: PLC0415

    def infer(*inputs):
        return model(inputs[0] if len(inputs) == 1 else list(inputs), training=False)

    signature = [tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs]
    function = tf.function(infer, autograph=False).get_concrete_function(*signature)
    freeze = convert_to_constants.convert_variables_to_constants_v2
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)  # it warns of a trackable object, which a frozen graph lacks
    try:
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [freeze(function, lower_control_flow=False)]
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        return converter.convert()
    except ConverterError as error:
        reason = next((line for line in str(error).splitlines() if "error:" in line), str(error))
        raise ValueError(
            f"model {model.name!r}: {reason.split('error:')[-1].strip()}; "
            "only LiteRT's builtin operations are allowed: Flex operations do not run on devices"
        ) from error
    finally:
        logging.disable(disabled)


def file_of(model: Any) -> bytes | Path:
    """The LiteRT file of a model or of a .keras file; the path of a .tflite file as it is.

    Files may come from anywhere: they are loaded and run in another process first, with a limit on
    time and memory. `ValueError`, in one line, where that fails.
    """
    if isinstance(model, (str, Path)):
        path = Path(model)
        if path.suffix == ".tflite":
            litert_process.check(path)
            return path
        if path.suffix != ".keras":
            raise ValueError(f"{path}: expected a .tflite or .keras file")
        return litert_process.convert(path)
    try:
        return assemble(model)
    except ValueError as unsupported:
        try:
            return convert(model)
        except ValueError as error:
            raise ValueError(f"{error}; and written directly: {unsupported}") from error


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
        values = random.random(tuple(entry["shape"]), np.float32).astype(entry["dtype"])
        interpreter.set_tensor(entry["index"], values)
    return interpreter.invoke


def run(tflite: bytes | str | Path, inputs: np.ndarray) -> np.ndarray:
    """The outputs of a `.tflite` file for `inputs` (n, ...), run one at a time."""
    interpreter = load(tflite)
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    expected = tuple(map(int, source["shape"]))
    if expected[0] != 1 or inputs.shape[1:] != expected[1:]:
        raise ValueError(f"expected inputs of shape {('n', *expected[1:])}, got {inputs.shape}")
    outputs = []
    for example in np.asarray(inputs, source["dtype"]):
        interpreter.set_tensor(source["index"], example[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(target["index"]).copy())
    return np.concatenate(outputs)
