"""The accuracy-latency front as a picture (matplotlib, imported when asked for)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import optuna

from nas.report import scales, study_rows
from nas.report.study_rows import Goal, Network

INK, MUTED, HAIR = "#1c2430", "#6b7683", "#d9dee4"
FRONT, WINNER, BUDGET, RANDOM = "#1f4e8c", "#d9480f", "#b42318", "#8a7a5c"
ORDER = ("#bcd4ea", "#96bde0", "#6aa2d4", "#3f80bf", "#255e9e", "#123e73")  # early to late trials
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "svg.fonttype": "none",
}


def pareto_png(path: str | Path, study: optuna.Study, summary: Mapping) -> Path:
    """Write the plot of all evaluated networks, one panel per target; return its path.

    Raises:
        ValueError: No network of the study is trained yet.
    """
    rows = study_rows.networks(study)
    if not any(row.state == study_rows.TRAINED for row in rows):
        raise ValueError(
            f"nothing to plot: no network of study '{study.study_name}' is trained yet "
            f"({study_rows.tally_words(rows) or 'no trials'})"
        )
    import logging

    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    goals = study_rows.goals(summary, rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6 if len(goals) == 1 else 7.4 * len(goals), 5.8), dpi=160)
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(goals), squeeze=False)[0]
        left = 0.075 if len(goals) == 1 else 0.1 / len(goals)
        figure.subplots_adjust(left=left, right=0.975, top=0.845, bottom=0.12, wspace=0.16)
        figure.text(left, 0.945, headline(summary, rows, goals), fontsize=14.5, weight="bold")
        figure.text(left, 0.899, subtitle(summary, rows), fontsize=9.5, color=MUTED)
        for axis, (panel, goal) in enumerate(zip(panels, goals, strict=True)):
            _panel(panel, rows, summary, goal, axis)
        figure.savefig(path)
    return Path(path)


def headline(summary: Mapping, rows: Sequence[Network], goals: Sequence[Goal]) -> str:
    """What was found, in one line."""
    winner = study_rows.winner(summary)
    about = " on ".join(str(summary[k]) for k in ("space", "task") if summary.get(k))
    value = study_rows.cost(winner, 0)
    if not winner or value is None:
        return about or "Quality and latency of the networks tried"
    quality = next((winner[k] for k in ("quality", "proxy_quality") if winner.get(k)), None)
    told = f"{study_rows.percent(quality, 1)} % in {study_rows.figure(value)} {goals[0].unit}"
    theirs = study_rows.cost(study_rows.part(summary, "baseline"), 0)
    if theirs and theirs / value >= 1.05:
        told += f", {theirs / value:.2f}× faster than the baseline"
    return f"{about}: {told}" if about else told


def subtitle(summary: Mapping, rows: Sequence[Network]) -> str:
    """How it was found, in one line."""
    controller = summary.get("controller")
    return (f"{controller} controller · " if controller else "") + study_rows.tally_words(rows)


def _panel(panel, rows: Sequence[Network], summary: Mapping, goal: Goal, axis: int) -> None:
    view = scales.view(rows, summary, goal, axis)
    panel.set_xscale("log" if view.log else "linear")
    panel.set_xlim(view.left, view.right)
    panel.set_ylim(view.bottom, view.top)
    panel.set_xticks(scales.ticks(view.left, view.right, log=view.log))
    panel.set_xticks([], minor=True)
    panel.set_yticks(scales.ticks(view.bottom, view.top))
    panel.xaxis.set_major_formatter(lambda value, _: scales.tick_text(value))
    panel.yaxis.set_major_formatter(lambda value, _: scales.tick_text(value))
    panel.tick_params(length=3, labelsize=9)
    panel.grid(axis="y", color=HAIR, linewidth=0.6)
    panel.set_axisbelow(True)
    device = f"  ({goal.device})" if goal.device and goal.device != goal.spec else ""
    panel.set_xlabel(f"latency, {goal.unit}, {goal.spec}{device}", fontsize=9.5)
    if axis == 0:
        panel.set_ylabel("quality, %", fontsize=9.5)
    labels = _Labels(panel)
    if goal.budget:
        panel.axvspan(goal.budget, view.right, color=BUDGET, alpha=0.05, linewidth=0)
        panel.axvline(goal.budget, color=BUDGET, linewidth=1)
        labels.avoid_line([(goal.budget, view.bottom), (goal.budget, view.top)])
    _cloud(panel, rows, axis, view)
    luck = scales.random_points(summary, axis)
    lines = []
    if luck:
        lines.append(("random search", RANDOM, scales.stairs(luck, view.right, view.bottom)))
        panel.plot(*zip(*luck, strict=True), "o", color=RANDOM, alpha=0.35, markersize=2.6)
        panel.plot(*zip(*lines[0][2], strict=True), color=RANDOM, linewidth=1.1, dashes=(4, 2))
    best = study_rows.front(rows, axis)
    steps = scales.stairs([(r.costs[axis], 100 * r.quality) for r in best], view.right, view.bottom)
    lines.append(("Pareto front", FRONT, steps))
    panel.plot(*zip(*steps, strict=True), color=FRONT, linewidth=1.6, zorder=4)
    for row in best:
        if interval := row.interval(axis):
            panel.hlines(100 * row.quality, *interval, color=FRONT, linewidth=3, alpha=0.4)
    labels.avoid([(r.costs[axis], 100 * r.quality) for r in rows if r.state == study_rows.TRAINED])
    for _, _, corners in lines:
        labels.avoid_line(corners)
    texts = _marks(panel, rows, summary, axis, view, labels)
    if goal.budget:
        high = view.top - 0.03 * (view.top - view.bottom)
        text = f"budget {study_rows.figure(goal.budget)} {goal.unit}"
        texts.insert(1, (text, (goal.budget, high), BUDGET))
    texts += [
        (name, scales.middle(corners, view, share), color)
        for (name, color, corners), share in zip(reversed(lines), (0.35, 0.7), strict=False)
    ]
    for text, at, color in texts:
        labels.put(text, at, color)


def _cloud(panel, rows: Sequence[Network], axis: int, view: scales.View) -> None:
    """All networks: trained ones coloured by trial order, profiled ones as ticks on the axis."""
    from matplotlib.colors import LinearSegmentedColormap

    trained = [row for row in rows if row.state == study_rows.TRAINED]
    size = 34 if len(trained) < 200 else 18 if len(trained) < 1000 else 9
    order = LinearSegmentedColormap.from_list("order", ORDER)
    last = max(row.number for row in rows) or 1
    panel.scatter(
        [row.costs[axis] for row in trained],
        [100 * row.quality for row in trained],
        c=[row.number for row in trained],
        cmap=order, vmin=0, vmax=last, s=size, linewidths=0.4, edgecolors="white", zorder=3,
    )  # fmt: skip
    stopped = [row for row in rows if row.state == study_rows.STOPPED]
    panel.plot(
        [row.costs[axis] for row in stopped],
        [100 * row.quality for row in stopped],
        "x", color=MUTED, markersize=4, markeredgewidth=0.8, alpha=0.7, zorder=2,
    )  # fmt: skip
    profiled = [row.costs[axis] for row in rows if row.state == study_rows.PROFILED]
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
    notes += (
        [f"{view.below} below {scales.tick_text(round(view.bottom, 1))} %"] if view.below else []
    )
    for x, text in ((0.845, "     ".join([*notes, "trial 0"])), (0.998, f"{last:,}")):
        panel.text(
            x, 1.031, text, transform=panel.transAxes, fontsize=8.5, color=MUTED, ha="right",
            va="center",
        )  # fmt: skip


def _marks(panel, rows, summary: Mapping, axis: int, view: scales.View, labels: "_Labels") -> list:
    """Draw winner, finalists and baseline; return their labels as (text, at, color)."""
    unit = study_rows.goals(summary, rows)[axis].unit
    texts = []
    for mark in scales.finals(rows, summary, axis):
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
            quality = f"{mark.at[1]:.2f} %, {study_rows.figure(mark.at[0])} {unit}"
            texts.insert(0, (f"{mark.name}, trial {mark.number}\n{quality}", mark.at, color))
        else:
            panel.plot(*mark.at, "o", color="white", markeredgecolor=color, ms=5.5, zorder=6)
            if not any("finalists" in text for text, _, _ in texts):
                texts.append(("finalists: proxy → retrained", mark.at, color))
        labels.avoid([mark.at])
    baseline = study_rows.part(summary, "baseline")
    cost, quality = study_rows.cost(baseline, axis), baseline.get("quality")
    if cost is not None:
        at = (cost, view.bottom if quality is None else 100 * quality)
        style = {"markerfacecolor": "white", "markeredgecolor": INK, "markeredgewidth": 1.4}
        panel.plot(*at, "D", markersize=7, zorder=6, clip_on=False, **style)
        labels.avoid([at])
        texts.insert(1, ("baseline" + (", not retrained" if quality is None else ""), at, INK))
    return texts


class _Labels:
    """Direct labels that keep off each other, off the dots and off the lines."""

    def __init__(self, panel) -> None:
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
            zorder=8, linespacing=1.25, transform=None, va="bottom",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        box = drawn.get_window_extent(self.panel.figure.canvas.get_renderer())
        bounds = self.panel.get_window_extent().padded(-4)
        anchor = tuple(self.panel.transData.transform(at))
        size = (box.width, box.height)
        corner = scales.place(anchor, size, tuple(bounds.extents), self.taken, self.dots)
        drawn.set_position(corner)
