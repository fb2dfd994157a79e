"""From a searched study to files: finalists trained for longer and timed again, and a winner."""

import dataclasses
import functools
import json
import math
import pathlib
import pprint
import shutil
import time
from collections.abc import Callable, Iterable
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from latency.system.atomic_write import atomic_write
from latency.system.json_records import write_json
from nas import locks, pareto
from nas.files.hand_over.attach import write_script
from nas.profiling.wait_for_device import wait_for_device
from nas.searching.candidate import Candidate
from nas.searching.evaluator import Evaluator, MakeNetwork
from nas.searching.loop import trained
from nas.searching.objective import Objective
from nas.searching.plan import FINALIST_EPOCHS


def final_epochs_of(evaluator: Evaluator, multiple: int = FINALIST_EPOCHS) -> float | None:
    """How long finalists, and the base network beside them, are trained; None of a table."""
    return None if evaluator.epochs is None else evaluator.epochs * multiple


def ranked(study: optuna.Study, objective: Objective) -> list[FrozenTrial]:
    """Fully trained trials, best first: the one that lands, then by quality, within budget first.

    Not by reward, which steers the search to the budget: a network that is faster than asked for
    and better as well must not lose to it.
    """
    complete = [trial for trial in trained(study) if trial.state == TrialState.COMPLETE]
    if not complete:
        return []
    costs = [_costs(trial) for trial in complete]
    quality = objective.discounted([t.user_attrs["evaluation"]["quality"] for t in complete], costs)
    first = pareto.winner(quality, costs, objective.budgets)
    order = sorted(
        range(len(complete)),
        key=lambda i: (i != first, objective.excess(costs[i]), -quality[i], i),
    )
    return [complete[i] for i in order]


@dataclasses.dataclass(frozen=True)
class BestSoFar:
    """Keeps the network that would be the winner, as it was judged: it is always on the disk.

    Called with every network that was just judged; of several workers' the best stays. Its files
    are so_far.json and what `save`, an evaluator's, leaves as so_far.keras; best.keras and
    best.tflite are those of the winner. A network that is recalled from the cache has no weights:
    it is trained again, if it is the best, and then only.
    """

    folder: pathlib.Path
    objective: Objective
    save: Callable[[Any, pathlib.Path], None]
    say: Callable[[str], None] = lambda text: None

    def __call__(
        self, network: MakeNetwork, profile: dict[str, Any], evaluation: dict[str, Any]
    ) -> None:
        if evaluation["stopped"]:
            return
        with locks.locked(self.folder / "so_far.lock"):
            if self._better(profile, evaluation):
                if evaluation.get("cached"):
                    self.say("best so far, known from an earlier search: trained again, to keep it")
                self.write(network, profile, evaluation)

    def write(
        self, network: MakeNetwork, profile: dict[str, Any], evaluation: dict[str, Any]
    ) -> None:
        """Keep this network, whether it is better or not."""
        self.save(network(), self.folder / "so_far")
        write_json(self.folder / "so_far.json", {"profile": profile, "evaluation": evaluation})

    def _better(self, profile: dict[str, Any], evaluation: dict[str, Any]) -> bool:
        """Whether `ranked` would put it before the one that is kept."""
        best = best_so_far(self.folder)
        if best is None:
            return True
        costs = [best["profile"]["costs"], profile["costs"]]
        qualities = [best["evaluation"]["quality"], evaluation["quality"]]
        quality = self.objective.discounted(qualities, costs)
        return pareto.winner(quality, costs, self.objective.budgets) == 1


def best_so_far(folder: pathlib.Path) -> dict[str, Any] | None:
    """The record of the network in so_far.keras, or None."""
    path = folder / "so_far.json"
    return json.loads(path.read_text()) if path.exists() else None


