"""One self-contained page on a search: report.html, which fetches nothing and needs no server."""

import datetime
import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import optuna

from nas.report import study_rows
from nas.report.format import count, duration, figure, percent, size
from nas.report.html import architecture, charts, choice_effects, style, trials
from nas.report.study_rows import Goal, Network

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write(path: str | Path, study: optuna.Study, summary: Mapping[str, Any]) -> Path:
    """Write the page and return its path; a study without trained networks gets a page too."""
    rows = study_rows.networks(study)
    shown = study_rows.thinned(rows, summary)
    goals = study_rows.goals(summary, rows)
    best = _best(rows, summary, goals)
    about = study_rows.title(summary)
    title = about or study.study_name
    sections = [f"<h1>{escape(title)}</h1>", f'<p class="lede">{_lede(rows, summary, study)}</p>']
    if not any(row.state == study_rows.TRAINED for row in rows):
        sections.append("<p>No network is trained yet, so there is nothing to draw.</p>")
    else:
        sections += [
            _cards(best, summary, goals, rows),
            _warnings(rows, goals),
            _thinned(rows, shown),
            _fronts(shown, summary, goals),
            trials.table(shown, summary, goals),
            _progress(shown, summary, goals),
            _architecture(best, summary),
            choice_effects.html(shown, goals, best.get("choices", {})),
        ]
    sections += [
        trials.failed(rows),
        _conditions(rows, summary, goals),
        _time(summary),
        _reproduce(study, summary, best),
        _footer(summary),
    ]
    data = (
        json.dumps(trials.data(shown, goals)).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    )
    Path(path).write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>nas: {escape(title)}</title><style>{style.CSS}</style></head><body><main>"
        + "\n".join(filter(None, sections))
        + f'</main><div id="tip"></div><script type="application/json" id="data">{data}</script>'
        f"<script>{style.SCRIPT}</script></body></html>\n",
        encoding="utf-8",
    )
    return Path(path)


def _thinned(rows: Sequence[Network], shown: Sequence[Network]) -> str:
    """What of a long study is left out below."""
    if len(shown) == len(rows):
        return ""
    return (
        f"<p>Of {len(rows):,} trials {len(shown):,} are drawn and listed below: the front, the"
        " finalists, each that was the best so far, and of the others as many, evenly spread.</p>"
    )


def _best(
    rows: Sequence[Network], summary: Mapping[str, Any], goals: Sequence[Goal]
) -> dict[str, Any]:
    """The winner; of an interrupted search the best so far, in the same words."""
    winner = dict(study_rows.winner(summary))
    number = winner.get("number")
    row = next((r for r in rows if r.number == number), None)
    if number is None:
        row = study_rows.leader(rows, goals)
        if row is None:
            return {}
        winner = {"number": row.number, "proxy_quality": row.quality, "costs": list(row.costs)}
        winner |= {"params": row.params, "macs": row.macs}
    if row is not None:
        winner["config"] = winner.get("config") or row.config
        winner["choices"] = row.choices
        winner["methods"] = row.methods
    return winner


def _lede(rows: Sequence[Network], summary: Mapping[str, Any], study: optuna.Study) -> str:
    parts = [f"Study {study.study_name}"]
    parts += [f"{summary['controller']} controller"] if summary.get("controller") else []
    reward = summary.get("reward")
    if reward:
        beta = summary.get("beta")
        known = isinstance(beta, int | float)
        parts.append(f"{reward} reward" + (f" (beta {beta:.3g})" if known else ""))
    parts += [f"seed {summary['seed']}"] if summary.get("seed") is not None else []
    parts.append(study_rows.tally_words(rows) or "no trials")
    return escape(" · ".join(parts))


def _card(name: str, value: str, unit: str, *notes: str, css: str = "") -> str:
    lines = "".join(f"<span>{note}</span>" for note in notes if note)
    return (
        f'<div class="card {css}"><span class="name">{escape(name)}</span>'
        f"<b>{escape(value)}<small>{escape(unit)}</small></b>{lines}</div>"
    )


