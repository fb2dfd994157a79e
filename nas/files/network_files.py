"""The files of a network: .keras as trained, .tflite as deployed and checked, Config as Python."""

import math
import pathlib
from typing import Any

import numpy as np

from latency.system.atomic_write import atomic_write
from nas.files.hand_over.attach import attach, write_script
from nas.files.hand_over.model_card import Origin
from nas.files.writers.written_file import CannotWrite

# The exported file must give the model's own outputs.
PARITY = 1e-4
ROUNDED = 1e-2  # an input around which a model moves by more than this says nothing of its file,
INPUTS = 4  # and others are tried


def save(model: Any, path: pathlib.Path, card: dict[str, Any] | None = None) -> None:
    """Write a .keras file, with its model card, whole or not at all."""
    with atomic_write(path) as partial:
        model.save(partial)
        if card is not None:
            attach(partial, card)


def save_model(model: Any, stem: pathlib.Path, card: dict[str, Any] | None = None) -> None:
    """Write `<stem>.keras`, with its model card."""
    save(model, stem.with_suffix(".keras"), card)


def write_network(
    model: Any,
    config: Any,
    stem: pathlib.Path,
    files: dict[str, bytes] | None = None,
    origin: Origin | None = None,
) -> int:
    """Write `<stem>.keras`, `<stem>.tflite` and `<stem>.py`; return the bytes of the .tflite.

    The .keras file and the Config are the form that was trained, to go on with. The .tflite is the
    family's deployed form (`nas.networks.build.deploy`) with the same weights: it is run, and
    must give the outputs of that form in Keras, channel by channel (of a detector: its objects),
    else `CannotWrite`.
    `files` are the task's, such as a tokenizer: suffix -> content. With an origin both files hold
    a model card, and use.py, which runs them on one example, is left beside them.
    """
    from nas.files.writers import config_file

    save_model(model, stem, None if origin is None else origin.card(model))
    size = write_tflite(model, config, stem.with_suffix(".tflite"), origin)
    stem.with_suffix(".py").write_text(config_file.as_python(config))
    write_files(files or {}, stem)
    return size


def write_tflite(model: Any, config: Any, path: pathlib.Path, origin: Origin | None = None) -> int:
    """Write a network as deployed, run and compared; with an origin its card, and use.py beside it.

    config: its family's Config, or None. Returns the bytes; `CannotWrite` of a wrong file.
    """
    from latency.tflite import convert
    from nas.networks.build import deployed

    form = model if config is None else deployed(model, config)
    tflite = convert.convert(form)
    if (wrong := _wrong(tflite, form)) is not None:
        raise CannotWrite(
            f"{path.name} differs from the Keras model {wrong}: this is a bug in the "
            f"conversion, please report the config {config!r}"
        )
    path.write_bytes(tflite)
    if origin is not None:
        attach(path, origin.card(form))
        write_script(path.parent)
    return path.stat().st_size


def write_files(files: dict[str, bytes], stem: pathlib.Path) -> None:
    """Write what a task adds to a network: suffix -> content."""
    for suffix, content in files.items():
        stem.with_name(stem.name + suffix).write_bytes(content)


def _wrong(tflite: bytes, model: Any) -> str | None:
    """Where a file is not its model, in words; None where it is."""
    from latency.tflite import convert, same_network
    from latency.tflite.signature import names

    if "boxes" in names(model)[1]:  # objects, in an order that rounding may decide
        name, difference, most = _difference(tflite, model)
        found = f"by {difference:.1e} in {name}; expected at most {most:.1g}"
        return None if difference <= most else found

    def run(inputs: dict[str, np.ndarray]) -> Any:
        return convert.run(tflite, inputs)

    wrong = same_network.check(model, run)
    if wrong is None:
        return None
    share = f"{wrong.share:.1e} of its largest value"
    return f"in {wrong.output}, channel {wrong.channel}, by {share}"


def _difference(tflite: bytes, model: Any) -> tuple[str, float, float]:
    """ "boxes", by how much the file of a detector differs in its objects, how much may be.

    All of the largest value. The most is 1e-4; where rounding alone is amplified beyond it (huge
    boxes of a detector hardly trained), what the model itself moves by as its inputs are nudged:
    the file's outputs are then the model's, of inputs that are all but the same.
    """
    import keras

    from latency.networks.random_inputs import random_inputs
    from latency.tflite import convert, same_network
    from latency.tflite.signature import names

    difference = math.inf
    for seed in range(INPUTS):
        inputs = random_inputs(model, 1, seed)
        named = dict(zip(names(model)[0], keras.tree.flatten(inputs), strict=True))
        ours: Any = convert.run(tflite, named)
        theirs = same_network.outputs(model, inputs)
        difference = _apart(ours, theirs)
        if difference <= PARITY:
            return "boxes", difference, PARITY
        most = _apart(same_network.outputs(model, same_network.nudged(inputs)), theirs)
        if difference <= most <= ROUNDED:
            return "boxes", difference, most
    return "boxes", difference, PARITY


def _apart(ours: dict, theirs: dict) -> float:
    """How far the objects of two sides are apart; boxes by their largest value (at least 1)."""
    from families.objectives.boxes import largest_difference

    scale = max(1.0, float(np.abs(theirs["boxes"]).max()))
    return largest_difference(
        *(objects | {"boxes": objects["boxes"] / scale} for objects in (ours, theirs))
    )
