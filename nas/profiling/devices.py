"""The journeys behind `nas devices` and `nas device`: what can be profiled, drift, learning."""

import argparse
import collections
import concurrent.futures
import dataclasses
import functools
import json
import statistics
import sys
from typing import Any

from latency.target import Found, Kind
from nas import registry
from nas.profiling import history
from nas.report.tables.columns import columns

_SEARCH_S = 60.0  # each target's own search has shorter time-outs


def devices(arguments: argparse.Namespace) -> int:
    """`nas devices`: what there is, or with `--history` how it changed."""
    if arguments.history:
        return _history(arguments)
    found = find()
    if arguments.json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=1))
        return 0
    cells = [["target", "figures", "device"]]
    cells += [[one.spec, str(one.kind), one.device] for one in found if one.missing is None]
    print("\n".join(columns(cells)))
    absent = [one for one in found if one.missing is not None]
    if absent:
        print("\nnot usable now")
        for one in absent:
            print(f"  {one.spec}  {one.device}\n    {' '.join(one.missing.split())}")
    return 0


def find() -> list[Found]:
    """What every target module finds, looked for at the same time; usable ones first."""
    names = list(registry.listing("target"))
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        searches = {name: pool.submit(_found, name) for name in names}
        found = [one for search in searches.values() for one in search.result(_SEARCH_S)]
    return sorted(found, key=lambda one: one.missing is not None)


def _found(name: str) -> list[Found]:
    return registry.target_class(name).found()


def _history(arguments: argparse.Namespace) -> int:
    drifts = drift(history.rows(Kind.MEASURED))
    wanted = arguments.target
    if wanted:
        repr_of = {repr(registry.target(text)) for text in wanted}
        drifts = [one for one in drifts if one["target"] in repr_of]
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
    from nas import backend
    from nas.profiling import learn_device

    target = registry.target(arguments.target)
    backend.load()
    say = functools.partial(print, file=sys.stderr, flush=True)
    spaces = arguments.space or ["mnasnet"]
    try:
        report = learn_device.add(
            arguments.name,
            target,
            arguments.target,
            probes=arguments.probes,
            spaces=spaces,
            say=say,
        )
    except KeyboardInterrupt:
        say("\ninterrupted: every probe that was timed is kept, the same command goes on")
        return 130
    if arguments.json:
        print(json.dumps(dataclasses.asdict(report), indent=1, default=str))
    else:
        print(report)
    return 0


def drift(rows: list[history.Row]) -> list[dict[str, Any]]:
    """By target and device, day by day: how long networks took, relative to their first time.

    `ratio` is the median over the figures of a day of networks that had been timed before; None on
    a day without one. Only figures of one kind are to be given.
    """
    first: dict[tuple, float] = {}
    days: dict[tuple, dict[str, dict]] = collections.defaultdict(dict)
    for row in rows:
        device = (row.target, row.device)
        day = days[device].setdefault(
            row.date[:10],
            {"date": row.date[:10], "figures": 0, "of": set(), "ratios": [], "runtimes": set()},
        )
        day["figures"] += 1
        day["of"].add(row.network)
        day["runtimes"].add(row.runtime)
        network = (*device, row.network, row.batch_size)
        if network in first:
            day["ratios"].append(row.median_ms / first[network])
        else:
            first[network] = row.median_ms
    return [
        {"target": target, "device": device, "days": [_day(day) for day in found.values()]}
        for (target, device), found in days.items()
    ]


def _day(day: dict) -> dict[str, Any]:
    ratios = sorted(day["ratios"])
    return {
        "date": day["date"],
        "figures": day["figures"],
        "networks": len(day["of"]),
        "ratio": statistics.median(ratios) if ratios else None,
        "low": ratios[0] if ratios else None,
        "high": ratios[-1] if ratios else None,
        "runtimes": sorted(filter(None, day["runtimes"])),
    }
