"""Which devices can be profiled now, and how those that were have changed since."""

import collections
import concurrent.futures
import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from latency.target import FoundDevice, Target
from nas.profiling import history

_SEARCH_S = 60.0  # each target's own search has shorter time-outs


def find(targets: Iterable[type[Target]]) -> list[FoundDevice]:
    """What the classes of targets find on this machine, searched at the same time; usable first.

    >>> from latency.cpu import CPU
    >>> [one.spec for one in find([CPU])]
    ['cpu:threads=1']
    """
    classes = list(targets)
    with concurrent.futures.ThreadPoolExecutor(max(1, len(classes))) as pool:
        searches = [pool.submit(one.discover) for one in classes]
        found = [one for search in searches for one in search.result(_SEARCH_S)]
    return sorted(found, key=lambda one: one.missing is not None)


@dataclasses.dataclass
class _Day:
    """The figures that a device gave on one day."""

    date: str
    figures: int = 0
    networks: set[str] = dataclasses.field(default_factory=set)
    ratios: list[float] = dataclasses.field(default_factory=list)  # to a network's first time
    runtimes: set[str] = dataclasses.field(default_factory=set)

    def to_json(self) -> dict[str, Any]:
        ratios = sorted(self.ratios)
        return {
            "date": self.date,
            "figures": self.figures,
            "networks": len(self.networks),
            "ratio": statistics.median(ratios) if ratios else None,
            "low": ratios[0] if ratios else None,
            "high": ratios[-1] if ratios else None,
            "runtimes": sorted(filter(None, self.runtimes)),
        }


def drift(rows: Sequence[history.Row]) -> list[dict[str, Any]]:
    """By target and device, day by day: how long networks took, relative to their first time.

    `ratio` is the median over the figures of a day of networks that had been timed before; None on
    a day without one. All rows must have figures of one kind.
    """
    first_ms: dict[tuple[str, str, str, int], float] = {}
    days: dict[tuple[str, str], dict[str, _Day]] = collections.defaultdict(dict)
    for row in rows:
        date = row.date[:10]
        day = days[row.target, row.device].setdefault(date, _Day(date))
        day.figures += 1
        day.networks.add(row.network)
        day.runtimes.add(row.runtime)
        network = (row.target, row.device, row.network, row.batch_size)
        if network in first_ms:
            day.ratios.append(row.median_ms / first_ms[network])
        else:
            first_ms[network] = row.median_ms
    return [
        {"target": target, "device": device, "days": [day.to_json() for day in found.values()]}
        for (target, device), found in days.items()
    ]
