"""Which layers bear a compression least, as a picture."""

from collections.abc import Mapping
from typing import Any

from nas.report.plots.figure import FRONT, MUTED, WINNER, frame, styled

MOST = 40  # layers that are drawn: of more, those that cost most


@styled
def draw(record: Mapping[str, Any]) -> Any:
    """The figure of record["sensitivity"], the result of nas/compression/sensitivity.py."""
    base, *rows = record["sensitivity"]
    if len(rows) > MOST:
        least = sorted((row["loss"] for row in rows), reverse=True)[MOST - 1]
        rows = [row for row in rows if row["loss"] >= least]
    costs = [row["loss"] - base["loss"] for row in rows]
    height = 1.6 + 0.24 * len(rows)
    figure = frame(
        "One layer compressed at a time",
        f"{', '.join(record['methods'])} · loss of the network before: {base['loss']:.4f}",
        height=height,
        left=0.02,
    )
    panel = figure.add_axes((0.3, 0.55 / height, 0.66, 1 - 1.35 / height))
    colors = [WINNER if cost == max(costs) else FRONT for cost in costs]
    panel.barh(range(len(rows)), costs, color=colors, height=0.7)
    panel.set_yticks(range(len(rows)), [row["layer"] for row in rows], fontsize=8)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.axvline(0, color=MUTED, linewidth=0.8)
    panel.grid(axis="x")
    panel.set_xlabel("loss added, without any training")
    return figure
