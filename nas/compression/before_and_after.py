"""A compressed network to files: each written, read back, measured beside the original's."""

import dataclasses
import importlib
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from compress.examples.data import Data, taken
from compress.method import Compressed
from compress.rewriting.record import Record
from latency.target import Target
from nas.files import given_file
from nas.files.hand_over.attach import attach
from nas.files.hand_over.model_card import Origin, without_folders
from nas.files.open_network import Network
from nas.files.writers import WRITERS
from nas.networks.build import deploy, deployed
from nas.profiling import history
from nas.tasks.task import Task

COMPARED = 64  # examples without labels that files are compared on
_OFF = 0.5  # of what outputs vary by: beyond, a file is warned of
JUDGED = 1000  # validation examples that a file is run on, one at a time


def write(
    path: pathlib.Path,
    network: Network,
    done: Compressed,
    data: Data | None,
    task: Task | None,
    prefer: str = "size",
    origin: Origin | None = None,
) -> dict[str, Any]:
    """Write a file of a compressed network; what is known of it and of the original's, as JSON.

    Bytes, plain and zipped, bits a weight as counted in the file; of a .tflite file, where `task`
    has labels, the quality of the file itself. Before: the user's own file where that has the same
    format, else a float32 file that is made of the network for the comparison.
    """
    with tempfile.TemporaryDirectory(prefix="nas_compress_") as folder:
        own = _own_file(network, path.suffix)
        original = own or pathlib.Path(folder, f"before{path.suffix}")
        if own is not None:
            users = given_file.given(network.read_from, path.suffix) or own  # own: of fixed shapes
            before = given_file.describe(users, path.suffix, network.model.count_params())
            if users is own and network.made is not None:  # of a SavedModel: the user has no such
                before = {name: before[name] for name in before.keys() - {"path", "dtype"}}
        else:
            before = write_one(original, network.model, network.config, None, data)
        after = write_one(path, done.model, network.config, done.record, data, prefer, origin)
        if path.suffix == ".tflite" and task is not None and task.labelled:
            before["quality"] = _quality(original, network.model, network.config, task)
            after["quality"] = _quality(path, done.model, network.config, task)
        elif (
            path.suffix == ".tflite"
            and data is not None
            and _deployed(network.model, network.config) is network.model
        ):
            after |= _agreement(original, path, network.model, data)
            if after["output_error"] > _OFF:
                error = 100 * after["output_error"]
                after["notes"].append(
                    f"its outputs are off by {error:.0f} % of what they vary by: hardly the same"
                    " network; give it more bits, or labels (y) to judge it by"
                )
    return {"path": str(path), "before": before, "after": after}


def _own_file(network: Network, suffix: str) -> pathlib.Path | None:
    """The file of a format that the user has of a network."""
    file = network.file
    if suffix == ".tflite" and file is not None and file.suffix == suffix:
        return file
    return given_file.given(network.read_from, suffix)


