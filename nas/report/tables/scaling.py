"""A family of networks beside single-objective scaling, in a terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nas.report.format import figure, percent
from nas.report.tables.columns import columns, facts

_FAILURES = 3  # of a rung, that are written out
NAMES = {"lacs": "LACS", "single": "single-objective"}


def table(content: Mapping[str, Any], folder: Path | None = None) -> str:
    """The content of a family's result.json as text; `folder`: where its files are."""
    seeds = max(len(rung["lacs"]["qualities"]) for rung in content["rungs"])
    head = ["budget ms", "", "depth", "width", "pixels", "ms", "of budget", "quality %"]
    cells = [[*head, "+-" if seeds > 1 else "", "params", "MMACs"]]
    for rung in content["rungs"]:
        for kind, name in NAMES.items():
            one = rung[kind]
            cells.append(
                [
                    f"{rung['budget_ms']:g}",
                    name + (" (the same)" if rung["same"] and kind == "lacs" else ""),
                    f"{one['depth']:.2f}",
                    f"{one['width']:.2f}",
                    str(one["pixels"]),
                    figure(one["ms"], 4, zeros=False),
                    f"{one['miss']:+.1%}",
                    percent(one["quality"]),
                    percent(np.std(one["qualities"], ddof=1)) if seeds > 1 else "",
                    f"{one['params']:,}",
                    f"{one['macs'] / 1e6:.2f}",
                ]
            )
    better, worse = comparison(content)
    of = f"mean and standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    known = [
        ("quality", f"{content['metric']}, {of}"),
        ("LACS", f"better on {better} of {len(content['rungs'])} budgets, worse on {worse}"),
    ]
    if content["law"]:
        known.append(("law", _law(content["law"]) + " is nearest to this family"))
        known.append(("", _law(content["single_objective"]) + " is single-objective"))
    for rung in content["rungs"]:
        for one in rung.get("failures", ())[:_FAILURES]:
            why = f"{rung['budget_ms']:g} ms, trial {one['number']}: {one['message']}"
            known.append(("failed", why))
    if folder is not None:
        known.append(("files", f"{folder}: a .keras, .tflite and .py each, family.py, ladder.png"))
    title = (
        f"{content['base']} on {content['task']}, {figure(content['base_ms'], 4, zeros=False)} ms,"
        f" {content['kind']} on {content['target']} ({content['device']})"
    )
    return "\n".join([title, "", *columns(cells), "", *facts(known)])


def comparison(content: Mapping[str, Any]) -> tuple[int, int]:
    """On how many budgets LACS' network is better, and on how many worse."""
    gains = [rung["lacs"]["quality"] - rung["single"]["quality"] for rung in content["rungs"]]
    return sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)


def _law(law: Mapping[str, float]) -> str:
    names = ("alpha", "depth"), ("beta", "width"), ("gamma", "resolution")
    return ", ".join(f"{name} {law[key]:.3f}^phi" for key, name in names)
