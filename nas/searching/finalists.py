"""From a searched study to files: finalists retrained and timed again, the winner written out."""

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

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from nas import cache, pareto
from nas.searching import journal
from nas.searching.loop import Objective, trained, wait_for_device

# The exported file must give the model's own outputs.
PARITY = 1e-4
NUDGE = 1e-5  # of an input: 80 times float32's rounding, which every layer adds to
ROUNDED = 1e-2  # an input around which a model moves by more than this says nothing of its file,
INPUTS = 4  # and others are tried


def ranked(study: optuna.Study, objective: Objective) -> list[FrozenTrial]:
    """Fully trained trials, best first: the one that lands, then by quality, within budget first.

    Not by reward, which steers the search to the budget: a network that is faster than asked for
    and better as well must not lose to it.
    """
    complete = [trial for trial in trained(study) if trial.state == TrialState.COMPLETE]
    if not complete:
        return []
    costs = [_costs(trial) for trial in complete]
    quality = objective.worth([t.user_attrs["evaluation"]["quality"] for t in complete], costs)
    first = pareto.winner(quality, costs, objective.budgets)
    order = sorted(
        range(len(complete)),
        key=lambda i: (i != first, excess(objective, costs[i]), -quality[i], i),
    )
    return [complete[i] for i in order]


def excess(objective: Objective, costs: list[float]) -> float:
    """By how much the worst cost exceeds its budget, relative to it; 0 within all budgets."""
    return max(
        0.0,
        *(cost / budget - 1 for cost, budget in zip(costs, objective.budgets, strict=True)),
    )


def save(model: Any, path: pathlib.Path) -> None:
    """Write a .keras file whole or not at all."""
    partial = path.with_name(f".partial.{path.name}")
    model.save(partial)
    partial.replace(path)


def save_model(model: Any, stem: pathlib.Path) -> None:
    """Write `<stem>.keras`."""
    save(model, stem.with_suffix(".keras"))


@dataclasses.dataclass(frozen=True)
class BestSoFar:
    """Keeps the best network during the search, as trained: a crash finds it on the disk.

    Called with every network that was just trained; of several workers' the best stays. Its files
    are so_far.json and what `save` (of `nas.searching.networks.Networks`) leaves, as so_far.keras:
    best.keras is what was handed over, with its best.tflite.
    """

    folder: pathlib.Path
    objective: Objective
    save: Callable[[Any, pathlib.Path], None] = save_model

    def __call__(self, network: Any, profile: dict, evaluation: dict) -> None:
        if evaluation["stopped"]:
            return
        rank = [excess(self.objective, profile["costs"]), -evaluation["quality"]]
        with journal.locked(self.folder / "so_far.lock"):
            best = self.read()
            if best and best["rank"] <= rank:
                return
            self.save(network, self.folder / "so_far")
            record = {"rank": rank, "profile": profile, "evaluation": evaluation}
            cache.write_json(self.folder / "so_far.json", record)

    def read(self) -> dict | None:
        """The record of the network in so_far.keras, or None."""
        path = self.folder / "so_far.json"
        return json.loads(path.read_text()) if path.exists() else None


def write_network(
    model: Any, config: Any, stem: pathlib.Path, files: dict[str, bytes] | None = None
) -> int:
    """Write `<stem>.keras`, `<stem>.tflite` and `<stem>.py`; return the bytes of the .tflite.

    The .keras file and the Config are the form that was trained, to go on with. The .tflite is the
    family's deployed form (`nas.searching.networks.deploy`) with the same weights: it is run, and
    must give the outputs of that form in Keras within 1e-4 (`_difference`), else RuntimeError.
    `files` are the task's, such as a tokenizer: suffix -> content.
    """
    from latency.tflite import convert
    from nas.searching.networks import deployed

    save(model, stem.with_suffix(".keras"))
    form = deployed(model, config)
    tflite = convert.convert(form)
    name, difference, most = _difference(tflite, form)
    if not difference <= most:
        raise RuntimeError(
            f"{stem.name}.tflite differs from the Keras model by {difference:.1e} in {name}; "
            f"expected at most {most:.1g}: this is a bug in the conversion, please report the "
            f"config {config!r}"
        )
    stem.with_suffix(".tflite").write_bytes(tflite)
    stem.with_suffix(".py").write_text(as_python(config))
    write_files(files or {}, stem)
    return len(tflite)


