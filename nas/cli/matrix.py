"""`nas matrix`: from names to `nas.compression.matrix.matrix`, and its table."""

import argparse
import functools
import json
import pathlib
from typing import Any

from nas import backend, registry

# What a network is trained on: the first task that decides fields of its Config and suits its
# outputs.
TASKS = ("digits", "text:{text},length=64,stride=256", "fsdd", "detection:bccd,size=64")
# Beside each family's tiny: forms that other methods, or other parts of methods, act on.
VARIANTS = ("decoder:tiny,experts=4,top_k=2,expert_every=2", "conformer:tiny,decoder=embedding")
EPILOG = """examples:
  nas matrix                                     every method on every family: an hour on 2 cores
  nas matrix --family mnasnet --method ptq:8 --method qat:4 --target cpu:threads=1
Each finished cell is kept below --out: after Ctrl-C, or a kill, the same command goes on."""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """The parser of `nas matrix`."""
    parser = commands.add_parser(
        "matrix",
        parents=[common],
        help="every compression method on every family's tiny network, in one table",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    parser.add_argument(
        "--family", action="append", help="only this family, or FAMILY:VARIANT; repeat (all)"
    )
    parser.add_argument("--method", action="append", help="only this one; repeat (all)")
    parser.add_argument("--target", help="device to time each .tflite on (none)")
    parser.add_argument(
        "--out", default="runs/matrix", help="folder that keeps finished cells (%(default)s)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Try methods on networks; 0, or 2 where a cell failed."""
    families = arguments.family or [*registry.listing("family"), *VARIANTS]
    method_names = arguments.method or list(registry.listing("method"))
    for kind, names in (("family", families), ("method", method_names)):
        for name in names:
            registry.known(kind, registry.parse(name).name)
    backend.load()
    from nas.cli.listener import Terminal
    from nas.compression.matrix import matrix

    out = pathlib.Path(arguments.out)
    found = matrix(
        {name: registry.network(name if ":" in name else f"{name}:tiny")[1] for name in families},
        {name: registry.method(name) for name in method_names},
        tasks=tasks(out / "text.txt"),
        target=registry.target(arguments.target) if arguments.target else None,
        out=out,
        on_event=Terminal(),
    )
    print(json.dumps(found.to_json(), indent=1) if arguments.json else found)
    return 2 if any(cell.failed for cell in found.cells) else 0


def tasks(text: pathlib.Path) -> list[functools.partial]:
    """What loads each of `TASKS`, on data that is installed or in NAS_DATA; `text` is written."""
    if not text.exists():
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(installed_text())
    return [functools.partial(registry.task, name.format(text=text)) for name in TASKS]


def installed_text() -> str:
    """English text that comes with scikit-learn: what it says of its data sets."""
    import sklearn.datasets

    files = sorted((pathlib.Path(sklearn.datasets.__file__).parent / "descr").glob("*.rst"))
    return "\n".join(file.read_text() for file in files)
