"""Networks under the roofline of a device, as a picture (matplotlib, loaded when asked for)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latency.roofline.explain import Explanation
from nas.report import scales
from nas.report.tables.explanation import figure, number, percent

COLORS = {
    "conv": "#1f4e8c",
    "matmul": "#1a7f4b",
    "depthwise": "#d9480f",
    "elementwise": "#8a7a5c",
    "reduction": "#7b3fa0",
    "normalization": "#b08900",
    "copy": "#9aa3ad",
}
MOST = 12  # panels
_LABELS = 4  # operations with their names
_FAR_RIGHT = 100  # times the ridge: what lies beyond is drawn at the edge
_DECADES = 4  # of speed below the peak that are shown at most


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a panel for each of the rows {"model", "spec", "why"} (the first 12); return the path.

    A point is an operation: where it lies tells what bounds it, its area the time it takes. The
    bars tell which classes the FLOPs and the time go to.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from nas.report.plots.pareto import MUTED, STYLE

    path.parent.mkdir(parents=True, exist_ok=True)
    shown = rows[:MOST]
    columns = 1 if len(shown) == 1 else 2
    lines = math.ceil(len(shown) / columns)
    width, height = (9.6, 7.4) if columns == 1 else (15.0, 6.9 * lines)
    with matplotlib.rc_context(STYLE):
        figure_ = Figure(figsize=(width, height), dpi=150)
        FigureCanvasAgg(figure_)
        outer = figure_.add_gridspec(
            lines,
            columns,
            left=0.085 if columns == 1 else 0.06,
            right=0.98,
            top=1 - 0.75 / height,
            bottom=0.35 / height,
            wspace=0.15,
            hspace=0.3,
        )
        for index, row in enumerate(shown):
            place = outer[divmod(index, columns)].subgridspec(
                2, 1, height_ratios=(6, 1), hspace=0.3
            )
            same = [one["why"] for one in shown if one["spec"] == row["spec"]]
            panel = figure_.add_subplot(place[0])
            _panel(panel, row, same)
            _bars(figure_.add_subplot(place[1]), row["why"])
        if len(rows) > MOST:
            figure_.text(0.99, 0.005, f"{len(rows) - MOST} more", ha="right", color=MUTED)
        figure_.savefig(path)
    return path


def _panel(panel, row: Mapping[str, Any], same: Sequence[Explanation]) -> None:
    from nas.report.plots.pareto import HAIR, INK, MUTED

    why: Explanation = row["why"]
    roof, total = why.roof, why.total
    peak = roof.peak_tflops * 1e3
    intensities = [one.intensity for w in same for one in w.operations if one.flops and one.ms]
    known = [one for one in intensities if one]
    left = 0.5 * min([*known, roof.ridge / 10])
    right = 2.5 * min(max([*known, roof.ridge]), _FAR_RIGHT * roof.ridge)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(left, right)
    speeds = [
        one.flops / one.ms / 1e6 for w in same for one in w.operations if one.flops and one.ms
    ]
    lowest = min([*(0.4 * one for one in speeds), peak / 100])
    panel.set_ylim(max(lowest, peak / 10**_DECADES), 4 * peak)
    panel.set_xlabel("operational intensity, FLOPs a byte", fontsize=9.5)
    panel.set_ylabel(f"GFLOP/s ({figure(why.kind)} times)", fontsize=9.5)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(lambda value, _: scales.tick_text(value))
    panel.grid(color=HAIR, linewidth=0.5)
    panel.set_axisbelow(True)
    panel.tick_params(length=3, labelsize=9)
    x = np.geomspace(left, right, 200)
    slope = np.minimum(x * roof.bandwidth_gbs, peak)
    panel.fill_between(x, slope, 10 * peak, color=MUTED, alpha=0.07, linewidth=0)
    panel.plot(x, slope, color=INK, linewidth=1.6)
    near = max(speed for _, speed in roof.bandwidths)
    if near > 1.2 * roof.bandwidth_gbs:
        cached = np.minimum(x * near, peak)
        panel.plot(x, cached, color=MUTED, linewidth=1, dashes=(4, 2))
        _say(panel, left * 1.15, left * 1.15 * near, f"caches {near:,.0f} GB/s", MUTED)
    _say(
        panel, left * 1.15, left * 1.15 * roof.bandwidth_gbs, f"{roof.bandwidth_gbs:,.3g} GB/s", INK
    )
    told = f"{peak:,.4g} GFLOP/s" if peak < 1e4 else f"{peak / 1e3:,.4g} TFLOP/s"
    panel.text(right, peak * 1.15, told + " ", ha="right", fontsize=8.5, color=INK)
    panel.axvline(roof.ridge, color=MUTED, linewidth=0.8, dashes=(2, 3))
    panel.text(
        roof.ridge,
        panel.get_ylim()[0] * 1.25,
        f" ridge {roof.ridge:.3g}",
        fontsize=8.5,
        color=MUTED,
    )
    _points(panel, why)
    batch = f", batch {why.batch_size}" if why.batch_size > 1 else ""
    panel.set_title(
        f"{row['model']} on {row['spec']}{batch}", loc="left", fontsize=12.5, weight="bold", pad=22
    )
    about = f"{number(why.latency_ms)} ms {figure(why.latency_kind)} · "
    about += f"{number(total.flops / 1e9)} GFLOPs, {number(total.intensity)} a byte, "
    about += f"{percent(total.flops / (total.ms * peak * 1e6))} of the peak" if total.ms else ""
    panel.text(0, 1.025, about, transform=panel.transAxes, fontsize=9.5, color=MUTED)


def _say(panel, x: float, y: float, text: str, color: str) -> None:
    """Words along a slope, which is one decade up for one to the right."""
    panel.annotate(
        text,
        (x, y),
        xytext=(0, 4),
        textcoords="offset points",
        rotation=math.degrees(math.atan(_steepness(panel))),
        rotation_mode="anchor",
        fontsize=8.5,
        color=color,
    )


def _steepness(panel) -> float:
    """The slope on paper of a line of one decade to a decade."""
    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    box = panel.get_window_extent()
    return (box.height / math.log10(top / bottom)) / (box.width / math.log10(right / left))


def _points(panel, why: Explanation) -> None:
    from nas.report.plots.pareto import INK

    total = why.total.ms or 1.0
    bottom, edge = panel.get_ylim()[0], panel.get_xlim()[1] / 1.15
    timed = sorted((one for one in why.operations if one.flops and one.ms), key=lambda one: -one.ms)
    places = []
    for one in timed:
        speed = max(one.flops / one.ms / 1e6, bottom * 1.1)
        inside = one.intensity is not None and one.intensity < edge
        places.append((one.intensity if inside else edge, speed))
        panel.scatter(
            *([value] for value in places[-1]),
            s=14 + 2600 * one.ms / total,
            color=color_of(one.op_class),
            marker="o" if inside else ">",
            alpha=0.55,
            edgecolor="white",
            linewidth=0.7,
        )
    if any(x == edge for x, _ in places):
        panel.text(edge, bottom * 1.25, "on chip", ha="right", fontsize=8.5, color=INK)
    to_pixels = panel.transData.transform
    dots = np.array([to_pixels(place) for place in places]).reshape(-1, 2)
    box = panel.get_window_extent()
    bounds = (box.x0, box.y0, box.x1, box.y1)
    peak = to_pixels((panel.get_xlim()[1], why.roof.peak_tflops * 1e3))
    taken = [(peak[0] - 260, peak[1], peak[0], peak[1] + 40)]  # the words on the peak
    for one, here, at in list(zip(timed, places, dots, strict=True))[:_LABELS]:
        text = f"{one.name.removesuffix(f'/{one.type.lower()}')[-30:]} {percent(one.ms / total)}"
        size = (len(text) * 8.6, 17.0)
        x, y = panel.transData.inverted().transform(scales.place(at, size, bounds, taken, dots))
        panel.annotate(
            text,
            here,
            xytext=(x, y),
            textcoords="data",
            fontsize=8,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.4, "shrinkA": 0},
        )


def color_of(op_class: str) -> str:
    """The color of a class; of several in one operation, the one that is worst under a roof."""
    named = op_class.split("+")
    return COLORS["depthwise"] if "depthwise" in named else COLORS.get(named[0], "#1c2430")


def _bars(panel, why: Explanation) -> None:
    """Two bars: which classes the FLOPs go to, and which the time."""
    from nas.report.plots.pareto import INK, MUTED

    total = why.total
    order = sorted(
        (one.name for one in why.classes),
        key=lambda name: (list(COLORS).index(name) if name in COLORS else 2.5, name),
    )
    parts = {one.name: one for one in why.classes}
    for y, field in ((1, "flops"), (0, "ms")):
        start, whole = 0.0, getattr(total, field) or 1.0
        for name in order:
            share = getattr(parts[name], field) / whole
            panel.barh(y, share, left=start, color=color_of(name), height=0.72, alpha=0.85)
            if share > 0.06:
                told = percent(share)
                panel.text(
                    start + share / 2, y, told, ha="center", va="center", fontsize=8, color="white"
                )
            start += share
    panel.set_xlim(0, 1)
    panel.set_yticks([1, 0], ["FLOPs", "time"], fontsize=9, color=INK)
    panel.set_xticks([])
    panel.tick_params(length=0)
    for side in panel.spines.values():
        side.set_visible(False)
    x = 0.0
    for name in order:
        panel.text(x, 1.72, "●", color=color_of(name), fontsize=9, va="center")
        panel.text(x + 0.018, 1.72, name, color=MUTED, fontsize=8.5, va="center")
        x += 0.042 + 0.0108 * len(name)
    panel.set_ylim(-0.45, 1.95)
