"""What several checks expect: frozen dataclasses, flat networks, files that keep them."""

import dataclasses
import math
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from latency.networks.random_inputs import random_inputs

LAYER_NAME = r"[a-z]+\d*(_[a-z]+|_\d+)*"


def expect(holds: Any, message: str) -> None:
    """`AssertionError` with the message unless `holds`; also under `python -O`."""
    if not holds:
        raise AssertionError(message)


def expect_frozen(thing: Any, what: str) -> None:
    """`thing` is a frozen dataclass, which the program `eval(repr(thing))` of its module makes."""
    kind = type(thing)
    frozen = dataclasses.is_dataclass(kind) and getattr(kind, "__dataclass_params__").frozen  # noqa: B009
    expect(frozen, f"{what}: {kind.__name__} is no frozen dataclass; @dataclass(frozen=True)")
    try:
        hash(thing)
    except TypeError as error:
        raise AssertionError(f"{what}: {thing!r} has no hash: {error}; expected tuples") from error
    try:
        again = eval(repr(thing), dict(vars(sys.modules[kind.__module__])))
    except Exception as error:
        raise AssertionError(f"{what}: its repr {thing!r} is no program: {error}") from error
    expect(again == thing, f"{what}: its repr {thing!r} makes another one, {again!r}")


def expect_flat(model: Any, what: str) -> None:
    """A Functional `keras.Model` of leaf layers: no layer is a model or holds layers."""
    functional = isinstance(model, keras.Model) and hasattr(model, "_nodes_by_depth")
    expect(functional, f"{what}: a {type(model).__name__}; expected keras.Model(inputs, outputs)")
    for layer in model.layers:
        inner = [one.name for one in layer._flatten_layers(include_self=False)]
        expect(
            not inner,
            f"{what}: layer {layer.name!r} ({type(layer).__name__}) holds layers of its own:"
            f" {', '.join(inner)}; expected leaf layers, and functions for what is made of them",
        )


def expect_saved(model: Any, inputs: Any, what: str) -> None:
    """The model comes back from its .keras file: the same weights, the same outputs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        try:
            loaded = keras.models.load_model(path, compile=False)
        except Exception as error:
            raise AssertionError(f"{what}: its .keras file does not load: {error}") from error
    for saved, read in zip(model.weights, loaded.weights, strict=True):
        same = np.array_equal(np.asarray(saved), np.asarray(read))
        expect(same, f"{what}: weight {saved.path!r} comes back changed from a .keras file")
    for ours, theirs in zip(outputs(model, inputs), outputs(loaded, inputs), strict=True):
        expect(
            np.array_equal(ours, theirs),
            f"{what}: read back from its .keras file it computes something else; does get_config"
            " of each layer have every option?",
        )


def outputs(model: Any, inputs: Any) -> list[np.ndarray]:
    """The outputs of a network that does not train, as a list of arrays."""
    tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    found = keras.tree.flatten(model(tensors, training=False))
    return [keras.ops.convert_to_numpy(tensor) for tensor in found]


def expect_close(ours: Any, theirs: Any, what: str) -> None:
    """Arrays of one shape, equal to 1e-4 of the largest number, which is not about 0."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    expect(ours.shape == theirs.shape, f"{what}: shape {ours.shape}; expected {theirs.shape}")
    largest = float(np.abs(theirs).max())
    expect(largest > 1e-3, f"{what}: all outputs are about 0, so nothing can be compared")
    off = float(np.abs(ours.astype("float64") - theirs.astype("float64")).max())
    expect(off <= 1e-4 * max(1.0, largest), f"{what}: off by {off:g}, outputs up to {largest:g}")


def inputs_of(model: Any, batch: int = 8) -> Any:
    """Random inputs of a network: valid integers; "frames" are from half of a length to all."""
    found = random_inputs(model, batch)
    if isinstance(found, dict) and "frames" in found:
        whole = found["features" if "features" in found else "audio"].shape[1]
        found["frames"] = np.linspace(whole, whole // 2, batch).astype("int32")
    return found


def as_trained(model: Any) -> Any:
    """The model with weights as after training: as they begin, its outputs may be nearly 0."""
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if "int" in weight.dtype:  # the state of a generator
            continue
        if weight.name in ("moving_variance", "gamma", "scale"):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        else:
            fan_in = math.prod(weight.shape[:-1]) if len(weight.shape) > 1 else 10
            weight.assign(generator.normal(0, (2 / fan_in) ** 0.5, weight.shape))
    return model


def expect_names(model: Any, what: str) -> None:
    """Unique names of layers that are paths: "block3_1_expand"."""
    names = [layer.name for layer in model.layers]
    twice = sorted({name for name in names if names.count(name) > 1})
    expect(not twice, f"{what}: {', '.join(twice)} name several layers")
    for name in names:
        path = re.fullmatch(LAYER_NAME, name)
        expect(path, f"{what}: layer name {name!r}; expected a path of words, as block3_1_expand")
