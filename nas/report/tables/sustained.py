"""Latency of a network that runs without pause, from cold to warm, in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from latency.target import Latency
from nas.report.format import figure
from nas.report.tables.columns import columns

POINTS = 12  # rows of the table


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Runs {"label", "spells"} as a table of medians over time, then what changed."""
    lines: list[str] = []
    for run in runs:
        spells: Sequence[Latency] = run["spells"]
        lines.append(f"{run['label']}: {spells[0].device}, {spells[0].kind}")
        cold, warm = cold_ms(spells), warm_ms(spells)
        cells = [["seconds", "median ms", "to the first", "C", "clock MHz"]]
        for part in _parts(spells):
            last, median_ms = part[-1], _median_ms(part)
            cells.append(
                [
                    f"{part[0].conditions['at_s']:.0f}-{last.conditions['at_s']:.0f}",
                    figure(median_ms, 4, zeros=False),
                    f"x{median_ms / cold:.3f}",
                    _whole(temperature(last)),
                    _whole(_clock_mhz(last)),
                ]
            )
        lines += columns(cells)
        ends = [figure(ms, 4, zeros=False) for ms in (cold, warm)]
        lines += [f"cold {ends[0]} ms, warm {ends[1]} ms: {change(spells)}", ""]
    return "\n".join(lines).rstrip()


def _parts(spells: Sequence[Latency]) -> list[Sequence[Latency]]:
    """Consecutive spells in at most `POINTS` parts of equal count."""
    edges = np.unique(np.linspace(0, len(spells), min(POINTS, len(spells)) + 1).astype(int))
    return [spells[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _median_ms(spells: Sequence[Latency]) -> float:
    return float(np.median([one.median_ms for one in spells]))


def cold_ms(spells: Sequence[Latency]) -> float:
    """The median of the first tenth of a run."""
    return _median_ms(spells[: max(1, len(spells) // 10)])


def warm_ms(spells: Sequence[Latency]) -> float:
    """The median of the last tenth of a run."""
    return _median_ms(spells[-max(1, len(spells) // 10) :])


def change(spells: Sequence[Latency]) -> str:
    """How much slower a network is when the device is warm, in words."""
    times = warm_ms(spells) / cold_ms(spells) - 1
    if abs(times) < 0.02:
        return "No change"
    return f"{abs(times):.0%} {'slower' if times > 0 else 'faster'}"


def temperature(one: Latency) -> float | None:
    """Degrees Celsius where the device says them."""
    names = ("temperature_c", "cpu_c", "skin_c", "battery_c")
    return next((t for name in names if (t := one.conditions.get(name)) is not None), None)


def _clock_mhz(one: Latency) -> float | None:
    clock = one.conditions.get("frequency_mhz") or one.conditions.get("allowed_mhz")
    return max(clock) if isinstance(clock, (list, tuple)) and clock else clock or None


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
