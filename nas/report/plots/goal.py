"""What was tried towards a goal, as a picture: what each file costs against what it loses."""

from collections.abc import Mapping
from typing import Any

from nas.report.plots.figure import FRONT, INK, MUTED, WINNER, frame, styled


@styled
def draw(record: Mapping[str, Any]) -> Any:
    """The figure of the record of a compression towards a goal; latency where files were timed."""
    goal = record["goal"]
    tried = goal["tried"]
    timed = all(one["ms"] is not None for one in tried)
    proof = goal["proof"]
    drawing = frame(
        f"{proof['points']:.2f} points of {goal['metric']} lost",
        f"{goal['words']} · on {goal['examples']['proven_on']} examples that it was not chosen by",
        height=4.6,
    )
    panel = drawing.add_axes((0.1, 0.13, 0.84, 0.65))

    def cost(one: Mapping[str, Any]) -> float:
        return one["ms"] if timed else one["bytes"] / 1000

    for one in tried:
        drop = one["drop"]
        color = WINNER if one["chosen"] else FRONT if one["on_front"] else MUTED
        panel.plot([cost(one)] * 2, [drop["low"], drop["high"]], color=color, linewidth=1)
        panel.scatter([cost(one)], [drop["points"]], color=color, zorder=3, s=36)
        if one["on_front"] or one["chosen"]:
            panel.annotate(
                one["words"], (cost(one), drop["points"]), xytext=(5, 5),
                textcoords="offset points", fontsize=8, color=INK,
            )  # fmt: skip
    most = goal["goal"]["max_drop"]
    if most is not None:
        panel.axhline(most, color=MUTED, linewidth=0.8, linestyle="--")
    panel.set_xlabel("median ms" if timed else "kilobytes of the .tflite file")
    panel.set_ylabel("points lost, 90 % of resamples")
    panel.invert_yaxis()
    panel.grid(axis="both")
    return drawing
