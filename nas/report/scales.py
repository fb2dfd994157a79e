"""What the drawings share: the range shown, ticks, the front as a staircase, label places."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nas.report import study_rows
from nas.report.study_rows import Goal, Network


@dataclasses.dataclass(frozen=True)
class View:
    """The range of one drawing: cost on x (log where it spans 10x), quality in % on y."""

    left: float
    right: float
    log: bool
    bottom: float
    top: float
    below: int


def view(rows: Sequence[Network], summary: Mapping[str, Any], goal: Goal, target: int) -> View:
    """The range that shows the front and the budget; the worst networks may fall below it."""
    trained = [row for row in rows if row.state == study_rows.TRAINED]
    marks = [*study_rows.finalists(summary).values(), study_rows.part(summary, "baseline")]
    costs = [row.costs[target] for row in trained]
    costs += [c for mark in marks if (c := study_rows.cost(mark, target)) is not None]
    costs += [goal.budget] if goal.budget else []
    quality = np.array([row.percent for row in trained])
    shown = [100 * mark["quality"] for mark in marks if mark.get("quality") is not None]
    low, high = quality.min(), max([quality.max(), *shown])
    # The best half decides the scale: networks that learned nothing must not flatten the rest.
    floor = min([np.quantile(quality, 0.5) - 1.2 * (high - np.quantile(quality, 0.5)), *shown])
    low = floor if floor - low > 0.3 * (high - low) else low
    pad = max(0.06 * (high - low), 0.05)
    left, right = min(costs), max(costs)
    log = right > 10 * left
    if log:
        margin = (right / left) ** 0.05
        left, right = left / margin, right * margin
    else:
        margin = 0.05 * (right - left) or 0.1 * right
        left, right = max(left - margin, 0.0), right + margin
    return View(left, right, log, low - pad, high + 1.6 * pad, int((quality < low - pad).sum()))


def ticks(
    low: float, high: float, *, log: bool = False, whole: bool = False, most: int = 7
) -> list[float]:
    """Round values inside [low, high], integers if `whole`."""
    if log:
        for digits in ((1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            found = [d * 10.0**p for p in powers for d in digits if low <= d * 10.0**p <= high]
            if len(found) <= most + 2:
                break
        return found
    raw = (high - low) / most or 1.0
    raw = max(raw, 1.0) if whole else raw
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(
        scale * m
        for m in ((1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10))
        if scale * m >= raw * (1 - 1e-9)
    )
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def stairs(
    points: Sequence[tuple[float, float]], right: float, bottom: float
) -> list[tuple[float, float]]:
    """The front of (cost, quality) as a staircase from `bottom` to the right edge."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    corners, level = [], bottom
    for x, y in kept:
        corners += [(x, level), (x, y)]
        level = y
    return corners + ([(max(right, kept[-1][0]), level)] if kept else [])


def last_number(rows: Sequence[Network]) -> int:
    """The number of the last trial."""
    return max(row.number for row in rows)


def faint(marks: int) -> float:
    """Opacity at which so many ticks on an target still show where they are dense."""
    return max(0.15, min(0.5, 300 / max(marks, 1)))


def middle(steps: Sequence, view: View, share: float) -> tuple[float, float]:
    """A corner of the staircase to write at, `share` of the way along its visible part."""
    inside = [p for p in steps if view.left <= p[0] <= view.right and p[1] > view.bottom]
    return inside[int(share * (len(inside) - 1))] if inside else steps[-1]


def random_points(summary: Mapping[str, Any], target: int) -> list[tuple[float, float]]:
    """(cost, quality %) of the random search of proof mode."""
    found = study_rows.part(summary, "prove").get("random") or ()
    points = [(study_rows.cost(r, target), r.get("quality")) for r in found]
    return [(x, 100 * y) for x, y in points if x is not None and y is not None]


@dataclasses.dataclass(frozen=True)
class Final:
    """A finalist: where it ended and where the search had seen it, both (cost, quality %)."""

    number: int
    name: str
    wins: bool
    at: tuple[float, float]
    before: tuple[float, float] | None


def finals(rows: Sequence[Network], summary: Mapping[str, Any], target: int) -> list[Final]:
    """The finalists with both figures, best first; without a winner, the best network so far."""
    by_number = {row.number: row for row in rows}
    winner = study_rows.winner(summary).get("number")
    found = []
    for number, final in study_rows.finalists(summary).items():
        row, proxy = by_number.get(number), final.get("proxy_quality")
        cost, quality = study_rows.cost(final, target), final.get("quality")
        quality = proxy if quality is None else quality
        if cost is None or quality is None:
            continue
        first = study_rows.cost(final, target, "search_costs")
        if first is None and row is not None and row.costs:
            first = row.costs[target]
        before = None if proxy is None or first is None else (first, 100 * proxy)
        name = study_rows.winner_word(summary) if number == winner else "finalist"
        found.append(Final(number, name, number == winner, (cost, 100 * quality), before))
    best = study_rows.leader(rows, study_rows.goals(summary, rows)) if winner is None else None
    if best is not None:
        at = (best.costs[target], best.percent)
        found.append(Final(best.number, "best so far", True, at, None))
    return sorted(found, key=lambda final: -final.at[1])


def along(corners: Sequence, step: float = 14.0) -> np.ndarray:
    """Points every `step` pixels on a line through the corners."""
    points = [np.empty((0, 2))]
    for a, b in zip(corners[:-1], corners[1:], strict=True):
        a, b = np.asarray(a, float), np.asarray(b, float)
        share = np.linspace(0, 1, 2 + min(int(np.hypot(*(b - a)) / step), 2000))
        points.append(a + share[:, None] * (b - a))
    return np.concatenate(points)


def place(
    at: Sequence[float],
    size: tuple[float, float],
    bounds: tuple[float, float, float, float],
    taken: list[tuple[float, float, float, float]],
    dots: np.ndarray,
) -> tuple[float, float]:
    """The corner (least x, y) of a label near `at` that covers least; in pixels, joins `taken`."""
    best, found = math.inf, (at[0], at[1])
    for distance in (14, 20, 32, 48, 70, 100):
        for dx, dy in ((1, 0), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1), (0, 1), (0, -1)):
            x = at[0] + dx * distance - (size[0] if dx < 0 else size[0] / 2 if dx == 0 else 0)
            y = at[1] + dy * distance - (size[1] if dy < 0 else size[1] / 2 if dy == 0 else 0)
            box = (x, y, x + size[0], y + size[1])
            badness = (distance / 14) ** 1.7  # a label far away belongs to nothing
            inside = bounds[0] <= box[0] and bounds[1] <= box[1]
            inside = inside and box[2] <= bounds[2] and box[3] <= bounds[3]
            badness += 0 if inside else 1000
            badness += 200 * sum(_overlap(box, other) for other in taken)
            if len(dots):
                hit = (dots >= (box[0] - 3, box[1] - 3)) & (dots <= (box[2] + 3, box[3] + 3))
                badness += 3 * int(hit.all(axis=1).sum())
            if badness < best:
                best, found = badness, (x, y)
    taken.append((found[0], found[1], found[0] + size[0], found[1] + size[1]))
    return found


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] + 3 and b[0] < a[2] + 3 and a[1] < b[3] + 2 and b[1] < a[3] + 2
