"""A study as plain rows: what each trial is, what it cost, which are on the Pareto front."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna

from nas import pareto
from nas.searching import leases

TRAINED, STOPPED, PROFILED = "trained", "stopped", "profiled"
LIMITED, DUPLICATE = "limited", "duplicate"
FAILED, GIVEN_BACK = "failed", "given back"
RUNNING, WAITING = "running", "waiting"
WORDS = {
    TRAINED: "trained",
    STOPPED: "stopped early",
    PROFILED: "profiled only",
    LIMITED: "over a limit",
    DUPLICATE: "seen before",
    FAILED: "failed",
    GIVEN_BACK: "given back",
    RUNNING: "running",
    WAITING: "waiting",
}
FEW = 3  # figures that are equal by chance
SAME = 0.002  # of latencies: a difference that is none


DRAWN = 3_000  # networks in a picture: of 100,000 a page has 50 MB, and takes a minute


@dataclasses.dataclass(frozen=True)
class Network:
    """One trial: quality in 0..1 (None until trained), one cost per target in the target's unit."""

    number: int
    state: str
    quality: float | None
    costs: tuple[float, ...]
    latency: tuple[Mapping, ...]
    reward: float | None
    choices: Mapping[str, Any]
    params: int | None
    macs: int | None
    config: str | None
    methods: tuple[str, ...] = ()  # that it is compressed with
    failure: str | None = None  # why it failed
    chance: float | None = None  # the quality of a constant answer, where this one is no better

    @property
    def percent(self) -> float:
        """The quality in percent; only of a network that was trained, if not to the end."""
        if self.quality is None:
            raise ValueError(f"trial {self.number} is {self.state}: it has no quality")
        return 100 * self.quality

    @property
    def rank(self) -> float:
        """What the search makes large: the reward, without one the quality."""
        return self.percent if self.reward is None else self.reward

    def interval(self, target: int) -> tuple[float, float] | None:
        """The confidence interval of the median latency on one target, where it was timed."""
        found = self.latency[target].get("interval_ms") if target < len(self.latency) else None
        return tuple(found) if found else None


@dataclasses.dataclass(frozen=True)
class Goal:
    """One target of the search: its spec, the device behind it and the budget in `unit`."""

    spec: str
    device: str
    budget: float | None
    unit: str


def networks(study: optuna.Study) -> list[Network]:
    """Every trial of the study as a row, by trial number; the study is not changed."""
    single = len(study.directions) == 1
    return [_network(trial, single) for trial in study.get_trials(deepcopy=False)]


def _network(trial: optuna.trial.FrozenTrial, single: bool) -> Network:
    profile = trial.user_attrs.get("profile") or {}
    evaluation = trial.user_attrs.get("evaluation") or {}
    complete = trial.state == optuna.trial.TrialState.COMPLETE
    return Network(
        number=trial.number,
        state=_state(trial, profile, evaluation),
        quality=evaluation.get("quality"),
        costs=tuple(profile.get("costs") or ()),
        latency=tuple(profile.get("latency") or ()),
        reward=trial.value if single and complete else None,
        choices=trial.params,
        params=profile.get("params"),
        macs=profile.get("macs"),
        config=profile.get("config"),
        methods=tuple(profile.get("methods") or ()),
        chance=evaluation.get("chance"),
        failure=(leases.failure(trial) or {}).get("message"),
    )


def _state(trial: optuna.trial.FrozenTrial, profile: Mapping, evaluation: Mapping) -> str:
    if leases.failure(trial) is not None:
        return FAILED
    if trial.state == optuna.trial.TrialState.FAIL:
        return GIVEN_BACK
    if not trial.state.is_finished():
        waits = trial.state == optuna.trial.TrialState.WAITING
        return WAITING if waits else RUNNING
    if profile.get("duplicate_of") is not None:
        return DUPLICATE
    if not profile.get("costs"):
        return LIMITED
    if evaluation.get("quality") is None:
        return PROFILED
    return STOPPED if evaluation.get("stopped") else TRAINED


