"""What networks cost on paper, in a terminal."""

from collections.abc import Sequence

from nas.networks.count import Counts
from nas.report.format import count
from nas.report.tables.columns import columns

COLUMNS = (  # title, field of Counts, "exact" or a unit
    ("network", "name", "exact"),
    ("params", "params", "exact"),
    ("active", "active_params", "exact"),
    ("MACs", "macs", ""),
    ("prefill", "prefill_macs", ""),
    ("step", "step_macs", ""),
    ("KV cache", "kv_bytes", "B"),
    ("float32", "float32_bytes", "B"),
    ("bfloat16", "bfloat16_bytes", "B"),
)
NOTES = {
    "active_params": "active: parameters that one token meets, without the experts it does not.",
    "prefill_macs": "prefill: the same tokens read as a prompt; logits of the last one only.",
    "step_macs": "step: one call of the form that runs on a device: a token behind a full cache.",
    "kv_bytes": "KV cache: keys and values kept of these tokens, 2 bytes each.",
}


def table(rows: Sequence[Counts]) -> str:
    """The counts of networks as text, and what the columns mean."""
    cells = [[title for title, _, _ in COLUMNS]]
    cells += [[_text(getattr(row, key), form) for _, key, form in COLUMNS] for row in rows]
    lines = [*columns(cells, right=range(1, len(COLUMNS))), ""]
    for row in rows:
        if row.uncounted:
            lines.append(f"{row.name}: MACs without those of {', '.join(row.uncounted)}")
    lengths = " or ".join(f"{row:,}" for row in sorted({row.tokens or 0 for row in rows} - {0}))
    context = f" for {lengths} tokens" if lengths else ""
    lines.append(f"MACs: multiply-adds of one forward pass{context}, batch {rows[0].batch}.")
    used = [key for i, (_, key, _) in enumerate(COLUMNS) if any(row[i] for row in cells[1:])]
    return "\n".join([*lines, *(NOTES[key] for key in used if key in NOTES)])


def _text(value: int | str | None, form: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return f"{value:,}" if form == "exact" else count(value, 4, unit=form, space=" ", zeros=False)
