"""Integer activations, calibrated on examples: by ai-edge-quantizer, with our codes for weights."""

import contextlib
import io
import re
import warnings
from typing import Any

import numpy as np

from nas.files.writers.tflite import integer_ends
from nas.files.writers.tflite.constant_layout import integer_constant
from nas.files.writers.tflite.editable_file import BITS, INT32, INT64, TYPES, File, text
from nas.files.writers.tflite.find_weights import Place
from nas.files.writers.tflite.integer_codes import UNEVEN, Integers, pack
from nas.files.writers.written_file import CannotWrite

EXAMPLES = 512  # at most, that ranges are taken of
OWN = "runs on ai-edge-quantizer's own integers"
_KERNELS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
_BIASES: dict[int, tuple[type, int]] = {INT32: (np.int32, 2**31 - 1), INT64: (np.int64, 2**62)}
_NARROW = ("FULLY_CONNECTED", "CONV_2D")  # take INT4 beside integer activations


def calibrate(
    tflite: bytes,
    examples: dict[str, list[dict[str, np.ndarray]]],
    found: list[Place],
    forms: dict[str, list[Integers]],
    bits: int = 8,
    ends: str | None = None,
) -> tuple[bytes, dict[str, set[str]], dict[str, str]]:
    """The file with activations of so many bits; also how each weight is stored, why not narrower.

    examples: of each signature, inputs by name. ends: type of inputs and outputs; None: as they
    were. Raises `CannotWrite` where ai-edge-quantizer cannot do it.
    """
    floats = File(tflite)
    for number, graph in enumerate(floats.graphs):
        constant = {index for where, index, _ in floats.constants() if where == number}
        for index, tensor in enumerate(graph.tensors):
            # The quantizer goes by names: activations of several graphs are not to share any.
            kind = "constant" if index in constant else "tensor"
            tensor.name = f"{number}/{kind}/{index}/{text(tensor.name)}"
    names = {
        (place.graph, place.index): text(floats.graphs[place.graph].tensors[place.index].name)
        for place in found
    }
    biases = _biases(floats)
    file = File(_quantized(floats.pack(), examples, bits, ends))
    _align_signatures(file, floats)
    tensors: dict[str, list] = {}
    for number, graph in enumerate(file.graphs):
        for index, tensor in enumerate(graph.tensors):
            tensors.setdefault(_original(tensor), []).append((number, index))
    kinds: dict[str, set[str]] = {}
    left: dict[str, str] = {}
    for place in found:
        for graph, index in tensors[names[place.graph, place.index]]:
            kind, reason = "float32", UNEVEN
            if forms[place.path]:
                kind, reason = _store(file, graph, index, place, forms[place.path], biases)
            file.graphs[graph].tensors[index].name = place.name
            kinds.setdefault(place.path, set()).add(kind)
            if reason is not None:
                left[place.path] = reason
    if ends == "uint8":
        integer_ends.unsigned(file)
    return file.pack(), kinds, left


def _align_signatures(file: File, before: File) -> None:
    """Names of inputs and outputs, in their order: the quantizer forgets those read within, too."""
    for now, was in zip(file.model.signatureDefs, before.model.signatureDefs, strict=True):
        for side in ("inputs", "outputs"):
            order = list(getattr(before.graphs[was.subgraphIndex], side))
            places = {entry.name: order.index(entry.tensorIndex) for entry in getattr(was, side)}
            for entry in getattr(now, side):
                entry.tensorIndex = int(
                    getattr(file.graphs[now.subgraphIndex], side)[places[entry.name]]
                )


def _original(tensor: Any) -> str:
    """The name that a constant had before the quantizer gave each of its readers its own."""
    return re.sub(r"_duplicated(_\d+)?$", "", text(tensor.name))


