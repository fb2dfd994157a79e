"""The journey behind `nas count`: what networks cost on paper, without memory for their weights."""

import argparse
import dataclasses
import json
from typing import Any

from nas import backend, registry

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


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one network costs; None where a family has no such form."""

    name: str
    params: int
    active_params: int
    macs: int
    prefill_macs: int | None
    step_macs: int | None
    kv_bytes: int | None
    float32_bytes: int
    bfloat16_bytes: int
    tokens: int | None
    batch: int
    uncounted: tuple[str, ...]


def count(arguments: argparse.Namespace) -> int:
    """`nas count`: 0; an unknown name or a size that is not positive raises `ValueError`."""
    for flag, value in (("--tokens", arguments.tokens), ("--batch", arguments.batch)):
        if value is not None and value < 1:
            raise ValueError(f"{flag} {value}; expected at least 1")
    named = [registry.parse(name) for name in dict.fromkeys(arguments.model)]
    for one in named:
        registry.known("family", one.name)
    backend.load()
    rows = [_counts(one, arguments.tokens, arguments.batch) for one in _expanded(named)]
    if arguments.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        print(table(rows))
    return 0


def _expanded(named: list[registry.Spec]) -> list[tuple[str, Any, Any]]:
    """(name, family, config) of every network; a family alone means all its variants."""
    found = []
    for one in named:
        if one.options:
            raise ValueError(f"cannot read {one}: expected FAMILY or FAMILY:VARIANT")
        family = registry.module("family", one.name)
        for variant in family.VARIANTS if one.value is None else [str(one.value)]:
            name = f"{one.name}:{variant}"
            found.append((name, *registry.network(name)))
    return found


def _counts(network: tuple[str, Any, Any], tokens: int | None, batch: int) -> Counts:
    name, family, config = network
    is_text = hasattr(family, "kv_bytes")
    if tokens is not None and is_text:
        config = dataclasses.replace(config, length=tokens)
    length = config.length if is_text else None
    whole, active = _cost(family, config)
    prefill = step = None
    if hasattr(family, "prefill"):
        prefill = _cost(family, family.prefill(config))[0].macs * batch
    if hasattr(family, "deploy"):
        step = _cost(family, family.deploy(config))[0].macs * batch
    return Counts(
        name=name,
        params=whole.total_params,
        active_params=active,
        macs=whole.macs * batch,
        prefill_macs=prefill,
        step_macs=step,
        kv_bytes=family.kv_bytes(config, length, batch) if is_text else None,
        float32_bytes=4 * whole.total_params,
        bfloat16_bytes=2 * whole.total_params,
        tokens=length,
        batch=batch,
        uncounted=whole.uncounted,
    )


def _cost(family: Any, config: Any) -> tuple[Any, int]:
    """The `latency.networks.count.Cost` of a network and its active parameters."""
    from families.layers import shapes_only
    from latency.networks import count as cost

    with shapes_only():
        model = family.build(config)
    counted = cost.count(model)
    unused = sum(
        layer.count_params() - layer.active_params()
        for layer in model.layers
        if hasattr(layer, "active_params")
    )
    return counted, counted.total_params - unused


def table(rows: list[Counts]) -> str:
    """The counts for a terminal, and what the columns mean."""
    cells = [[title for title, _, _ in COLUMNS]]
    cells += [[_text(getattr(row, key), form) for _, key, form in COLUMNS] for row in rows]
    used = [i for i in range(len(COLUMNS)) if any(row[i] for row in cells[1:])]
    widths = {i: max(len(row[i]) for row in cells) for i in used}
    lines = [
        "  ".join(row[i].rjust(widths[i]) if i else row[i].ljust(widths[i]) for i in used)
        for row in cells
    ]
    lines.append("")
    for row in rows:
        if row.uncounted:
            lines.append(f"{row.name}: MACs without those of {', '.join(row.uncounted)}")
    lengths = " or ".join(f"{row:,}" for row in sorted({row.tokens or 0 for row in rows} - {0}))
    context = f" for {lengths} tokens" if lengths else ""
    lines.append(f"MACs: multiply-adds of one forward pass{context}, batch {rows[0].batch}.")
    lines += [NOTES[key] for i, (_, key, _) in enumerate(COLUMNS) if i in used and key in NOTES]
    return "\n".join(lines)


def _text(value, form: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, int):
        return value
    return f"{value:,}" if form == "exact" else _short(value) + form


def _short(number: float) -> str:
    """Four digits and a prefix of a power of 1000, as 12.88 G."""
    for prefix in ("", "k", "M", "G"):
        if number < 999.95:
            return f"{number:.4g} {prefix}"
        number /= 1000
    return f"{number:.4g} T"
