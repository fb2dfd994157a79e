"""How a training went, as a picture: losses, quality, learning rate."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nas.report import scales
from nas.report.plots.pareto import FRONT, HAIR, INK, MUTED, STYLE, WINNER

MEANS_FROM = 8  # epochs; fewer means hide the course of the training


def curves_png(path: str | Path, record: Mapping) -> Path:
    """Write the plot of a training from its record, as `nas train` writes it; return its path.

    `record` holds "history" (epochs as of nas.training.loop.Epoch), "epoch" (the one that was
    kept), "metric", "network" and "task".
    """
    import logging

    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    history = record["history"]
    kept = history[record["epoch"] - 1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 5.8), dpi=160)
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(
            2, 2, width_ratios=(3, 2), height_ratios=(3, 1), left=0.075, right=0.975, top=0.845,
            bottom=0.1, wspace=0.2, hspace=0.3,
        )  # fmt: skip
        figure.text(0.075, 0.945, f"{record['network']} on {_name(record['task'])}",
                    fontsize=14.5, weight="bold")  # fmt: skip
        figure.text(0.075, 0.899, _subtitle(record, kept), fontsize=9.5, color=MUTED)
        _losses(figure.add_subplot(grid[:, 0]), history, kept)
        _quality(figure.add_subplot(grid[0, 1]), history, kept, record["metric"])
        _rates(figure.add_subplot(grid[1, 1]), history)
        figure.savefig(path)
    return Path(path)


def _name(task: str) -> str:
    """The task without the folders of its files."""
    return re.sub(r"[^:=,]*/", "", task)


def _subtitle(record: Mapping, kept: Mapping) -> str:
    history = record["history"]
    told = f"{record['metric']} {kept['quality']:.4f}, validation loss {kept['valid_loss']:.4f}"
    early = f" at epoch {kept['number']} of {len(history)}" if kept is not history[-1] else ""
    return (
        f"{told}{early} · {history[-1]['step']:,} steps, {len(history)} epochs, "
        f"{history[-1]['seconds']:,.0f} s · {record['params']:,} parameters"
    )


def steps_of(history: list[Mapping]) -> np.ndarray:
    """The step in the middle of each part of each epoch."""
    begin, found = 0, []
    for epoch in history:
        edges = np.linspace(begin, epoch["step"], len(epoch["losses"]) + 1)
        found.append((edges[:-1] + edges[1:]) / 2)
        begin = epoch["step"]
    return np.concatenate(found)


def _losses(panel, history: list[Mapping], kept: Mapping) -> None:
    steps = steps_of(history)
    train = np.concatenate([epoch["losses"] for epoch in history])
    ends = np.array([epoch["step"] for epoch in history])
    valid = np.array([epoch["valid_loss"] for epoch in history])
    if len(history) < MEANS_FROM:
        panel.plot(steps, train, color=FRONT, linewidth=1.4)
    else:
        panel.plot(steps, train, color="#96bde0", linewidth=1.0)
        middles = (np.concatenate([[0], ends[:-1]]) + ends) / 2
        panel.plot(middles, [epoch["loss"] for epoch in history], color=FRONT, linewidth=1.8)
    panel.plot(ends, valid, color=WINNER, linewidth=1.8, marker="o", markersize=3.5)
    panel.plot([kept["step"]], [kept["valid_loss"]], "*", color=WINNER, markersize=13, zorder=5,
               clip_on=False)  # fmt: skip
    everything = np.concatenate([train, valid])
    low, high = everything.min(), everything.max()
    if low > 0 and high > 8 * low:
        panel.set_yscale("log")
        panel.set_yticks(scales.ticks(low, high, log=True))
        panel.set_yticks([], minor=True)
        panel.yaxis.set_major_formatter(lambda value, _: scales.tick_text(value))
    _dress(panel, "loss", ends[-1])
    panel.set_xlabel("step", fontsize=9.5)
    for color, text, y in ((FRONT, "training", 0.97), (WINNER, "validation", 0.925)):
        panel.text(0.97, y, text, transform=panel.transAxes, color=color, ha="right", va="top",
                   weight="bold", fontsize=9.5)  # fmt: skip


def _quality(panel, history: list[Mapping], kept: Mapping, metric: str) -> None:
    ends = [epoch["step"] for epoch in history]
    quality = [100 * epoch["quality"] for epoch in history]
    panel.plot(ends, quality, color=INK, linewidth=1.8, marker="o", markersize=3.5)
    panel.plot([kept["step"]], [100 * kept["quality"]], "*", color=WINNER, markersize=13, zorder=5,
               clip_on=False)  # fmt: skip
    panel.text(0.97, 0.05, f"{100 * kept['quality']:.2f} %", transform=panel.transAxes, ha="right",
               color=WINNER, weight="bold", fontsize=9.5)  # fmt: skip
    _dress(panel, f"{metric}, %", ends[-1])


def _rates(panel, history: list[Mapping]) -> None:
    rates = np.concatenate([epoch["rates"] for epoch in history])
    panel.fill_between(steps_of(history), rates, color="#bcd4ea", linewidth=0)
    panel.plot(steps_of(history), rates, color=FRONT, linewidth=1.2)
    panel.set_ylim(0, 1.12 * rates.max())
    _dress(panel, "learning rate", history[-1]["step"])
    panel.set_yticks([0, rates.max()])
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    panel.set_xlabel("step", fontsize=9.5)


def _dress(panel, label: str, last: float) -> None:
    panel.set_xlim(0, 1.02 * last)
    panel.set_xticks(scales.ticks(0, 1.02 * last, whole=True, most=6))
    panel.xaxis.set_major_formatter(lambda value, _: scales.tick_text(value))
    panel.tick_params(length=3, labelsize=9)
    panel.grid(axis="y", color=HAIR, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.set_ylabel(label, fontsize=9.5)
