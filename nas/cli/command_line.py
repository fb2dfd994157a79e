"""The command line: flags to journeys, errors to one line."""

import argparse
import os
import sys

from nas import backend, interruption
from nas.cli import (
    compress,
    count,
    device_flags,
    generate,
    listing,
    matrix,
    profile_flags,
    scale,
    search,
    train,
)

# Each adds its parser, which knows what it runs; none imports anything heavy before it runs.
COMMANDS = (
    search,
    scale,
    profile_flags,
    train,
    compress,
    matrix,
    count,
    device_flags,
    generate,
    listing,
)

INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; it imports nothing heavy."""
    top = argparse.ArgumentParser(
        prog="nas",
        description="Hardware-aware neural architecture search and compression, on real devices.",
        epilog="Ctrl-C and SIGTERM end a command between two steps: what it has is kept, and the"
        " same command goes on; a second Ctrl-C ends it at once. Exit status: 0 done, 2 an error,"
        " told in one line, 130 after Ctrl-C, 143 after SIGTERM.",
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

    for command in COMMANDS:
        command.add(commands, common)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit status.

    0 done, 2 an expected error (one line on stderr), 130 ended by Ctrl-C, 143 by SIGTERM.
    """
    with interruption.command() as request:
        argv = sys.argv[1:] if argv is None else argv
        arguments = parser().parse_args(argv)
        arguments.argv = argv
        code = _run(arguments, request)
    return 128 + request.signal if code == INTERRUPTED and request.signal else code


def _run(arguments: argparse.Namespace, request: interruption.Request) -> int:
    try:
        backend.choose()  # before whatever a command needs imports Keras
        if arguments.imports:
            _import(arguments.imports)
        code = arguments.run(arguments) or 0
        sys.stdout.flush()  # here, where it is told in one line that there is no room, or no reader
        return code
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if request.raised:  # an import that it cut short may fail in any way
            return _interrupted()
        if arguments.debug or not _expected(error):
            raise
        print(f"nas: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return INTERRUPTED


def _expected(error: Exception) -> bool:
    from latency.target import TargetUnavailable

    return isinstance(error, (ValueError, OSError, TargetUnavailable))


def _import(texts: list[str]) -> None:
    from nas import registry

    backend.load()
    for text in texts:
        registry.import_layers(text)