def _cards(
    best: Mapping[str, Any],
    summary: Mapping[str, Any],
    goals: Sequence[Goal],
    rows: Sequence[Network],
) -> str:
    if not best:
        return ""
    baseline = study_rows.part(summary, "baseline")
    cards = []
    won = study_rows.finalists(summary).get(best["number"], {})
    again = study_rows.timed_again(won)
    final, proxy = best.get("quality"), best.get("proxy_quality")
    quality = proxy if final is None else final
    if quality is not None:
        name = study_rows.winner_word(summary).capitalize() if won else "Best so far"
        name += f": trial {best['number']}"
        note = "not retrained" if final is None else "retrained"
        if final is not None and proxy is not None:
            note = f"retrained; {percent(proxy)} % in the search"
        gain = ""
        if baseline.get("quality") is not None:
            gain = f"{100 * (quality - baseline['quality']):+.2f} points against the baseline"
        cards.append(_card(name, percent(quality), " %", escape(note), gain, css="lead"))
    for target, goal in enumerate(goals):
        value = study_rows.cost(best, target)
        if value is None:
            continue
        name = "Latency" + (f", {goal.spec}" if len(goals) > 1 else "")
        landing = ""
        if goal.budget:
            share = value / goal.budget
            css, side = ("good", "under") if share <= 1 else ("bad", "over")
            landing = (
                f'<span class="{css}">{abs(share - 1):.1%} {side} the budget of '
                f"{figure(goal.budget)} {escape(goal.unit)}</span>"
            )
        note = "timed again after the search" if again else "as timed in the search"
        timed = best.get("latency") or ()
        interval = timed[target].get("interval_ms") if target < len(timed) else None
        if interval:
            low, high = (figure(end) for end in interval)
            note += f", 95 % interval {low} to {high}"
        cards.append(_card(name, figure(value), f" {goal.unit}", landing, note))
        theirs = study_rows.cost(baseline, target)
        if theirs:
            note = f"baseline: {figure(theirs)} {escape(goal.unit)}"
            name = "Speed-up" + (f", {goal.spec}" if len(goals) > 1 else "")
            cards.append(_card(name, f"{theirs / value:.2f}×", "", note))
    if best.get("params") is not None:
        about = f"{count(best.get('macs'))} MACs"
        if best.get("file_bytes"):
            about += f", file {size(best['file_bytes'])}"
        times = ""
        if baseline.get("params"):
            times = f"{best['params'] / baseline['params']:.2f}× the baseline's"
        cards.append(_card("Parameters", count(best["params"]), "", about, times))
    tally = study_rows.tally(rows)
    spent = study_rows.part(summary, "time_s").get("total")
    profiled = sum(bool(row.costs) and row.state != study_rows.DUPLICATE for row in rows)
    took = f"in {duration(spent)}" if spent else ""
    cards.append(
        _card(
            "Networks trained", f"{tally[study_rows.TRAINED]:,}", "", f"{profiled:,} profiled", took
        )
    )
    return f'<div class="cards">{"".join(cards)}</div>'


def _warnings(rows: Sequence[Network], goals: Sequence[Goal]) -> str:
    texts = study_rows.warnings(rows, goals)
    return "".join(f'<p class="lede"><b>Warning:</b> {escape(text)}.</p>' for text in texts)


def _fronts(rows: Sequence[Network], summary: Mapping[str, Any], goals: Sequence[Goal]) -> str:
    key = ['<span>trial 0<i class="ramp"></i>' + f"{rows[-1].number:,}</span>"]
    if any(row.state == study_rows.STOPPED for row in rows):
        key.append("<span>× stopped early</span>")
    if any(row.state == study_rows.PROFILED for row in rows):
        key.append('<span><i class="bar"></i>profiled only</span>')
    timed = any(row.interval(0) for row in rows)
    key.append(
        "<span>point at a dot for its choices"
        + ("; bars on the front: 95 % interval of the median</span>" if timed else "</span>")
    )
    panels = "".join(
        f'<div class="panel">{charts.front(rows, summary, goal, target)}'
        f'<div class="key">{"".join(key)}</div></div>'
        for target, goal in enumerate(goals)
    )
    prove = study_rows.part(study_rows.part(summary, "prove"), "hypervolume")
    proof = ""
    if prove:
        proof = (
            f"<p>Hypervolume {figure(prove.get('controller'), 4)}; random search with "
            f"as many trained networks: {figure(prove.get('random'), 4)}.</p>"
        )
    return f"<h2>Quality against latency</h2>{proof}{panels}"


def _progress(rows: Sequence[Network], summary: Mapping[str, Any], goals: Sequence[Goal]) -> str:
    key = '<span><i class="bar"></i>profiled only</span>'
    if any(row.state == study_rows.STOPPED for row in rows):
        key += '<span><i class="bar stopped"></i>training stopped early</span>'
    scalar = any(row.reward is not None for row in rows)
    title = "Reward over trials" if scalar else "Quality over trials"
    return (
        f'<h2>{title}</h2><div class="panel">{charts.rewards(rows, summary, goals)}'
        f'<div class="key">{key}</div></div>'
    )


