"""`nas matrix`: every compression method on every family's `tiny`, in one table."""

import argparse
import json
import pathlib
import sys
import tempfile
import textwrap
from typing import Any

from nas import backend, registry

# What each kind of network is trained on: the first task that decides fields its Config has, and
# whose outputs it gives.
TASKS = ("digits", "text:{text},length=64,stride=256", "fsdd", "detection:bccd,size=64")
TRAINING, TUNING = 3, 1  # epochs of a network, and of each compression of it
EXAMPLES = 128


def matrix(arguments: argparse.Namespace) -> int:
    """`nas matrix`: 0, or 2 where a cell failed."""
    families = arguments.family or list(registry.listing("family"))
    methods = arguments.method or list(registry.listing("method"))
    for kind, names in (("family", families), ("method", methods)):
        for name in names:
            registry.known(kind, registry.parse(name).name)
    backend.load()
    cells = []
    with tempfile.TemporaryDirectory(prefix="nas_matrix_") as folder:
        for family in families:
            for cell in column(family, methods, pathlib.Path(folder), arguments.target):
                cells.append(cell)
                _say(cell)
    if arguments.json:
        print(json.dumps(cells, indent=1))
    else:
        print(table(cells, families, methods))
    return 2 if any("failed" in cell for cell in cells) else 0


def column(family: str, methods: list[str], folder: pathlib.Path, target: str | None = None):
    """The cells of one family, one for each method: dicts for JSON."""
    from nas.compression import before_and_after
    from nas.networks import build
    from nas.training import loop

    module, config = registry.network(family if ":" in family else f"{family}:tiny")
    try:
        task = task_for(config, folder)
    except ValueError as error:  # its data is not at hand
        yield from ({"family": family, "method": m, "reason": str(error)} for m in methods)
        return
    config = build.suited(config, task.fields, task.name)
    model = build.build(config)
    loop.fit(model, task, TRAINING, 0)
    before = folder / f"{family}.tflite"
    before_and_after.write_one(before, model, config, None, None)
    quality = loop.evaluate(model, task)
    for text in methods:
        cell = {"family": family, "method": text, "task": task.name}
        cell |= _cell(text, model, config, task, quality, before, target)
        yield cell


def task_for(config: Any, folder: pathlib.Path) -> Any:
    """The task that a family's Config can take, on data that is installed, or in NAS_DATA."""
    from families.layers import shapes_only
    from nas.networks import build
    from nas.training import loop

    text = folder / "text.txt"
    if not text.exists():
        text.write_text(installed_text())
    unsuited = None
    for name in TASKS:
        task = registry.task(name.format(text=text))
        try:
            suited = build.suited(config, task.fields, task.name)
            with shapes_only():
                loop.check(sys.modules[type(config).__module__].build(suited), task)
            return task
        except ValueError as error:
            unsuited = error
    raise unsuited


def installed_text() -> str:
    """English text that comes with scikit-learn: what it says of its data sets."""
    import sklearn.datasets

    files = sorted((pathlib.Path(sklearn.datasets.__file__).parent / "descr").glob("*.rst"))
    return "\n".join(file.read_text() for file in files)


def _cell(text, model, config, task, quality, before, target) -> dict:
    """What one method made of one network, or why nothing."""
    from compress.method import NotApplicable, compress
    from nas.compression import before_and_after, examples
    from nas.profiling import history
    from nas.training import loop

    method = registry.method(text)
    after = before.with_name("after.tflite")

    def fit(prepared, update) -> None:
        loop.fit(prepared, task, TUNING, 0, learning_rate=1e-3, update=update)

    try:
        data = examples.examples(task, model, EXAMPLES, 0)
        done = compress(model, [method], fit if method.trains else None, data)
        written = before_and_after.write_one(after, done.model, config, done.record, data)
    except NotApplicable as error:
        return {"reason": str(error)}
    except (ValueError, RuntimeError) as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    cell = {
        "quality": loop.evaluate(done.model, task),
        "quality_before": quality,
        "size_ratio": written["bytes"] / before.stat().st_size,
        "params_ratio": done.model.count_params() / model.count_params(),
        "bits_per_weight": written["bits_per_weight"],
    }
    if target:
        files = {"before": before, "after": after}
        one, two = history.profile(registry.target(target), files)
        cell |= {"latency_ratio": two.median_ms / one.median_ms, "kind": str(two.kind)}
    return cell


def table(cells: list[dict], families: list[str], methods: list[str]) -> str:
    """Size, quality and latency of each cell against the network as it was; reasons below."""
    from nas.report.tables.latency import WIDTH, align

    found = {(cell["family"], cell["method"]): cell for cell in cells}
    reasons: dict[str, int] = {}
    rows = [["", *families]]
    for method in methods:
        row = [method]
        for family in families:
            cell = found[family, method]
            if "size_ratio" in cell:
                points = 100 * (cell["quality"] - cell["quality_before"])
                latency = f" {cell['latency_ratio']:.2f}" if "latency_ratio" in cell else ""
                row.append(f"{cell['size_ratio']:.2f} {points:+.1f}{latency}")
            else:
                why = cell.get("reason") or f"FAILED {cell['failed']}"
                row.append(f"[{reasons.setdefault(why, len(reasons) + 1)}]")
        rows.append(row)
    lines = ["size of the .tflite, quality in points, latency: against the network as it was"]
    lines += align(rows)
    for why, number in reasons.items():
        lines += textwrap.wrap(f"[{number}] {why}", WIDTH, subsequent_indent="    ")
    return "\n".join(lines)


def _say(cell: dict) -> None:
    told = cell.get("reason") or cell.get("failed") or f"x{cell['size_ratio']:.2f}"
    print(f"{cell['family']} {cell['method']}: {told}", file=sys.stderr, flush=True)