def front(rows: Iterable[Network], target: int | None = None) -> list[Network]:
    """The fully trained rows that no other beats in quality and every cost, cheapest first.

    With `target` only that target's cost counts. Of equal networks the earliest trial stays.
    """
    distinct: dict[tuple, Network] = {}
    for row in sorted(rows, key=lambda row: row.number):
        if row.state == TRAINED:
            costs = row.costs if target is None else (row.costs[target],)
            distinct.setdefault((*costs, -row.percent), row)
    if not distinct:
        return []
    mask = pareto.front(list(distinct))
    return [distinct[key] for key in sorted(itertools.compress(distinct, mask))]


def thinned(rows: Sequence[Network], summary: Mapping, most: int = DRAWN) -> list[Network]:
    """The rows that a picture or a list has room for, evenly spread; all, of no more than `most`.

    What it is about stays: the fronts, the winner and the finalists, whoever was the best so far.
    """
    if len(rows) <= most:
        return list(rows)
    targets = max(len(row.costs) for row in rows)
    fronts = [front(rows), *(front(rows, target) for target in range(targets))]
    keep = {row.number for one in fronts for row in one} | set(finalists(summary))
    best = -math.inf
    for row in rows:
        if row.state == TRAINED and row.rank > best:
            best = row.rank
            keep.add(row.number)
    spread = {round(index * (len(rows) - 1) / (most - 1)) for index in range(most)}
    return [row for index, row in enumerate(rows) if index in spread or row.number in keep]


def points(rows: Iterable[Network], target: int) -> list[tuple[Network, float, float]]:
    """(row, cost, quality in %) of all that were trained, if not to the end."""
    judged = [row for row in rows if row.state in (TRAINED, STOPPED)]
    return [(row, row.costs[target], row.percent) for row in judged]


def leader(rows: Iterable[Network], goals: Sequence["Goal"]) -> Network | None:
    """The best network so far, within the budgets if any is: by reward, without one by quality."""
    rows = [row for row in rows if row.state == TRAINED]
    inside = [row for row in rows if within(row.costs, goals)]
    return max(
        inside or rows,
        key=lambda row: (row.rank, -row.number),
        default=None,
    )


def within(costs: Sequence[float], goals: Sequence["Goal"]) -> bool:
    """Whether every cost is within its budget; a target without one allows all."""
    return all(g.budget is None or c <= g.budget for c, g in zip(costs, goals, strict=False))


def goals(summary: Mapping, rows: Sequence[Network]) -> list[Goal]:
    """The targets of the search; unnamed ones where the summary does not say."""
    known = [
        Goal(
            spec=str(target.get("spec") or f"target {index + 1}"),
            device=str(target.get("device") or ""),
            budget=target.get("budget_ms"),
            unit=str(target.get("unit") or "ms"),
        )
        for index, target in enumerate(summary.get("targets") or ())
    ]
    costs = max((len(row.costs) for row in rows), default=0)
    return known + [Goal(f"target {n + 1}", "", None, "ms") for n in range(len(known), costs)]


def title(summary: Mapping) -> str:
    """What was searched for what: 'mnasnet on digits', or as much of it as the summary says."""
    return " on ".join(str(summary[k]) for k in ("space", "task") if summary.get(k))


def part(summary: Mapping, name: str | int) -> Mapping:
    """What is known of the named part of the summary: an interrupted search leaves gaps."""
    return {key: value for key, value in (summary.get(name) or {}).items() if value is not None}


def cost(record: Mapping, target: int, name: str = "costs") -> float | None:
    """One cost of a summary record, None where it is not there."""
    costs = record.get(name) or ()
    return costs[target] if target < len(costs) else None


def estimated(latency: Sequence[Mapping], target: int) -> str:
    """The kind of one figure in capitals where it is no measured one, else ""."""
    kind = latency[target].get("kind") if target < len(latency) else None
    return "" if kind in (None, "measured") else str(kind).upper()