def time(
    targets: Sequence[tuple[str, Target]],
    network: Network,
    done: Compressed,
    data: Data | None,
    prefer: str,
    written: pathlib.Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Latencies of the `.tflite` files on named targets, in turns: {"before": {name: record}, ...}.

    written: the file of the compressed network, where there is one already: what the user has is
    what is timed. Records are those of `latency.target.Latency`, without samples and operations.
    """
    found: dict[str, dict[str, Any]] = {"before": {}, "after": {}}
    with tempfile.TemporaryDirectory(prefix="nas_compress_") as folder:
        files = {
            "before": _own_file(network, ".tflite") or pathlib.Path(folder, "before.tflite"),
            "after": written or pathlib.Path(folder, "after.tflite"),
        }
        if not files["before"].exists():
            write_one(files["before"], network.model, network.config, None, data)
        if not files["after"].exists():
            write_one(files["after"], done.model, network.config, done.record, data, prefer)
        for target_name, target in targets:
            timed = history.profile(target, files, details=True)
            for name, latency in zip(files, timed, strict=True):
                record = latency.to_json()
                del record["samples_ms"], record["per_op"]
                found[name][target_name] = record
    return found


def write_one(
    path: pathlib.Path,
    model: Any,
    config: Any,
    record: Record | None,
    data: Data | None,
    prefer: str = "size",
    origin: Origin | None = None,
) -> dict[str, Any]:
    """Write one file, of the form that is deployed; what is known of it, as JSON.

    With an origin the file holds a model card; "card_bytes": that it takes.
    """
    from nas.files.network_files import save
    from nas.files.writers.written_file import sizes

    if path.suffix == ".keras":
        save(model, path, None if origin is None else origin.card(model))
        plain, zipped = sizes(path)
        return {
            "bytes": plain,
            "zipped_bytes": zipped,
            "bits_per_weight": 8 * plain / max(model.count_params(), 1),
            "weights": {},
            "left": {},
            "notes": _in_float32(record) if record is not None and record.weights else [],
            "checked": "nothing: .keras files hold float32",
        }
    writer = importlib.import_module(WRITERS[path.suffix])
    record, left, form = record or Record(original=model), {}, model
    if path.suffix != ".safetensors" and not record.variants:
        form = _deployed(model, config)
    if form is not model:  # a part, perhaps; the examples are of the trained form's inputs
        data, held = None, {weight.path for weight in form.weights}
        weights = {name: weight for name, weight in record.weights.items() if name in held}
        record = dataclasses.replace(record, weights=weights)
        if record.activations:
            record = dataclasses.replace(record, activations=None)
            left["activations"] = "float: there are no examples of the deployed form's inputs"
    options = {"prefer": prefer} if path.suffix == ".tflite" else {}
    written = writer.write(path, form, record, data, **options)
    names = ("bytes", "zipped_bytes", "bits_per_weight", "weights", "left", "checked")
    found = {name: getattr(written, name) for name in names}
    if origin is not None and path.suffix != ".safetensors":
        attach(path, origin.card(form))
        found["bytes"], found["zipped_bytes"] = sizes(path)
        found["card_bytes"] = found["bytes"] - written.bytes
    if ends := getattr(written, "ends", None):
        found["ends"] = {side: {n: vars(e) for n, e in one.items()} for side, one in ends.items()}
    notes = list(getattr(written, "notes", ()))
    meant = record.weights or (written.weights if record.floats != 32 else {})
    if meant and all(written.weights.get(name) == "float32" for name in meant):
        notes.append(f"no weight is smaller than in float32, for {path.suffix} holds them as such")
    return found | {"left": found["left"] | left, "notes": notes}


def _in_float32(record: Record) -> list[str]:
    """What a .keras file does not tell: its bytes are those of float32, whatever was done."""
    done = {"codes" for weight in record.weights.values() if weight.codes is not None}
    done |= {"zeros" for weight in record.weights.values() if weight.mask is not None}
    return [
        f"holds float32 values, {' and '.join(sorted(done))} included: only .tflite, .safetensors"
        " and .mlpackage store them in fewer bytes"
    ]


def _deployed(model: Any, config: Any) -> Any:
    """The form of a network that goes into deployable files.

    That of the family where the network has a Config and its weights still fit; else itself.
    """
    if config is None or deploy(config) == config:
        return model
    try:
        return deployed(model, config)
    except ValueError:  # fewer experts, or other widths, than the Config says
        return model


def _agreement(before: pathlib.Path, after: pathlib.Path, model: Any, data: Data) -> dict[str, Any]:
    """How far the outputs of two files of a network are apart on examples without labels.

    output_error: of what outputs vary by, root mean squares. same_answers: the share of examples
    of which the largest output is the same, where outputs are (examples, at least two numbers).
    """
    import keras

    from latency.tflite import convert
    from latency.tflite.signature import names

    inputs = keras.tree.flatten(taken(data.inputs, slice(0, COMPARED)))
    named = dict(zip(names(model)[0], inputs, strict=True))
    was, now = (convert.run(path, named) for path in (before, after))
    pairs = [[np.asarray(side[name], np.float64) for side in (was, now)] for name in was]
    error = sum(np.square(one - other).mean() for one, other in pairs)
    spread = sum(one.var() for one, _ in pairs)
    found = {"output_error": float(np.sqrt(error / max(spread, 1e-12)))}
    one, other = pairs[0]
    if len(pairs) == 1 and one.ndim == 2 and one.shape[1] > 1:
        found["same_answers"] = float((one.argmax(1) == other.argmax(1)).mean())
    return found


def _quality(path: pathlib.Path, model: Any, config: Any, task: Task) -> float | None:
    """Quality of a .tflite file, on at most JUDGED examples; None of a form that streams."""
    from nas.training import loop
    from nas.training.batches import count

    if _deployed(model, config) is not model:
        return None
    chosen = np.unique(np.linspace(0, count(task.valid) - 1, JUDGED).astype(int))
    inputs, targets = task.valid
    judged = dataclasses.replace(task, valid=(taken(inputs, chosen), taken(targets, chosen)))
    return loop.measure(model, judged, file_outputs(path, model))[0]


def file_outputs(file: pathlib.Path, model: Any) -> Callable[[Any], Any]:
    """A function from inputs of `model` to the outputs of a `.tflite` file, in its form."""
    from latency.tflite import convert
    from latency.tflite.signature import names

    def run(inputs: Any) -> Any:
        found = convert.run(file, inputs)
        if not isinstance(found, dict) or isinstance(model.output, dict):
            return found
        values = [found[name] for name in names(model)[1]]
        return values if isinstance(model.output, list) else values[0]

    return run


def origin_of(network: Network, name: str, methods: Sequence[str], task: Task | None) -> Origin:
    """What the files of a compressed network say of it beside itself; methods: their reprs."""
    source = f"{without_folders(network.source)}; {' '.join(methods)}"
    return Origin.of(name, source, task, network.read_from)
