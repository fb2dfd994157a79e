"""The journey behind `nas profile`: networks timed on devices, compared, or run until warm."""

import argparse
import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

from latency.networks import keras_file
from latency.target import Latency, Target, TargetUnavailable
from nas import backend, registry
from nas.profiling import explanations, history
from nas.searching.study import Settings

_COPIES = 3  # of the weights, in float32: the Keras model, its file, the runtime's packed ones


def profile(arguments: argparse.Namespace) -> int:
    """`nas profile`: 0, or 2 where some network could not be timed on some target."""
    batches = _batches(arguments.batch)
    seconds = None if arguments.sustained is None else _seconds(arguments.sustained)
    targets = {text: registry.target(text) for text in arguments.target or Settings.targets}
    plot = explanations.plot_file(arguments.plot) if arguments.why else None
    models = {name: _model(name) for name in dict.fromkeys(arguments.model)}
    if seconds is not None:
        return _sustained(arguments, targets, models, batches, seconds)
    from nas.report.plots import roofline
    from nas.report.tables import explanation
    from nas.report.tables import latency as latency_table

    rows: list[dict] = []
    failures: list[str] = []
    for text, target in targets.items():
        for batch in batches:
            _say(f"timing {', '.join(models)} on {text}, batch {batch}")
            options = {
                "batch_size": batch,
                "warmup": arguments.warmup,
                "runs": arguments.runs,
                "details": True,
            }
            for name, latency in _timed(target, text, models, options, failures, arguments.debug):
                rows.append({"model": name, "spec": text, "latency": latency})
    found = explanations.explained(rows, targets, models, failures) if plot else []
    if found:
        roofline.draw(plot, found)
    if arguments.json:
        told = {id(row["latency"]): row["why"].to_json() for row in found}
        content = [_as_json(row) for row in rows]
        for row, record in zip(rows, content, strict=True):
            record |= {"why": told.get(id(row["latency"])), "plot": str(plot)} if plot else {}
        print(json.dumps(content, indent=1, default=repr))
    elif rows:
        print(latency_table.table(rows))
        if arguments.ops:
            print(latency_table.operations(rows))
        if found:
            print(explanation.table(found))
            print(f"plot      {plot}")
    for failure in failures:
        print(f"nas: {failure}", file=sys.stderr)
    return 2 if failures else 0


def _timed(
    target: Target,
    text: str,
    models: dict[str, Any],
    options: dict[str, Any],
    failures: list[str],
    debug: bool,
) -> Iterator[tuple[str, Latency]]:
    """Each network's latency; one that cannot be timed is told in `failures`, the others stay."""
    try:
        yield from zip(models, history.profile(target, models, **options), strict=True)
    except (ValueError, OSError, TargetUnavailable) as error:
        if debug:
            raise
        if len(models) == 1 or isinstance(error, TargetUnavailable):
            failures.append(f"{', '.join(models)} on {text}: {' '.join(str(error).split())}")
            return
        for name, model in models.items():  # in turns they fail together
            yield from _timed(target, text, {name: model}, options, failures, debug)


def _sustained(
    arguments: argparse.Namespace,
    targets: dict[str, Target],
    models: dict[str, Any],
    batches: list[int],
    seconds: float,
) -> int:
    """`--sustained`: run without pause, print and plot the way from cold to warm."""
    from nas.report.plots import sustained

    runs: list[dict] = []
    interrupted = False
    try:
        for text, target in targets.items():
            for name, model in models.items():
                for batch in batches:
                    label = f"{name} on {text}" + (f", batch {batch}" if batch > 1 else "")
                    spells: list[Latency] = []
                    runs.append({"model": name, "spec": text, "label": label, "spells": spells})
                    network = history.digest(model)
                    for latency in target.sustain(model, batch, seconds):
                        spells.append(latency)
                        history.record(latency, name, network)
                        _progress(label, latency, seconds)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if sys.stderr.isatty():
            print(file=sys.stderr)
    runs = [run for run in runs if run["spells"]]
    if runs:
        plot = sustained.png(pathlib.Path(arguments.out), runs)
        if arguments.json:
            content = [run | {"spells": [one.to_json() for one in run["spells"]]} for run in runs]
            print(json.dumps({"plot": str(plot), "runs": content}, indent=1, default=repr))
        else:
            print(sustained.table(runs))
            print(f"plot      {plot}")
    return 130 if interrupted else 0


def _progress(label: str, latency: Latency, seconds: float) -> None:
    if sys.stderr.isatty():
        at_s = latency.conditions["at_s"]
        left = max(0, round(seconds - at_s))
        told = (
            f"{label}: {latency.median_ms:.4g} ms at {at_s:.0f} s, {left // 60}:{left % 60:02} left"
        )
        print(f"\r\033[K{told}", end="", file=sys.stderr, flush=True)


def _as_json(row: dict) -> dict:
    """What `--json` prints of a row: the figure, how it was asked for, every sample."""
    return {"model": row["model"], "spec": row["spec"], **row["latency"].to_json()}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _batches(text: str) -> list[int]:
    try:
        batches = [int(part) for part in text.split(",")]
    except ValueError:
        batches = [0]
    if min(batches) < 1:
        raise ValueError(f"--batch {text}: expected whole numbers from 1, as 1,32,128")
    return batches


def _seconds(text: str) -> float:
    """The seconds of "10m", "90s", "1h" or "90"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found or not float(found[1]):
        raise ValueError(f"--sustained {text}: expected a duration as 90s, 10m or 1h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def _model(name: str) -> Any:
    """A file to time, or a network of the catalog in the form that runs on a device."""
    path = pathlib.Path(name)
    if path.suffix in (".tflite", ".keras"):
        if not path.is_file():
            raise ValueError(f"no file {name}")
        return path
    if path.exists() and ":" not in name:
        raise ValueError(f"{name}: expected a .tflite or .keras file, or FAMILY:VARIANT")
    registry.known("family", registry.parse(name).name)
    backend.load()
    family, config = registry.network(name)
    from families.layers import shapes_only
    from nas.networks.build import deploy

    form = deploy(config)
    if form != config:
        values = dataclasses.asdict(config)
        changed = {k: v for k, v in dataclasses.asdict(form).items() if v != values[k]}
        told = ", ".join(f"{field}={value!r}" for field, value in changed.items())
        _say(f"{name}: in the form that runs on a device, {told}")
    with shapes_only():
        params = family.build(form).count_params()
    needed_mb, free_mb = _COPIES * 4 * params / 2**20, keras_file.free_mb()
    if needed_mb > free_mb:
        raise ValueError(
            f"{name}: {params:,} parameters; to time them takes {needed_mb / 1024:.1f} GB, and"
            f" {free_mb / 1024:.1f} GB of memory are free here (`nas count {name}` needs none)"
        )
    return family.build(form)
