"""A family of networks beside single-objective scaling, as a picture."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nas.report.plots.figure import BUDGET, FRONT, RANDOM, frame, plain_ticks, styled
from nas.report.tables.scaling import NAMES, comparison


@styled
def draw(content: Mapping[str, Any]) -> Any:
    """The figure of a family's result.json: quality over latency of both, the budgets as lines."""
    rungs = content["rungs"]
    better, _ = comparison(content)
    figure = frame(
        f"{content['base']} as a family: LACS better on {better} of {len(rungs)} budgets",
        f"{content['task']} · {content['kind']} on {content['target']}, {content['device']}",
        left=0.085,
        right=0.97,
    )
    panel = figure.subplots()
    ends = [rung[kind]["ms"] for rung in rungs for kind in NAMES]
    ends += [rung["budget_ms"] for rung in rungs]
    panel.set_xscale("log")
    panel.set_xlim(min(ends) / 1.4, max(ends) * 1.35)
    for rung in rungs:
        panel.axvline(rung["budget_ms"], color=BUDGET, linewidth=0.8, alpha=0.5)
    for kind, color, side in (("single", RANDOM, 1), ("lacs", FRONT, -1)):
        networks = [rung[kind] for rung in rungs]
        ms = [one["ms"] for one in networks]
        quality = [100 * one["quality"] for one in networks]
        spread = [100 * np.std(one["qualities"]) for one in networks]
        panel.errorbar(
            ms, quality, yerr=spread if any(spread) else None, color=color, linewidth=1.7,
            marker="o", markersize=6, markeredgecolor="white", capsize=2.5, zorder=4,
        )  # fmt: skip
        for one, x, y in zip(networks, ms, quality, strict=True):
            text = f"d {one['depth']:.2f}  w {one['width']:.2f}  {one['pixels']} px"
            panel.annotate(
                text, (x, y), xytext=(7 * side, -10 * side), textcoords="offset points",
                fontsize=8, color=color, va="center", ha="left" if side > 0 else "right", zorder=5,
            )  # fmt: skip
        panel.plot([], [], color=color, marker="o", label=NAMES[kind])
    panel.margins(y=0.12)
    panel.legend(loc="lower right")
    panel.set_xticks([rung["budget_ms"] for rung in rungs])
    panel.set_xticks([], minor=True)
    plain_ticks(panel.xaxis)
    panel.grid(axis="y")
    panel.set_xlabel(f"latency, ms, {content['target']}; red lines: budgets")
    panel.set_ylabel("quality, %")
    return figure
