"""Latencies of networks on targets, as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from latency.target import Latency
from nas.report.format import figure
from nas.report.plots.figure import INK, MUTED, SERIES, frame, styled
from nas.report.tables.columns import shortened
from nas.report.tables.latency import NAME, kind_word


@styled
def draw(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The figure of rows {"model", "spec", "latency"}: a bar a median, its interval as a line."""
    height = 1.6 + 0.34 * len(rows)
    kinds = sorted({kind_word(row["latency"].kind) for row in rows})
    drawing = frame("Latency", f"median, ms; {', '.join(kinds)}", height=height, left=0.02)
    panel = drawing.add_axes((0.36, 0.55 / height, 0.52, 1 - 1.45 / height))
    specs = list(dict.fromkeys(row["spec"] for row in rows))
    names = []
    for place, row in enumerate(rows):
        one: Latency = row["latency"]
        color = SERIES[specs.index(row["spec"]) % len(SERIES)]
        panel.barh(place, one.median_ms, color=color, height=0.6, alpha=1 if one.measured else 0.5)
        end = one.median_ms
        if one.measured:
            low, end = one.interval_ms
            panel.hlines(place, low, end, color=INK, linewidth=1.2)
        panel.annotate(
            figure(one.median_ms), (max(end, one.median_ms), place), xytext=(5, 0),
            textcoords="offset points", va="center", fontsize=9, color=INK,
        )  # fmt: skip
        batch = f" x {one.batch_size}" if one.batch_size > 1 else ""
        names.append(f"{shortened(row['model'], NAME)}{batch} on {row['spec']}")
    panel.set_yticks(range(len(rows)), names, fontsize=8)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xlim(left=0)
    panel.axvline(0, color=MUTED, linewidth=0.8)
    panel.grid(axis="x")
    panel.set_xlabel("latency, ms")
    return drawing
