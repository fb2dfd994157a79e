"""Networks under the roofline of a device, as a picture (matplotlib, loaded when asked for)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from latency.roofline.explanation import Explanation
from nas.report import scales
from nas.report.format import figure, share
from nas.report.plots.figure import (
    FRONT,
    INK,
    LABEL,
    MUTED,
    RANDOM,
    SERIES,
    SMALL,
    WINNER,
    frame,
    plain_ticks,
    styled,
)
from nas.report.tables.explanation import kind_word, operation_name

COLORS = {
    "conv": FRONT,
    "matmul": SERIES[2],
    "depthwise": WINNER,
    "elementwise": RANDOM,
    "reduction": SERIES[4],
    "normalization": "#b08900",
    "copy": "#9aa3ad",
}
MOST = 12  # panels
_LABELS = 4  # operations with their names
_FAR_RIGHT = 100  # times the ridge: what lies beyond is drawn at the edge
_DECADES = 4  # of speed below the peak that are shown at most


@styled
def draw(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The figure of rows {"model", "spec", "why": Explanation}: a panel each, the first 12.

    A point is an operation: where it lies shows what bounds it, its area the time it takes. The
    bars show which classes the FLOPs and the time go to.
    """
    shown = rows[:MOST]
    columns = 1 if len(shown) == 1 else 2
    lines = math.ceil(len(shown) / columns)
    width, height = (9.6, 7.4) if columns == 1 else (15.0, 6.9 * lines)
    drawing = frame(width=width, height=height)
    outer = drawing.add_gridspec(
        lines, columns, left=0.085 if columns == 1 else 0.06, right=0.98, top=1 - 0.75 / height,
        bottom=0.35 / height, wspace=0.15, hspace=0.3,
    )  # fmt: skip
    for index, row in enumerate(shown):
        place = outer[divmod(index, columns)].subgridspec(2, 1, height_ratios=(6, 1), hspace=0.3)
        same = [one["why"] for one in shown if one["spec"] == row["spec"]]
        _panel(drawing.add_subplot(place[0]), row, same)
        _bars(drawing.add_subplot(place[1]), row["why"])
    if len(rows) > MOST:
        drawing.text(0.99, 0.005, f"{len(rows) - MOST} more", ha="right", color=MUTED)
    return drawing


def _panel(panel: Any, row: Mapping[str, Any], same: Sequence[Explanation]) -> None:
    explained: Explanation = row["why"]
    limits, total = explained.limits, explained.total
    peak = limits.peak_tflops * 1e3
    intensities = [one.intensity for w in same for one in w.operations if one.flops and one.ms]
    known = [one for one in intensities if one]
    left = 0.5 * min([*known, limits.ridge / 10])
    right = 2.5 * min(max([*known, limits.ridge]), _FAR_RIGHT * limits.ridge)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(left, right)
    speeds = [
        one.flops / one.ms / 1e6 for w in same for one in w.operations if one.flops and one.ms
    ]
    lowest = min([*(0.4 * one for one in speeds), peak / 100])
    panel.set_ylim(max(lowest, peak / 10**_DECADES), 4 * peak)
    panel.set_xlabel("operational intensity, FLOPs a byte")
    panel.set_ylabel(f"GFLOP/s ({kind_word(explained.kind)} times)")
    plain_ticks(panel.xaxis, panel.yaxis)
    panel.grid(linewidth=0.5)
    x = np.geomspace(left, right, 200)
    slope = np.minimum(x * limits.bandwidth_gbs, peak)
    panel.fill_between(x, slope, 10 * peak, color=MUTED, alpha=0.07, linewidth=0)
    panel.plot(x, slope, color=INK, linewidth=1.6)
    near = max(speed for _, speed in limits.bandwidths)
    if near > 1.2 * limits.bandwidth_gbs:
        cached = np.minimum(x * near, peak)
        panel.plot(x, cached, color=MUTED, linewidth=1, dashes=(4, 2))
        _along_slope(panel, left * 1.15, left * 1.15 * near, f"caches {near:,.0f} GB/s", MUTED)
    _along_slope(
        panel,
        left * 1.15,
        left * 1.15 * limits.bandwidth_gbs,
        f"{limits.bandwidth_gbs:,.3g} GB/s",
        INK,
    )
    highest = f"{peak:,.4g} GFLOP/s" if peak < 1e4 else f"{peak / 1e3:,.4g} TFLOP/s"
    panel.text(right, peak * 1.15, highest + " ", ha="right", fontsize=SMALL, color=INK)
    panel.axvline(limits.ridge, color=MUTED, linewidth=0.8, dashes=(2, 3))
    panel.text(
        limits.ridge,
        panel.get_ylim()[0] * 1.25,
        f" ridge {limits.ridge:.3g}",
        fontsize=SMALL,
        color=MUTED,
    )
    _points(panel, explained)
    batch = f", batch {explained.batch_size}" if explained.batch_size > 1 else ""
    panel.set_title(
        f"{row['model']} on {row['spec']}{batch}", loc="left", fontsize=12.5, weight="bold", pad=22
    )
    about = f"{figure(explained.latency_ms, zeros=False)} ms {kind_word(explained.latency_kind)} · "
    about += f"{figure(total.flops / 1e9, zeros=False)} GFLOPs, "
    about += f"{figure(total.intensity, zeros=False)} a byte, "
    about += f"{share(total.flops / (total.ms * peak * 1e6))} of the peak" if total.ms else ""
    panel.text(0, 1.025, about, transform=panel.transAxes, fontsize=LABEL, color=MUTED)


