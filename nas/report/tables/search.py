"""The search in a terminal: the Pareto front as an aligned table, then what it means."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna

from nas.report import study_rows
from nas.report.study_rows import Goal, Network

WIDTH = 100
_BOLD, _GREEN, _RED, _DIM, _RESET = "\033[1m", "\033[32m", "\033[31m", "\033[2m", "\033[0m"


def table(
    study: optuna.Study,
    summary: Mapping,
    *,
    folder: str | Path | None = None,
    limit: int = 20,
    color: bool | None = None,
) -> str:
    """The Pareto table and its summary as text, at most 100 columns wide.

    Args:
        study: The study; trials carry "profile" and "evaluation" as the search stores them.
        summary: The content of result.json; every key may be missing.
        folder: Where the files of the search are, for the last line.
        limit: Most rows of the front to print; the winner and the finalists always stay.
        color: None: only on a terminal, and never where NO_COLOR is set.
    """
    rows = study_rows.networks(study)
    if color is None:
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    paint = (lambda text, code: f"{code}{text}{_RESET}") if color else (lambda text, code: text)
    about = " on ".join(str(summary[k]) for k in ("space", "task") if summary.get(k))
    title = ", ".join(filter(None, [about or study.study_name, summary.get("controller")]))
    lines = [paint(title[:WIDTH], _BOLD)]
    if summary.get("metric"):
        lines.append(f"quality   {summary['metric']}, in %")
    if not any(row.quality is not None for row in rows):
        lines.append(f"No network is trained yet ({study_rows.tally_words(rows) or 'no trials'}).")
        return "\n".join(lines)
    goals = study_rows.goals(summary, rows)
    lines += _body(rows, summary, goals, limit, paint)
    lines.append("")
    lines += _summary(rows, summary, goals, folder)
    return "\n".join(lines)


def _body(rows: Sequence[Network], summary: Mapping, goals: Sequence[Goal], limit: int, paint):
    retrained = study_rows.finalists(summary)
    winner = study_rows.winner(summary).get("number")
    front = study_rows.front(rows)
    keep = _thin(front, limit, retrained)
    on_front = {row.number for row in front}
    chosen = {row.number: row for row in keep}
    best = None if retrained else study_rows.leader(rows, goals)
    chosen.update({row.number: row for row in rows if row.number in retrained or row is best})
    head = ["trial", "quality %", *(["retrained %"] if retrained else [])]
    head += [_heading(goal, len(goals)) for goal in goals] + ["params", "MMACs", "note"]
    cells, codes = [], []
    for row in sorted(chosen.values(), key=lambda row: (row.costs, row.number)):
        final = retrained.get(row.number, {})
        note = "winner" if row.number == winner else "finalist" if final else ""
        note = "best so far" if row is best else note
        note += ", over budget when timed again" if final.get("within_budget") is False else ""
        if row.number not in on_front:
            note += " (off the front)" if row.state == study_rows.TRAINED else f" ({row.state})"
        note = "; ".join(filter(None, [note.strip(), " ".join(row.methods)]))
        quality = [study_rows.percent(row.quality)]
        quality += [study_rows.percent(final.get("quality"))] if retrained else []
        size = [row.params or final.get("params"), row.macs or final.get("macs")]
        cells.append([str(row.number), *quality, *_costs(row.costs, goals), *_size(*size), note])
        codes.append(_code(row.costs, goals, note.startswith("winner")))
    baseline = study_rows.part(summary, "baseline")
    if baseline:
        quality = [study_rows.percent(baseline.get("proxy_quality"))]
        quality += [study_rows.percent(baseline.get("quality"))] if retrained else []
        costs = _costs(baseline.get("costs") or (), goals)
        size = _size(baseline.get("params"), baseline.get("macs"))
        cells.append(["-", *quality, *costs, *size, "baseline"])
        codes.append(_DIM)
    text = _align([head, *cells])
    lines = [paint(text[0], _DIM)] + [
        paint(line, code) if code else line for line, code in zip(text[1:], codes, strict=True)
    ]
    hidden = len(front) - sum(row.number in on_front for row in chosen.values())
    return lines + ([f"{hidden} more on the front"] if hidden > 0 else [])


def _thin(front: Sequence[Network], limit: int, keep: Mapping) -> list[Network]:
    """At most `limit` rows of the front, spread evenly; those in `keep` always stay."""
    if len(front) <= limit:
        return list(front)
    step = (len(front) - 1) / max(limit - 1, 1)
    spread = {round(index * step) for index in range(max(limit, 1))}
    return [row for i, row in enumerate(front) if i in spread or row.number in keep]


def _heading(goal: Goal, total: int) -> str:
    room = max(60 // total - 3, 10)
    name = goal.spec
    if len(name) > room:  # both ends tell targets apart: cpu:threads=1, cpu:threads=2
        name = name[: room // 2] + "~" + name[len(name) - (room - room // 2 - 1) :]
    return f"{name} {goal.unit}"


def _costs(costs: Sequence[float], goals: Sequence[Goal]) -> list[str]:
    cells = []
    for axis, goal in enumerate(goals):
        value = costs[axis] if axis < len(costs) else None
        share = f" ({value / goal.budget:4.0%})" if goal.budget and value is not None else ""
        cells.append(study_rows.figure(value) + share)
    return cells


def _size(params: int | None, macs: int | None) -> list[str]:
    return [study_rows.count(params), "-" if macs is None else study_rows.figure(macs / 1e6)]


def _code(costs: Sequence[float], goals: Sequence[Goal], winner: bool) -> str | None:
    if winner:
        return _BOLD + _GREEN
    over = any(g.budget and c > g.budget for c, g in zip(costs, goals, strict=False))
    return _RED if over else None


def _align(cells: Sequence[Sequence[str]]) -> list[str]:
    """Right-aligned columns, the last one left-aligned; columns that say nothing are left out."""
    columns = [list(column) for column in zip(*cells, strict=True)]
    last = columns.pop()
    columns = [c for c in columns if any(cell != "-" for cell in c[1:])]

    def width() -> int:
        return sum(2 + max(map(len, column)) for column in columns) + max(map(len, last))

    for name in ("MMACs", "params", "retrained %"):
        if width() > WIDTH:
            columns = [column for column in columns if column[0] != name]
    sizes = [max(map(len, column)) for column in columns]
    lines = []
    for index, note in enumerate(last):
        row = "  ".join(c[index].rjust(size) for c, size in zip(columns, sizes, strict=True))
        lines.append(f"{row}  {note}".rstrip()[:WIDTH])
    return lines


def _summary(
    rows: Sequence[Network], summary: Mapping, goals: Sequence[Goal], folder: str | Path | None
) -> list[str]:
    winner, baseline = study_rows.winner(summary), study_rows.part(summary, "baseline")
    told: list[tuple[str, str]] = []
    if winner:
        told.append(("winner", _winner(winner)))
    elif best := study_rows.leader(rows, goals):
        told.append(("leader", f"trial {best.number}: the best so far, not yet retrained"))
    for axis, goal in enumerate(goals):
        value = study_rows.cost(winner, axis)
        if goal.budget is None or (winner and value is None):
            continue
        landing = f"{study_rows.figure(goal.budget)} {goal.unit} on {goal.spec}"
        if winner:
            state = "within" if value <= goal.budget else f"over by {value / goal.budget - 1:.1%}"
            estimated = study_rows.estimated(winner.get("latency") or (), axis)
            landing += f"; winner {study_rows.figure(value)} {goal.unit}"
            landing += f" {estimated}, not measured," if estimated else ""
            landing += f" = {value / goal.budget:.1%}, {state}"
        told.append(("budget", landing))
    for axis, goal in enumerate(goals):
        kinds = {study_rows.estimated(row.latency, axis) for row in rows} - {""}
        if kinds:
            figures = f"those on {goal.spec} are {'+'.join(sorted(kinds))}, not measured"
            told.append(("figures", figures))
    if winner and baseline:
        told.append(("baseline", _against(winner, baseline, goals)))
    spent = study_rows.part(summary, "time_s").get("total")
    took = f" in {study_rows.duration(spent)}" if spent else ""
    told.append(("search", f"{len(rows):,} trials: {study_rows.tally_words(rows)}{took}"))
    volume = study_rows.part(study_rows.part(summary, "prove"), "hypervolume")
    if volume:
        ours, random = volume.get("controller"), volume.get("random")
        told.append(
            ("proof", f"hypervolume {figure4(ours)}; random search, as many trials: "
                      f"{figure4(random)}")
        )  # fmt: skip
    if folder is not None:
        kept = (".keras", ".tflite", ".py", ".json", ".png", ".html")
        names = sorted(path.name for path in Path(folder).glob("*") if path.suffix in kept)
        told.append(("files", f"{folder}" + (": " + ", ".join(names) if names else "")))
    return [line for name, text in told for line in _wrap(name, text) if text]


def figure4(value: float | None) -> str:
    """A hypervolume: four digits, since fronts differ in the last ones."""
    return study_rows.figure(value, 4)


def _winner(winner: Mapping) -> str:
    final, proxy = winner.get("quality"), winner.get("proxy_quality")
    told = [f"trial {winner['number']}"]
    if final is not None:
        seen = "" if proxy is None else f" ({study_rows.percent(proxy)} % in the search)"
        told.append(f"{study_rows.percent(final)} % retrained{seen}")
    elif proxy is not None:
        told.append(f"{study_rows.percent(proxy)} % in the search, not retrained")
    told += [f"{study_rows.count(winner['params'])} params"] if winner.get("params") else []
    told += [f"{study_rows.figure(winner['macs'] / 1e6)} MMACs"] if winner.get("macs") else []
    told += [f"{winner['file_bytes'] / 1e3:,.0f} kB"] if winner.get("file_bytes") else []
    told += winner.get("methods") or []
    return ", ".join(told)


def _against(winner: Mapping, baseline: Mapping, goals: Sequence[Goal]) -> str:
    told = []
    for axis, goal in enumerate(goals):
        ours, theirs = study_rows.cost(winner, axis), study_rows.cost(baseline, axis)
        if ours and theirs:
            faster = theirs / ours
            word = f"{faster:.2f}x faster" if faster >= 1 else f"{1 / faster:.2f}x slower"
            told.append(word + (f" on {goal.spec}" if len(goals) > 1 else ""))
    quality = winner.get("quality", winner.get("proxy_quality"))
    if quality is not None and baseline.get("quality") is not None:
        gain = 100 * (quality - baseline["quality"])
        told.append(f"{gain:+.2f} points of quality")
    if winner.get("params") and baseline.get("params"):
        told.append(f"{winner['params'] / baseline['params']:.2f}x its parameters")
    return "winner is " + ", ".join(told) if told else ""


def _wrap(name: str, text: str) -> list[str]:
    import textwrap

    lines = textwrap.wrap(text, WIDTH - 10, break_on_hyphens=False) or [""]
    return [f"{name:<9} {lines[0]}"] + [f"{'':<9} {line}" for line in lines[1:]]
