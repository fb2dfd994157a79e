"""Text in columns for terminals and files, laid out by rich: numbers to the right, nothing cut."""

import io
import textwrap
from collections.abc import Sequence

WIDTH = 100  # characters of running text
_NARROWEST = 12  # characters of a column of words
_UNCUT = 10_000  # a table is as wide as it must be, whatever the terminal: `less -S` scrolls


def columns(
    cells: Sequence[Sequence[str]],
    *,
    right: Sequence[int] | None = None,
    styles: Sequence[str] | None = None,
    color: bool = False,
    width: int | None = None,
) -> list[str]:
    """The lines of a table: the first row of `cells` is its head; a column of "-" is left out.

    Args:
        cells: Rows of text, all of one length.
        right: The columns that are aligned to the right; None: those that hold only numbers.
        styles: What rich calls the style of each row, the head's first; seen only with `color`.
        color: Whether to write the codes that color a terminal.
        width: Characters beyond which the last column, of words, goes on in the next line.

    >>> print(*columns([["network", "ms"], ["a", "1.5"], ["b", "12"]]), sep="\\n")
    network   ms
    a        1.5
    b         12
    """
    from rich.table import Table

    head, *rows = cells
    used = [i for i in range(len(head)) if any(row[i] not in ("", "-") for row in rows)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for i in used:
        to_right = _numbers([row[i] for row in rows]) if right is None else i in right
        table.add_column(justify="right" if to_right else "left", no_wrap=True)
    if width is not None:
        others = sum(2 + max(len(row[i]) for row in cells) for i in used[:-1])
        table.columns[-1].no_wrap = False
        table.columns[-1].max_width = max(width - others, _NARROWEST)
    for row, style in zip(cells, styles or [""] * len(cells), strict=True):
        table.add_row(*(row[i] for i in used), style=style)
    return render(table, color=color)


def render(table: object, *, color: bool = False, width: int = _UNCUT) -> list[str]:
    """What rich makes of a table or a text, line by line, without spaces at the ends."""
    from rich.console import Console

    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def facts(pairs: Sequence[tuple[str, str]], label: int = 9) -> list[str]:
    """Names and what is to say of each, in `WIDTH` characters, the text in a column of its own.

    >>> print(*facts([("budget", "2.00 ms"), ("files", "runs/a")]), sep="\\n")
    budget    2.00 ms
    files     runs/a
    """
    lines = []
    for name, text in pairs:
        wrapped = textwrap.wrap(text, WIDTH - label - 1, break_on_hyphens=False) or [""]
        lines += [f"{word:<{label}} {line}" for word, line in zip(
            [name] + [""] * (len(wrapped) - 1), wrapped, strict=True)]  # fmt: skip
    return lines


def paragraph(text: str, indent: str = "") -> list[str]:
    """Running text as lines of at most `WIDTH` characters, those after the first further in."""
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")


def shortened(text: str, most: int) -> str:
    """A text of at most `most` characters, which keeps its end: that of a path tells most.

    >>> shortened("runs/first/best.tflite", 14)
    '...best.tflite'
    """
    return text if len(text) <= most else "..." + text[3 - most :]


def _numbers(texts: Sequence[str]) -> bool:
    return all(not text or text == "-" or text.lstrip("+-x")[:1].isdigit() for text in texts)
