"""The files of a network: .keras as trained, .tflite as deployed and checked, Config as Python."""

import math
import pathlib
from typing import Any

import numpy as np

from latency.system.atomic_write import atomic_write
from nas.files.writers.written_file import CannotWrite

# The exported file must give the model's own outputs.
PARITY = 1e-4


NUDGE = 1e-5  # of an input: 80 times float32's rounding, which every layer adds to


ROUNDED = 1e-2  # an input around which a model moves by more than this says nothing of its file,


INPUTS = 4  # and others are tried


def save(model: Any, path: pathlib.Path) -> None:
    """Write a .keras file whole or not at all."""
    with atomic_write(path) as partial:
        model.save(partial)


def save_model(model: Any, stem: pathlib.Path) -> None:
    """Write `<stem>.keras`."""
    save(model, stem.with_suffix(".keras"))


def write_network(
    model: Any, config: Any, stem: pathlib.Path, files: dict[str, bytes] | None = None
) -> int:
    """Write `<stem>.keras`, `<stem>.tflite` and `<stem>.py`; return the bytes of the .tflite.

    The .keras file and the Config are the form that was trained, to go on with. The .tflite is the
    family's deployed form (`nas.networks.build.deploy`) with the same weights: it is run, and
    must give the outputs of that form in Keras within 1e-4 (`_difference`), else `CannotWrite`.
    `files` are the task's, such as a tokenizer: suffix -> content.
    """
    from latency.tflite import convert
    from nas.files.writers import config_file
    from nas.networks.build import deployed

    save(model, stem.with_suffix(".keras"))
    form = deployed(model, config)
    tflite = convert.convert(form)
    name, difference, most = _difference(tflite, form)
    if not difference <= most:
        raise CannotWrite(
            f"{stem.name}.tflite differs from the Keras model by {difference:.1e} in {name}; "
            f"expected at most {most:.1g}: this is a bug in the conversion, please report the "
            f"config {config!r}"
        )
    stem.with_suffix(".tflite").write_bytes(tflite)
    stem.with_suffix(".py").write_text(config_file.as_python(config))
    write_files(files or {}, stem)
    return len(tflite)


def write_files(files: dict[str, bytes], stem: pathlib.Path) -> None:
    """Write what a task adds to a network: suffix -> content."""
    for suffix, content in files.items():
        stem.with_name(stem.name + suffix).write_bytes(content)


def _difference(tflite: bytes, model: Any) -> tuple[str, float, float]:
    """The output in which a file differs most from its model, by how much, how much may be.

    All of the output's largest value. The most is 1e-4; where rounding alone is amplified beyond
    it (huge boxes of a detector hardly trained), what the model itself moves by as its inputs do
    by `NUDGE`: the file's outputs are then the model's, of inputs that are all but the same.
    """
    import keras

    from latency.networks.random_inputs import random_inputs
    from latency.tflite import convert
    from latency.tflite.signature import names

    takes, gives = names(model)

    def outputs(inputs: list) -> dict:
        tensors = keras.tree.pack_sequence_as(model.input, inputs)
        tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, tensors)
        given = keras.tree.flatten(model(tensors, training=False))
        return dict(zip(gives, map(keras.ops.convert_to_numpy, given), strict=True))

    for seed in range(INPUTS):
        inputs = keras.tree.flatten(random_inputs(model, 1, seed))
        ours: Any = convert.run(tflite, dict(zip(takes, inputs, strict=True)))
        theirs = outputs(inputs)
        name, difference = _apart(ours, theirs)
        if difference <= PARITY:
            return name, difference, PARITY
        most = _apart(outputs([_nudged(value) for value in inputs]), theirs)[1]
        if difference <= most <= ROUNDED:
            return name, difference, most
    return name, difference, PARITY


def _nudged(value: np.ndarray) -> np.ndarray:
    if value.dtype.kind != "f":
        return value
    signs = np.random.default_rng(0).choice([-NUDGE, NUDGE], value.shape)
    return (value * (1 + signs)).astype(value.dtype)


def _apart(ours: dict, theirs: dict) -> tuple[str, float]:
    """The output in which two differ most, and by how much of its largest value (at least 1)."""
    scales = {name: max(1.0, float(np.abs(value).max())) for name, value in theirs.items()}
    if "boxes" in theirs:  # objects, in an order that rounding may decide
        from families.objectives.boxes import largest_difference

        sides = [
            objects | {"boxes": objects["boxes"] / scales["boxes"]} for objects in (ours, theirs)
        ]
        return "boxes", largest_difference(*sides)
    found = {
        name: float(np.abs(ours[name] - value.astype(np.float64)).max()) / scales[name]
        for name, value in theirs.items()
    }
    # One that is no number is the worst: max() would not find it.
    worst = max(found, key=lambda name: (math.isnan(found[name]), found[name]))
    return worst, found[worst]
