"""Latency from cold to warm: a table by time, and a plot (matplotlib, loaded when asked for)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latency.target import Latency
from nas.report.tables.latency import align

POINTS = 12  # rows of the table
_COLORS = ("#1f4e8c", "#d9480f", "#1a7f4b", "#8a7a5c", "#7b3fa0", "#b42318")


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Runs {"label", "spells"} as a table of medians over time, then what changed."""
    lines: list[str] = []
    for run in runs:
        spells: Sequence[Latency] = run["spells"]
        lines.append(f"{run['label']}: {spells[0].device}, {spells[0].kind}")
        cells = [["seconds", "median ms", "to the first", "C", "clock MHz"]]
        for part in _parts(spells):
            last = part[-1]
            median = _median(part)
            cells.append(
                [
                    f"{part[0].conditions['at_s']:.0f}-{last.conditions['at_s']:.0f}",
                    f"{median:.4g}",
                    f"x{median / _cold(spells):.3f}",
                    _shown(_temperature(last)),
                    _shown(_clock(last)),
                ]
            )
        lines += align(cells)
        lines += [f"cold {_cold(spells):.4g} ms, warm {_warm(spells):.4g} ms: {_told(spells)}", ""]
    return "\n".join(lines).rstrip()


def png(path: Path, runs: Sequence[Mapping[str, Any]]) -> Path:
    """Draw all runs over time, temperature below where a device tells it; return the path."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from nas.report.plots.pareto import MUTED, STYLE

    path.parent.mkdir(parents=True, exist_ok=True)
    hot = any(_temperature(one) is not None for run in runs for one in run["spells"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 6.2 if hot else 4.8), dpi=160)
        FigureCanvasAgg(figure)
        ratios = (3, 1) if hot else (1,)
        panels = figure.subplots(len(ratios), 1, squeeze=False, sharex=True, height_ratios=ratios)[
            :, 0
        ]
        figure.subplots_adjust(left=0.085, right=0.97, top=0.84, bottom=0.11, hspace=0.1)
        longest = max(run["spells"][-1].conditions["at_s"] for run in runs)
        unit, name = (60, "minutes") if longest >= 180 else (1, "seconds")
        for color, run in zip(_COLORS * len(runs), runs, strict=False):
            spells = run["spells"]
            at = [one.conditions["at_s"] / unit for one in spells]
            low = [one.p10_ms for one in spells]
            high = [one.p90_ms for one in spells]
            panels[0].fill_between(at, low, high, color=color, alpha=0.14, linewidth=0)
            medians = [one.median_ms for one in spells]
            panels[0].plot(at, medians, color=color, linewidth=1.6, label=run["label"])
            if hot:
                heat = [_temperature(one) or np.nan for one in spells]
                panels[1].plot(at, heat, color=color, linewidth=1.3)
        panels[0].set_ylabel("latency, ms (band: p10 to p90)")
        panels[0].set_ylim(bottom=0)
        if len(runs) > 1:
            panels[0].legend(frameon=False, fontsize=9)
        if hot:
            panels[1].set_ylabel("C")
        panels[-1].set_xlabel(f"{name} without pause")
        title = f"{_told(runs[0]['spells'])} from cold to warm"
        figure.text(0.085, 0.935, title, fontsize=14.5, weight="bold")
        about = f"{runs[0]['label']} · {runs[0]['spells'][0].device}"
        figure.text(0.085, 0.882, about[:110], fontsize=9.5, color=MUTED)
        figure.savefig(path)
    return path


def _parts(spells: Sequence[Latency]) -> list[Sequence[Latency]]:
    """Consecutive spells in at most `POINTS` parts of equal count."""
    edges = np.unique(np.linspace(0, len(spells), min(POINTS, len(spells)) + 1).astype(int))
    return [spells[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _median(spells: Sequence[Latency]) -> float:
    return float(np.median([one.median_ms for one in spells]))


def _cold(spells: Sequence[Latency]) -> float:
    return _median(spells[: max(1, len(spells) // 10)])


def _warm(spells: Sequence[Latency]) -> float:
    return _median(spells[-max(1, len(spells) // 10) :])


def _told(spells: Sequence[Latency]) -> str:
    change = _warm(spells) / _cold(spells) - 1
    if abs(change) < 0.02:
        return "No change"
    return f"{abs(change):.0%} {'slower' if change > 0 else 'faster'}"


def _temperature(one: Latency) -> float | None:
    known = one.conditions
    names = ("temperature_c", "cpu_c", "skin_c", "battery_c")
    return next((known[name] for name in names if known.get(name) is not None), None)


def _clock(one: Latency) -> float | None:
    clock = one.conditions.get("frequency_mhz") or one.conditions.get("allowed_mhz")
    return max(clock) if isinstance(clock, (list, tuple)) and clock else clock or None


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
