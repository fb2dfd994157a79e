"""A compressed network beside the original, as a picture: what is left of each figure."""

from collections.abc import Mapping
from typing import Any

from nas.report.format import count, figure, gain, quality
from nas.report.plots.figure import FRONT, INK, MUTED, WINNER, frame, styled


@styled
def draw(record: Mapping[str, Any]) -> Any:
    """The figure of the record of a compression: a bar is the share of the original's figure."""
    bars = _bars(record)
    height = 1.75 + 0.34 * len(bars)
    drawing = frame(
        _title(record),
        f"{', '.join(record['methods'])} · what is left of the original's, in %",
        height=height,
        left=0.02,
    )
    panel = drawing.add_axes((0.2, 0.55 / height, 0.55, 1 - 1.45 / height))
    shares = [100 * after / before for _, before, after, _ in bars]
    colors = [WINNER if part > 100 else FRONT for part in shares]
    panel.barh(range(len(bars)), shares, color=colors, height=0.6)
    for place, (part, (_, _, _, text)) in enumerate(zip(shares, bars, strict=True)):
        panel.text(max(part, 0) + 1.5, place, text, va="center", fontsize=9, color=INK)
    panel.set_yticks(range(len(bars)), [name for name, *_ in bars])
    panel.set_ylim(len(bars) - 0.4, -0.6)
    panel.set_xlim(0, max(100, *shares))
    panel.axvline(100, color=MUTED, linewidth=0.8)
    panel.grid(axis="x")
    return drawing


def _title(record: Mapping[str, Any]) -> str:
    before, after = record["before"].get("quality"), record["after"].get("quality")
    if before is None or after is None:
        return f"{record['model']} compressed"
    return (
        f"{record['metric']} {quality(after, record)} after {quality(before, record)}"
        f" ({gain(before, after, record)})"
    )


def _bars(record: Mapping[str, Any]) -> list[tuple[str, float, float, str]]:
    """(name, before, after, in words) of what has both figures."""
    before, after = record["before"], record["after"]
    found = []
    for name, title in (("params", "parameters"), ("nonzeros", "non-zeros")):
        found.append((title, before[name], after[name], _counts(before[name], after[name])))
    for file in record["files"]:
        was, now = file["before"]["bytes"], file["after"]["bytes"]
        kind = file["path"].rpartition(".")[2]
        found.append((f"bytes of .{kind}", was, now, _counts(was, now)))
    for target, one in before.get("latency", {}).items():
        was, now = one["median_ms"], after["latency"][target]["median_ms"]
        found.append((target, was, now, f"{figure(was)} to {figure(now)} ms"))
    return [bar for bar in found if bar[1]]


def _counts(was: int, now: int) -> str:
    return f"{count(was)} to {count(now)}"
