"""Which layers bear a compression least, as a picture."""

from collections.abc import Mapping
from pathlib import Path

from nas.report.plots.pareto import FRONT, HAIR, MUTED, STYLE, WINNER

MOST = 40  # layers that are drawn: of more, those that cost most


def sensitivity_png(path: str | Path, record: Mapping) -> Path:
    """Draw record["sensitivity"], as of nas/compression/sensitivity.py; return the path."""
    import logging

    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    base, *rows = record["sensitivity"]
    if len(rows) > MOST:
        least = sorted((row["loss"] for row in rows), reverse=True)[MOST - 1]
        rows = [row for row in rows if row["loss"] >= least]
    names = [row["layer"] for row in rows]
    costs = [row["loss"] - base["loss"] for row in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 1.6 + 0.24 * len(rows)), dpi=160)
        FigureCanvasAgg(figure)
        top = 1 - 0.9 / figure.get_figheight()
        axes = figure.add_axes((0.3, 0.55 / figure.get_figheight(), 0.66, top - 0.2))
        figure.text(0.02, 1 - 0.35 / figure.get_figheight(), "One layer compressed at a time",
                    fontsize=14.5, weight="bold")  # fmt: skip
        figure.text(0.02, 1 - 0.62 / figure.get_figheight(),
                    f"{', '.join(record['methods'])} · loss of the network as it was "
                    f"{base['loss']:.4f}", fontsize=9.5, color=MUTED)  # fmt: skip
        worst = max(costs, default=0)
        colors = [WINNER if cost == worst else FRONT for cost in costs]
        axes.barh(range(len(rows)), costs, color=colors, height=0.7)
        axes.set_yticks(range(len(rows)), names, fontsize=8)
        axes.invert_yaxis()
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.grid(axis="x", color=HAIR, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("loss added, without any training")
        figure.savefig(path)
    return Path(path)