def _quantized(
    tflite: bytes, examples: dict[str, list[dict[str, np.ndarray]]], bits: int, ends: str | None
) -> bytes:
    try:
        from ai_edge_quantizer import (
            algorithm_manager,
            calibrator,
            qtyping,
            quantizer,
            recipe_manager,
        )
        from ai_edge_quantizer.utils import qsv_utils
    except ImportError as error:
        raise CannotWrite(
            "files with integer activations need ai-edge-quantizer: pip install 'nas[compress]'"
        ) from error
    recipe = recipe_manager.RecipeManager()
    operations = qtyping.TFLOperationName
    recipe.add_static_config(
        regex=".*",
        operation_name=operations.ALL_SUPPORTED,
        activation_num_bits=bits,
        weight_num_bits=8,
    )
    for side in (operations.INPUT, operations.OUTPUT) if ends is None else ():
        recipe.add_quantization_config(
            regex=".*",
            operation_name=side,
            algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE,
        )
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(action="ignore"),  # it keeps all tensors, as it must
    ):
        try:
            made = quantizer.Quantizer(bytearray(tflite), recipe.get_quantization_recipe())
            # Its own averages go by the last twenty examples, and cut off what others reach.
            seen = calibrator.Calibrator(tflite, 1, qsv_update_func=qsv_utils.min_max_update)
            seen.calibrate(examples, recipe)
            return bytes(made.quantize(seen.get_model_qsvs()).quantized_model)
        except (ValueError, RuntimeError, KeyError, IndexError) as error:
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            raise CannotWrite(
                f"ai-edge-quantizer cannot calibrate this network: {reason}; leave activations"
                " float: ptq:8,activations=none"
            ) from error


def _biases(file: File) -> dict[str, np.ndarray]:
    """Name -> values of the float biases."""
    found = {}
    for graph in file.graphs:
        for operator in graph.operators:
            if file.name(operator) in _KERNELS and len(operator.inputs) > 2:
                index = int(operator.inputs[2])
                if index >= 0:
                    tensor = graph.tensors[index]
                    found[text(tensor.name)] = file.value(tensor)
    return found


def _store(
    file: File,
    graph: int,
    index: int,
    place: Place,
    forms: list[Integers],
    biases: dict[str, np.ndarray],
) -> tuple[str, str | None]:
    """Our integers instead of the quantizer's, and what follows for the biases."""
    tensor = file.graphs[graph].tensors[index]
    if tensor.type not in BITS:
        return "float32", "ai-edge-quantizer left its operation in float32"
    readers = file.readers(graph, index)
    names = {file.name(operator) for operator, _ in readers}
    if not names <= set(_KERNELS):
        return f"int{BITS[tensor.type]}", f"{', '.join(sorted(names))} {OWN}"
    sources = [file.graphs[graph].tensors[operator.inputs[0]] for operator, _ in readers]
    if any(one.quantization is None or one.quantization.scale is None for one in sources):
        return f"int{BITS[tensor.type]}", f"its input has no scale there, so it {OWN}"
    if place.gain is not None:
        return f"int{BITS[tensor.type]}", f"the gain of a norm is part of its kernel, which {OWN}"
    least = 4 if names <= set(_NARROW) and place.shape[-1] % 2 == 0 else 8
    whole = [form for form in forms if not form.offset and form.bits >= least]
    options = [option for form in whole if (option := integer_constant(form, place)) is not None]
    axis = place.channel % len(place.shape)
    chosen = next((o for o in options if o.scale.size in (1, o.scale.shape[axis])), None)
    if chosen is None:
        return "float32", "its scales are not one per channel of the kernel"
    scale = np.broadcast_to(chosen.scale.reshape(-1), place.shape[axis : axis + 1])
    tensor.type = TYPES[chosen.bits]
    tensor.buffer = file.buffer(pack(chosen.values, chosen.bits))
    tensor.quantization.scale = np.ascontiguousarray(scale, np.float32)
    tensor.quantization.zeroPoint = np.zeros(len(scale), np.int64)
    tensor.quantization.quantizedDimension = axis
    for operator, _ in readers:
        _rescale(file, graph, operator, scale, biases)
    reason = None
    if chosen.bits > forms[0].bits:
        reason = f"{', '.join(sorted(names))} takes INT{least} or wider beside integer activations"
    return f"int{chosen.bits}", reason


def _rescale(file: File, graph: int, operator: Any, scale: np.ndarray, biases: dict) -> None:
    """The integers of a bias: in steps of the input's scale times the kernel's."""
    if len(operator.inputs) < 3 or operator.inputs[2] < 0:
        return
    tensors = file.graphs[graph].tensors
    bias, source = tensors[operator.inputs[2]], tensors[operator.inputs[0]]
    if bias.type not in _BIASES:
        return
    step = np.float64(source.quantization.scale[0]) * scale.astype(np.float64)
    value = biases[_original(bias)]
    dtype, most = _BIASES[bias.type]
    integers = np.clip(np.round(value / step), -most, most).astype(dtype)
    bias.buffer = file.buffer(integers)
    bias.quantization.scale = step.astype(np.float32)
    bias.quantization.zeroPoint = np.zeros(len(step), np.int64)
