"""The command line: flags to journeys, errors to one line."""

import argparse
import importlib
import json
import os
import sys

from nas.cli import compress, count, generate, profile_flags, train
from nas.cli import scale_flags as scale_flags

SEARCH_EPILOG = """examples:
  nas search
  nas search --space mnasnet:a1 --task fashion_mnist --target cpu:threads=1 --budget-ms 4.5 \\
             --controller ppo --trials 2000 --workers 2 --study mnas1
  nas search --target cpu:threads=1 --budget-ms 2 --target cpu:threads=2 --budget-ms 1.2
  nas search --method "ptq:8|ptq:4|none" --method "prune_channels:0.25|none" --max-bytes 150e3
The same command again resumes the study; more --trials extend it."""


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; it imports nothing heavy."""
    top = argparse.ArgumentParser(
        prog="nas",
        description="Hardware-aware neural architecture search and compression, on real devices.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    search = commands.add_parser(
        "search",
        parents=[common],
        help="find a network that is as good as it can be within a latency budget",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=SEARCH_EPILOG,
    )
    what = search.add_argument_group("what to search")
    what.add_argument("--space", default="mnasnet", help="search space[:base] (%(default)s)")
    what.add_argument(
        "--task",
        default="digits",
        help="proxy task, e.g. digits, fashion_mnist, image_folder:PATH, table:FILE (%(default)s)",
    )
    what.add_argument(
        "--target", action="append", help="device to time on; repeat for several (cpu:threads=1)"
    )
    what.add_argument(
        "--budget-ms",
        action="append",
        type=_budget,
        help="latency budget, one for each --target; min: as fast as possible"
        " (0.8 of the base network's)",
    )
    what.add_argument("--input", type=int, help="side of the timed input (the task's)")
    what.add_argument("--max-params", type=float, help="hard limit on trainable parameters")
    what.add_argument("--max-macs", type=float, help="hard limit on multiply-adds")
    what.add_argument("--max-bytes", type=float, help="hard limit on the .tflite file")
    what.add_argument(
        "--method",
        dest="methods",
        action="append",
        default=[],
        help="compression as one more choice, e.g. 'ptq:8|ptq:4|none'; repeat for several",
    )
    how = search.add_argument_group("how to search")
    how.add_argument("--controller", default="surrogate", help="see `nas list` (%(default)s)")
    how.add_argument(
        "--evaluator",
        default="train",
        metavar="train|supernet[:EPOCHS]",
        help="train each network by itself, or judge all with the weights of one that holds the"
        " whole space, trained once (%(default)s)",
    )
    how.add_argument(
        "--reward",
        default="absolute",
        choices=["absolute", "soft", "hard", "relu", "pareto"],
        help="how quality and latency become one number; pareto: they do not (%(default)s)",
    )
    how.add_argument(
        "--beta",
        type=_beta,
        help="exponent or weight of latency in the reward;"
        " auto: calibrate on the first networks (the reward's own)",
    )
    how.add_argument("--trials", type=int, help="networks to train (16)")
    how.add_argument(
        "--minutes",
        type=float,
        help="stop the search, finalists included, after this long (4 unless --trials is given)",
    )
    how.add_argument(
        "--profiles",
        type=int,
        help="networks to time for each one trained (4 if the"
        " controller can choose among them, else 1)",
    )
    how.add_argument(
        "--filter",
        metavar="synflow|naswot|flops|params",
        help="train only what this score of untrained networks favours among those timed (none)",
    )
    how.add_argument(
        "--epochs", type=int, help="epochs of a candidate (a third of the task's, or 4)"
    )
    how.add_argument(
        "--finalists",
        type=int,
        default=3,
        help="best networks retrained for three times the epochs (%(default)s)",
    )
    how.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    how.add_argument("--prove", action="store_true", help="compare with random search")
    where = search.add_argument_group("where it runs and what it leaves")
    where.add_argument("--study", help="name of the study (made of the flags)")
    where.add_argument("--out", default="runs", help="folder of the studies (%(default)s)")
    where.add_argument("--storage", help="Optuna RDB URL (a journal file in the study's folder)")
    where.add_argument(
        "--workers", type=int, default=1, help="processes on this machine (%(default)s)"
    )
    where.add_argument("--child", action="store_true", help=argparse.SUPPRESS)

    scale_flags.add(commands, common)
    show = commands.add_parser("show", parents=[common], help="print a study's result again")
    show.add_argument("run", help="folder of the study, e.g. runs/mnas1")

    export = commands.add_parser(
        "export", parents=[common], help="rebuild, train and write the network of any trial"
    )
    export.add_argument("run", help="folder of the study")
    export.add_argument("--trial", type=int, help="number of the trial (the winner)")
    export.add_argument("--epochs", type=int, help="epochs to train (as a finalist); 0: untrained")
    export.add_argument("--out", help="folder to write to (RUN/trial_N)")

    profile_flags.add(commands, common)
    train.add(commands, common)
    compress.add(commands, common)
    every = commands.add_parser(
        "matrix",
        parents=[common],
        help="every compression method on every family's tiny network, in one table",
    )
    every.add_argument("--family", action="append", help="only this one; repeat (all)")
    every.add_argument("--method", action="append", help="only this one; repeat (all)")
    every.add_argument("--target", help="device to time each .tflite on (none)")

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


def _budget(text: str) -> float | str:
    return text if text == "min" else float(text)


def _beta(text: str) -> float | str:
    return text if text == "auto" else float(text)


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 done, 2 an expected error (one line on stderr), 130 interrupted."""
    # The controllers' matrices are small: a second BLAS thread makes them six times slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser().parse_args(argv)
    arguments.argv = argv
    try:
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
    journey = JOURNEYS.get(arguments.command, f"nas.searching.journey:{arguments.command}")
    module, _, function = journey.partition(":")
    return getattr(importlib.import_module(module), function)(arguments)


COMMANDS = {"list": _list}
JOURNEYS = {  # what is not in nas/searching/journey.py under its own name
    "profile": "nas.cli.profile:profile",
    "scale": "nas.scaling.journey:scale",
    "train": "nas.cli.train:run",
    "compress": "nas.cli.compress:run",
    "matrix": "nas.compression.matrix:matrix",
    "count": "nas.cli.count:run",
    "generate": "nas.cli.generate:run",
    "devices": "nas.cli.devices:devices",
    "device": "nas.cli.devices:learn",
}