def write_files(files: dict[str, bytes], stem: pathlib.Path) -> None:
    """Write what a task adds to a network: suffix -> content."""
    for suffix, content in files.items():
        stem.with_name(stem.name + suffix).write_bytes(content)


def _difference(tflite: bytes, model: Any) -> tuple[str, float, float]:
    """The output in which a file differs most from its model, by how much, how much may be.

    All of the output's largest value. The most is 1e-4; where rounding alone is amplified beyond
    it (huge boxes of a detector hardly trained), what the model itself moves by as its inputs do
    by `NUDGE`: the file's outputs are then the model's, of inputs that are all but the same.
    """
    import keras

    from latency.networks.random_inputs import random_inputs
    from latency.tflite import convert
    from latency.tflite.signature import names

    takes, gives = names(model)

    def outputs(inputs: list) -> dict:
        tensors = keras.tree.pack_sequence_as(model.input, inputs)
        tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, tensors)
        given = keras.tree.flatten(model(tensors, training=False))
        return dict(zip(gives, map(keras.ops.convert_to_numpy, given), strict=True))

    for seed in range(INPUTS):
        inputs = keras.tree.flatten(random_inputs(model, 1, seed))
        ours, theirs = convert.run(tflite, dict(zip(takes, inputs, strict=True))), outputs(inputs)
        name, difference = _apart(ours, theirs)
        if difference <= PARITY:
            return name, difference, PARITY
        most = _apart(outputs([_nudged(value) for value in inputs]), theirs)[1]
        if difference <= most <= ROUNDED:
            return name, difference, most
    return name, difference, PARITY


def _nudged(value: np.ndarray) -> np.ndarray:
    if value.dtype.kind != "f":
        return value
    signs = np.random.default_rng(0).choice([-NUDGE, NUDGE], value.shape)
    return (value * (1 + signs)).astype(value.dtype)


def _apart(ours: dict, theirs: dict) -> tuple[str, float]:
    """The output in which two differ most, and by how much of its largest value (at least 1)."""
    scales = {name: max(1.0, float(np.abs(value).max())) for name, value in theirs.items()}
    if "boxes" in theirs:  # objects, in an order that rounding may decide
        from families.objectives.boxes import apart

        sides = [
            objects | {"boxes": objects["boxes"] / scales["boxes"]} for objects in (ours, theirs)
        ]
        return "boxes", apart(*sides)
    found = {
        name: float(np.abs(ours[name] - value.astype(np.float64)).max()) / scales[name]
        for name, value in theirs.items()
    }
    # One that is no number is the worst: max() would not find it.
    worst = max(found, key=lambda name: (math.isnan(found[name]), found[name]))
    return worst, found[worst]


def as_python(config: Any) -> str:
    """A Config as Python to be pasted into the VARIANTS of its family."""
    family = type(config).__module__
    names = sorted(name for name in _types_in(config))
    return (
        f"from {family} import {', '.join(names)}\n\nconfig = {pprint.pformat(config, width=99)}\n"
    )


def _types_in(thing: Any) -> set[str]:
    if isinstance(thing, tuple):
        return set().union(*map(_types_in, thing))
    if not dataclasses.is_dataclass(thing):
        return set()
    values = (getattr(thing, field.name) for field in dataclasses.fields(thing))
    return {type(thing).__name__}.union(*map(_types_in, values))