def train_finalists(
    folder: pathlib.Path,
    study: optuna.Study,
    evaluator: Evaluator,
    objective: Objective,
    *,
    most: int,
    epochs: float | None,
    end: float = math.inf,
    each: float = 0.0,
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """Train and time again the `most` best networks, write the winner; {"winner", "finalists"}.

    A short training picks wrong winners, and the luckiest measurement wins: so each of the best is
    timed afresh, trained for `epochs`, written, and its file timed. Each is done once: killed in
    between, the next call goes on with the rest. Where the next would not be done at `end` (a
    `time.monotonic()`), of `each` so many seconds or more, what there is must do.
    """
    done: list[dict[str, Any]] = []
    over: list[dict[str, Any]] = []
    candidates = ranked(study, objective)
    for trial in candidates:
        late = time.monotonic() + each > end
        if len(done) == most or (done and (objective.excess(_costs(trial)) or late)):
            break
        started = time.monotonic()
        finalist = _finalist(folder, trial, evaluator, objective, epochs, say)
        each = max(each, time.monotonic() - started)
        (done if finalist["within_budget"] else over).append(finalist)
        if len(over) > most:
            break
    if not done + over:
        return {}
    if not done:  # nothing fits: what comes nearest is the winner all the same
        nearest = min(over, key=lambda finalist: objective.excess(finalist["costs"]))
        (trial,) = (t for t in candidates if t.number == nearest["number"])
        over = [_finalist(folder, trial, evaluator, objective, epochs, say, insist=True)]
    return _handed_over(folder, evaluator, objective, done, over)


def _handed_over(
    folder: pathlib.Path,
    evaluator: Evaluator,
    objective: Objective,
    done: list[dict[str, Any]],
    over: list[dict[str, Any]],
) -> dict[str, Any]:
    """Publish the best of the finalists that are `done`, else of those over a limit."""
    finalists = done or over
    costs = [finalist["costs"] for finalist in finalists]
    quality = objective.discounted([finalist["quality"] for finalist in finalists], costs)
    best = finalists[pareto.winner(quality, costs, objective.budgets)]
    _publish(folder, folder / "finalists" / str(best["number"]), evaluator.files)
    return {
        "winner": best,
        "finalists": sorted(done + over, key=lambda finalist: -finalist["quality"]),
    }


def _trained_already(folder: pathlib.Path, ranking: list[FrozenTrial]) -> list[dict[str, Any]]:
    """The finalists that were trained, and fit, before an interrupt."""
    paths = [folder / "finalists" / f"{trial.number}.json" for trial in ranking]
    records = [json.loads(path.read_text()) for path in paths if path.exists()]
    return [one for one in records if one.get("retrained") and one["within_budget"]]


def train_baseline(
    folder: pathlib.Path, evaluator: Evaluator, candidate: Candidate, epochs: float | None
) -> float:
    """Quality of the base network, trained as the finalists are: what to compare them with."""
    path = folder / "finalists" / "baseline.json"
    if not _trained_for(path, epochs):
        record = evaluator.train(candidate, epochs=epochs, final=True)
        write_json(path, record | {"epochs": epochs})
    return json.loads(path.read_text())["quality"]


def _trained_for(path: pathlib.Path, epochs: float | None) -> dict[str, Any] | None:
    """The record in a file, unless it is of a shorter training than is wanted now."""
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    return record if epochs is None or record.get("epochs", epochs) >= epochs else None


def _baseline_quality(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / "finalists" / "baseline.json"
    return {"baseline_quality": json.loads(path.read_text())["quality"]} if path.exists() else {}


def best_as_searched(
    folder: pathlib.Path,
    study: optuna.Study,
    evaluator: Evaluator,
    objective: Objective,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write the best network with the weights that it was judged with; {"winner", "finalists"}.

    Where there are no finalists, or not yet. A winner of finalists that an earlier call wrote
    stays.
    """
    ranking = ranked(study, objective)
    if done := _trained_already(folder, ranking):
        return _handed_over(folder, evaluator, objective, done, []) | _baseline_quality(folder)
    result = folder / "result.json"
    earlier = json.loads(result.read_text()) if result.exists() else {}
    if (earlier.get("winner") or {}).get("retrained"):
        return {
            "winner": earlier["winner"],
            "finalists": earlier["finalists"],
            "baseline_quality": earlier["baseline"]["quality"],
        }
    if not ranking:
        return {}
    if evaluator.epochs is None:  # a table has no weights
        winner = _finalist(folder, ranking[0], evaluator, objective, None)
        return {"winner": winner, "finalists": []}
    trial = ranking[0]
    candidate, profile = evaluator.candidate(trial), trial.user_attrs["profile"]
    best = best_so_far(folder)
    if best is None or best["profile"]["key"] != profile["key"]:
        # Of a study that was begun by an earlier version, or what its worker did not live to tell.
        say(f"training trial {trial.number}, the best, once more: its weights were not kept")
        keep = BestSoFar(folder, objective, evaluator.save).write
        evaluator.train(candidate, keep=lambda network, record: keep(network, profile, record))
        best = best_so_far(folder)
        assert best is not None
    stem = folder / "finalists" / f"{trial.number}-as-searched"
    stem.parent.mkdir(exist_ok=True)
    size = evaluator.write_saved(folder / "so_far", candidate, stem)
    _publish(folder, stem, evaluator.files)
    quality = best["evaluation"]["quality"]
    winner = _record(trial, candidate, objective, quality, _costs(trial), size)
    winner["within_budget"] &= _fits(evaluator, size)
    return {"winner": winner, "finalists": []}


def _fits(evaluator: Evaluator, size: int | None) -> bool:
    """Whether the file that was written is within --max-bytes, as the one of the search was."""
    return size is None or size <= (evaluator.limits.file_bytes or math.inf)


def _publish(folder: pathlib.Path, stem: pathlib.Path, files: Iterable[str] = ()) -> None:
    """Copy a network's files to best.keras (as trained), best.tflite (as deployed), config.py."""
    names = {".keras": "best.keras", ".tflite": "best.tflite", ".py": "config.py"}
    names |= {suffix: f"best{suffix}" for suffix in files}
    for suffix, name in names.items():
        source = stem.with_name(stem.name + suffix)
        if source.exists():  # a tabular benchmark has no network
            with atomic_write(folder / name) as partial:
                shutil.copyfile(source, partial)
    if stem.with_name(f"{stem.name}.tflite").exists():
        write_script(folder)


def _costs(trial: FrozenTrial) -> list[float]:
    return trial.user_attrs["profile"]["costs"]


def _finalist(
    folder: pathlib.Path,
    trial: FrozenTrial,
    evaluator: Evaluator,
    objective: Objective,
    epochs: float | None,
    say: Callable[[str], None] = lambda text: None,
    insist: bool = False,
) -> dict[str, Any]:
    """The record of a finalist; one that turns out over budget is not trained, unless `insist`."""
    (folder / "finalists").mkdir(exist_ok=True)
    stem = folder / "finalists" / str(trial.number)
    path = stem.with_suffix(".json")
    if (record := _trained_for(path, epochs)) and (record.get("retrained") or not insist):
        return record
    candidate = evaluator.candidate(trial)
    if evaluator.epochs is None:  # a table: nothing to build, nothing varies
        quality = evaluator.train(candidate)["quality"]
        record = _record(trial, candidate, objective, quality, _costs(trial), None)
    else:
        again = functools.partial(evaluator.measure_again, name=f"{folder.name}:{trial.number}")
        latencies = wait_for_device(lambda: again(candidate), say)
        costs = [latency["median_ms"] for latency in latencies]
        size, judged = None, trial.user_attrs["evaluation"]
        if insist or not objective.excess(costs):
            say(f"training trial {trial.number} for {epochs:g} epochs")
            size, judged = _trained(evaluator, candidate, epochs, stem)
            latencies = wait_for_device(lambda: again(stem.with_suffix(".tflite")), say)
            costs = [latency["median_ms"] for latency in latencies]
        quality = judged["quality"]
        record = _record(trial, candidate, objective, quality, costs, size)
        record |= {"latency": latencies, "timed_again": True}
        record |= {"chance": judged["chance"]} if "chance" in judged else {}
        record |= {"retrained": size is not None, "epochs": epochs}
        if not _fits(evaluator, size):
            record["within_budget"] = False
            say(f"finalist {trial.number} has become a file of {size} bytes, over --max-bytes")
        for latency in latencies:
            if "unchecked" in latency:
                say(f"finalist {trial.number} is {latency['kind']} only: {latency['unchecked']}")
    write_json(path, record)
    say(
        f"finalist {trial.number}: quality {record['proxy_quality']:.2%} -> {quality:.2%}, "
        + ", ".join(f"{cost:.3g} ms" for cost in record["costs"])
        + (
            f", no better than a constant answer, {record['chance']:.2%}"
            if "chance" in record
            else ""
        )
        + (" (over budget when timed again)" if objective.excess(record["costs"]) else "")
    )
    return record


def _trained(
    evaluator: Evaluator, candidate: Candidate, epochs: float | None, stem: pathlib.Path
) -> tuple[int, dict[str, Any]]:
    """The bytes of the file, and the evaluation, of a network that is trained and written."""
    sizes = []

    def keep(network: MakeNetwork, evaluation: dict[str, Any]) -> None:
        sizes.append(evaluator.write(network(), stem))

    record = evaluator.train(candidate, epochs=epochs, keep=keep, final=True)
    return sizes[-1], record


def _record(
    trial: FrozenTrial,
    candidate: Candidate,
    objective: Objective,
    quality: float,
    costs: list[float],
    size: int | None,
) -> dict[str, Any]:
    profile = trial.user_attrs["profile"]
    return {
        "number": trial.number,
        "quality": quality,
        "proxy_quality": trial.user_attrs["evaluation"]["quality"],
        "costs": costs,
        "search_costs": profile["costs"],
        "within_budget": objective.excess(costs) == 0,
        "retrained": False,  # for longer than the search did
        "timed_again": False,
        "params": profile.get("params"),
        "macs": profile.get("macs"),  # params and macs of the deployed form, as timed
        "form": profile.get("form"),  # its Config, where it is not that of the trained one
        "file_bytes": size,
        "config": profile["config"]
        if candidate.methods
        else pprint.pformat(candidate.config, width=99),
        "methods": profile.get("methods"),  # of compression, where there are any
        "latency": profile.get("latency"),  # with their kinds; those of the search
    }
