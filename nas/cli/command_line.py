"""The command line: flags to journeys, errors to one line."""

import argparse
import importlib
import json
import os
import sys

from nas.cli import compress, count, generate, matrix, profile_flags, scale, search, train


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; it imports nothing heavy."""
    top = argparse.ArgumentParser(
        prog="nas",
        description="Hardware-aware neural architecture search and compression, on real devices.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    common.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE_OR_MODULE",
        help="Python that registers the Keras layers of a network of your own; repeat for several",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    search.add(commands, common)
    scale.add(commands, common)
    profile_flags.add(commands, common)
    train.add(commands, common)
    compress.add(commands, common)
    matrix.add(commands, common)

    count.add(commands, common)

    devices = commands.add_parser(
        "devices", parents=[common], help="what can be profiled here, and what is missing"
    )
    devices.add_argument(
        "--history", action="store_true", help="how devices changed since their first figures"
    )
    devices.add_argument("--target", action="append", help="only these, in --history")

    device = commands.add_parser("device", help="learn a device: a predictor of its latencies")
    actions = device.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser(
        "add", parents=[common], help="time probe networks on it, fit and judge a predictor"
    )
    add.add_argument("name", help="what it is called then: --target predicted:NAME")
    add.add_argument("--target", required=True, help="the device, e.g. android or cpu:threads=1")
    add.add_argument("--probes", type=int, default=40, help="networks to time (%(default)s)")
    add.add_argument(
        "--space", action="append", help="take half of the probes from it; repeat (mnasnet)"
    )

    generate.add(commands, common)

    listing = commands.add_parser("list", parents=[common], help="what there is to name in flags")
    listing.add_argument("kind", nargs="?", help="only this kind: family, space, task, ...")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 done, 2 an expected error (one line on stderr), 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser().parse_args(argv)
    arguments.argv = argv
    try:
        if arguments.imports:
            _import(arguments.imports)
        return COMMANDS.get(arguments.command, _journey)(arguments) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if arguments.debug or not _expected(error):
            raise
        print(f"nas: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _expected(error: Exception) -> bool:
    from latency.target import TargetUnavailable

    return isinstance(error, (ValueError, OSError, TargetUnavailable))


def _import(texts: list[str]) -> None:
    from nas import backend, registry

    backend.load()
    for text in texts:
        registry.import_layers(text)


def _list(arguments) -> None:
    from nas import registry

    kinds = [arguments.kind] if arguments.kind else list(registry.KINDS)
    if arguments.kind and arguments.kind not in registry.KINDS:
        raise ValueError(f"no kind {arguments.kind!r} (there is: {', '.join(registry.KINDS)})")
    found = {kind: registry.listing(kind) for kind in kinds}
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    for kind, entries in found.items():
        for name, line in entries.items():
            print(f"{kind:11} {name:14} {line}")


def _journey(arguments) -> int | None:
    module, _, function = JOURNEYS[arguments.command].partition(":")
    return getattr(importlib.import_module(module), function)(arguments)


COMMANDS = {"list": _list}
JOURNEYS = {
    "profile": "nas.cli.profile:profile",
    "search": "nas.cli.search:run",
    "show": "nas.cli.search:run_show",
    "export": "nas.cli.search:run_export",
    "scale": "nas.cli.scale:run",
    "train": "nas.cli.train:run",
    "compress": "nas.cli.compress:run",
    "matrix": "nas.cli.matrix:run",
    "count": "nas.cli.count:run",
    "generate": "nas.cli.generate:run",
    "devices": "nas.cli.devices:devices",
    "device": "nas.cli.devices:learn",
}