def hand_over(
    folder: pathlib.Path,
    study: optuna.Study,
    evaluator: Any,
    objective: Objective,
    *,
    most: int,
    epochs: int | None,
    end: float = math.inf,
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """Retrain and time again the `most` best networks, write the winner; {"winner", "finalists"}.

    Short training picks wrong winners and the luckiest measurement wins: so each of the best is
    timed afresh, retrained for `epochs`, written, and its file timed. Each is done once: killed in
    between, the next call goes on with the rest. After `end` (`time.monotonic()`) one must do.
    """
    done, over = [], []
    candidates = ranked(study, objective)
    for trial in candidates:
        if len(done) == most or (
            done and (excess(objective, _costs(trial)) or time.monotonic() > end)
        ):
            break
        finalist = _finalist(folder, trial, evaluator, objective, epochs, say)
        (done if finalist["within_budget"] else over).append(finalist)
        if len(over) > most:
            break
    if not done + over:
        return {}
    if not done:  # nothing fits: what comes nearest is handed over all the same
        nearest = min(over, key=lambda finalist: excess(objective, finalist["costs"]))
        (trial,) = (t for t in candidates if t.number == nearest["number"])
        over = [_finalist(folder, trial, evaluator, objective, epochs, say, insist=True)]
    finalists = done or over
    costs = [finalist["costs"] for finalist in finalists]
    quality = objective.worth([finalist["quality"] for finalist in finalists], costs)
    best = finalists[pareto.winner(quality, costs, objective.budgets)]
    files = evaluator.task.files if hasattr(evaluator, "task") else ()
    _publish(folder, folder / "finalists" / str(best["number"]), files)
    return {
        "winner": best,
        "finalists": sorted(done + over, key=lambda finalist: -finalist["quality"]),
    }


def retrain_baseline(folder: pathlib.Path, evaluator: Any, config: Any, epochs: int) -> float:
    """Quality of the base network, trained as the finalists are: what to compare them with."""
    path = folder / "finalists" / "baseline.json"
    if not path.exists():
        cache.write_json(path, evaluator.train(config, epochs=epochs, final=True))
    return json.loads(path.read_text())["quality"]


def hand_over_as_trained(
    folder: pathlib.Path, study: optuna.Study, evaluator: Any, objective: Objective
) -> dict:
    """Write the best network (`write_network`) with the weights of an interrupted search.

    A retrained winner that an earlier call handed over stays.
    """
    result = folder / "result.json"
    earlier = json.loads(result.read_text()) if result.exists() else {}
    if (earlier.get("winner") or {}).get("retrained"):
        return {
            "winner": earlier["winner"],
            "finalists": earlier["finalists"],
            "baseline_quality": earlier["baseline"]["quality"],
        }
    best = BestSoFar(folder, objective).read()
    ranking = ranked(study, objective)
    if ranking and not hasattr(evaluator, "targets"):  # a table has no weights
        return {
            "winner": _finalist(folder, ranking[0], evaluator, objective, None),
            "finalists": [],
        }
    by_key = {trial.user_attrs["profile"]["key"]: trial for trial in ranking}
    if best is None or best["profile"]["key"] not in by_key:
        return {}
    trial = by_key[best["profile"]["key"]]
    config = evaluator.config(trial)
    stem = folder / "finalists" / f"{trial.number}-as-searched"
    stem.parent.mkdir(exist_ok=True)
    size = evaluator.write_saved(folder / "so_far", config, stem)
    _publish(folder, stem, evaluator.task.files)
    quality = best["evaluation"]["quality"]
    winner = _record(trial, config, objective, quality, _costs(trial), size)
    winner["within_budget"] &= _fits(evaluator, size)
    return {"winner": winner, "finalists": []}


def _fits(evaluator: Any, size: int | None) -> bool:
    """Whether the file that was written is within --max-bytes, as the one of the search was."""
    return size is None or size <= (evaluator.limits.file_bytes or math.inf)


def _publish(folder: pathlib.Path, stem: pathlib.Path, files: Iterable[str] = ()) -> None:
    """Copy a network's files to best.keras (as trained), best.tflite (as deployed), config.py."""
    names = {".keras": "best.keras", ".tflite": "best.tflite", ".py": "config.py"}
    names |= {suffix: f"best{suffix}" for suffix in files}
    for suffix, name in names.items():
        source = stem.with_name(stem.name + suffix)
        if source.exists():  # a tabular benchmark has no network
            partial = folder / f".{name}"
            shutil.copyfile(source, partial)
            partial.replace(folder / name)


def _costs(trial: FrozenTrial) -> list[float]:
    return trial.user_attrs["profile"]["costs"]


def _finalist(
    folder: pathlib.Path,
    trial: FrozenTrial,
    evaluator: Any,
    objective: Objective,
    epochs: int | None,
    say: Callable[[str], None] = lambda text: None,
    insist: bool = False,
) -> dict:
    """The record of a finalist; one that turns out over budget is not trained, unless `insist`."""
    (folder / "finalists").mkdir(exist_ok=True)
    stem = folder / "finalists" / str(trial.number)
    path = stem.with_suffix(".json")
    if path.exists():
        record = json.loads(path.read_text())
        if record.get("retrained") or not insist:
            return record
    config = evaluator.config(trial)
    if not hasattr(evaluator, "targets"):  # a table: nothing to build, nothing varies
        quality = evaluator.train(config)["quality"]
        record = _record(trial, config, objective, quality, _costs(trial), None)
    else:
        again = functools.partial(evaluator.measure_again, name=f"{folder.name}:{trial.number}")
        latencies = wait_for_device(lambda: again(config), say)
        costs = [latency["median_ms"] for latency in latencies]
        size, quality = None, trial.user_attrs["evaluation"]["quality"]
        if insist or not excess(objective, costs):
            say(f"retraining trial {trial.number}")
            size = 0

            def keep(network, evaluation):
                nonlocal size
                size = evaluator.write(network, config, stem)

            quality = evaluator.train(config, epochs=epochs, keep=keep, final=True)["quality"]
            latencies = wait_for_device(lambda: again(stem.with_suffix(".tflite")), say)
            costs = [latency["median_ms"] for latency in latencies]
        record = _record(trial, config, objective, quality, costs, size)
        record |= {"latency": latencies, "retrained": size is not None}
        if not _fits(evaluator, size):
            record["within_budget"] = False
            say(f"finalist {trial.number} has become a file of {size} bytes, over --max-bytes")
        for latency in latencies:
            if "unchecked" in latency:
                say(f"finalist {trial.number} is {latency['kind']} only: {latency['unchecked']}")
    cache.write_json(path, record)
    say(
        f"finalist {trial.number}: quality {record['proxy_quality']:.2%} -> {quality:.2%}, "
        + ", ".join(f"{cost:.3g} ms" for cost in record["costs"])
        + (" (over budget when timed again)" if excess(objective, record["costs"]) else "")
    )
    return record


def _record(
    trial: FrozenTrial,
    config: Any,
    objective: Objective,
    quality: float,
    costs: list[float],
    size: int | None,
) -> dict:
    profile = trial.user_attrs["profile"]
    return {
        "number": trial.number,
        "quality": quality,
        "proxy_quality": trial.user_attrs["evaluation"]["quality"],
        "costs": costs,
        "search_costs": profile["costs"],
        "within_budget": excess(objective, costs) == 0,
        "params": profile.get("params"),
        "macs": profile.get("macs"),  # params and macs of the deployed form, as timed
        "form": profile.get("form"),  # its Config, where it is not that of the trained one
        "file_bytes": size,
        "config": profile["config"] if "methods" in profile else pprint.pformat(config, width=99),
        "methods": profile.get("methods"),  # of compression, where there are any
        "latency": profile.get("latency"),  # with their kinds; those of the search
    }
