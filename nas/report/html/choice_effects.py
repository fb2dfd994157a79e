"""The section of the HTML page on the effect of each choice on quality and latency."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nas.report import study_rows
from nas.report.html import importance
from nas.report.html.importance import Decision, Effects
from nas.report.study_rows import Goal, Network

SHOWN_DECISIONS = 8
QUALITY, LATENCY, REACH = 196, 376, 62  # where the bars begin and how far they reach, pixels


def html(rows: Sequence[Network], goals: Sequence[Goal], chosen: Mapping[str, Any]) -> str:
    """The section: the decisions that weigh most, or why nothing is claimed."""
    trained = [row for row in rows if row.state == study_rows.TRAINED]
    costly = [row for row in rows if row.costs and row.costs[0] > 0]
    costly = [row for row in costly if row.state not in (study_rows.DUPLICATE, study_rows.RUNNING)]
    gain = importance.effects([r.choices for r in trained], [r.percent for r in trained])
    slow = importance.effects(
        [row.choices for row in costly], [100 * math.log(row.costs[0]) for row in costly]
    )
    claims = []
    for name, found in (("Quality", gain), (f"Latency on {goals[0].spec}", slow)):
        if found.refusal:
            claims.append(f"{name}: no claim, {found.refusal}.")
        else:
            claims.append(
                f"{name}: from {found.trials:,} networks; single choices explain "
                f"{found.explained:.0%} of the variance of held-out ones."
            )
    known = {css: f for css, f in (("gain", gain), ("cost", slow)) if not f.refusal}
    sides = {css: {d.name: d for d in found.decisions} for css, found in known.items()}
    share: dict[str, float] = {}
    for side in sides.values():
        for name, decision in side.items():
            share[name] = max(share.get(name, 0), decision.share)
    names = sorted(share, key=lambda name: -share[name])[:SHOWN_DECISIONS]
    reach = {css: _reach(found, names) for css, found in known.items()}
    cards = []
    for name in names:
        pair = [sides.get(css, {}).get(name) for css in ("gain", "cost")]
        drawn = _bars(name, pair[0], pair[1], reach, chosen.get(name))
        cards.append(
            f'<div class="panel"><h3>{escape(name)}</h3><div class="heads"><span></span>'
            f"<span>quality, points</span><span>latency</span></div>{drawn}</div>"
        )
    note = ""
    if cards:
        left = len(share) - len(names)
        more = f" The {left} other decisions weigh less." if left else ""
        note = (
            '<p class="note">Bars: a choice against the average network, all other choices equal '
            "(Bayesian linear model); lines: 95 % intervals; pale: the interval includes zero; ●: "
            "the winner's choice. Pairs of choices may act together, which this does not show, and "
            f"the controller chose what to try.{more}</p>"
        )
    lines = "".join(f"<p class='lede'>{escape(line)}</p>" for line in claims)
    drawn = f'<div class="effects">{"".join(cards)}</div>'
    return f"<h2>The effect of each choice</h2>{lines}{drawn}{note}"


def _bars(
    decision: str, quality: Decision | None, latency: Decision | None, reach: Mapping[str, float],
    chosen: Any,
) -> str:  # fmt: skip
    """One decision: a bar per choice for quality (points) and latency (%), with intervals.

    `reach` holds the largest absolute value of each drawn side, so all decisions share a scale.
    """
    levels = [level for side in (quality, latency) if side for level in side.levels]
    choices = list(dict.fromkeys(repr(level.choice) for level in levels))
    shown = {repr(level.choice): level.choice for level in levels}
    drawn = []
    for row, key in enumerate(choices):
        y = 12 + 24 * row
        won = chosen is not None and repr(chosen) == key
        name = _short(str(shown[key]), 15) + (" ●" if won else "")
        drawn.append(_written(0, y + 4, name, "level won" if won else "level"))
        for side, center, css in ((quality, QUALITY, "gain"), (latency, LATENCY, "cost")):
            level = next((x for x in side.levels if repr(x.choice) == key), None) if side else None
            if level is None or not level.trials:
                continue
            scale = 0.85 * REACH / (reach[css] or 1)
            known = "" if level.low > 0 or level.high < 0 else " unsure"
            width = abs(level.effect) * scale
            x = center + min(level.effect, 0) * scale
            a, b = (center + max(min(v * scale, REACH), -REACH) for v in (level.low, level.high))
            unit = "" if css == "gain" else " %"
            value = _written(center + REACH + 6, y + 4, _signed(level.effect) + unit, "value")
            about = f"{level.trials} networks, {level.effect:+.2f}{unit}"
            drawn.append(
                f'<g class="{css}{known}"><title>{about} '
                f"(95 % interval {level.low:+.2f} to {level.high:+.2f})</title>"
                f'<rect x="{x:.1f}" y="{y - 6}" width="{max(width, 0.5):.1f}" height="12"/>'
                f'<path class="whisker" d="M{a:.1f} {y}H{b:.1f}"/>'
                f"{value}</g>"
            )
    height = 24 * len(choices) + 2
    zero = "".join(f'<path class="axis" d="M{x} 0V{height}"/>' for x in (QUALITY, LATENCY))
    return (
        f'<svg viewBox="0 0 500 {height}" role="img" aria-label="effect of {escape(decision)}">'
        f"{zero}{''.join(drawn)}</svg>"
    )


def _reach(found: Effects, decisions: Sequence[str]) -> float:
    """The largest effect among the named decisions, for a common scale of their bars."""
    levels = [x for d in found.decisions if d.name in decisions for x in d.levels if x.trials]
    return max((abs(level.effect) for level in levels), default=1.0)


def _written(x: float, y: float, text: str, css: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _signed(value: float) -> str:
    return "0.0" if abs(value) < 0.05 else f"{value:+.1f}"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
