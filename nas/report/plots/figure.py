"""The frame of every plot: its size, colours and titles; files that are written whole."""

import functools
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from latency.system.atomic_write import atomic_write
from nas.report.format import tick

INK, MUTED, HAIR = "#1c2430", "#6b7683", "#d9dee4"
FRONT, WINNER, BUDGET, RANDOM = "#1f4e8c", "#d9480f", "#b42318", "#8a7a5c"
ORDER = ("#bcd4ea", "#96bde0", "#6aa2d4", "#3f80bf", "#255e9e", "#123e73")  # early to late
SERIES = (FRONT, WINNER, "#1a7f4b", RANDOM, "#7b3fa0", BUDGET)  # several of a kind
LABEL, SMALL = 9.5, 8.5  # sizes of text, points
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": LABEL,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": HAIR,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": LABEL,
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of devices may hold a $
}
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    # It tells of every font of the list that a machine lacks.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with matplotlib.rc_context(_STYLE):
        yield


def styled(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function that draws, under the style of the reports."""

    @functools.wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with _style():
            return draw(*args, **kwargs)

    return drawn


def frame(
    title: str = "",
    subtitle: str = "",
    *,
    width: float = 9.6,
    height: float = 5.8,
    left: float = 0.075,
    right: float = 0.975,
    bottom: float = 0.12,
) -> Any:
    """An empty matplotlib figure with its titles, and room for panels below them.

    Args:
        title: What is to see, in a sentence.
        subtitle: Of what, and under which conditions.
        width: Inches.
        height: Inches.
        left: Where the panels begin, a share of the width.
        right: Where they end.
        bottom: Where they begin, a share of the height.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=left, right=right, bottom=bottom, top=1 - 0.9 / height)
    figure.text(left, 1 - 0.32 / height, title, fontsize=14.5, weight="bold")
    figure.text(left, 1 - 0.59 / height, subtitle, fontsize=LABEL, color=MUTED)
    return figure


def plain_ticks(*axes: Any) -> None:
    """Label the ticks of matplotlib axes without exponents and needless zeros."""
    for axis in axes:
        axis.set_major_formatter(lambda value, _: tick(value))


def save(path: str | Path, figure: Any) -> Path:
    """Write a figure as PNG or SVG, by the name's end; the file is never half a picture."""
    path = Path(path)
    with atomic_write(path) as partial, _style():
        figure.savefig(partial, format=path.suffix[1:].lower())
    return path


def svg(figure: Any) -> str:
    """A figure as an <svg> element, for a page or a notebook."""
    text = io.StringIO()
    with _style():
        figure.savefig(text, format="svg", metadata={"Date": None})
    content = text.getvalue()
    return content[content.index("<svg") :]
