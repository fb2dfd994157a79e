"""`nas scale`: from flags to `nas.scaling.journey.scale`, and its result in words."""

import argparse
import functools
import json
import math
import pathlib
from typing import Any

EPILOG = """examples:
  nas scale mnasnet:tiny --budget-ms 0.05,0.1,0.2,0.4 --task fashion_mnist --out family
  nas scale runs/mnas1 --budget-ms 2,4,8,16 --target cpu --task fashion_mnist --out family \\
            --trials 20 --seeds 0,1,2
For each budget it leaves a .keras, a .tflite and a .py (its Config), named after it; those of
single-objective scaling end in _single. family.py holds all Configs, result.json all figures,
ladder.png both ladders. The same command again goes on where it was; more --trials extend it."""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the subparsers `commands`; `common` are the flags of all."""
    scale = commands.add_parser(
        "scale",
        parents=[common],
        help="make a family of a network: depth, width and resolution for each latency budget",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    scale.add_argument(
        "base", help="family:variant, or what a search found: its folder or its config.py"
    )
    scale.add_argument("--budget-ms", required=True, help="the ladder, as 2,4,8,16")
    scale.add_argument("--task", required=True, help="images to train on, see `nas list task`")
    scale.add_argument("--out", required=True, help="folder of the family")
    scale.add_argument("--target", default="cpu:threads=1", help="device to time on (%(default)s)")
    scale.add_argument("--input", type=int, help="pixels of the base's images (the task's)")
    how = scale.add_argument_group("how to search")
    how.add_argument("--trials", type=int, help="networks to train for each budget (12)")
    how.add_argument("--minutes", type=float, help="end after this long, instead of --trials")
    how.add_argument(
        "--epochs",
        type=int,
        help="epochs of a trial (a third of the task's, or 4); the best get three times",
    )
    how.add_argument(
        "--finalists", type=int, default=1, help="trained for longer, a budget (%(default)s)"
    )
    how.add_argument(
        "--seeds", default="0", help="of the final trainings, as 0,1,2: means (%(default)s)"
    )
    how.add_argument(
        "--controller", default="surrogate:startup=4", help="see `nas list` (%(default)s)"
    )
    how.add_argument("--seed", type=int, default=0, help="of the search (%(default)s)")
    scale.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Begin or resume a family and print its table; 0, or 130 where it was interrupted."""
    from nas import backend, registry
    from nas.cli.progress import Progress
    from nas.searching.study import Settings

    budgets, seeds = budgets_of(arguments.budget_ms), seeds_of(arguments.seeds)
    target = registry.target(arguments.target)
    registry.known("task", registry.parse(arguments.task).name)
    for name, least in (("trials", 1), ("finalists", 1), ("epochs", 1), ("input", 8)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} {value}; expected at least {least}")
    if arguments.minutes is not None and not arguments.minutes > 0:
        raise ValueError(f"--minutes {arguments.minutes}; expected a time above 0")
    backend.load()
    from nas.scaling import journey

    base = base_of(arguments.base)
    task = registry.task(arguments.task)
    pixels = arguments.input
    if pixels is None and not pathlib.Path(arguments.base).exists():
        pixels = (task.fields.get("input_shape") or (None,))[0]
    family = journey.scale(
        base,
        task,
        target,
        budgets,
        pathlib.Path(arguments.out),
        settings=Settings(
            space=f"scaling:{arguments.base}",
            task=arguments.task,
            targets=(arguments.target,),
            budgets_ms=(budgets[0],),
            input=arguments.input,
            controller=arguments.controller,
            epochs=arguments.epochs,
            seed=arguments.seed,
        ),
        task_at=lambda size: registry.task(arguments.task, size=size),
        controller=functools.partial(registry.controller, arguments.controller),
        pixels=pixels,
        trials=arguments.trials,
        minutes=arguments.minutes,
        most_finalists=arguments.finalists,
        seeds=seeds,
        device=registry.target,
        on_event=Progress(),
    )
    print(json.dumps(family.to_json(), indent=1) if arguments.json else family)
    return 130 if family.interrupted else 0


def budgets_of(text: str) -> list[float]:
    """The budgets of a ladder, in milliseconds, rising.

    >>> budgets_of("4,2,8")
    [2.0, 4.0, 8.0]
    """
    try:
        budgets = sorted({float(part) for part in text.split(",")})
    except ValueError:
        budgets = [math.nan]
    if not all(0 < budget < math.inf for budget in budgets):
        raise ValueError(f"--budget-ms {text}; expected milliseconds above 0, as 2,4,8,16")
    return budgets


def seeds_of(text: str) -> list[int]:
    """Seeds of the final trainings, each once.

    >>> seeds_of("0,1,1")
    [0, 1]
    """
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ValueError(f"--seeds {text}; expected whole numbers, as 0,1,2") from None


def base_of(text: str) -> Any:
    """The Config that a family grows from: of the catalog, or found by a search."""
    from nas import registry
    from nas.files.readers import config_file

    path = pathlib.Path(text).expanduser()
    if path.exists() and not (path.suffix == ".py" and ":" in text):
        return config_file.read(path, methods=False)
    if "/" in text or path.suffix:
        raise ValueError(
            f"no file {text}; expected FAMILY:VARIANT, or the folder or config.py of a search"
        )
    return registry.network(text)[1]