def finalists(summary: Mapping) -> dict[int, Mapping]:
    """The finalists and the winner by number; "quality" only where it was trained for longer."""
    listed = {f["number"]: f for f in summary.get("finalists") or () if "number" in f}
    found, best = dict(listed), part(summary, "winner")
    if "number" in best:
        found[best["number"]] = {**found.get(best["number"], {}), **best}
    for number, final in found.items():
        # One over the budget when timed again, or of an interrupted search, was not trained again,
        # nor is anything of a table, which has no files.
        fits = final.get("within_budget") is not False and final.get("file_bytes") is not None
        if number not in listed or not final.get("retrained", fits):
            proxy = final.get("proxy_quality") or final.get("quality")
            found[number] = {**final, "quality": None, "proxy_quality": proxy}
    return found


def retrained(summary: Mapping) -> dict[int, Mapping]:
    """The finalists that were trained for longer."""
    every = finalists(summary).items()
    return {number: final for number, final in every if final.get("quality") is not None}


def timed_again(final: Mapping) -> bool:
    """Whether the latency of a finalist, or of the winner, is not that of the search."""
    return bool(final.get("timed_again", final.get("retrained")))


def winner_word(summary: Mapping) -> str:
    """What the network that is handed over is: "nearest" where nothing is within the limits."""
    return "nearest" if part(summary, "winner").get("within_budget") is False else "winner"


def over(final: Mapping, goals: Sequence["Goal"]) -> str:
    """What a finalist exceeds, in words; "" where it fits."""
    if final.get("within_budget") is not False:
        return ""
    if within(final.get("costs") or (), goals):
        return "over --max-bytes"
    return "over budget" + (" when timed again" if timed_again(final) else "")


def winner(summary: Mapping) -> Mapping:
    """The winner, its "quality" missing where it was not retrained; empty where there is none."""
    number = part(summary, "winner").get("number")
    return {} if number is None else part(finalists(summary), number)


def warnings(rows: Iterable[Network], goals: Sequence["Goal"]) -> list[str]:
    """What says that a search had nothing to go by: figures that do not move."""
    trained = [row for row in rows if row.state == TRAINED]
    found = []
    qualities = {row.quality for row in trained}
    if len(trained) >= FEW and len(qualities) == 1:
        (quality,) = qualities
        what = "0" if not quality else f"{quality:.4g}"
        found.append(
            f"all {len(trained)} trained networks have quality {what}: the metric does not tell"
            " them apart; look at the data, its labels, and the loss"
        )
    timed = [row for row in rows if row.costs and row.state != DUPLICATE]
    for target, goal in enumerate(goals):
        costs = [row.costs[target] for row in timed if target < len(row.costs)]
        if len(costs) >= FEW and max(costs) < (1 + SAME) * min(costs):
            found.append(
                f"all {len(costs)} networks take {costs[0]:.3g} {goal.unit} on {goal.spec}: its"
                " latency does not depend on the network, and the budget decides nothing"
            )
    return found


def tally(rows: Iterable[Network]) -> dict[str, int]:
    """How many trials are in each state."""
    count = dict.fromkeys(WORDS, 0)
    for row in rows:
        count[row.state] += 1
    return count


def reasons(rows: Iterable[Network]) -> dict[str, list[int]]:
    """Why trials failed, and which: the most frequent first."""
    found: dict[str, list[int]] = {}
    for row in rows:
        if row.failure is not None:
            found.setdefault(row.failure, []).append(row.number)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def reason(why: str, numbers: Sequence[int]) -> str:
    """'trials 3, 8 and 2 more: out of memory'."""
    named = ", ".join(map(str, numbers[:2]))
    more = f" and {len(numbers) - 2} more" if len(numbers) > 2 else ""
    return f"trial{'s' if len(numbers) > 1 else ''} {named}{more}: {why}"


def tally_words(rows: Iterable[Network]) -> str:
    """'312 trained, 1,240 profiled only, 2 failed': states that occur, in words."""
    return ", ".join(f"{n:,} {WORDS[state]}" for state, n in tally(rows).items() if n)
