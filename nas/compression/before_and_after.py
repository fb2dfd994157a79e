"""A compressed network to files: each written, read back, measured beside the original's."""

import dataclasses
import importlib
import pathlib
import platform
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from nas import registry
from nas.files import network_files
from nas.profiling import history

WRITERS = {  # suffix -> module with `write(path, model, record, data) -> Written`
    ".tflite": "nas.files.writers.litert",
    ".mlpackage": "nas.files.writers.coreml",
    ".safetensors": "nas.files.writers.safetensors",
}
JUDGED = 1000  # validation examples that a file is run on, one at a time


def write(
    outs: Sequence[pathlib.Path],
    read: Any,
    done: Any,
    data: Any,
    task: Any,
    record: dict,
    targets: Sequence[str],
    prefer: str,
    say: Callable[[str], None],
) -> None:
    """Write `outs`, and beside the first a .json, and a .png where sensitivities are known.

    `record` learns of every file (bytes, plain and zipped, bits per weight; the quality of a
    .tflite file itself) for the original in the same format and for the result, and of latencies on
    `targets`, of the .tflite files.
    """
    from latency.system.json_records import utc_now, write_json

    with tempfile.TemporaryDirectory(prefix="nas_compress_") as folder:
        folder = pathlib.Path(folder)
        config = read.config
        record["files"] = []
        timed: dict[str, pathlib.Path] = {}
        for out in outs:
            say(f"writing {out}")
            was = write_one(folder / f"before{out.suffix}", read.model, config, None, data)
            now = write_one(out, done.model, config, done.record, data, prefer)
            if out.suffix == ".tflite" and task is not None:
                for told, path, model in (
                    (was, folder / "before.tflite", read.model),
                    (now, out, done.model),
                ):
                    told["quality"] = _quality(path, model, config, task)
            record["files"].append({"path": str(out), "before": was, "after": now})
            if out.suffix == ".tflite":
                timed = {"before": folder / "before.tflite", "after": out}
        if targets and not timed:
            timed = {name: folder / f"{name}.tflite" for name in ("before", "after")}
            write_one(timed["before"], read.model, config, None, data)
            write_one(timed["after"], done.model, config, done.record, data, prefer)
        for text in targets:
            say(f"timing on {text}")
            for name, latency in zip(
                timed, history.profile(registry.target(text), timed, details=True), strict=True
            ):
                told = latency.to_json()
                told.pop("samples_ms"), told.pop("per_op")
                record[name].setdefault("latency", {})[text] = told
    record |= {"date": utc_now(), "machine": platform.processor() or platform.machine()}
    stem = outs[0]
    if record.get("sensitivity"):
        from nas.report.plots import figure, sensitivity

        figure.save(stem.with_suffix(".png"), sensitivity.draw(record))
        record["plot"] = str(stem.with_suffix(".png"))
    write_json(stem.with_suffix(".json"), record)


def write_one(
    path: pathlib.Path, model: Any, config: Any, record: Any, data: Any, prefer: str = "size"
) -> dict:
    """Write one file, of the form that is deployed; what is known of it, as JSON."""
    from compress.rewriting.record import Record
    from nas.files.writers.written_file import sizes

    if path.suffix == ".keras":
        network_files.save(model, path)
        plain, zipped = sizes(path)
        return {
            "bytes": plain,
            "zipped_bytes": zipped,
            "bits_per_weight": 8 * plain / max(model.count_params(), 1),
            "weights": {},
            "left": {},
            "checked": "nothing: .keras files hold float32",
        }
    writer = importlib.import_module(WRITERS[path.suffix])
    record, left, form = record or Record(original=model), {}, model
    if path.suffix != ".safetensors" and not record.variants:
        form = _handed(model, config)
    if form is not model:  # a part, perhaps; the examples are of the trained form's inputs
        data, held = None, {weight.path for weight in form.weights}
        weights = {name: weight for name, weight in record.weights.items() if name in held}
        record = dataclasses.replace(record, weights=weights)
        if record.activations:
            record = dataclasses.replace(record, activations=None)
            left["activations"] = "float: there are no examples of the deployed form's inputs"
    options = {"prefer": prefer} if path.suffix == ".tflite" else {}
    written = writer.write(path, form, record, data, **options)
    told = {
        name: getattr(written, name)
        for name in ("bytes", "zipped_bytes", "bits_per_weight", "weights", "left", "checked")
    }
    return told | {"left": told["left"] | left}


def _handed(model: Any, config: Any) -> Any:
    """The form of a network that goes into deployable files.

    That of the family where the network has a Config and its weights still fit; else itself.
    """
    from nas.networks.build import deploy, deployed

    if config is None or deploy(config) == config:
        return model
    try:
        return deployed(model, config)
    except ValueError:  # fewer experts, or other widths, than the Config says
        return model


def _quality(path: pathlib.Path, model: Any, config: Any, task: Any) -> float | None:
    """Quality of a .tflite file, on at most JUDGED examples; None of a form that streams."""
    import numpy as np

    from compress.examples.data import taken
    from latency.tflite import convert
    from nas.training import loop
    from nas.training.batches import count

    if _handed(model, config) is not model:
        return None
    chosen = np.unique(np.linspace(0, count(task.valid) - 1, JUDGED).astype(int))
    task = dataclasses.replace(task, valid=tuple(taken(part, chosen) for part in task.valid))
    return loop.measure(model, task, lambda inputs: convert.run(path, inputs))[0]
