"""How a goal was met, in a terminal: what was tried, its front, which kernel has which bits."""

from collections.abc import Mapping
from typing import Any

from nas.report.format import figure
from nas.report.tables.columns import columns, paragraph

TOP = 12  # kernels that are named; the .json has all


def lines(goal: Mapping[str, Any]) -> list[str]:
    """The plan of a compression towards a goal as lines of text."""
    proof, seen = goal["proof"], goal["examples"]
    timed = any(one["ms"] is not None for one in goal["tried"])
    cells = [["", "tried", "bytes", *(["ms"] if timed else []), "loses", "90 % of resamples"]]
    for one in sorted(goal["tried"], key=lambda one: one["bytes"]):
        mark = "->" if one["chosen"] else "front" if one["on_front"] else ""
        ms = [figure(one["ms"], 4)] if timed else []
        drop = one["drop"]
        spread = f"{drop['low']:.2f} to {drop['high']:.2f}"
        cells.append(
            [mark, one["words"], f"{one['bytes']:,}", *ms, f"{drop['points']:.2f}", spread]
        )
    found = paragraph(f"{goal['words']}:") + columns(cells, right=(2, 3, 4))
    found += paragraph(
        f"proven on {seen['proven_on']} examples that nothing was chosen by: loses"
        f" {proof['points']:.2f} points of {goal['metric']} (90 % of resamples"
        f" {proof['low']:.2f} to {proof['high']:.2f}); rounded on {seen['rounded_on']}, chosen by"
        f" {seen['chosen_by']} others"
    )
    return [*found, *_bits(goal.get("bits", {})), ""]


def _bits(kernels: Mapping[str, Any]) -> list[str]:
    """Kernels by their bits, those that gain most by theirs first."""
    if not kernels:
        return []
    cells = [["kernel", "bits", "moves outputs by", "fewer would by"]]
    order = sorted(kernels.items(), key=lambda item: -item[1].get("fewer_would_move", 0.0))
    for path, one in order[:TOP]:
        fewer = one.get("fewer_would_move")
        shown = "" if fewer is None else f"{fewer:.2g}"
        cells.append([path, str(one["bits"]), f"{one['moves']:.2g}", shown])
    more = [f"and {len(order) - TOP} more"] if len(order) > TOP else []
    return ["", *columns(cells, right=(1, 2, 3)), *more]
