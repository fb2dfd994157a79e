"""The journey behind `nas scale`: from one network to a family, one for each latency budget.

Latency-aware compound scaling (Li et al., CVPR 2021, arXiv 2102.05610): depth, width and resolution
are searched with quality and latency in the objective, beside EfficientNet's single-objective
scaling (arXiv 1905.11946), trained by the same recipe and as slow on the same target.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import sys
import time
from typing import Any

from nas import backend, cache, registry
from nas.scaling import budget_rung
from nas.scaling.budget_rung import Rung
from nas.scaling.compound_scaling import SINGLE_OBJECTIVE, fitted, scaling_of
from nas.scaling.scaled_networks import ScaledNetworks, tasks
from nas.searching.start import epochs_of
from nas.searching.study import Settings

DEFAULT_TRIALS = 12


def scale(arguments: argparse.Namespace) -> int:
    """`nas scale`: begin or resume, rung by rung; 0, or 130 where it was interrupted."""
    budgets = budgets_of(arguments.budget_ms)
    seeds = seeds_of(arguments.seeds)
    for name, least in (("trials", 1), ("finalists", 1), ("epochs", 1), ("input", 8)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} {value}; expected at least {least}")
    if arguments.minutes is not None and not arguments.minutes > 0:
        raise ValueError(f"--minutes {arguments.minutes}; expected a time above 0")
    end = time.monotonic() + 60 * (arguments.minutes or math.inf)
    trials = arguments.trials or (10**6 if arguments.minutes else DEFAULT_TRIALS)
    folder = pathlib.Path(arguments.out)
    settings = Settings(
        space=f"scaling:{arguments.base}",
        task=arguments.task,
        targets=(arguments.target,),
        budgets_ms=(budgets[0],),
        input=arguments.input,
        controller=arguments.controller,
        epochs=arguments.epochs,
        seed=arguments.seed,
    )
    found: list[dict] = []
    interrupted = False
    networks = networks_of(arguments.base, settings)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        beginning = networks.profile(networks.base)
        networks.kinds = [beginning["latency"][0]["kind"]]
        for number, budget in enumerate(budgets):
            rung = Rung(
                folder / budget_rung.name_of(budget),
                dataclasses.replace(settings, budgets_ms=(budget,)),
                dataclasses.replace(networks, budget_ms=budget),
            )
            share = (end - time.monotonic()) / (len(budgets) - number)
            found.append(
                rung.climb(
                    trials=trials,
                    seconds=share,
                    finalists=arguments.finalists,
                    seeds=seeds,
                    earlier=found[-1] if found else None,
                )
            )
            budget_rung.publish(folder, found)
            content = result(arguments.base, networks, settings, beginning, found)
            _write(folder, content)
    except KeyboardInterrupt:
        interrupted = True
        _say("\ninterrupted: nothing finished is lost, the same command goes on")
    if found:
        _print(folder, content, arguments.json)
    return 130 if interrupted else 0


def budgets_of(text: str) -> list[float]:
    """The budgets of a ladder, in milliseconds, rising."""
    try:
        budgets = sorted({float(part) for part in text.split(",")})
    except ValueError:
        budgets = [math.nan]
    if not all(0 < budget < math.inf for budget in budgets):
        raise ValueError(f"--budget-ms {text}; expected milliseconds above 0, as 2,4,8,16")
    return budgets


def seeds_of(text: str) -> list[int]:
    """Seeds of the final trainings, each once."""
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ValueError(f"--seeds {text}; expected whole numbers, as 0,1,2") from None


def networks_of(base: str, settings: Settings) -> ScaledNetworks:
    """What evaluates the networks of all rungs; loads Keras, the base and the task."""
    target = registry.target(settings.targets[0])
    registry.known("task", registry.parse(settings.task).name)
    backend.load()
    config = base_of(base)
    scaling_of(config)
    task = registry.task(settings.task)
    shape = task.fields.get("input_shape", ())
    if len(shape) != 3:
        raise ValueError(f"task {settings.task} has no images, whose resolution could be scaled")
    is_file = pathlib.Path(base).exists()
    pixels = settings.input or (config.input_shape[0] if is_file else shape[0])
    sized = tasks(functools.partial(_at_size, settings.task, task))
    networks = ScaledNetworks(
        sample=None,
        task=sized(pixels),
        targets=[target],
        fields=dict(task.fields),
        epochs=epochs_of(settings, task),
        final_task=None,
        seed=settings.seed,
        sized=sized,
        say=_say,
    )
    networks.base = networks.suited(
        dataclasses.replace(config, input_shape=(pixels, pixels, shape[2]))
    )
    return networks


def base_of(text: str) -> Any:
    """The Config that a family grows from: of the catalog, or found by a search."""
    path = pathlib.Path(text).expanduser()
    if path.exists():
        from nas.files.readers import config_file

        return config_file.read(path)
    if "/" in text or path.suffix:
        raise ValueError(
            f"no file {text}; expected FAMILY:VARIANT, or the folder or config.py of a search"
        )
    return registry.network(text)[1]


def _at_size(text: str, native: Any, pixels: int) -> Any:
    if native.fields["input_shape"][:2] == (pixels, pixels):
        return native
    return registry.task(text, size=pixels)


def result(
    base: str, networks: ScaledNetworks, settings: Settings, beginning: dict, found: list[dict]
) -> dict:
    """What is known of a family: the content of its result.json."""
    latency = beginning["latency"][0]
    rows = [(one["lacs"]["phi"], budget_rung.factors_of(one["lacs"])) for one in found]
    # Of networks as large as the base, what rounding makes of them would be all of the law.
    law = fitted(rows) if max(abs(phi) for phi, _ in rows) >= 1 else None
    return {
        "base": base,
        "config": repr(networks.base),
        "task": settings.task,
        "metric": networks.task.metric,
        "target": settings.targets[0],
        "device": latency["device"],
        "kind": latency["kind"],
        "base_ms": beginning["costs"][0],
        "base_params": beginning["params"],
        "base_macs": beginning["macs"],
        "law": law and dataclasses.asdict(law),
        "single_objective": dataclasses.asdict(SINGLE_OBJECTIVE),
        "controller": settings.controller,
        "epochs": networks.epochs,
        "rungs": found,
    }


def _write(folder: pathlib.Path, content: dict) -> None:
    from nas.report.plots import figure, scaling

    cache.write_json(folder / "result.json", content)
    figure.save(folder / "ladder.png", scaling.draw(content))


def _print(folder: pathlib.Path, content: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(content, indent=1))
        return
    from nas.report.tables import scaling

    print(scaling.table(content, folder))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
