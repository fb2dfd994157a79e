"""The accuracy-latency front as a picture (matplotlib, imported when asked for)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna

from nas.report import scales, study_rows
from nas.report.format import figure, percent, tick
from nas.report.plots.figure import (
    BUDGET,
    FRONT,
    INK,
    MUTED,
    ORDER,
    RANDOM,
    SMALL,
    WINNER,
    frame,
    plain_ticks,
    styled,
)
from nas.report.study_rows import Goal, Network


@styled
def draw(study: optuna.Study, summary: Mapping[str, Any]) -> Any:
    """The figure of all networks that a study evaluated, one panel per target.

    Raises:
        ValueError: No network of the study is trained yet.
    """
    rows = study_rows.networks(study)
    if not any(row.state == study_rows.TRAINED for row in rows):
        raise ValueError(
            f"nothing to plot: no network of study '{study.study_name}' is trained yet "
            f"({study_rows.tally_words(rows) or 'no trials'})"
        )
    goals = study_rows.goals(summary, rows)
    many = len(goals) > 1
    drawing = frame(
        headline(summary, rows, goals),
        subtitle(summary, rows),
        width=7.4 * len(goals) if many else 9.6,
        left=0.1 / len(goals) if many else 0.075,
    )
    panels = drawing.subplots(1, len(goals), squeeze=False)[0]
    drawing.subplots_adjust(wspace=0.16)
    for target, (panel, goal) in enumerate(zip(panels, goals, strict=True)):
        _panel(panel, rows, summary, goal, target)
    return drawing


def headline(summary: Mapping, rows: Sequence[Network], goals: Sequence[Goal]) -> str:
    """What was found, in one line."""
    winner = study_rows.winner(summary)
    about = study_rows.title(summary)
    value = study_rows.cost(winner, 0)
    if not winner or value is None:
        return about or "Quality and latency of the networks tried"
    quality = next((winner[k] for k in ("quality", "proxy_quality") if winner.get(k)), None)
    text = f"{percent(quality, 1)} % in {figure(value)} {goals[0].unit}"
    theirs = study_rows.cost(study_rows.part(summary, "baseline"), 0)
    if theirs and theirs / value >= 1.05:
        text += f", {theirs / value:.2f}× faster than the baseline"
    return f"{about}: {text}" if about else text


def subtitle(summary: Mapping, rows: Sequence[Network]) -> str:
    """How it was found, in one line."""
    controller = summary.get("controller")
    return (f"{controller} controller · " if controller else "") + study_rows.tally_words(rows)


def _panel(
    panel: Any, rows: Sequence[Network], summary: Mapping[str, Any], goal: Goal, target: int
) -> None:
    view = scales.view(rows, summary, goal, target)
    panel.set_xscale("log" if view.log else "linear")
    panel.set_xlim(view.left, view.right)
    panel.set_ylim(view.bottom, view.top)
    panel.set_xticks(scales.ticks(view.left, view.right, log=view.log))
    panel.set_xticks([], minor=True)
    panel.set_yticks(scales.ticks(view.bottom, view.top))
    plain_ticks(panel.xaxis, panel.yaxis)
    panel.grid(axis="y")
    device = f"  ({goal.device})" if goal.device and goal.device != goal.spec else ""
    panel.set_xlabel(f"latency, {goal.unit}, {goal.spec}{device}")
    if target == 0:
        panel.set_ylabel("quality, %")
    labels = _Labels(panel)
    if goal.budget:
        panel.axvspan(goal.budget, view.right, color=BUDGET, alpha=0.05, linewidth=0)
        panel.axvline(goal.budget, color=BUDGET, linewidth=1)
        labels.avoid_line([(goal.budget, view.bottom), (goal.budget, view.top)])
    _cloud(panel, rows, target, view)
    luck = scales.random_points(summary, target)
    lines = []
    if luck:
        lines.append(("random search", RANDOM, scales.stairs(luck, view.right, view.bottom)))
        panel.plot(*zip(*luck, strict=True), "o", color=RANDOM, alpha=0.35, markersize=2.6)
        panel.plot(*zip(*lines[0][2], strict=True), color=RANDOM, linewidth=1.1, dashes=(4, 2))
    best = study_rows.front(rows, target)
    steps = scales.stairs(
        [(r.costs[target], 100 * r.quality) for r in best], view.right, view.bottom
    )
    lines.append(("Pareto front", FRONT, steps))
    panel.plot(*zip(*steps, strict=True), color=FRONT, linewidth=1.6, zorder=4)
    for row in best:
        if interval := row.interval(target):
            panel.hlines(100 * row.quality, *interval, color=FRONT, linewidth=3, alpha=0.4)
    labels.avoid(
        [(r.costs[target], 100 * r.quality) for r in rows if r.state == study_rows.TRAINED]
    )
    for _, _, corners in lines:
        labels.avoid_line(corners)
    texts = _marks(panel, rows, summary, target, view, labels)
    if goal.budget:
        high = view.top - 0.03 * (view.top - view.bottom)
        text = f"budget {figure(goal.budget)} {goal.unit}"
        texts.insert(1, (text, (goal.budget, high), BUDGET))
    texts += [
        (name, scales.middle(corners, view, share), color)
        for (name, color, corners), share in zip(reversed(lines), (0.35, 0.7), strict=False)
    ]
    for text, at, color in texts:
        labels.put(text, at, color)


def _cloud(panel: Any, rows: Sequence[Network], target: int, view: scales.View) -> None:
    """All networks: trained ones coloured by trial order, profiled ones as ticks on the target."""
    from matplotlib.colors import LinearSegmentedColormap

    trained = [row for row in rows if row.state == study_rows.TRAINED]
    size = 34 if len(trained) < 200 else 18 if len(trained) < 1000 else 9
    order = LinearSegmentedColormap.from_list("order", ORDER)
    last = max(row.number for row in rows) or 1
    panel.scatter(
        [row.costs[target] for row in trained],
        [100 * row.quality for row in trained],
        c=[row.number for row in trained],
        cmap=order, vmin=0, vmax=last, s=size, linewidths=0.4, edgecolors="white", zorder=3,
    )  # fmt: skip
    stopped = [row for row in rows if row.state == study_rows.STOPPED]
    panel.plot(
        [row.costs[target] for row in stopped],
        [100 * row.quality for row in stopped],
        "x", color=MUTED, markersize=4, markeredgewidth=0.8, alpha=0.7, zorder=2,
    )  # fmt: skip
    profiled = [row.costs[target] for row in rows if row.state == study_rows.PROFILED]
    panel.plot(
        profiled, np.full(len(profiled), 0.012), "|", color=MUTED, markersize=6,
        markeredgewidth=0.7, alpha=scales.faint(len(profiled)),
        transform=panel.get_xaxis_transform(),
    )  # fmt: skip
    key = panel.inset_axes((0.855, 1.022, 0.09, 0.018))
    key.imshow(np.linspace(0, 1, 64)[None], aspect="auto", cmap=order)
    key.set_axis_off()
    notes = ["× stopped early"] if stopped else []
    notes += ["| profiled only"] if profiled else []
    notes += [f"{view.below} below {tick(round(view.bottom, 1))} %"] if view.below else []
    for x, text in ((0.845, "     ".join([*notes, "trial 0"])), (0.998, f"{last:,}")):
        panel.text(
            x, 1.031, text, transform=panel.transAxes, fontsize=SMALL, color=MUTED, ha="right",
            va="center",
        )  # fmt: skip


def _marks(
    panel, rows, summary: Mapping, target: int, view: scales.View, labels: "_Labels"
) -> list:
    """Draw winner, finalists and baseline; return their labels as (text, at, color)."""
    unit = study_rows.goals(summary, rows)[target].unit
    texts = []
    for mark in scales.finals(rows, summary, target):
        color = WINNER if mark.wins else INK
        if mark.before:
            panel.annotate(
                "", mark.at, mark.before, zorder=5,
                arrowprops={"arrowstyle": "-|>,head_width=.18,head_length=.35", "color": color,
                            "linewidth": 0.9, "shrinkA": 2, "shrinkB": 5 if mark.wins else 3},
            )  # fmt: skip
            labels.avoid_line([mark.before, mark.at])
        if mark.wins:
            panel.plot(*mark.at, "*", color=color, markersize=17, markeredgecolor="white", zorder=7)
            quality = f"{mark.at[1]:.2f} %, {figure(mark.at[0])} {unit}"
            texts.insert(0, (f"{mark.name}, trial {mark.number}\n{quality}", mark.at, color))
        else:
            panel.plot(*mark.at, "o", color="white", markeredgecolor=color, ms=5.5, zorder=6)
            if not any("finalists" in text for text, _, _ in texts):
                texts.append(("finalists: proxy → retrained", mark.at, color))
        labels.avoid([mark.at])
    baseline = study_rows.part(summary, "baseline")
    cost, quality = study_rows.cost(baseline, target), baseline.get("quality")
    if cost is not None:
        at = (cost, view.bottom if quality is None else 100 * quality)
        style = {"markerfacecolor": "white", "markeredgecolor": INK, "markeredgewidth": 1.4}
        panel.plot(*at, "D", markersize=7, zorder=6, clip_on=False, **style)
        labels.avoid([at])
        texts.insert(1, ("baseline" + (", not retrained" if quality is None else ""), at, INK))
    return texts


class _Labels:
    """Direct labels that keep off each other, off the dots and off the lines."""

    def __init__(self, panel: Any) -> None:
        self.panel = panel
        self.taken: list[tuple[float, float, float, float]] = []
        self.dots = np.empty((0, 2))

    def avoid(self, points: Sequence[tuple[float, float]]) -> None:
        if points:
            self.dots = np.concatenate([self.dots, self.panel.transData.transform(points)])

    def avoid_line(self, corners: Sequence[tuple[float, float]]) -> None:
        self.dots = np.concatenate(
            [self.dots, scales.along(self.panel.transData.transform(corners))]
        )

    def put(self, text: str, at: tuple[float, float], color: str) -> None:
        from matplotlib.patheffects import withStroke

        drawn = self.panel.text(
            0, 0, text, color=color, weight="bold" if color == WINNER else "medium", fontsize=9,
            zorder=8, linespacing=1.25, transform=self.panel.transAxes, va="bottom",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        box = drawn.get_window_extent(self.panel.figure.canvas.get_renderer())
        bounds = self.panel.get_window_extent().padded(-4)
        anchor = tuple(self.panel.transData.transform(at))
        size = (box.width, box.height)
        corner = scales.place(anchor, size, tuple(bounds.extents), self.taken, self.dots)
        drawn.set_position(self.panel.transAxes.inverted().transform(corner))
