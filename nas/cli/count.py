"""`nas count`: from names of networks to `nas.networks.count.count`, and a table."""

import argparse
import dataclasses
import json
from typing import Any

from nas import backend, registry

EPILOG = """examples:
  nas count mnasnet                              all its variants
  nas count decoder:mixtral_8x7b decoder:afm_2025_on_device --tokens 4096 --batch 8
No weight is allocated: 47 billion parameters are counted in seconds, on any machine."""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """The parser of `nas count`."""
    parser = commands.add_parser(
        "count",
        parents=[common],
        help="parameters, multiply-adds and bytes of any network of the catalog, on paper",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    parser.add_argument("model", nargs="+", help="family:variant, or a family for all of them")
    parser.add_argument("--tokens", type=int, help="tokens of a text (the variant's length)")
    parser.add_argument("--batch", type=int, default=1, help="examples at once (%(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Count the named networks; 0."""
    for flag, value in (("--tokens", arguments.tokens), ("--batch", arguments.batch)):
        if value is not None and value < 1:
            raise ValueError(f"{flag} {value}; expected at least 1")
    named = [registry.parse(name) for name in dict.fromkeys(arguments.model)]
    for one in named:
        registry.known("family", one.name)
    backend.load()
    from nas.networks.count import count
    from nas.report.tables import counts

    rows = [
        count(registry.network(name)[1], name=name, tokens=arguments.tokens, batch=arguments.batch)
        for name in _variants(named)
    ]
    if arguments.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        print(counts.table(rows))
    return 0


def _variants(named: list[registry.Spec]) -> list[str]:
    """FAMILY:VARIANT of every network; a family alone means all its variants."""
    found = []
    for one in named:
        if one.options:
            raise ValueError(f"cannot read {one}: expected FAMILY or FAMILY:VARIANT")
        family = registry.module("family", one.name)
        variants = family.VARIANTS if one.value is None else [str(one.value)]
        found += [f"{one.name}:{variant}" for variant in variants]
    return found
