"""Latency of networks that run without pause, from cold to warm, as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nas.report.plots.figure import SERIES, frame, styled
from nas.report.tables.sustained import change, temperature


@styled
def draw(runs: Sequence[Mapping[str, Any]]) -> Any:
    """The figure of runs {"label", "spells"} over time; temperature below where it is known."""
    hot = any(temperature(one) is not None for run in runs for one in run["spells"])
    first = runs[0]
    figure = frame(
        f"{change(first['spells'])} from cold to warm",
        f"{first['label']} · {first['spells'][0].device}"[:110],
        height=6.2 if hot else 4.8,
        left=0.085,
        right=0.97,
        bottom=0.11,
    )
    ratios = (3, 1) if hot else (1,)
    panels = figure.subplots(len(ratios), 1, squeeze=False, sharex=True, height_ratios=ratios)[:, 0]
    figure.subplots_adjust(hspace=0.1)
    longest = max(run["spells"][-1].conditions["at_s"] for run in runs)
    unit, name = (60, "minutes") if longest >= 180 else (1, "seconds")
    for color, run in zip(SERIES * len(runs), runs, strict=False):
        spells = run["spells"]
        at = [one.conditions["at_s"] / unit for one in spells]
        low, high = [one.p10_ms for one in spells], [one.p90_ms for one in spells]
        panels[0].fill_between(at, low, high, color=color, alpha=0.14, linewidth=0)
        medians = [one.median_ms for one in spells]
        panels[0].plot(at, medians, color=color, linewidth=1.6, label=run["label"])
        if hot:
            degrees = [temperature(one) or np.nan for one in spells]
            panels[1].plot(at, degrees, color=color, linewidth=1.3)
    panels[0].set_ylabel("latency, ms (band: p10 to p90)")
    panels[0].set_ylim(bottom=0)
    if len(runs) > 1:
        panels[0].legend()
    if hot:
        panels[1].set_ylabel("C")
    panels[-1].set_xlabel(f"{name} without pause")
    return figure
