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
    shown = study_rows.thinned(rows, summary)
    for target, (axes, goal) in enumerate(zip(panels, goals, strict=True)):
        panel(axes, shown, summary, goal, target)
        axes.set_ylabel("quality, %" if target == 0 else "")
        _key(axes, shown, scales.view(shown, summary, goal, target))
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


def panel(
    axes: Any,
    rows: Sequence[Network],
    summary: Mapping[str, Any],
    goal: Goal,
    target: int,
    *,
    halo: bool = True,
) -> None:
    """Draw quality over the cost on one target; at least one of `rows` has to be trained.

    What stands for trials has their numbers as gid ("n:4,7"). halo: outline labels in white.
    """
    view = scales.view(rows, summary, goal, target)
    axes.set_xscale("log" if view.log else "linear")
    axes.set_xlim(view.left, view.right)
    axes.set_ylim(view.bottom, view.top)
    axes.set_xticks(scales.ticks(view.left, view.right, log=view.log))
    axes.set_xticks([], minor=True)
    axes.set_yticks(scales.ticks(view.bottom, view.top))
    plain_ticks(axes.xaxis, axes.yaxis)
    axes.grid(axis="y")
    device = f"  ({goal.device})" if goal.device and goal.device != goal.spec else ""
    axes.set_xlabel(f"latency, {goal.unit}, {goal.spec}{device}")
    labels = Labels(axes, halo)
    if goal.budget:
        axes.axvspan(goal.budget, view.right, color=BUDGET, alpha=0.05, linewidth=0)
        axes.axvline(goal.budget, color=BUDGET, linewidth=1)
        labels.avoid_line([(goal.budget, view.bottom), (goal.budget, view.top)])
    cloud(axes, study_rows.points(rows, target), scales.last_number(rows), labels)
    profiled = [row.costs[target] for row in rows if row.state == study_rows.PROFILED]
    rug(axes, profiled, MUTED)
    random = scales.random_points(summary, target)
    lines = []
    if random:
        lines.append(("random search", RANDOM, scales.stairs(random, view.right, view.bottom)))
        axes.plot(*zip(*random, strict=True), "o", color=RANDOM, alpha=0.35, markersize=2.6)
        axes.plot(*zip(*lines[0][2], strict=True), color=RANDOM, linewidth=1.1, dashes=(4, 2))
    best = study_rows.front(rows, target)
    on_front = [(row.costs[target], row.percent) for row in best]
    lines.append(("Pareto front", FRONT, scales.stairs(on_front, view.right, view.bottom)))
    axes.plot(*zip(*lines[-1][2], strict=True), color=FRONT, linewidth=1.6, zorder=4)
    for row in best:
        if interval := row.interval(target):
            axes.hlines(row.percent, *interval, color=FRONT, linewidth=3, alpha=0.4)
    for _, _, corners in lines:
        labels.avoid_line(corners)
    texts = _marks(axes, rows, summary, target, view, labels)
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


