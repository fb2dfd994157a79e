"""The flags of `nas devices` and `nas device`."""

import argparse
from typing import Any


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """The parsers of both."""
    devices = commands.add_parser(
        "devices", parents=[common], help="what can be profiled here, and what is missing"
    )
    devices.add_argument(
        "--history", action="store_true", help="how devices changed since their first figures"
    )
    devices.add_argument("--target", action="append", help="only these, in --history")
    devices.add_argument(
        "--ray-resources",
        action="store_true",
        help="what `ray start --resources=` declares of them on this machine, as JSON",
    )
    devices.set_defaults(run=run_devices)
    device = commands.add_parser("device", help="learn a device: a predictor of its latencies")
    actions = device.add_subparsers(dest="action", required=True, metavar="ACTION")
    learn = actions.add_parser(
        "add", parents=[common], help="time probe networks on it, fit and judge a predictor"
    )
    learn.add_argument("name", help="what it is called then: --target predicted:NAME")
    learn.add_argument("--target", required=True, help="the device, e.g. android or cpu:threads=1")
    learn.add_argument("--probes", type=int, default=40, help="networks to time (%(default)s)")
    learn.add_argument(
        "--space", action="append", help="take half of the probes from it; repeat (mnasnet)"
    )
    learn.set_defaults(run=run_learn)


def run_devices(arguments: argparse.Namespace) -> int:
    """`nas devices`."""
    from nas.cli import devices

    return devices.devices(arguments)


def run_learn(arguments: argparse.Namespace) -> int:
    """`nas device add`."""
    from nas.cli import devices

    return devices.learn(arguments)
