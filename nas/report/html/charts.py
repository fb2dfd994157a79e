"""The drawings of the HTML page: inline SVG whose colours are CSS classes (light and dark)."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

from nas.report import scales, study_rows
from nas.report.format import figure, tick
from nas.report.study_rows import Goal, Network

WIDTH, HEIGHT = 980, 440
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 16, 42
TONES = 6  # steps of the colour by trial order, classes o0..o5


@dataclasses.dataclass(frozen=True)
class Frame:
    """Data to pixels; y grows downwards on the page."""

    left: float
    right: float
    bottom: float
    top: float
    log: bool = False
    height: int = HEIGHT

    def x(self, value: float) -> float:
        """Pixels of a value on the x axis."""
        scale: Callable = math.log if self.log else float
        share = (scale(value) - scale(self.left)) / ((scale(self.right) - scale(self.left)) or 1)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Pixels of a value on the y axis."""
        share = (value - self.bottom) / ((self.top - self.bottom) or 1)
        return self.height - BOTTOM - share * (self.height - TOP - BOTTOM)

    def grid(self, name: str, across: str) -> str:
        """Axis, ticks and axis titles."""
        floor = self.height - BOTTOM
        drawn = []
        for value in scales.ticks(self.bottom, self.top, most=6):
            y = self.y(value)
            drawn.append(f'<path class="hair" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            drawn.append(write(LEFT - 8, y + 4, tick(value), "tick", "end"))
        for value in scales.ticks(
            self.left, self.right, log=self.log, whole=across == "trial", most=9
        ):
            x = self.x(value)
            drawn.append(f'<path class="axis" d="M{x:.1f} {floor}v4"/>')
            drawn.append(write(x, floor + 18, tick(value), "tick", "middle"))
        drawn.append(f'<path class="axis" d="M{LEFT} {floor}H{WIDTH - RIGHT}"/>')
        drawn.append(write(LEFT, TOP - 4, name, "title", "start"))
        drawn.append(write(WIDTH - RIGHT, self.height - 5, across, "title", "end"))
        return "".join(drawn)

    def clipped(self, drawn: str, name: str) -> str:
        """A group that ends where the plot does; `name` is unique on the page."""
        width, height = WIDTH - LEFT - RIGHT, self.height - TOP - BOTTOM
        return (
            f'<clipPath id="{name}"><rect x="{LEFT}" y="{TOP}" width="{width}" height="{height}"/>'
            f'</clipPath><g clip-path="url(#{name})">{drawn}</g>'
        )

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        """The `d` of a line through the points."""
        return "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)


def pareto(rows: Sequence[Network], summary: Mapping, goal: Goal, target: int) -> str:
    """Quality over one target's cost: every trained network a dot that answers the pointer."""
    view = scales.view(rows, summary, goal, target)
    frame = Frame(view.left, view.right, view.bottom, view.top, view.log)
    floor = HEIGHT - BOTTOM
    drawn = []
    labels = _Labels()
    if goal.budget:
        x = frame.x(goal.budget)
        drawn.append(
            f'<rect class="over" x="{x:.1f}" y="{TOP}" width="{max(WIDTH - RIGHT - x, 0):.1f}" '
            f'height="{floor - TOP}"/><path class="budget" d="M{x:.1f} {TOP}V{floor}"/>'
        )
        labels.line([(x, TOP), (x, floor)])
    drawn.append(frame.grid("quality, %", f"{goal.unit}, {goal.spec}"))
    costs = [row.costs[target] for row in rows if row.state == study_rows.PROFILED]
    seen = [frame.x(cost) for cost in costs if view.left <= cost <= view.right]
    drawn.append(_rug("rug", seen, floor))
    lines = []
    luck = scales.random_points(summary, target)
    if luck:
        steps = scales.stairs(luck, view.right, view.bottom)
        seen = [p for p in luck if p[1] >= view.bottom and view.left <= p[0] <= view.right]
        drawn += [f'<circle class="luck" r="2" {_at(frame, p)}/>' for p in seen]
        line = f'<path class="random" d="{frame.path(steps)}"/>'
        drawn.append(frame.clipped(line, f"random{target}"))
        lines.append(("random search", "random", steps, 0.7))
    best = study_rows.front(rows, target)
    steps = scales.stairs(
        [(r.costs[target], 100 * r.quality) for r in best], view.right, view.bottom
    )
    line = f'<path class="front" d="{frame.path(steps)}"/>'
    drawn.append(frame.clipped(line, f"front{target}"))
    lines.append(("Pareto front", "front", steps, 0.35))
    for row in best:
        if (interval := row.interval(target)) and 100 * row.quality >= view.bottom:
            ends = [(x, 100 * row.quality) for x in interval]
            drawn.append(f'<path class="interval" d="{frame.path(ends)}"/>')
    drawn.append(_dots(rows, frame, lambda row: (row.costs[target], 100 * row.quality), labels))
    for _, _, corners, _ in lines:
        labels.line([(frame.x(x), frame.y(y)) for x, y in corners])
    marks, texts = _marks(rows, summary, goal, target, frame, labels)
    if goal.budget:
        text = f"budget {figure(goal.budget)} {goal.unit}"
        texts.insert(1, ([text], (frame.x(goal.budget), TOP + 8), "budget"))
    for name, css, corners, share in reversed(lines):
        at = scales.middle(corners, view, share)
        texts.append(([name], (frame.x(at[0]), frame.y(at[1])), css))
    drawn += [marks, *(labels.put(*text) for text in texts)]
    return _svg(drawn, HEIGHT, f"quality over latency on {goal.spec}")


def progress(rows: Sequence[Network], summary: Mapping, goals: Sequence[Goal]) -> str:
    """Reward of every trial and the best so far; quality where the search has no scalar reward."""
    scalar = any(row.reward is not None for row in rows)
    trained = [row for row in rows if row.state == study_rows.TRAINED]
    trained = [row for row in trained if row.reward is not None or not scalar]
    values = np.array([row.reward if scalar else 100 * row.quality for row in trained])
    middle, high = np.quantile(values, 0.25), values.max()
    low = max(values.min(), middle - 2.5 * (high - middle)) if high > middle else values.min()
    pad = 0.08 * (high - low) or 0.01
    frame = Frame(0, max(row.number for row in rows) or 1, low - pad, high + 2.5 * pad, height=300)
    floor = frame.height - BOTTOM
    name = f"reward ({summary.get('reward') or 'scalar'})" if scalar else "quality, %"
    drawn = [frame.grid(name, "trial")]
    best, corners = -math.inf, []
    for row, value in zip(trained, values, strict=True):
        if value > best and (scalar or study_rows.within(row.costs, goals)):
            corners += [(row.number, best), (row.number, value)] if corners else [
                (row.number, value)
            ]  # fmt: skip
            best = value
    if corners:
        line = f'<path class="front" d="{frame.path([*corners, (frame.right, best)])}"/>'
        drawn.append(frame.clipped(line, "best"))
    for state, css in ((study_rows.PROFILED, "rug"), (study_rows.STOPPED, "halt")):
        drawn.append(_rug(css, [frame.x(r.number) for r in rows if r.state == state], floor))
    labels = _Labels()
    told = dict(zip((row.number for row in trained), values, strict=True))
    drawn.append(_dots(trained, frame, lambda row: (row.number, told[row.number]), labels))
    if corners:
        labels.line([(frame.x(x), frame.y(max(y, frame.bottom))) for x, y in corners])
        text = "best so far" if scalar else "best within the budget"
        at = corners[len(corners) // 2]
        drawn.append(labels.put([text], (frame.x(at[0]), frame.y(at[1])), "front", frame.height))
    return _svg(drawn, frame.height, "reward over trials")


def _rug(css: str, places: Sequence[float], floor: float) -> str:
    if not places:
        return ""
    ticks = "".join(f"M{x:.1f} {floor}v-7" for x in places)
    return f'<path class="{css}" opacity="{scales.faint(len(places)):.2f}" d="{ticks}"/>'


def _dots(rows: Sequence[Network], frame: Frame, where: Callable, labels: "_Labels") -> str:
    shown = [row for row in rows if row.state in (study_rows.TRAINED, study_rows.STOPPED)]
    last = max((row.number for row in rows), default=0) + 1
    radius = 4.6 if len(shown) < 200 else 3.4 if len(shown) < 1000 else 2.3
    drawn = []
    for row in shown:
        at = where(row)
        if at[1] < frame.bottom or not frame.left <= at[0] <= frame.right:
            continue
        stopped = row.state == study_rows.STOPPED
        css = "stop" if stopped else f"o{row.number * TONES // last}"
        size = f"{radius * (0.7 if stopped else 1):.1f}"
        drawn.append(f'<circle class="{css}" data-n="{row.number}" r="{size}" {_at(frame, at)}/>')
        labels.dots.append((frame.x(at[0]), frame.y(at[1])))
    return "".join(drawn)


def _marks(
    rows: Sequence[Network], summary: Mapping, goal: Goal, target: int, frame: Frame,
    labels: "_Labels",
) -> tuple[str, list]:  # fmt: skip
    drawn, texts = [], []
    for mark in scales.finals(rows, summary, target):
        css = "winner" if mark.wins else "finalist"
        x, y = frame.x(mark.at[0]), frame.y(mark.at[1])
        if mark.before:
            labels.line([(frame.x(mark.before[0]), frame.y(mark.before[1])), (x, y)])
            drawn.append(f'<path class="arrow {css}" d="{_arrow(frame, mark)}"/>')
        if mark.wins:
            drawn.append(f'<path class="star" data-n="{mark.number}" d="{_star(x, y, 10)}"/>')
            figures = f"{mark.at[1]:.2f} %, {figure(mark.at[0])} {goal.unit}"
            texts.insert(0, ([f"{mark.name}, trial {mark.number}", figures], (x, y), "winner"))
        else:
            drawn.append(
                f'<circle class="final" data-n="{mark.number}" r="3.8" {_at(frame, mark.at)}/>'
            )
            if not any("finalists" in lines[0] for lines, _, _ in texts):
                texts.append((["finalists: proxy → retrained"], (x, y), "finalist"))
        labels.dots.append((x, y))
    baseline = study_rows.part(summary, "baseline")
    cost, quality = study_rows.cost(baseline, target), baseline.get("quality")
    if cost is not None:
        x, y = frame.x(cost), frame.y(frame.bottom if quality is None else 100 * quality)
        drawn.append(f'<path class="base" d="M{x:.1f} {y - 6:.1f}l6 6-6 6-6-6z"/>')
        labels.dots.append((x, y))
        name = "baseline" + (", not retrained" if quality is None else "")
        texts.insert(1, ([name], (x, y), "baseline"))
    return "".join(drawn), texts


class _Labels:
    """Direct labels that keep off each other, off the dots and off the lines; pixels."""

    def __init__(self) -> None:
        self.taken: list[tuple[float, float, float, float]] = []
        self.dots: list[tuple[float, float]] = []

    def line(self, corners: Sequence[tuple[float, float]]) -> None:
        self.dots += [tuple(point) for point in scales.along(corners)]

    def put(self, lines: list[str], at: tuple, css: str, height: int = HEIGHT) -> str:
        size = (6.7 * max(map(len, lines)), 15.0 * len(lines))
        bounds = (LEFT + 4, TOP + 2, WIDTH - RIGHT - 2, height - BOTTOM - 10)
        x, y = scales.place(at, size, bounds, self.taken, np.array(self.dots).reshape(-1, 2))
        # Grow away from the point, so that a misjudged text width leaves no gap.
        anchor, x = ("end", x + size[0]) if x + size[0] <= at[0] else ("start", x)
        return "".join(
            write(x, y + 12 + 15 * index, text, f"label {css}", anchor)
            for index, text in enumerate(lines)
        )


def _svg(drawn: Sequence[str], height: int, name: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(name)}">{"".join(drawn)}<circle class="ring" r="8"/></svg>'
    )


def _at(frame: Frame, point: tuple[float, float]) -> str:
    return f'cx="{frame.x(point[0]):.1f}" cy="{frame.y(point[1]):.1f}"'


def write(x: float, y: float, text: str, css: str, anchor: str) -> str:
    """A text element at a point."""
    return (
        f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _arrow(frame: Frame, mark: scales.Final) -> str:
    (x0, y0), (x1, y1) = ((frame.x(x), frame.y(y)) for x, y in (mark.before, mark.at))
    length = math.hypot(x1 - x0, y1 - y0)
    gap = 10 if mark.wins else 5
    if length <= gap + 4:
        return ""
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    x1, y1 = x1 - gap * dx, y1 - gap * dy
    wings = [(x1 - 6 * dx + 3 * side * dy, y1 - 6 * dy - 3 * side * dx) for side in (1, -1)]
    return f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" + "".join(
        f"M{x1:.1f} {y1:.1f}L{x:.1f} {y:.1f}" for x, y in wings
    )


def _star(x: float, y: float, radius: float) -> str:
    points = []
    for index in range(10):
        r = radius if index % 2 == 0 else 0.42 * radius
        angle = math.pi * (index / 5 - 0.5)
        points.append(f"{x + r * math.cos(angle):.1f} {y + r * math.sin(angle):.1f}")
    return "M" + "L".join(points) + "z"
