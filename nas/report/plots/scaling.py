"""A family beside single-objective scaling: a table, and a plot of the two ladders."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nas.report.tables.latency import align

NAMES = {"lacs": "LACS", "single": "single-objective"}


def table(content: Mapping, folder: Path) -> str:
    """The content of a family's result.json for a terminal."""
    seeds = max(len(rung["lacs"]["qualities"]) for rung in content["rungs"])
    head = ["budget ms", "", "depth", "width", "pixels", "ms", "of budget", "quality %"]
    cells = [[*head, "+-" if seeds > 1 else "", "params", "MMACs"]]
    for rung in content["rungs"]:
        for kind, name in NAMES.items():
            one = rung[kind]
            cells.append(
                [
                    f"{rung['budget_ms']:g}",
                    name + (" (the same)" if rung["same"] and kind == "lacs" else ""),
                    f"{one['depth']:.2f}",
                    f"{one['width']:.2f}",
                    str(one["pixels"]),
                    f"{one['ms']:.4g}",
                    f"{one['miss']:+.1%}",
                    f"{100 * one['quality']:.2f}",
                    f"{100 * np.std(one['qualities'], ddof=1):.2f}" if seeds > 1 else "",
                    f"{one['params']:,}",
                    f"{one['macs'] / 1e6:.2f}",
                ]
            )
    better, worse = comparison(content)
    lines = [
        f"{content['base']} on {content['task']}, {content['base_ms']:.4g} ms,"
        f" {content['kind']} on {content['target']} ({content['device']})",
        "",
        *align(cells),
        "",
        f"quality   {content['metric']}"
        + (f", mean and standard deviation of {seeds} seeds" if seeds > 1 else ", one seed"),
        f"LACS      better on {better} of {len(content['rungs'])} budgets, worse on {worse}",
    ]
    if content["law"]:
        lines.append("law       " + _law(content["law"]) + " is nearest to this family")
        lines.append("          " + _law(content["single_objective"]) + " is single-objective")
    lines.append(f"files     {folder}: a .keras, .tflite and .py each, family.py, ladder.png")
    return "\n".join(lines)


def comparison(content: Mapping) -> tuple[int, int]:
    """On how many budgets LACS' network is better, and on how many worse."""
    gains = [rung["lacs"]["quality"] - rung["single"]["quality"] for rung in content["rungs"]]
    return sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)


def _law(law: Mapping) -> str:
    names = ("alpha", "depth"), ("beta", "width"), ("gamma", "resolution")
    return ", ".join(f"{name} {law[key]:.3f}^phi" for key, name in names)


def png(path: Path, content: Mapping) -> Path:
    """Quality over latency of both ladders, the budgets as lines; return the path."""
    import logging

    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from nas.report import scales
    from nas.report.plots.pareto import BUDGET, FRONT, HAIR, MUTED, RANDOM, STYLE

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    rungs = content["rungs"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 5.8), dpi=160)
        FigureCanvasAgg(figure)
        panel = figure.subplots()
        figure.subplots_adjust(left=0.085, right=0.97, top=0.845, bottom=0.12)
        better, _ = comparison(content)
        title = f"{content['base']} as a family: LACS better on {better} of {len(rungs)} budgets"
        figure.text(0.085, 0.945, title, fontsize=14.5, weight="bold")
        about = f"{content['task']} · {content['kind']} on {content['target']}"
        figure.text(0.085, 0.899, f"{about}, {content['device']}", fontsize=9.5, color=MUTED)
        ends = [rung[kind]["ms"] for rung in rungs for kind in NAMES]
        ends += [rung["budget_ms"] for rung in rungs]
        left, right = min(ends) / 1.4, max(ends) * 1.35
        panel.set_xscale("log")
        panel.set_xlim(left, right)
        for rung in rungs:
            panel.axvline(rung["budget_ms"], color=BUDGET, linewidth=0.8, alpha=0.5)
        for kind, color, side in (("single", RANDOM, 1), ("lacs", FRONT, -1)):
            ms = [rung[kind]["ms"] for rung in rungs]
            quality = [100 * rung[kind]["quality"] for rung in rungs]
            spread = [100 * np.std(rung[kind]["qualities"]) for rung in rungs]
            panel.errorbar(
                ms, quality, yerr=spread if any(spread) else None, color=color, linewidth=1.7,
                marker="o", markersize=6, markeredgecolor="white", capsize=2.5, zorder=4,
            )  # fmt: skip
            for rung, x, y in zip(rungs, ms, quality, strict=True):
                one = rung[kind]
                text = f"d {one['depth']:.2f}  w {one['width']:.2f}  {one['pixels']} px"
                panel.annotate(
                    text, (x, y), xytext=(7 * side, -10 * side), textcoords="offset points",
                    fontsize=8, color=color, va="center", ha="left" if side > 0 else "right",
                    zorder=5,
                )  # fmt: skip
            panel.plot([], [], color=color, marker="o", label=NAMES[kind])
        panel.margins(y=0.12)
        panel.legend(frameon=False, fontsize=9.5, loc="lower right")
        panel.set_xticks([rung["budget_ms"] for rung in rungs])
        panel.set_xticks([], minor=True)
        panel.xaxis.set_major_formatter(lambda value, _: scales.tick_text(value))
        panel.grid(axis="y", color=HAIR, linewidth=0.6)
        panel.set_axisbelow(True)
        panel.tick_params(length=3, labelsize=9)
        panel.set_xlabel(f"latency, ms, {content['target']}; red lines: budgets", fontsize=9.5)
        panel.set_ylabel("quality, %", fontsize=9.5)
        figure.savefig(path)
    return path
