"""The search in a terminal: the Pareto front as an aligned table, then what it means."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from rich.text import Text

from nas.report import study_rows
from nas.report.format import MISSING, count, duration, figure, percent, size
from nas.report.study_rows import Goal, Network
from nas.report.tables.columns import WIDTH, columns, facts, render

_REASONS = 3  # of failures, that are written out
_LEFT_OUT = ("MMACs", "params", "retrained %")  # columns that go first where there is no room


def table(
    study: optuna.Study,
    summary: Mapping[str, Any],
    *,
    folder: str | Path | None = None,
    limit: int = 20,
    color: bool | None = None,
) -> str:
    """The Pareto front of a search and its summary as text, for a terminal.

    Args:
        study: The study; trials carry "profile" and "evaluation" as the search stores them.
        summary: The content of result.json; every key may be missing.
        folder: Where the files of the search are, for the last line.
        limit: Most rows of the front to show; the winner and the finalists always stay.
        color: None: only on a terminal, and never where NO_COLOR is set.
    """
    rows = study_rows.networks(study)
    if color is None:
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    title = study_rows.title(summary) or study.study_name
    title = ", ".join(filter(None, [title, summary.get("controller")]))
    lines = render(Text(title[:WIDTH], "bold"), color=color)
    if summary.get("metric"):
        lines += facts([("quality", f"{summary['metric']}, in %")])
    if not any(row.quality is not None for row in rows):
        lines.append(f"No network is trained yet ({study_rows.tally_words(rows) or 'no trials'}).")
        return "\n".join([*lines, *facts(_failed(rows))])
    goals = study_rows.goals(summary, rows)
    lines += _front(rows, summary, goals, limit, color)
    return "\n".join([*lines, "", *facts(_summary(rows, summary, goals, folder))])


def _front(
    rows: Sequence[Network],
    summary: Mapping[str, Any],
    goals: Sequence[Goal],
    limit: int,
    color: bool,
) -> list[str]:
    finalists = study_rows.finalists(summary)
    winner, word = study_rows.winner(summary).get("number"), study_rows.winner_word(summary)
    front = study_rows.front(rows)
    on_front = {row.number for row in front}
    shown = {row.number: row for row in _thin(front, limit, finalists)}
    best = None if finalists else study_rows.leader(rows, goals)
    shown.update({row.number: row for row in rows if row.number in finalists or row is best})
    head = ["trial", "quality %", "retrained %", *(_heading(goal, len(goals)) for goal in goals)]
    cells, styles = [[*head, "params", "MMACs", "note"]], ["dim"]
    for row in sorted(shown.values(), key=lambda row: (row.costs, row.number)):
        final = finalists.get(row.number, {})
        note = word if row.number == winner else "finalist" if final else ""
        note = "best so far" if row is best else note
        note = ", ".join(filter(None, [note, study_rows.over(final, goals)]))
        if row.number not in on_front:
            note += " (off the front)" if row.state == study_rows.TRAINED else f" ({row.state})"
        chance = final.get("chance", None if final else row.chance)
        said = "" if chance is None else f"no better than a constant answer, {percent(chance)} %"
        note = "; ".join(filter(None, [note.strip(), said, " ".join(row.methods)]))
        quality = [percent(row.quality), percent(final.get("quality"))]
        weight = [row.params or final.get("params"), row.macs or final.get("macs")]
        cells.append([str(row.number), *quality, *_costs(row.costs, goals), *_size(*weight), note])
        over = any(g.budget and c > g.budget for c, g in zip(row.costs, goals, strict=False))
        styles.append("bold green" if note.startswith("winner") else "red" if over else "")
    baseline = study_rows.part(summary, "baseline")
    if baseline:
        quality = [percent(baseline.get("proxy_quality"))]
        quality += [percent(baseline.get("quality")) if finalists else MISSING]
        costs = _costs(baseline.get("costs") or (), goals)
        weight = [baseline.get("params"), baseline.get("macs")]
        cells.append(["-", *quality, *costs, *_size(*weight), "baseline"])
        styles.append("dim")
    for name in _LEFT_OUT:
        if max(map(len, columns(cells))) > WIDTH:
            place = cells[0].index(name)
            cells = [[*row[:place], *row[place + 1 :]] for row in cells]
    numbers = range(len(cells[0]) - 1)
    lines = columns(cells, right=numbers, styles=styles, color=color, width=WIDTH)
    hidden = len(front) - sum(number in on_front for number in shown)
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
    for target, goal in enumerate(goals):
        value = costs[target] if target < len(costs) else None
        share = f" ({value / goal.budget:4.0%})" if goal.budget and value is not None else ""
        cells.append(figure(value) + share)
    return cells


def _size(params: int | None, macs: int | None) -> list[str]:
    return [count(params), "-" if macs is None else figure(macs / 1e6)]


def _summary(
    rows: Sequence[Network],
    summary: Mapping[str, Any],
    goals: Sequence[Goal],
    folder: str | Path | None,
) -> list[tuple[str, str]]:
    winner, baseline = study_rows.winner(summary), study_rows.part(summary, "baseline")
    known: list[tuple[str, str]] = []
    word = study_rows.winner_word(summary)
    if winner:
        over = study_rows.over(winner, goals)
        known.append((word, _winner(winner) + (f"; {over}, as all there is" if over else "")))
    elif best := study_rows.leader(rows, goals):
        known.append(("leader", f"trial {best.number}: the best so far, not yet retrained"))
    for target, goal in enumerate(goals):
        value = study_rows.cost(winner, target)
        if goal.budget is None or (winner and value is None):
            continue
        landing = f"{figure(goal.budget)} {goal.unit} on {goal.spec}"
        if value is not None:
            state = "within" if value <= goal.budget else f"over by {value / goal.budget - 1:.1%}"
            estimated = study_rows.estimated(winner.get("latency") or (), target)
            landing += f"; {word} {figure(value)} {goal.unit}"
            landing += f" {estimated}, not measured," if estimated else ""
            landing += f" = {value / goal.budget:.1%}, {state}"
        known.append(("budget", landing))
    for target, goal in enumerate(goals):
        kinds = {study_rows.estimated(row.latency, target) for row in rows} - {""}
        if kinds:
            figures = f"those on {goal.spec} are {'+'.join(sorted(kinds))}, not measured"
            known.append(("figures", figures))
    if winner and baseline:
        known.append(("baseline", _against(winner, baseline, goals, word)))
    known += [("warning", text) for text in study_rows.warnings(rows, goals)]
    spent = study_rows.part(summary, "time_s").get("total")
    took = f" in {duration(spent)}" if spent else ""
    epochs = summary.get("candidate_epochs")
    each = f"; candidates trained for {epochs:g} epochs" if epochs else ""
    known.append(("search", f"{len(rows):,} trials: {study_rows.tally_words(rows)}{took}{each}"))
    known += _failed(rows)
    volume = study_rows.part(study_rows.part(summary, "prove"), "hypervolume")
    if volume:
        ours, random = volume.get("controller"), volume.get("random")
        text = f"hypervolume {figure(ours, 4)}; random search, as many trials: "
        known.append(("proof", text + figure(random, 4)))
    if folder is not None:
        kept = (".keras", ".tflite", ".py", ".json", ".png", ".html")
        names = sorted(path.name for path in Path(folder).glob("*") if path.suffix in kept)
        known.append(("files", f"{folder}" + (": " + ", ".join(names) if names else "")))
    return [(name, text) for name, text in known if text]


def _failed(rows: Sequence[Network]) -> list[tuple[str, str]]:
    """Why trials failed, most frequent first."""
    reasons = study_rows.reasons(rows)
    known = [("failed", study_rows.reason(*one)) for one in list(reasons.items())[:_REASONS]]
    left = len(reasons) - _REASONS
    return known + ([("failed", f"for {left} more reasons: nas show --json")] if left > 0 else [])


def _winner(winner: Mapping) -> str:
    final, proxy = winner.get("quality"), winner.get("proxy_quality")
    parts = [f"trial {winner['number']}"]
    if final is not None:
        seen = "" if proxy is None else f" ({percent(proxy)} % in the search)"
        parts.append(f"{percent(final)} % retrained{seen}")
    elif proxy is not None:
        parts.append(f"{percent(proxy)} % in the search, not retrained")
    parts += [f"{count(winner['params'])} params"] if winner.get("params") else []
    parts += [f"{figure(winner['macs'] / 1e6)} MMACs"] if winner.get("macs") else []
    parts += [size(winner["file_bytes"])] if winner.get("file_bytes") else []
    parts += winner.get("methods") or []
    return ", ".join(parts)


def _against(winner: Mapping, baseline: Mapping, goals: Sequence[Goal], word: str) -> str:
    parts = []
    for target, goal in enumerate(goals):
        ours, theirs = study_rows.cost(winner, target), study_rows.cost(baseline, target)
        if ours and theirs:
            faster = theirs / ours
            speed = f"{faster:.2f}x faster" if faster >= 1 else f"{1 / faster:.2f}x slower"
            parts.append(speed + (f" on {goal.spec}" if len(goals) > 1 else ""))
    quality = winner.get("quality", winner.get("proxy_quality"))
    if quality is not None and baseline.get("quality") is not None:
        gain = 100 * (quality - baseline["quality"])
        parts.append(f"{gain:+.2f} points of quality")
    if winner.get("params") and baseline.get("params"):
        parts.append(f"{winner['params'] / baseline['params']:.2f}x its parameters")
    return f"{word} is " + ", ".join(parts) if parts else ""
