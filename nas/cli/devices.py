"""`nas devices` and `nas device add`: what can be profiled, its changes, and learning a device."""

import argparse
import dataclasses
import json
import sys

from latency.target import Kind
from nas import registry
from nas.events import Message
from nas.profiling import history
from nas.profiling.devices import drift, find
from nas.report.tables.columns import columns


def devices(arguments: argparse.Namespace) -> int:
    """`nas devices`: what there is, or with `--history` how it changed."""
    if arguments.history:
        return _history(arguments)
    if arguments.ray_resources:
        from latency.ray_cluster.cluster import HANGS_HERE, resources_here

        print(json.dumps(resources_here(find(map(registry.target_class, HANGS_HERE)))))
        return 0
    found = find(registry.target_class(name) for name in registry.listing("target"))
    if arguments.json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=1))
        return 0
    cells = [["target", "figures", "device"]]
    cells += [[one.spec, str(one.kind), one.device] for one in found if one.missing is None]
    print("\n".join(columns(cells)))
    missing = [(one, one.missing) for one in found if one.missing is not None]
    if missing:
        print("\nnot usable now")
        for one, reason in missing:
            print(f"  {one.spec}  {one.device}\n    {' '.join(reason.split())}")
    return 0


def _history(arguments: argparse.Namespace) -> int:
    drifts = drift(history.rows(Kind.MEASURED))
    if arguments.target:
        wanted = {repr(registry.target(text)) for text in arguments.target}
        drifts = [one for one in drifts if one["target"] in wanted]
    if arguments.json:
        print(json.dumps(drifts, indent=1))
        return 0
    if not drifts:
        print(f"nothing measured yet is in {history.location()}", file=sys.stderr)
        return 0
    for one in drifts:
        print(f"{one['target']}: {one['device']}")
        cells = [["date", "figures", "networks", "to the first", "spread", "runtime"]]
        for day in one["days"]:
            ratio = day["ratio"]
            cells.append(
                [
                    day["date"],
                    str(day["figures"]),
                    str(day["networks"]),
                    "" if ratio is None else f"x{ratio:.3f}",
                    "" if ratio is None else f"{day['low']:.3f} to {day['high']:.3f}",
                    "+".join(day["runtimes"]),
                ]
            )
        print("\n".join(f"  {line}" for line in columns(cells)))
    print("x1.050: networks that were timed before took 5 % longer than the first time")
    return 0


def learn(arguments: argparse.Namespace) -> int:
    """`nas device add`: time probe networks on a device and learn to predict it."""
    from nas import backend, interruption
    from nas.profiling import learn_device

    target = registry.target(arguments.target)
    spaces = {name: registry.module("space", name) for name in arguments.space or ["mnasnet"]}
    backend.load()
    try:
        report = learn_device.learn(
            arguments.name,
            target,
            spec=arguments.target,
            probes=arguments.probes,
            spaces=spaces,
            on_event=_say,
        )
    except KeyboardInterrupt:
        interruption.hand_over()
        _say(Message("\ninterrupted: every timed probe is kept, the same command continues"))
        return 130
    if arguments.json:
        print(json.dumps(dataclasses.asdict(report), indent=1, default=str))
    else:
        print(report)
    return 0


def _say(event: Message) -> None:
    print(event.text, file=sys.stderr, flush=True)
