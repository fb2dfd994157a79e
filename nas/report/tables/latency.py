"""Latencies in a terminal: a comparison of networks and targets, their conditions, operations."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from latency.target import Kind, Latency
from nas.report.format import figure
from nas.report.tables.columns import columns, paragraph, shortened

NAME = 32  # characters of a model's name; of a longer path the end is shown
TOP = 20  # operations that are listed; --json has all
# Conditions that the table itself shows, or that are too long for a line.
_SHOWN = {"device", "stable", "reason", "op_min_ms", "raw_median_ms"}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows {"model", "spec", "latency"} as a table, then each target's device and conditions."""
    head = ["model", "target", "batch", "median ms", "95 % interval", "p10", "p90", "wall ms"]
    head += ["op minima", "MB", "", "figure"]
    cells = [head]
    first: dict[tuple[str, int], float] = {}
    for row in rows:
        one: Latency = row["latency"]
        key = (row["spec"], one.batch_size)
        times = one.median_ms / first.setdefault(key, one.median_ms)
        cells.append(
            [
                shortened(row["model"], NAME),
                row["spec"],
                str(one.batch_size),
                _ms(one.median_ms),
                *_spread(one),
                _ms(one.conditions.get("raw_median_ms")),
                _ms(one.op_min_ms),
                "" if one.memory_mb is None else f"{one.memory_mb:.1f}",
                "" if times == 1 else f"x{times:.2f}",
                _figure(one),
            ]
        )
    lines = [*columns(cells), ""]
    for row in rows:
        if row["latency"].conditions.get("stable") is False:
            reason = row["latency"].conditions.get("reason", "no reason given")
            lines += paragraph(f"not stable: {row['model']} on {row['spec']}: {reason}")
    for spec in dict.fromkeys(row["spec"] for row in rows):
        lines += _conditions([row for row in rows if row["spec"] == spec])
    return "\n".join(lines)


def _conditions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The device and conditions of one target: what all have in common once, then each its own."""
    facts = [_facts(row["latency"].conditions) for row in rows]
    common = [fact for fact in facts[0] if all(fact in others for others in facts)]
    lines = paragraph(f"{rows[0]['spec']} is {rows[0]['latency'].device}")
    lines += paragraph(", ".join(common), indent="  ")
    for row, known in zip(rows, facts, strict=True):
        own = ", ".join(fact for fact in known if fact not in common)
        batch = row["latency"].batch_size
        name = row["model"] if batch == 1 else f"{row['model']} x {batch}"
        lines += paragraph(f"{name}: {own}", indent="  ") if own else []
    return lines


def operations(rows: Sequence[Mapping[str, Any]]) -> str:
    """The operations that take longest, and what each type of operation takes, of each row."""
    lines: list[str] = []
    for row in rows:
        one: Latency = row["latency"]
        lines.append("")
        title = f"{row['model']} on {row['spec']}"
        if not one.per_op:
            reason = one.conditions.get("per_op") or "this target has none"
            lines.append(f"{title}: no times of operations ({reason})")
            continue
        graph = [op for op in one.per_op if op.get("within", "graph") == "graph"] or one.per_op
        total = sum(op["ms"] for op in graph)
        lines.append(f"{title}: {len(graph)} operations, {total:.4g} ms, {one.per_op_kind}")
        types: dict[str, list[float]] = collections.defaultdict(list)
        for op in graph:
            types[op["type"]].append(op["ms"])
        by_type = sorted(types.items(), key=lambda item: -sum(item[1]))
        cells = [["type", "count", "ms", "share"]]
        cells += [
            [name, str(len(ms)), _ms(sum(ms)), f"{sum(ms) / (total or 1):.1%}"]
            for name, ms in by_type
        ]
        lines += [*columns(cells), ""]
        slowest = sorted(graph, key=lambda op: -op["ms"])[:TOP]
        cells = [["operation", "type", "ms", "share", "fastest ms"]]
        cells += [
            [
                op["name"][:48],
                op["type"][:32],
                _ms(op["ms"]),
                f"{op['ms'] / (total or 1):.1%}",
                _ms(op.get("fastest_ms")),
            ]
            for op in slowest
        ]
        lines += columns(cells)
        if len(graph) > len(slowest):
            lines.append(f"{len(graph) - len(slowest)} more, of which --json has all")
    return "\n".join(lines)


def _spread(one: Latency) -> list[str]:
    """Interval, p10 and p90: of an estimate there are none."""
    if not one.measured:
        return ["", "", ""]
    low, high = one.interval_ms
    return [f"{_ms(low)} to {_ms(high)}", _ms(one.p10_ms), _ms(one.p90_ms)]


def _figure(one: Latency) -> str:
    word = kind_word(one.kind)
    return word if one.conditions.get("stable", True) else f"{word}, not stable"


def kind_word(kind: Kind) -> str:
    """How a figure was come by; only a measured one is written small.

    >>> kind_word(Kind.MEASURED), kind_word(Kind.PREDICTED)
    ('measured', 'PREDICTED')
    """
    return "measured" if kind is Kind.MEASURED else str(kind).upper()


def _facts(conditions: Mapping[str, Any], path: str = "") -> list[str]:
    facts = []
    for name, value in conditions.items():
        if name in _SHOWN or value is None or value == "":
            continue
        label = f"{path}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            facts += _facts(value, f"{label} ")
        elif isinstance(value, (list, tuple)):
            facts.append(f"{label} {'+'.join(map(str, value))}")
        else:
            facts.append(f"{label} {value:.4g}" if isinstance(value, float) else f"{label} {value}")
    return facts


def _ms(value: float | None) -> str:
    return figure(value, 4, zeros=False, missing="")
