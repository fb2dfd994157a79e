"""The charts of the page: matplotlib's SVG with CSS colours, whose dots answer the pointer."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nas.report.plots import figure, pareto, progress
from nas.report.study_rows import Goal, Network

_SVG = "{http://www.w3.org/2000/svg}"
_COLORS = {
    figure.INK: "--ink",
    figure.MUTED: "--muted",
    figure.HAIR: "--hair",
    figure.FRONT: "--front",
    figure.WINNER: "--winner",
    figure.BUDGET: "--budget",
    figure.RANDOM: "--random",
    "#ffffff": "--card",
    **{tone: f"--o{index}" for index, tone in enumerate(figure.ORDER)},
}


def front(rows: Sequence[Network], summary: Mapping[str, Any], goal: Goal, target: int) -> str:
    """Quality over one target's cost: every trained network a dot that answers the pointer."""

    def draw(axes: Any) -> None:
        pareto.panel(axes, rows, summary, goal, target, halo=False)
        axes.set_ylabel("quality, %")

    return _chart(draw, f"quality over latency on {goal.spec}", 4.5)


def rewards(rows: Sequence[Network], summary: Mapping[str, Any], goals: Sequence[Goal]) -> str:
    """Reward of every trial and the best so far; quality where the search has no one reward."""

    def draw(axes: Any) -> None:
        progress.panel(axes, rows, summary, goals, halo=False)

    return _chart(draw, "reward over trials", 3.1)


def _chart(draw: Callable[[Any], None], label: str, height: float) -> str:
    return inline(_figure(draw, height), label)


@figure.styled
def _figure(draw: Callable[[Any], None], height: float) -> Any:
    drawing = figure.frame(width=9.8, height=height, left=0.06, right=0.985, bottom=0.55 / height)
    drawing.subplots_adjust(top=1 - 0.12 / height)
    draw(drawing.subplots())
    return drawing


def inline(drawing: Any, label: str) -> str:
    """A figure as an <svg> of a page: colours by name, for light and dark, numbers at its dots.

    Of an artist whose gid is "n:4,7" the marks get data-n="4" and data-n="7".
    """
    ElementTree.register_namespace("", _SVG[1:-1])
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(figure.svg(drawing))
    for size in ("width", "height", "version"):  # as wide as the page
        del root.attrib[size]
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
        name = parent.get("id", "")
        if name == "label":
            parent.set("class", "label")
        if name.startswith("n:"):
            for number, mark in zip(name[2:].split(","), _marks(parent), strict=True):
                mark.set("data-n", number)
    root.set("class", "chart")
    root.set("role", "img")
    root.set("aria-label", label)
    ElementTree.SubElement(root, f"{_SVG}circle", {"class": "ring", "r": "5.6"})
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda id: id[0] if id[1] in used else "", text)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    return re.sub(r"#[0-9a-f]{6}\b", lambda color: _variable(color[0]), text)


def _variable(color: str) -> str:
    return f"var({_COLORS[color]})" if color in _COLORS else color


def _marks(group: ElementTree.Element) -> list[ElementTree.Element]:
    """What is drawn in a group, in order, without the definitions."""
    found = []
    for child in group:
        if child.tag in (f"{_SVG}use", f"{_SVG}path"):
            found.append(child)
        elif child.tag != f"{_SVG}defs":
            found += _marks(child)
    return found
