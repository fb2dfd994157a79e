"""What a search needs before its first trial: evaluator, budgets, exponent, controller."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import optuna

from nas import backend, locks, registry
from nas.searching import study as studies
from nas.searching.loop import Objective
from nas.searching.networks import Limits, Networks
from nas.searching.reward import calibrate
from nas.searching.study import Settings

# The budget where none is given: a network this much faster than the space's base network.
BUDGET_OF_BASELINE = 0.8
# Networks trained before a search with --beta auto; they become its first trials.
CALIBRATION_NETWORKS = 8
# Networks timed for each one trained, where the controller can choose among them.
PROFILES_WITH_CHOICE = 4
# A finalist is trained for so many times the epochs of the search.
FINALIST_EPOCHS = 3
FULL_EPOCHS = 12  # of a finalist, where neither --epochs nor the task says how long
EVALUATORS = ("train", "supernet")


def evaluator_of(settings: Settings, folder: pathlib.Path = pathlib.Path()) -> tuple[Any, Any]:
    """What evaluates networks of a study in `folder`, and the base network's Config (or None)."""
    named = registry.parse(settings.evaluator)
    if named.name not in EVALUATORS or (named.name == "train" and named != registry.Spec("train")):
        raise ValueError(
            f"--evaluator {settings.evaluator}: expected train, or supernet[:EPOCHS][,examples=N]"
        )
    if registry.parse(settings.task).name == "table":  # its own space and device
        if settings.methods or one_shot(settings):
            flag = "--method" if settings.methods else "--evaluator supernet"
            raise ValueError(f"--task table has figures only: there is no network for {flag}")
        return registry.task(settings.task), None
    if settings.methods and one_shot(settings):
        raise ValueError(
            "--evaluator supernet judges networks before compression; leave out --method, and"
            " compress what is found with nas compress"
        )
    registry.known("space", registry.parse(settings.space).name)
    registry.known("task", registry.parse(settings.task).name)
    targets = [registry.target(text) for text in settings.targets]
    alternatives = alternatives_of(settings, targets)
    backend.load()
    task = registry.task(settings.task)
    sample, around = registry.space(settings.space)
    fields = dict(task.fields)
    if settings.input:
        if len(fields.get("input_shape", ())) != 3:
            raise ValueError(f"--input is the size of images; task {settings.task} has none")
        fields["input_shape"] = (settings.input, settings.input, fields["input_shape"][2])
    networks = Networks
    if alternatives:
        from nas.searching.compressed_networks import CompressedNetworks

        networks = functools.partial(
            CompressedNetworks, alternatives=alternatives, task_spec=settings.task
        )
    if one_shot(settings):
        from nas.supernets.search import SupernetNetworks

        networks = functools.partial(SupernetNetworks, evaluator=settings.evaluator, folder=folder)
    evaluator = networks(
        sample=sample,
        task=task,
        targets=targets,
        fields=fields,
        epochs=epochs_of(settings, task),
        final_task=functools.cache(
            lambda: (
                task if task.fields == fields else registry.task(settings.task, size=settings.input)
            )
        ),
        seed=settings.seed,
        limits=Limits(settings.max_params, settings.max_macs, settings.max_bytes),
    )
    baseline = evaluator.suited(around)
    evaluator.check(baseline)
    return evaluator, baseline


def alternatives_of(settings: Settings, targets: list) -> tuple[tuple[str, ...], ...]:
    """What each --method lets a search choose from: specs of methods, and "none"."""
    found = []
    for text in settings.methods:
        names = tuple(part.strip() for part in text.split("|"))
        if len(set(names)) < len(names):
            raise ValueError(f"--method {text!r} names an alternative twice")
        for name in names:
            if name != "none":
                registry.known("method", registry.parse(name).name)
        found.append(names)
    for target, named in zip(targets, settings.targets, strict=True):
        if found and not target.runs_tflite:
            raise ValueError(
                f"--target {named} tells nothing of the .tflite files that --method makes; expected"
                " one that runs them, such as cpu, android or ssh"
            )
    return tuple(found)


def one_shot(settings: Settings) -> bool:
    """Whether candidates are judged in a supernet."""
    return registry.parse(settings.evaluator).name == "supernet"


def epochs_of(settings: Settings, task: Any) -> int:
    """How long a candidate is trained: long enough that a finalist has the epochs of the task."""
    full = task.training.get("epochs", FULL_EPOCHS)
    return settings.epochs or math.ceil(full / FINALIST_EPOCHS)


