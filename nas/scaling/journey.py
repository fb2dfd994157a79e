"""The journey behind `nas.scale`: from one network to a family, one for each latency budget.

Latency-aware compound scaling (Li et al., CVPR 2021, arXiv 2102.05610): depth, width and resolution
are searched with quality and latency in the objective, beside EfficientNet's single-objective
scaling (arXiv 1905.11946), trained by the same recipe and as slow on the same target.
"""

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from optuna.samplers import BaseSampler

from latency.target import Target
from nas import interruption
from nas.events import Listener, Message, ignore
from nas.networks import build
from nas.scaling import budget_rung
from nas.scaling.budget_rung import Rung
from nas.scaling.compound_scaling import SINGLE_OBJECTIVE, fitted, scaling_of
from nas.scaling.result import Family
from nas.scaling.scaled_space import few_tasks
from nas.searching.candidate import Candidate
from nas.searching.evaluator import no_device
from nas.searching.networks import Networks
from nas.searching.start import epochs_of
from nas.searching.study import Settings
from nas.searching.weights import NewWeights
from nas.tasks.task import Task

DEFAULT_TRIALS = 12
ENDLESS = 10**6  # trials of a search that ends after a time


@interruption.interruptible()
def scale(
    base: Any,
    task: Task,
    target: Target,
    budgets_ms: Sequence[float],
    folder: pathlib.Path,
    *,
    settings: Settings,
    task_at: Callable[[int], Task],
    controller: Callable[..., BaseSampler],
    pixels: int | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    most_finalists: int = 1,
    seeds: Sequence[int] = (0,),
    device: Callable[[str], Target] = no_device,
    on_event: Listener = ignore,
) -> Family:
    """Begin or resume a family, rung by rung: the networks of `base` that land on the budgets.

    base: a Config whose family has `scaled`. task, task_at(size): images, at their own size and at
    any other. budgets_ms: of `target`, rising. folder: of the family. settings: the names of all of
    it, with the epochs and the seed of the search. controller: makes the sampler. pixels: of the
    base's images; None: as its Config says. trials: networks to train for each budget (12; with
    minutes as many as there is time for). most_finalists: trained for longer, a budget. seeds: of
    these trainings. device: finds what a predictor stands for.

    Raises `ValueError` where the base cannot be scaled or the task has no images. Interrupted
    (KeyboardInterrupt), it returns the rungs that are finished, if there is one.
    """
    budgets = sorted(set(budgets_ms))
    if not budgets or not all(0 < budget < math.inf for budget in budgets):
        raise ValueError(f"budgets_ms={budgets_ms}; expected milliseconds above 0, as [2, 4, 8]")
    for name, least, value in (
        ("trials", 1, trials),
        ("finalists", 1, most_finalists),
        ("epochs", 1, settings.epochs),
        ("input", 8, pixels),
    ):
        if value is not None and value < least:
            raise ValueError(f"--{name} {value}; expected at least {least}")
    if minutes is not None and not minutes > 0:
        raise ValueError(f"--minutes {minutes}; expected a time above 0")
    end = time.monotonic() + 60 * (minutes or math.inf)
    trials = trials or (ENDLESS if minutes else DEFAULT_TRIALS)
    networks, base = _networks(base, task, task_at, target, pixels, settings, device)
    folder.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    family = None
    try:
        beginning = networks.profile(Candidate(base))
        networks.kinds = [beginning["latency"][0]["kind"]]
        for number, budget in enumerate(budgets):
            rung = Rung(
                folder / budget_rung.name_of(budget),
                dataclasses.replace(settings, budgets_ms=(budget,)),
                networks,
                base,
                controller,
                on_event,
            )
            found.append(
                rung.search(
                    trials=trials,
                    seconds=(end - time.monotonic()) / (len(budgets) - number),
                    most_finalists=most_finalists,
                    seeds=list(seeds),
                    earlier=found[-1] if found else None,
                )
            )
            budget_rung.publish(folder, found)
            family = Family(folder, _content(base, networks, settings, beginning, found))
            family.write()
    except KeyboardInterrupt:
        interruption.hand_over()
        on_event(Message("\ninterrupted: nothing finished is lost, the same command goes on"))
        if family is None:
            raise
        family = Family(folder, family.content, interrupted=True)
    assert family is not None  # there is one budget at least
    return family


def _networks(
    base: Any,
    task: Task,
    task_at: Callable[[int], Task],
    target: Target,
    pixels: int | None,
    settings: Settings,
    device: Callable[[str], Target],
) -> tuple[Networks, Any]:
    """What times and trains the networks of all rungs, each at its own size; the base."""
    build.check_importable(base)
    scaling_of(base)
    shape = task.fields.get("input_shape", ())
    if len(shape) != 3:
        raise ValueError(f"task {settings.task} has no images, whose resolution could be scaled")
    sized = few_tasks(functools.partial(_at_size, task, task_at))
    side = pixels or base.input_shape[0]
    fields = {name: value for name, value in task.fields.items() if name != "input_shape"}
    base = build.for_task(base, task.fields | {"input_shape": (side, side, shape[2])}, task.name)
    networks = Networks(
        sample=_no_space,
        task=sized(side),
        task_of=lambda config, final: sized(config.input_shape[0]),
        targets=[target],
        fields=fields,
        epochs=epochs_of(settings, task),
        seed=settings.seed,
        weights=NewWeights(settings.seed, remember=False),
        device=device,
        known={},
    )
    return networks, base


def _no_space(trial: Any) -> Any:
    raise AssertionError("each rung has its own space")


def _at_size(task: Task, task_at: Callable[[int], Task], pixels: int) -> Task:
    if task.fields["input_shape"][:2] == (pixels, pixels):
        return task
    return task_at(pixels)


def _content(
    base: Any,
    networks: Networks,
    settings: Settings,
    beginning: dict[str, Any],
    found: list[dict[str, Any]],
) -> dict[str, Any]:
    """What is known of a family: the content of its result.json."""
    latency = beginning["latency"][0]
    rows = [(one["lacs"]["phi"], budget_rung.factors_of(one["lacs"])) for one in found]
    # Of networks as large as the base, what rounding makes of them would be all of the law.
    law = fitted(rows) if max(abs(phi) for phi, _ in rows) >= 1 else None
    return {
        "base": settings.space.removeprefix("scaling:"),
        "config": repr(base),
        "task": settings.task,
        "metric": networks.metric,
        "target": settings.targets[0],
        "device": latency["device"],
        "kind": latency["kind"],
        "base_ms": beginning["costs"][0],
        "base_params": beginning["params"],
        "base_macs": beginning["macs"],
        "law": None if law is None else dataclasses.asdict(law),
        "single_objective": dataclasses.asdict(SINGLE_OBJECTIVE),
        "controller": settings.controller,
        "epochs": networks.epochs,
        "rungs": list(found),
    }