def cloud(
    axes: Any,
    points: Sequence[tuple[Network, float, float]],
    last: int,
    labels: "Labels",
) -> None:
    """Trained networks as dots, darker the later of `last` trials they are; stopped ones as x."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    seen = [p for p in points if left <= p[1] <= right and bottom <= p[2] <= top]
    size = 34 if len(seen) < 200 else 18 if len(seen) < 1000 else 9
    for state, style in (
        (study_rows.STOPPED, {"marker": "x", "s": 16, "linewidths": 0.8, "zorder": 2}),
        (study_rows.TRAINED, {"s": size, "linewidths": 0.4, "edgecolors": "white", "zorder": 3}),
    ):
        some = [point for point in seen if point[0].state == state]
        if some:
            tones = [ORDER[row.number * len(ORDER) // (last + 1)] for row, _, _ in some]
            axes.scatter(
                [x for _, x, _ in some],
                [y for _, _, y in some],
                c=tones if state == study_rows.TRAINED else MUTED,
                gid="n:" + ",".join(str(row.number) for row, _, _ in some),
                **style,
            )
        labels.avoid([(x, y) for _, x, y in some])


def rug(axes: Any, places: Sequence[float], color: str) -> None:
    """Ticks on the x axis, for trials without a quality."""
    axes.plot(
        places, np.full(len(places), 0.012), "|", color=color, markersize=6, markeredgewidth=0.7,
        alpha=scales.faint(len(places)), transform=axes.get_xaxis_transform(),
    )  # fmt: skip


def _key(axes: Any, rows: Sequence[Network], view: scales.View) -> None:
    """What the marks mean, above the panel."""
    from matplotlib.colors import ListedColormap

    key = axes.inset_axes((0.855, 1.022, 0.09, 0.018))
    key.imshow(np.arange(len(ORDER))[None], aspect="auto", cmap=ListedColormap(ORDER))
    key.set_axis_off()
    states = {row.state for row in rows}
    notes = ["× stopped early"] if study_rows.STOPPED in states else []
    notes += ["| profiled only"] if study_rows.PROFILED in states else []
    notes += [f"{view.below} below {tick(round(view.bottom, 1))} %"] if view.below else []
    last = f"{scales.last_number(rows):,}"
    for x, text in ((0.845, "     ".join([*notes, "trial 0"])), (0.998, last)):
        axes.text(
            x, 1.031, text, transform=axes.transAxes, fontsize=SMALL, color=MUTED, ha="right",
            va="center",
        )  # fmt: skip


def _marks(
    axes: Any,
    rows: Sequence[Network],
    summary: Mapping[str, Any],
    target: int,
    view: scales.View,
    labels: "Labels",
) -> list[tuple[str, tuple[float, float], str]]:
    """Draw winner, finalists and baseline; return their labels as (text, at, color)."""
    unit = study_rows.goals(summary, rows)[target].unit
    texts: list[tuple[str, tuple[float, float], str]] = []
    for mark in scales.finals(rows, summary, target):
        color = WINNER if mark.wins else INK
        if mark.before:
            axes.annotate(
                "", mark.at, mark.before, zorder=5,
                arrowprops={"arrowstyle": "-|>,head_width=.18,head_length=.35", "color": color,
                            "linewidth": 0.9, "shrinkA": 2, "shrinkB": 5 if mark.wins else 3},
            )  # fmt: skip
            labels.avoid_line([mark.before, mark.at])
        if mark.wins:
            style = {"color": color, "markersize": 17, "markeredgecolor": "white", "zorder": 7}
            axes.plot(*mark.at, "*", gid=f"n:{mark.number}", **style)
            found = f"{mark.at[1]:.2f} %, {figure(mark.at[0])} {unit}"
            texts.insert(0, (f"{mark.name}, trial {mark.number}\n{found}", mark.at, color))
        else:
            style = {"color": "white", "markeredgecolor": color, "markersize": 5.5, "zorder": 6}
            axes.plot(*mark.at, "o", gid=f"n:{mark.number}", **style)
            if not any("finalists" in text for text, _, _ in texts):
                texts.append(("finalists: proxy → retrained", mark.at, color))
        labels.avoid([mark.at])
    baseline = study_rows.part(summary, "baseline")
    cost, quality = study_rows.cost(baseline, target), baseline.get("quality")
    if cost is not None:
        at = (cost, view.bottom if quality is None else 100 * quality)
        style = {"markerfacecolor": "white", "markeredgecolor": INK, "markeredgewidth": 1.4}
        axes.plot(*at, "D", markersize=7, zorder=6, clip_on=False, **style)
        labels.avoid([at])
        texts.insert(1, ("baseline" + (", not retrained" if quality is None else ""), at, INK))
    return texts


class Labels:
    """Direct labels that keep off each other, off the dots and off the lines."""

    def __init__(self, axes: Any, halo: bool = True) -> None:
        self._axes, self._halo = axes, halo
        self._taken: list[tuple[float, float, float, float]] = []
        self._dots = np.empty((0, 2))

    def avoid(self, points: Sequence[tuple[float, float]]) -> None:
        """Keep off dots."""
        if points:
            self._dots = np.concatenate([self._dots, self._axes.transData.transform(points)])

    def avoid_line(self, corners: Sequence[tuple[float, float]]) -> None:
        """Keep off a line."""
        self._dots = np.concatenate(
            [self._dots, scales.along(self._axes.transData.transform(corners))]
        )

    def put(self, text: str, at: tuple[float, float], color: str) -> None:
        """Write near a point."""
        from matplotlib.patheffects import withStroke

        outline = [withStroke(linewidth=2.5, foreground="white")] if self._halo else None
        drawn = self._axes.text(
            0, 0, text, color=color, weight="bold" if color == WINNER else "medium", fontsize=9,
            zorder=8, linespacing=1.25, transform=self._axes.transAxes, va="bottom",
            path_effects=outline, gid="label",
        )  # fmt: skip
        box = drawn.get_window_extent(self._axes.figure.canvas.get_renderer())
        bounds = self._axes.get_window_extent().padded(-4)
        anchor = tuple(self._axes.transData.transform(at))
        size = (box.width, box.height)
        corner = scales.place(anchor, size, tuple(bounds.extents), self._taken, self._dots)
        drawn.set_position(self._axes.transAxes.inverted().transform(corner))
