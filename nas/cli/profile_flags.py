"""The flags of `nas profile`."""

import argparse
from typing import Any

from nas.cli import shapes

EPILOG = """examples:
  nas profile mnasnet:a1 --target android --runs 50
  nas profile a.keras b.keras --target cpu:threads=1 --target tpu:v5e --ops
  nas profile model.tflite --target ssh:pi@raspberrypi --sustained 10m
  nas profile detector.tflite --shape image=1,320,320,3
  nas profile efficientnet:b0 efficientnet_x:b0 --target tpu:v3 --why --plot why.svg
`nas devices` lists the targets there are. Every figure is kept: `nas devices --history`."""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """The command `profile`, among the others."""
    profile = commands.add_parser(
        "profile",
        parents=[common],
        help="time networks on devices",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    profile.add_argument(
        "model", nargs="+", help=".tflite, .keras or .h5 file, SavedModel, or family:variant"
    )
    profile.add_argument(
        "--target", action="append", help="device; repeat for several (cpu:threads=1)"
    )
    shapes.add(profile)
    profile.add_argument(
        "--signature", help="which part of a .tflite file with several to run (its main graph)"
    )
    profile.add_argument("--batch", default="1", help="batch sizes, as 1,32,128 (%(default)s)")
    profile.add_argument("--runs", type=int, default=50, help="timed runs (%(default)s)")
    profile.add_argument("--warmup", type=int, default=10, help="runs before them (%(default)s)")
    profile.add_argument("--ops", action="store_true", help="the time of each operation")
    profile.add_argument(
        "--why",
        action="store_true",
        help="what bounds each operation (compute, memory, launch), how near it gets, and a"
        " roofline plot; several models stage by stage",
    )
    profile.add_argument(
        "--plot", default="why.png", help=".png or .svg file of --why (%(default)s)"
    )
    profile.add_argument(
        "--sustained", metavar="TIME", help="run without pause, as 10m, and plot cold to warm"
    )
    profile.add_argument("--out", default="sustained.png", help="plot of --sustained (%(default)s)")
    profile.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """`nas profile`."""
    from nas.cli import profile

    return profile.profile(arguments)