def _along_slope(panel: Any, x: float, y: float, text: str, color: str) -> None:
    """Words along a slope, which is one decade up for one to the right."""
    panel.annotate(
        text,
        (x, y),
        xytext=(0, 4),
        textcoords="offset points",
        rotation=math.degrees(math.atan(_steepness(panel))),
        rotation_mode="anchor",
        fontsize=SMALL,
        color=color,
    )


def _steepness(panel: Any) -> float:
    """The slope on paper of a line of one decade to a decade."""
    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    box = panel.get_window_extent()
    return (box.height / math.log10(top / bottom)) / (box.width / math.log10(right / left))


def _points(panel: Any, explained: Explanation) -> None:
    total = explained.total.ms or 1.0
    bottom, edge = panel.get_ylim()[0], panel.get_xlim()[1] / 1.15
    timed = [(one, one.ms) for one in explained.operations if one.flops and one.ms]
    timed.sort(key=lambda pair: -pair[1])
    places = []
    for one, ms in timed:
        speed = max(one.flops / ms / 1e6, bottom * 1.1)
        places.append((min(one.intensity or edge, edge), speed))
        panel.scatter(
            *([value] for value in places[-1]),
            s=14 + 2600 * ms / total,
            color=color_of(one.op_class),
            marker="o" if places[-1][0] < edge else ">",
            alpha=0.55,
            edgecolor="white",
            linewidth=0.7,
        )
    if any(x == edge for x, _ in places):
        panel.text(edge, bottom * 1.25, "on chip", ha="right", fontsize=SMALL, color=INK)
    to_pixels = panel.transData.transform
    dots = np.array([to_pixels(place) for place in places]).reshape(-1, 2)
    box = panel.get_window_extent()
    bounds = (box.x0, box.y0, box.x1, box.y1)
    peak = to_pixels((panel.get_xlim()[1], explained.limits.peak_tflops * 1e3))
    taken = [(peak[0] - 260, peak[1], peak[0], peak[1] + 40)]  # the words on the peak
    for (one, ms), here, at in list(zip(timed, places, dots, strict=True))[:_LABELS]:
        text = f"{operation_name(one)[-30:]} {share(ms / total)}"
        size = (len(text) * 8.6, 17.0)
        x, y = panel.transData.inverted().transform(
            scales.place(tuple(at), size, bounds, taken, dots)
        )
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
    """The color of a class; of several in one operation, the one that is worst under a roofline."""
    named = op_class.split("+")
    return COLORS["depthwise"] if "depthwise" in named else COLORS.get(named[0], INK)


def _bars(panel: Any, explained: Explanation) -> None:
    """Two bars: which classes the FLOPs go to, and which the time."""
    total = explained.total
    order = sorted(
        (one.name for one in explained.classes),
        key=lambda name: (list(COLORS).index(name) if name in COLORS else 2.5, name),
    )
    classes = {one.name: one for one in explained.classes}
    for y, field in ((1, "flops"), (0, "ms")):
        start, whole = 0.0, getattr(total, field) or 1.0
        for name in order:
            part = getattr(classes[name], field) / whole
            panel.barh(y, part, left=start, color=color_of(name), height=0.72, alpha=0.85)
            if part > 0.06:
                text = share(part)
                panel.text(
                    start + part / 2, y, text, ha="center", va="center", fontsize=8, color="white"
                )
            start += part
    panel.set_xlim(0, 1)
    panel.set_yticks([1, 0], ["FLOPs", "time"], fontsize=9, color=INK)
    panel.set_xticks([])
    panel.tick_params(length=0)
    for side in panel.spines.values():
        side.set_visible(False)
    x = 0.0
    for name in order:
        panel.text(x, 1.72, "●", color=color_of(name), fontsize=9, va="center")
        panel.text(x + 0.018, 1.72, name, color=MUTED, fontsize=SMALL, va="center")
        x += 0.042 + 0.0108 * len(name)
    panel.set_ylim(-0.45, 1.95)