def final_epochs_of(evaluator: Any) -> int | None:
    """How long finalists, and the base network beside them, are trained; None of a table."""
    return evaluator.epochs * FINALIST_EPOCHS if hasattr(evaluator, "epochs") else None


def filter_of(settings: Settings, evaluator: Any) -> Callable[[Any], float] | None:
    """The zero-cost score of --filter, or None without; `ValueError` where there is no network."""
    if settings.filter is None:
        return None
    if not hasattr(evaluator, "score"):
        raise ValueError(f"--task {settings.task} has figures only: no network for --filter")
    if one_shot(settings):
        raise ValueError("--filter saves trainings; --evaluator supernet has none: leave it out")
    return functools.partial(evaluator.score, settings.filter)


def controller_of(
    settings: Settings, name: str, objective: Objective, evaluator: Any
) -> optuna.samplers.BaseSampler:
    return registry.controller(
        name,
        seed=settings.seed,
        reward=objective.reward,
        candidates=getattr(evaluator, "candidates", None),  # where a table holds only some
    )


def profiles_of(settings: Settings, sampler: optuna.samplers.BaseSampler) -> int:
    if settings.profiles:
        return settings.profiles
    if one_shot(settings):  # to judge a network is cheaper than to time it
        return 1
    chooses = settings.filter is not None or hasattr(sampler, "select")
    return PROFILES_WITH_CHOICE if chooses else 1


def begin(
    study: optuna.Study,
    settings: Settings,
    folder: pathlib.Path,
    evaluator: Any,
    baseline: Any,
    say: Callable[[str], None],
) -> Objective:
    """The objective of the study; whoever comes first measures what it needs."""
    with locks.locked(folder / "begin.lock"):
        if "objective" not in study.user_attrs:
            measured = None if baseline is None else _measure_baseline(evaluator, baseline, say)
            budgets = [None if b == studies.MINIMIZE else b for b in settings.budgets_ms or ()]
            if not budgets and measured:
                budgets = [BUDGET_OF_BASELINE * cost for cost in measured["costs"]]
            if not budgets and settings.reward != "pareto":
                raise ValueError(
                    f"--task {settings.task}: no base network is known: give --budget-ms"
                )
            budgets = budgets or [None] * len(settings.targets)
            beta = settings.beta
            if beta == "auto":
                beta = _calibrate(study, settings, evaluator, budgets, say)
            studies.remember_objective(study, budgets, beta, measured)
            if hasattr(evaluator, "task"):  # a table has none
                study.set_user_attr("metric", evaluator.task.metric)
    kept = study.user_attrs["objective"]["baseline"]
    if kept is not None:
        evaluator.kinds = [latency.get("kind") for latency in kept["latency"]]
    objective = studies.objective(study, settings)
    if objective.reward and not objective.reward.steers:
        say(
            "warning: with equal exponents the budget only rescales the reward soft and does not"
            " steer the search; --reward absolute lands on it"
        )
    return objective


def _measure_baseline(evaluator, baseline, say) -> dict | None:
    """The record of the base network, which may exceed limits; None where no device can run it."""
    say("measuring the base network")
    record = dataclasses.replace(evaluator, limits=Limits()).profile(baseline)
    if "excess" in record:
        say(f"the base network cannot be timed: {record['excess']}")
        return None
    record["quality"] = evaluator.train(baseline)["quality"]
    return record | {"config": repr(baseline)}


def _calibrate(study, settings, evaluator, budgets, say) -> float:
    """Train a few random networks, which become the first trials, and fit the exponent on them."""
    sampler = registry.controller("random", seed=settings.seed)
    sketch = optuna.create_study(sampler=sampler)
    qualities, costs, proposals = [], [], []
    for index in range(CALIBRATION_NETWORKS):
        trial = sketch.ask()
        config = evaluator.config(trial)
        profile = evaluator.profile(config)
        if profile["costs"]:
            qualities.append(evaluator.train(config)["quality"])
            costs.append(profile["costs"])
            proposals.append(trial.params)
        evaluator.forget()
        sketch.tell(trial, 0.0)
        say(f"calibrating beta: {index + 1}/{CALIBRATION_NETWORKS}")
    limits = [math.inf if budget is None else budget for budget in budgets]
    beta = calibrate(settings.reward, qualities, costs, limits)
    for params in proposals:
        study.enqueue_trial(params)
    return beta
