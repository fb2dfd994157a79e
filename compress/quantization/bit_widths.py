"""Which kernels get how many bits: what `qat` and `ptq` have in common.

A method here is one with the fields bits, embeddings, edges, depthwise, which, rounding and clip.
"""

from typing import Any

import keras

from compress.examples.data import Data
from compress.method import NotApplicable
from compress.quantization.quantizers import CLIPS, limits
from compress.rewriting.record import Record
from compress.rewriting.weights import Kernel, kernels

ROUNDINGS = ("auto", "data", "nearest")
FEW = 3  # bits at which rounding to the nearest level ruins most networks
FLOAT = 32  # bits of a weight that is left as it is


def check(method: Any) -> None:
    """`ValueError` unless the fields that the methods share are sound."""
    limits(method.bits)
    for name in ("embeddings", "edges", "depthwise"):
        bits = getattr(method, name)
        if bits not in (None, FLOAT):
            limits(bits)
    if method.rounding not in ROUNDINGS:
        raise ValueError(f"rounding={method.rounding!r}; expected one of {', '.join(ROUNDINGS)}")
    if method.clip not in CLIPS:
        raise ValueError(f"clip={method.clip!r}; expected one of {', '.join(CLIPS)}")


def on_data(method: Any, data: Data | None) -> bool:
    """Whether `method` rounds by what its kernels are multiplied with on examples."""
    return data is not None and method.rounding != "nearest"


def check_data(method: Any, data: Data | None) -> None:
    """`NotApplicable` where `method` asks for examples and there are none."""
    if method.rounding == "data" and data is None:
        kind = type(method).__module__.rpartition(".")[2]
        raise NotApplicable(
            f"{kind} rounding=data looks at examples; give --data or --task (data= in Python)"
        )


def choose_bits(method: Any, model: keras.Model) -> dict[str, int]:
    """Path -> bits of the kernels that `method` quantizes."""
    found = {}
    every = kernels(model)
    inner = [kernel.layer for kernel in every if kernel.kind != "embedding"]
    edges = {inner[0], inner[-1]} if inner else set()
    for kernel in kernels(model, method.which):
        bits = _bits(method, kernel, edges)
        if bits != FLOAT:
            found[kernel.path] = bits
    return found


def _bits(method: Any, kernel: Kernel, edges: set[str]) -> int:
    if kernel.kind == "embedding" and method.embeddings is not None:
        return method.embeddings
    if kernel.layer in edges and method.edges is not None:
        return method.edges
    if kernel.kind == "depthwise" and method.depthwise is not None:
        return method.depthwise
    return method.bits


def reason_for_none(method: Any, model: keras.Model, taken: Any) -> str:
    """Why a method found no kernel to quantize."""
    if not kernels(model):
        return f"{model.name} has no kernels, only vectors"
    if not kernels(model, method.which):
        return f"no kernel of {model.name} matches which={method.which!r}"
    if taken:
        return f"every kernel of {model.name} that was chosen is quantized by another method"
    return f"all kernels of {model.name} that were chosen are to stay in float"


def reason_left(method: Any) -> str:
    """Why a layer was left alone."""
    return f"left in float, as {method!r} says"


def record_bits(method: Any, model: keras.Model, record: Record) -> None:
    """Note in `record` how many kernels got how many bits; scales count, of 32 bits each."""
    kernels = weights = stored = 0
    for path in choose_bits(method, model):
        weight = record.weights.get(path)  # None: it came later, such as adapters
        if weight is not None and weight.codes is not None and weight.scale is not None:
            kernels, weights = kernels + 1, weights + weight.codes.size
            stored += weight.codes.size * weight.bits + 32 * weight.scale.size
    bits = stored / max(weights, 1)
    record.details[repr(method)] = {"kernels": kernels, "bits_per_weight": bits}


def record_examples(method: Any, record: Record, examples: int, blind: dict[str, str]) -> None:
    """Note on how many examples kernels were rounded, and which without looking at any.

    blind: path -> why. Few bits without examples are warned of.
    """
    details = record.details[repr(method)]
    details["examples"] = examples
    if blind and examples:
        details["rounded_without_examples"] = blind
    if not examples and min(method.bits, 8) <= FEW and method.rounding != "nearest":
        details["warning"] = (
            f"{method.bits} bits were chosen by the weights alone, which costs most networks their "
            "quality: give --data (data= in Python), a hundred inputs without labels will do"
        )
