"""Compression methods on networks, in a terminal: a row for each network, a column a method."""

from collections.abc import Sequence

from nas.compression.cell import Cell
from nas.report.tables.columns import columns, paragraph


def table(cells: Sequence[Cell]) -> str:
    """Size, quality and latency of each cell against the network as it was; reasons below."""
    networks = list(dict.fromkeys(cell.network for cell in cells))
    methods = list(dict.fromkeys(cell.method for cell in cells))
    found = {(cell.network, cell.method): cell for cell in cells}
    notes: dict[str, int] = {}
    rows = [["", "trained as long,\nuncompressed", *methods]]
    for network in networks:
        row = [found[network, method] for method in methods]
        known = next((cell for cell in row if cell.quality_longer is not None), None)
        longer = _points(known.quality_longer, known.quality_before) if known else ""
        rows.append([network, longer, *(_text(cell, notes) for cell in row)])
    lines = ["bytes of the .tflite (mlp: .mlpackage), points of quality, latency: each against the"]
    lines += ["network as it was, which a method trains for one epoch more", ""]
    lines += columns(rows, right=())
    for note, number in notes.items():
        lines += paragraph(f"[{number}] {note}")
    return "\n".join(lines)


def _text(cell: Cell, notes: dict[str, int]) -> str:
    if cell.size_ratio is None:
        return _mark(cell.reason or f"FAILED {cell.failed}", notes)
    parts = [f"{cell.size_ratio:.2f}"]
    parts += ["mlp"] if cell.container == ".mlpackage" else []
    parts += [_points(cell.quality, cell.quality_before)]
    parts += [f"x{cell.latency_ratio:.2f}"] if cell.latency_ratio is not None else []
    parts += [_mark(cell.note, notes)] if cell.note else []
    return " ".join(parts)


def _mark(text: str, notes: dict[str, int]) -> str:
    return f"[{notes.setdefault(text, len(notes) + 1)}]"


def _points(quality: float | None, before: float | None) -> str:
    return "" if quality is None or before is None else f"{100 * (quality - before):+.1f}"
