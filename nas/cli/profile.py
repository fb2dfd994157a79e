"""`nas profile`: names become networks and targets, latencies become tables, JSON and plots."""

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

from latency.networks import keras_file
from latency.target import Latency
from nas import backend, interruption, registry
from nas.cli import shapes
from nas.events import Message
from nas.files.open_network import Network, open_network
from nas.networks.build import deploy
from nas.profiling import journey
from nas.searching.study import Settings

_COPIES = 3  # of the weights, in float32: the Keras model, its file, the runtime's packed ones
_PICTURES = (".png", ".svg")


def profile(arguments: argparse.Namespace) -> int:
    """Run the command: 0, or 2 where some network could not be timed on some target."""
    batch_sizes = _batch_sizes(arguments.batch)
    seconds = None if arguments.sustained is None else _seconds(arguments.sustained)
    targets = {text: registry.target(text) for text in arguments.target or Settings.targets}
    plot = _picture(arguments.plot) if arguments.why else None
    of_layers = not all(target.runs_tflite for target in targets.values())
    fixed = (shapes.parsed(arguments.shape), arguments.signature)
    opened = {name: _network(name, of_layers, *fixed) for name in dict.fromkeys(arguments.model)}
    models = {name: one.file or one.model for name, one in opened.items()}
    if seconds is not None:
        return _sustained(arguments, targets, models, batch_sizes, seconds)
    found = journey.profile(
        models,
        targets,
        runs=arguments.runs,
        warmup=arguments.warmup,
        batch_sizes=batch_sizes,
        operations=True,
        explain=arguments.why,
        skip_failures=not arguments.debug,
        on_event=_say,
    )
    explanations = found.explained()
    if plot and explanations:
        from nas.report.plots import figure, roofline

        figure.save(plot, roofline.draw(explanations))
    if arguments.json:
        content = found.to_json()
        if plot:
            content = [row | {"why": row.get("why"), "plot": str(plot)} for row in content]
        print(json.dumps(content, indent=1, default=repr))
    elif found:
        print(found.table())
        if arguments.ops:
            print(found.operations())
        if explanations:
            print(found.explanations())
            print(f"plot      {plot}")
    for failure in found.failures:
        print(f"nas: {failure}", file=sys.stderr)
    return 2 if found.failures else 0


def _sustained(
    arguments: argparse.Namespace,
    targets: dict[str, Any],
    models: dict[str, Any],
    batch_sizes: list[int],
    seconds: float,
) -> int:
    """`--sustained`: print and plot the way from cold to warm."""
    from nas.report.plots import figure
    from nas.report.plots import sustained as plots
    from nas.report.tables import sustained as tables

    runs: dict[str, dict[str, Any]] = {}
    interrupted = False
    try:
        for one in journey.sustain(models, targets, seconds=seconds, batch_sizes=batch_sizes):
            batch_size = one.latency.batch_size
            label = f"{one.model} on {one.target}"
            label += f", batch {batch_size}" if batch_size > 1 else ""
            run = {"model": one.model, "spec": one.target, "label": label, "spells": []}
            runs.setdefault(label, run)["spells"].append(one.latency)
            _progress(label, one.latency, seconds)
    except KeyboardInterrupt:
        interruption.hand_over()
        interrupted = True
    finally:
        if sys.stderr.isatty():
            print(file=sys.stderr)
    if runs:
        plot = figure.save(Path(arguments.out), plots.draw(list(runs.values())))
        if arguments.json:
            content = [
                run | {"spells": [one.to_json() for one in run["spells"]]} for run in runs.values()
            ]
            print(json.dumps({"plot": str(plot), "runs": content}, indent=1, default=repr))
        else:
            print(tables.table(list(runs.values())))
            print(f"plot      {plot}")
    return 130 if interrupted else 0


def _say(event: Message) -> None:
    print(event.text, file=sys.stderr, flush=True)


def _progress(label: str, latency: Latency, seconds: float) -> None:
    if sys.stderr.isatty():
        at_s = latency.conditions["at_s"]
        left = max(0, round(seconds - at_s))
        text = (
            f"{label}: {latency.median_ms:.4g} ms at {at_s:.0f} s, {left // 60}:{left % 60:02} left"
        )
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _batch_sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise ValueError(f"--batch {text}: expected whole numbers from 1, as 1,32,128")
    return sizes


def _seconds(text: str) -> float:
    """The seconds of "10m", "90s", "1h" or "90"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found or not float(found[1]):
        raise ValueError(f"--sustained {text}: expected a duration as 90s, 10m or 1h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in _PICTURES:
        raise ValueError(f"--plot {text}: expected a file that ends in {' or '.join(_PICTURES)}")
    return path


def _network(name: str, of_layers: bool, shapes: Any, signature: str | None) -> Network:
    """A file to time, or a network of the catalog in the form that runs on a device.

    of_layers: some target goes by the layers of a network, which a file may have within others.
    shapes: of inputs that it leaves open. signature: of a .tflite file.
    """
    path = Path(name)
    if path.suffix in (".tflite", ".keras"):
        if not path.is_file():
            raise ValueError(f"no file {name}")
        backend.choose()  # and what layers the process that converts it may meet
        as_it_is = path.suffix == ".tflite" or not of_layers
        if as_it_is and not shapes and signature is None:
            return Network(None, None, name, {}, path)
        return open_network(path, shapes, signature)
    if path.exists() and ":" not in name and path.suffix != ".py":
        backend.load()
        return open_network(path, shapes, signature)
    registry.known("family", registry.parse(name).name)
    backend.load()
    family, config = registry.network(name)
    from families.layers import shapes_only

    form = deploy(config)
    if form != config:
        values = dataclasses.asdict(config)
        changed = {k: v for k, v in dataclasses.asdict(form).items() if v != values[k]}
        fields = ", ".join(f"{field}={value!r}" for field, value in changed.items())
        _say(Message(f"{name}: in the form that runs on a device, {fields}"))
    with shapes_only():
        params = family.build(form).count_params()
    needed_mb, free_mb = _COPIES * 4 * params / 2**20, keras_file.free_mb()
    if needed_mb > free_mb:
        raise ValueError(
            f"{name}: {params:,} parameters; to time them takes {needed_mb / 1024:.1f} GB, and"
            f" {free_mb / 1024:.1f} GB of memory are free here (`nas count {name}` needs none)"
        )
    return open_network(family.build(form), shapes, signature)
