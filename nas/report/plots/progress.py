"""Reward, or quality, of a search over its trials, as a picture."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nas.report import scales, study_rows
from nas.report.plots import pareto
from nas.report.plots.figure import BUDGET, FRONT, MUTED, plain_ticks
from nas.report.study_rows import Goal, Network


def panel(
    axes: Any,
    rows: Sequence[Network],
    summary: Mapping[str, Any],
    goals: Sequence[Goal],
    *,
    halo: bool = True,
) -> None:
    """Draw the reward of every trial and the best so far; quality where there is no one reward.

    Args:
        axes: Of matplotlib.
        rows: The trials; at least one has to be trained.
        summary: The content of result.json.
        goals: The targets and budgets: without rewards, only what is within them counts as best.
        halo: Whether labels are outlined in white.
    """
    trained = [row for row in rows if row.state == study_rows.TRAINED]
    rewarded = [row for row in trained if row.reward is not None]
    points = [(row, row.number, row.reward or 0.0) for row in rewarded]
    points = points or [(row, row.number, row.percent) for row in trained]
    values = np.array([y for _, _, y in points])
    quarter, high = np.quantile(values, 0.25), values.max()
    low = max(values.min(), quarter - 2.5 * (high - quarter)) if high > quarter else values.min()
    pad = 0.08 * (high - low) or 0.01
    last = scales.last_number(rows)
    axes.set_xlim(-0.01 * (last or 1), 1.01 * (last or 1))
    axes.set_ylim(low - pad, high + 2.5 * pad)
    axes.set_xticks(scales.ticks(0, last or 1, whole=True, most=9))
    axes.set_yticks(scales.ticks(low - pad, high + 2.5 * pad, most=6))
    plain_ticks(axes.xaxis, axes.yaxis)
    axes.grid(axis="y")
    axes.set_xlabel("trial")
    axes.set_ylabel(f"reward ({summary.get('reward') or 'scalar'})" if rewarded else "quality, %")
    best = -math.inf
    corners: list[tuple[float, float]] = []
    for row, x, y in points:
        if y > best and (rewarded or study_rows.within(row.costs, goals)):
            corners += [(x, best), (x, y)] if corners else [(x, y)]
            best = y
    for state, color in ((study_rows.PROFILED, MUTED), (study_rows.STOPPED, BUDGET)):
        pareto.rug(axes, [row.number for row in rows if row.state == state], color)
    labels = pareto.Labels(axes, halo)
    pareto.cloud(axes, points, last, labels)
    if corners:
        corners.append((last, best))
        axes.plot(*zip(*corners, strict=True), color=FRONT, linewidth=1.6)
        labels.avoid_line([(x, max(y, low - pad)) for x, y in corners])
        text = "best so far" if rewarded else "best within the budget"
        labels.put(text, corners[len(corners) // 2], FRONT)
