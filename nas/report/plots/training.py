"""How a training went, as a picture: losses, quality, learning rate."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nas.report import scales
from nas.report.format import duration, quality
from nas.report.plots.figure import FRONT, INK, LABEL, ORDER, WINNER, frame, plain_ticks, styled

MEANS_FROM = 8  # epochs; fewer means hide the course of the training


@styled
def draw(record: Mapping[str, Any]) -> Any:
    """The figure of a training, from the record that `nas train` writes.

    `record` holds "history" (epochs as of nas.training.loop.Epoch), "epoch" (the one that was
    kept), "metric", "network", "params" and "task".
    """
    history = record["history"]
    kept = history[record["epoch"] - 1]
    title = f"{record['network']} on {_without_folders(record['task'])}"
    figure = frame(title, _subtitle(record, kept), bottom=0.1)
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 2), height_ratios=(3, 1), hspace=0.3)
    _losses(figure.add_subplot(grid[:, 0]), history, kept)
    _quality(figure.add_subplot(grid[0, 1]), history, kept, record)
    _rates(figure.add_subplot(grid[1, 1]), history)
    return figure


def _without_folders(task: str) -> str:
    return re.sub(r"[^:=,]*/", "", task)


def _subtitle(record: Mapping[str, Any], kept: Mapping[str, Any]) -> str:
    history = record["history"]
    early = f" at epoch {kept['number']} of {len(history)}" if kept is not history[-1] else ""
    return (
        f"{record['metric']} {kept['quality']:.4f}, validation loss {kept['valid_loss']:.4f}"
        f"{early} · {history[-1]['step']:,} steps, {len(history)} epochs, "
        f"{duration(history[-1]['seconds'])} · {record['params']:,} parameters"
    )


def _steps(history: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The step in the middle of each part of each epoch."""
    begin, found = 0, []
    for epoch in history:
        edges = np.linspace(begin, epoch["step"], len(epoch["losses"]) + 1)
        found.append((edges[:-1] + edges[1:]) / 2)
        begin = epoch["step"]
    return np.concatenate(found)


def _losses(panel: Any, history: Sequence[Mapping[str, Any]], kept: Mapping[str, Any]) -> None:
    train = np.concatenate([epoch["losses"] for epoch in history])
    ends = np.array([epoch["step"] for epoch in history])
    valid = np.array([epoch["valid_loss"] for epoch in history])
    if len(history) < MEANS_FROM:
        panel.plot(_steps(history), train, color=FRONT, linewidth=1.4)
    else:
        panel.plot(_steps(history), train, color=ORDER[1], linewidth=1.0)
        middles = (np.concatenate([[0], ends[:-1]]) + ends) / 2
        panel.plot(middles, [epoch["loss"] for epoch in history], color=FRONT, linewidth=1.8)
    panel.plot(ends, valid, color=WINNER, linewidth=1.8, marker="o", markersize=3.5)
    _star(panel, kept["step"], kept["valid_loss"])
    everything = np.concatenate([train, valid])
    low, high = everything.min(), everything.max()
    if low > 0 and high > 8 * low:
        panel.set_yscale("log")
        panel.set_yticks(scales.ticks(low, high, log=True))
        panel.set_yticks([], minor=True)
        plain_ticks(panel.yaxis)
    _steps_axis(panel, "loss", ends[-1])
    panel.set_xlabel("step")
    for color, text, y in ((FRONT, "training", 0.97), (WINNER, "validation", 0.925)):
        panel.text(0.97, y, text, transform=panel.transAxes, color=color, ha="right", va="top",
                   weight="bold", fontsize=LABEL)  # fmt: skip


def _quality(
    panel: Any,
    history: Sequence[Mapping[str, Any]],
    kept: Mapping[str, Any],
    record: Mapping[str, Any],
) -> None:
    ends = [epoch["step"] for epoch in history]
    percent = record.get("percent", True)
    times = 100 if percent else 1
    panel.plot(
        ends,
        [times * epoch["quality"] for epoch in history],
        color=INK,
        linewidth=1.8,
        marker="o",
        markersize=3.5,
    )
    _star(panel, kept["step"], times * kept["quality"])
    panel.text(0.97, 0.05, quality(kept["quality"], record), transform=panel.transAxes, ha="right",
               color=WINNER, weight="bold", fontsize=LABEL)  # fmt: skip
    _steps_axis(panel, f"{record['metric']}{', %' if percent else ''}", ends[-1])


def _rates(panel: Any, history: Sequence[Mapping[str, Any]]) -> None:
    rates = np.concatenate([epoch["rates"] for epoch in history])
    panel.fill_between(_steps(history), rates, color=ORDER[0], linewidth=0)
    panel.plot(_steps(history), rates, color=FRONT, linewidth=1.2)
    panel.set_ylim(0, 1.12 * rates.max())
    _steps_axis(panel, "learning rate", history[-1]["step"])
    panel.set_yticks([0, rates.max()])
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    panel.set_xlabel("step")


def _star(panel: Any, step: int, value: float) -> None:
    """The epoch whose weights were kept."""
    panel.plot([step], [value], "*", color=WINNER, markersize=13, zorder=5, clip_on=False)


def _steps_axis(panel: Any, label: str, last: float) -> None:
    panel.set_xlim(0, 1.02 * last)
    panel.set_xticks(scales.ticks(0, 1.02 * last, whole=True, most=6))
    plain_ticks(panel.xaxis)
    panel.grid(axis="y")
    panel.set_ylabel(label)