def _architecture(best: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    baseline = study_rows.part(summary, "baseline").get("config")
    drawn = architecture.html(best.get("config"), baseline)
    won = best.get("number") in study_rows.finalists(summary)
    name = f"The {study_rows.winner_word(summary)}" if won else "The best so far"
    if methods := best.get("methods"):
        drawn += f'<p class="note">compressed: {escape(" ".join(methods))}</p>'
    return f"<h2>{name}, block by block</h2>{drawn}" if drawn else ""


def _conditions(rows: Sequence[Network], summary: Mapping[str, Any], goals: Sequence[Goal]) -> str:
    conditions = study_rows.part(summary, "conditions")
    panels = []
    for target, goal in enumerate(goals):
        timed = [row.latency[target] for row in rows if target < len(row.latency)]
        facts = [("target", goal.spec)]
        facts += [("device", goal.device)] if goal.device else []
        facts += [("budget", f"{figure(goal.budget)} {goal.unit}")] if goal.budget else []
        if timed:
            word = "+".join(sorted({str(record.get("kind", "unknown")) for record in timed}))
            pill = f'<span class="pill {"good" if word == "measured" else "bad"}">{word}</span>'
            recalled = sum(bool(record.get("cached")) for record in timed)
            about = f"{len(timed):,} latencies"
            about += f", {recalled:,} of them recalled from the cache" if recalled else ""
        else:
            pill, about = "", "not recorded per trial"
        last = timed[-1].get("conditions") if timed else None
        facts += [
            fact for fact in _flat(conditions.get(goal.spec) or last or {}) if fact not in facts
        ]
        lines = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in facts
        )
        panels.append(
            f'<div class="panel"><table><tr><td>latencies</td><td>{pill} {escape(about)}</td></tr>'
            f"{lines}</table></div>"
        )
    if not panels:
        return ""
    return f'<h2>Conditions of measurement</h2><div class="facts">{"".join(panels)}</div>'


def _flat(conditions: Mapping, path: str = "") -> list[tuple[str, str]]:
    facts = []
    for name, value in conditions.items():
        label = f"{path}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            facts += _flat(value, f"{label}, ")
        elif isinstance(value, list | tuple):
            facts.append((label, ", ".join(_fact(item) for item in value) or "none"))
        else:
            facts.append((label, _fact(value)))
    return facts


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "unknown" if value is None else str(value)


def _time(summary: Mapping[str, Any]) -> str:
    spent = {k: v for k, v in study_rows.part(summary, "time_s").items() if v}
    total = spent.pop("total", None)
    if not spent:
        return ""
    work = sum(spent.values())
    if total and total > work:
        spent["proposals, files and waiting"] = total - work
    whole = sum(spent.values())
    parts, key = [], []
    for index, (name, seconds) in enumerate(spent.items()):
        tone = "var(--hair)" if name.startswith("proposals") else f"var(--o{min(1 + 2 * index, 5)})"
        part = f"{name} {duration(seconds)} ({seconds / whole:.0%})"
        parts.append(
            f'<div title="{escape(part)}" style="flex:{seconds:.3f};background:{tone}"></div>'
        )
        key.append(f'<span><i style="background:{tone}"></i>{escape(part)}</span>')
    note = f"{duration(total)} in all" if total else ""
    if total and work > total * 1.02:
        note += f"; {duration(work)} of work, by several workers"
    return (
        f'<h2>Where the time went</h2><p class="lede">{note}</p><div class="split">'
        f'{"".join(parts)}</div><div class="key">{"".join(key)}</div>'
    )


def command(study: optuna.Study, summary: Mapping[str, Any]) -> str:
    """The shell command that resumes this search."""
    if summary.get("command"):
        given = summary["command"]
        return given if isinstance(given, str) else shlex.join(map(str, given))
    words = ["nas", "search"]
    for flag in ("space", "task", "reward", "controller", "seed"):
        if summary.get(flag) is not None:
            words += [f"--{flag}", str(summary[flag])]
    for text in summary.get("methods") or ():
        words += ["--method", text]
    for target in summary.get("targets") or ():
        words += ["--target", str(target.get("spec"))]
        if target.get("budget_ms") is not None:
            words += ["--budget-ms", f"{target['budget_ms']:.6g}"]
    return shlex.join([*words, "--study", str(summary.get("study") or study.study_name)])


def _reproduce(study: optuna.Study, summary: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    name = shlex.quote(f"runs/{summary.get('study') or study.study_name}")
    lines = ["# go on with this search", command(study, summary)]
    if best:
        lines += ["# build its network again (any trial)"]
        lines += [f"nas export {name} --trial {best['number']}"]
    lines += ["# this table in the terminal", f"nas show {name}"]
    drawn = f'<h2>Again</h2><pre class="shell">{escape(chr(10).join(lines))}</pre>'
    if best.get("config"):
        drawn += (
            "<p class='lede'>The network as Python, to paste into the <code>VARIANTS</code> of its "
            f"family:</p><pre>{escape(architecture.python(str(best['config'])))}</pre>"
        )
    return drawn


def _footer(summary: Mapping[str, Any]) -> str:
    versions = study_rows.part(summary, "versions")
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"<footer>Written {now}{'; ' if named else ''}{escape(named)}.</footer>"
