"""The trials on the HTML page: the tables, and what the tooltips of the dots say."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nas.report import study_rows
from nas.report.format import count, figure, percent
from nas.report.study_rows import Goal, Network

MOST_ROWS = 500  # of the table of all trials; the dots of the charts are never thinned


def _cells(values: Sequence[tuple[str, Any]]) -> str:
    return "".join(
        f'<td data-v="{escape(str("" if value is None else value))}">{escape(text)}</td>'
        for text, value in values
    )


def table(rows: Sequence[Network], summary: Mapping, goals: Sequence[Goal]) -> str:
    """The front and the finalists, then all trained networks; sortable."""
    finalists, retrained = study_rows.finalists(summary), study_rows.retrained(summary)
    winner = study_rows.winner(summary).get("number")
    front = {row.number for row in study_rows.front(rows)}
    head = ["trial", "quality %", *(["retrained %"] if retrained else [])]
    head += [f"{goal.unit}, {goal.spec}" for goal in goals]
    head += ["params", "MMACs", "reward", "note"]
    heads = "".join(f"<th>{escape(name)}</th>" for name in head)

    def line(row: Network) -> str:
        final = finalists.get(row.number, {})
        words = {study_rows.winner_word(summary): row.number == winner}
        words["finalist"] = bool(final) and row.number != winner
        words |= {
            "front": row.number in front,
            "over budget": not study_rows.within(row.costs, goals),
        }
        words[study_rows.over(final, goals)] = final.get("within_budget") is False
        note = ", ".join([*(word for word, holds in words.items() if holds), *row.methods])
        cells: list[tuple[str, Any]] = [(str(row.number), row.number)]
        cells.append((percent(row.quality), row.quality))
        if retrained:
            cells.append((percent(final.get("quality")), final.get("quality")))
        for target, value in enumerate(row.costs):
            again = study_rows.cost(final, target) if study_rows.timed_again(final) else None
            arrow = "" if again is None else f" → {figure(again)}"
            cells.append((figure(value) + arrow, value))
        macs = None if row.macs is None else row.macs / 1e6
        cells += [(count(row.params), row.params), (figure(macs), macs)]
        cells += [(figure(row.reward, 4), row.reward), (note, note)]
        css = ' class="win"' if row.number == winner else ""
        return f'<tr data-row="{row.number}"{css}>{_cells(cells)}</tr>'

    def drawn(shown: Sequence[Network], extra: str = "") -> str:
        body = "".join(map(line, shown)) + extra
        return (
            f'<div class="panel"><table class="sort"><thead><tr>{heads}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    trained = [row for row in rows if row.state == study_rows.TRAINED]
    kept = [row for row in trained if row.number in front or row.number in finalists]
    ranked = sorted(trained, key=lambda row: -row.rank)
    left = f" (the best {MOST_ROWS} of {len(ranked):,})" if len(ranked) > MOST_ROWS else ""
    about = "Quality and latency as the search saw them"
    if retrained:
        about += (
            "; finalists were then retrained longer and timed again (→), because short training "
            "picks wrong winners"
        )
    return (
        f"<h2>The front{' and the finalists' if retrained else ''}</h2>"
        f'<p class="lede">{about}. Click a heading to sort.</p>'
        + drawn(sorted(kept, key=lambda row: row.costs), _baseline(summary, goals, bool(retrained)))
        + f"<details><summary>All trained networks{left}</summary>{drawn(ranked[:MOST_ROWS])}"
        "</details>"
    )


def failed(rows: Sequence[Network]) -> str:
    """Why candidates failed, and which."""
    reasons = study_rows.reasons(rows)
    if not reasons:
        return ""
    lines = "".join(f"<li>{escape(study_rows.reason(*one))}</li>" for one in reasons.items())
    return (
        '<h2>What failed</h2><p class="lede">Candidates that could not be built, timed or trained;'
        f" the search went on without them.</p><ul>{lines}</ul>"
    )


def _baseline(summary: Mapping, goals: Sequence[Goal], retrained: bool) -> str:
    baseline = study_rows.part(summary, "baseline")
    if not baseline:
        return ""
    proxy, quality, macs = (baseline.get(k) for k in ("proxy_quality", "quality", "macs"))
    macs = None if macs is None else macs / 1e6
    costs = [study_rows.cost(baseline, target) for target in range(len(goals))]
    cells = [("-", -1), (percent(proxy), proxy)]
    cells += [(percent(quality), quality)] * retrained
    cells += [(figure(value), value) for value in costs]
    cells += [(count(baseline.get("params")), baseline.get("params"))]
    cells += [(figure(macs), macs), ("-", None), ("baseline", "baseline")]
    return f"<tr>{_cells(cells)}</tr>"


def data(rows: Sequence[Network], goals: Sequence[Goal]) -> dict:
    """What the tooltips say; choices as indices, since a study may have thousands of trials."""
    decisions = list(dict.fromkeys(name for row in rows for name in row.choices))
    options: list[dict[str, int]] = [{} for _ in decisions]
    trials = {}
    for row in rows:
        if row.state not in (study_rows.TRAINED, study_rows.STOPPED):
            continue
        lines = [f"quality {percent(row.quality)} %"]
        lines += [
            f"{figure(value)} {goal.unit} on {goal.spec}"
            for value, goal in zip(row.costs, goals, strict=False)
        ]
        lines += [f"reward {figure(row.reward, 4)}"] if row.reward is not None else []
        if row.params is not None:
            macs = f", {count(row.macs)} MACs" if row.macs is not None else ""
            lines.append(f"{count(row.params)} params{macs}")
        trials[row.number] = {
            "state": row.state,
            "lines": lines,
            "choices": [
                seen.setdefault(str(row.choices[name]), len(seen)) if name in row.choices else -1
                for name, seen in zip(decisions, options, strict=True)
            ],
        }
    return {"decisions": decisions, "options": [list(seen) for seen in options], "trials": trials}
