"""`nas list`: everything that has a name, ours and that of installed packages."""

import argparse
import json
from typing import Any

from nas import registry


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """The parser of `nas list`."""
    parser = commands.add_parser("list", parents=[common], help="what there is to name in flags")
    parser.add_argument("kind", nargs="?", help="only this kind: family, space, task, ...")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the names of each kind with the first lines of their docstrings."""
    if arguments.kind and arguments.kind not in registry.KINDS:
        raise ValueError(f"no kind {arguments.kind!r} (there is: {', '.join(registry.KINDS)})")
    kinds = [arguments.kind] if arguments.kind else list(registry.KINDS)
    found = {kind: registry.listing(kind) for kind in kinds}
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    for kind, entries in found.items():
        for name, line in entries.items():
            print(f"{kind:11} {name:14} {line}")
