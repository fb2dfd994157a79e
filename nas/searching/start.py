"""What a search needs before its first trial: evaluator, budgets, exponent, controller."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import optuna

from nas.controllers.random import Random
from nas.events import Listener, Message
from nas.proposals.chooser import chooser_of
from nas.report.format import duration
from nas.searching import study as studies
from nas.searching.candidate import Alternatives, Candidate
from nas.searching.evaluator import Evaluator, Limits
from nas.searching.leases import Worker
from nas.searching.objective import Objective
from nas.searching.parts import Parts
from nas.searching.plan import FINALIST_EPOCHS, Plan, planned, watch
from nas.searching.reward import calibrate
from nas.searching.study import Settings
from nas.searching.table_evaluator import TableEvaluator
from nas.searching.weights import NewWeights, Weights
from nas.tasks.task import Task

# The budget where none is given: a network this much faster than the space's base network.
BUDGET_OF_BASELINE = 0.8
# Networks trained before a search with --beta auto; they become its first trials.
CALIBRATION_NETWORKS = 8
# Networks timed for each one trained, where the controller can choose among them.
PROFILES_WITH_CHOICE = 4
FULL_EPOCHS = 12  # of a finalist, where neither --epochs nor the task says how long


def evaluator_of(
    parts: Parts, settings: Settings, folder: pathlib.Path = pathlib.Path()
) -> tuple[Evaluator, Candidate | None]:
    """What evaluates the candidates of a study in `folder`, and the base network, if there is one.

    Raises `ValueError` where space, task, targets and methods do not go together.
    """
    if parts.table is not None:
        return TableEvaluator(parts.table), None
    from nas.searching.handed_over import command_of  # which loads Keras, as what follows
    from nas.searching.networks import Networks

    task, sample = parts.task, parts.sample
    assert task is not None and sample is not None  # as `Parts` has checked
    if not task.higher_is_better:
        raise ValueError(
            f"task {task.name}: of its {task.metric} less is better, and a search looks for more;"
            " expected a nas.Task whose average is turned round, such as 1 / (1 + error)"
        )
    fields = dict(task.fields)
    if settings.input:
        if len(fields.get("input_shape", ())) != 3:
            raise ValueError(f"--input is the size of images; task {settings.task} has none")
        fields["input_shape"] = (settings.input, settings.input, fields["input_shape"][2])
    evaluator = Networks(
        sample=sample,
        task=task,
        task_of=_task_of(task, fields, parts, settings),
        targets=list(parts.targets),
        fields=fields,
        epochs=epochs_of(settings, task),
        seed=settings.seed,
        limits=Limits(settings.max_params, settings.max_macs, settings.max_bytes),
        weights=_weights_of(parts, settings, sample, task, folder),
        alternatives=_with_teachers(parts.alternatives),
        task_name=parts.task_name,
        command=command_of(settings),
        device=parts.device,
    )
    if parts.baseline is None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        trial = optuna.create_study(sampler=Random(seed=settings.seed)).ask()
        evaluator.check(evaluator.candidate(trial).config)
        return evaluator, None
    baseline = evaluator.for_task(parts.baseline)
    evaluator.check(baseline)
    return evaluator, Candidate(baseline)


def _with_teachers(alternatives: Alternatives) -> Alternatives:
    """The methods with their teachers read, by whose weights they are known."""
    from nas.compression import teachers

    return [
        {name: None if one is None else teachers.with_teacher(one) for name, one in methods.items()}
        for methods in alternatives
    ]


def _task_of(
    task: Task, fields: Mapping[str, Any], parts: Parts, settings: Settings
) -> Callable[[Any, bool], Task]:
    """The task itself; finally the one at the size that is timed, where that is another."""
    if task.fields == fields:
        return lambda config, final: task
    task_at, size = parts.task_at, settings.input
    if task_at is None or size is None:
        raise ValueError("input: another size of images needs task_at(size), which loads the task")
    final_task = functools.cache(lambda: task_at(size))
    return lambda config, final: final_task() if final else task


def _weights_of(
    parts: Parts, settings: Settings, sample: Callable[[Any], Any], task: Task, folder: pathlib.Path
) -> Weights:
    if parts.one_shot is None:
        return NewWeights()
    from nas.supernets.one_shot import stepped_aside
    from nas.supernets.shared_weights import SharedWeights

    if stepped_aside(folder):
        return NewWeights()
    return SharedWeights(sample, task, folder, parts.one_shot, settings.seed)


def epochs_of(settings: Settings, task: Task) -> int:
    """How long a candidate is trained: long enough that a finalist has the epochs of the task."""
    full = task.training.get("epochs", FULL_EPOCHS)
    return settings.epochs or math.ceil(full / FINALIST_EPOCHS)


def filter_of(
    parts: Parts, settings: Settings, evaluator: Evaluator
) -> Callable[[Candidate], float] | None:
    """The zero-cost score of --filter, or None without; `ValueError` where there is no network."""
    if settings.filter is None:
        return None
    if parts.table is not None:
        raise ValueError(f"--task {settings.task} has figures only: no network for --filter")
    if parts.one_shot is not None:
        raise ValueError("--filter saves trainings; --evaluator supernet has none: leave it out")
    return functools.partial(evaluator.score, settings.filter)


def sampler_of(
    make: Callable[..., optuna.samplers.BaseSampler],
    settings: Settings,
    objective: Objective,
    evaluator: Evaluator,
) -> optuna.samplers.BaseSampler:
    """The controller of a study."""
    return make(seed=settings.seed, reward=objective.reward, candidates=evaluator.candidates)


def profiles_of(parts: Parts, settings: Settings, sampler: optuna.samplers.BaseSampler) -> int:
    """Networks to profile for each one that is trained."""
    if settings.profiles:
        return settings.profiles
    if parts.one_shot is not None:  # to judge a network is cheaper than to time it
        return 1
    chooses = settings.filter is not None or chooser_of(sampler) is not None
    return PROFILES_WITH_CHOICE if chooses else 1


def begin(
    study: optuna.Study,
    settings: Settings,
    worker: Worker,
    evaluator: Evaluator,
    baseline: Candidate | None,
    on_event: Listener,
    *,
    minutes: float = math.inf,
    profiles: int = 1,
) -> Objective:
    """The objective of the study; whoever comes first measures what it needs.

    minutes: of the whole search. profiles: networks timed for each one trained. With them it is
    planned how long candidates are trained, unless --epochs says so: of a study the same for all.
    """
    with worker.lock("begin"):
        if "objective" not in study.user_attrs:
            measured = None if baseline is None else _measured(evaluator, baseline, on_event)
            budgets = [_budget(budget) for budget in settings.budgets_ms or ()]
            if not budgets and measured:
                budgets = [BUDGET_OF_BASELINE * cost for cost in measured["costs"]]
            if not budgets and settings.reward != "pareto":
                raise ValueError(
                    f"--task {settings.task}: no base network is known: give --budget-ms"
                )
            budgets = budgets or [None] * len(settings.targets)
            watched, profile, name = baseline, measured, "the base network"
            if baseline is None and minutes < math.inf and evaluator.epochs is not None:
                watched, profile = _any_candidate(evaluator, settings)
                name = "a random network"
            if watched is not None and profile is not None and profile["costs"]:
                plan = _planned(
                    evaluator, watched, profile, name, settings, minutes, profiles, on_event
                )
                evaluator.epochs = plan.epochs
                study.set_user_attr("plan", dataclasses.asdict(plan))
            beta = settings.beta
            if beta == "auto":
                beta = _calibrated(study, settings, evaluator, budgets, on_event)
            assert beta is None or isinstance(beta, (int, float))
            studies.remember_objective(study, budgets, beta, measured)
            if evaluator.metric is not None:
                study.set_user_attr("metric", evaluator.metric)
    if "plan" in study.user_attrs:
        evaluator.epochs = study.user_attrs["plan"]["epochs"]
    kept = study.user_attrs["objective"]["baseline"]
    if kept is not None:
        evaluator.kinds = [latency.get("kind") for latency in kept["latency"]]
    objective = studies.objective(study, settings)
    if objective.reward and not objective.reward.steers:
        on_event(
            Message(
                "warning: with equal exponents the budget only rescales the reward soft and does"
                " not steer the search; --reward absolute lands on it"
            )
        )
    return objective


def _budget(budget: float | str) -> float | None:
    return None if isinstance(budget, str) else budget  # studies.MINIMIZE


def _measured(
    evaluator: Evaluator, baseline: Candidate, on_event: Listener
) -> dict[str, Any] | None:
    """The record of the base network, which may exceed limits; None where no device can run it."""
    on_event(Message("measuring the base network"))
    record = evaluator.profile(baseline, limited=False)
    if "excess" in record:
        on_event(Message(f"the base network cannot be timed: {record['excess']}"))
        return None
    if over := evaluator.limits.exceeded(record):
        on_event(Message(f"the base network itself is over a limit: {over}"))
    return record | {"config": repr(baseline.config)}


def _any_candidate(evaluator: Evaluator, settings: Settings) -> tuple[Candidate, dict[str, Any]]:
    """A random candidate and its record, where there is no base network."""
    trial = optuna.create_study(sampler=Random(seed=settings.seed)).ask()
    candidate = evaluator.candidate(trial)
    return candidate, evaluator.profile(candidate)


def _planned(
    evaluator: Evaluator,
    candidate: Candidate,
    profile: dict[str, Any],
    name: str,
    settings: Settings,
    minutes: float,
    profiles: int,
    on_event: Listener,
) -> Plan:
    """How long candidates are trained; "quality" in `profile`, if the network can be judged.

    It is the base network, or any. Its training shows how long one takes, and goes to its end only
    where that is soon.
    """
    epochs = evaluator.epochs
    if epochs is None:
        return Plan(1, profiles)
    on_event(Message(f"training {name}"))
    seen = watch(evaluator, candidate, profile, minutes, on_event)
    if seen.record is not None:
        profile["quality"] = seen.record["quality"]
    if seen.record is not None or seen.pace is None:
        return Plan(epochs, profiles, seen.pace)
    takes = f"{epochs:g} epochs of {name} would take {duration(seen.seconds)}"
    on_event(Message(f"{takes}: it waits until after the candidates"))
    if math.isinf(minutes):
        return Plan(epochs, profiles, seen.pace)
    plan = planned(seen.pace, epochs, 60 * minutes, profiles)
    return Plan(settings.epochs or plan.epochs, settings.profiles or plan.profiles, plan.pace)


def _calibrated(
    study: optuna.Study,
    settings: Settings,
    evaluator: Evaluator,
    budgets: list[float | None],
    on_event: Listener,
) -> float:
    """Train a few random networks, which become the first trials, and fit the exponent on them."""
    sketch = optuna.create_study(sampler=Random(seed=settings.seed))
    qualities, costs, proposals = [], [], []
    for index in range(CALIBRATION_NETWORKS):
        trial = sketch.ask()
        candidate = evaluator.candidate(trial)
        profile = evaluator.profile(candidate)
        if profile["costs"]:
            qualities.append(evaluator.train(candidate)["quality"])
            costs.append(profile["costs"])
            proposals.append(trial.params)
        evaluator.forget()
        sketch.tell(trial, 0.0)
        on_event(Message(f"calibrating beta: {index + 1}/{CALIBRATION_NETWORKS}"))
    limits = [math.inf if budget is None else budget for budget in budgets]
    beta = calibrate(settings.reward, qualities, costs, limits)
    for params in proposals:
        study.enqueue_trial(params)
    return beta
