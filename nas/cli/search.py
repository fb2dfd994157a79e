"""`nas search`, `nas show`, `nas export`: from flags to journeys, results to text."""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from latency.system.end_with_parent import end_with_parent
from nas.cli import ray_workers
from nas.cli.follow import follow

if TYPE_CHECKING:
    from nas.searching import workers as processes
    from nas.searching.parts import Parts
    from nas.searching.result import Study
    from nas.searching.study import Settings
    from nas.supernets.one_shot import OneShot

SEARCH_EPILOG = """examples:
  nas search
  nas search --space mnasnet:a1 --task fashion_mnist --target cpu:threads=1 --budget-ms 4.5 \\
             --controller ppo --trials 2000 --workers 2 --study mnas1
  nas search --target cpu:threads=1 --budget-ms 2 --target cpu:threads=2 --budget-ms 1.2
  nas search --method "ptq:8|ptq:4|none" --method "prune_channels:0.25|none" --max-bytes 150e3
The same command again resumes the study; more --trials extend it."""
EVALUATORS = ("train", "supernet")
NONE = "none"  # the alternative of --method that leaves a network as it is


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """The parsers of the three commands."""
    search = commands.add_parser(
        "search",
        parents=[common],
        help="find a network that is as good as it can be within a latency budget",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=SEARCH_EPILOG,
    )
    what = search.add_argument_group("what to search")
    what.add_argument("--space", default="mnasnet", help="search space[:base] (%(default)s)")
    what.add_argument(
        "--task",
        default="digits",
        help="proxy task, e.g. digits, fashion_mnist, image_folder:PATH, table:FILE (%(default)s)",
    )
    what.add_argument(
        "--target", action="append", help="device to time on; repeat for several (cpu:threads=1)"
    )
    what.add_argument(
        "--budget-ms",
        action="append",
        type=_budget,
        help="latency budget, one for each --target; min: as fast as possible"
        " (0.8 of the base network's)",
    )
    what.add_argument("--input", type=int, help="side of the timed input (the task's)")
    what.add_argument("--max-params", type=float, help="hard limit on trainable parameters")
    what.add_argument("--max-macs", type=float, help="hard limit on multiply-adds")
    what.add_argument("--max-bytes", type=float, help="hard limit on the .tflite file")
    what.add_argument(
        "--method",
        dest="methods",
        action="append",
        default=[],
        help="compression as one more choice, e.g. 'ptq:8|ptq:4|none'; repeat for several",
    )
    how = search.add_argument_group("how to search")
    how.add_argument("--controller", default="surrogate", help="see `nas list` (%(default)s)")
    how.add_argument(
        "--evaluator",
        default="train",
        metavar="train|supernet[:EPOCHS]",
        help="train each network by itself, or judge all with the weights of one that holds the"
        " whole space, trained once (%(default)s)",
    )
    how.add_argument(
        "--reward",
        default="absolute",
        choices=["absolute", "soft", "hard", "relu", "pareto"],
        help="how quality and latency become one number; pareto: they do not (%(default)s)",
    )
    how.add_argument(
        "--beta",
        type=_beta,
        help="exponent or weight of latency in the reward;"
        " auto: calibrate on the first networks (the reward's own)",
    )
    how.add_argument("--trials", type=int, help="networks to train (16)")
    how.add_argument(
        "--minutes",
        type=float,
        help="stop the search, finalists included, after this long (4 unless --trials is given)",
    )
    how.add_argument(
        "--profiles",
        type=int,
        help="networks to time for each one trained (4 if the controller can choose among them,"
        " else 1; fewer where timing takes most of --minutes)",
    )
    how.add_argument(
        "--filter",
        metavar="synflow|naswot|flops|params",
        help="train only what this score of untrained networks favours among those timed (none)",
    )
    how.add_argument(
        "--epochs",
        type=int,
        help="epochs of a candidate (a third of the task's, or 4; less, to a part of one, where"
        " --minutes are too few for some candidates)",
    )
    how.add_argument(
        "--finalists",
        type=int,
        default=3,
        help="best networks that are then trained for up to three times the epochs and timed again;"
        " 0: the best as it was judged (%(default)s)",
    )
    how.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    how.add_argument("--prove", action="store_true", help="compare with random search")
    where = search.add_argument_group("where it runs and what it leaves")
    where.add_argument("--study", help="name of the study (made of the flags)")
    where.add_argument("--out", default="runs", help="folder of the studies (%(default)s)")
    where.add_argument(
        "--storage",
        metavar="URL",
        help="postgresql://USER@HOST/DATABASE of a study on several machines, or sqlite:///FILE;"
        " the password in PGPASSWORD or ~/.pgpass (a journal file in the study's folder)",
    )
    where.add_argument(
        "--workers", type=int, default=1, help="processes on this machine (%(default)s)"
    )
    ray_workers.add(where)
    where.add_argument("--child", type=int, metavar="PARENT", help=argparse.SUPPRESS)
    search.set_defaults(run=run)
    show = commands.add_parser("show", parents=[common], help="print a study's result again")
    show.add_argument("folder", metavar="run", help="folder of the study, e.g. runs/mnas1")
    show.add_argument(
        "--follow", action="store_true", help="again whenever it changes, until the search ends"
    )
    show.set_defaults(run=run_show)
    export = commands.add_parser(
        "export", parents=[common], help="rebuild, train and write the network of any trial"
    )
    export.add_argument("folder", metavar="run", help="folder of the study")
    export.add_argument("--trial", type=int, help="number of the trial (the winner)")
    export.add_argument("--epochs", type=int, help="epochs to train (as a finalist); 0: untrained")
    export.add_argument("--out", help="folder to write to (RUN/trial_N)")
    export.set_defaults(run=run_export)


def _budget(text: str) -> float | str:
    return text if text == "min" else float(text)


def _beta(text: str) -> float | str:
    return text if text == "auto" else float(text)


def run(arguments: argparse.Namespace) -> int:
    """Begin or resume a study and print what it found; 0, or 130 where it was interrupted."""
    if arguments.child is not None:
        end_with_parent(arguments.child)
    ray_workers.check(arguments)
    from nas import backend
    from nas.cli.progress import Progress
    from nas.searching import journey, storage
    from nas.searching import study as studies

    if arguments.workers < 1:
        raise ValueError(f"--workers {arguments.workers}; expected at least 1")
    settings = _settings(arguments)
    folder = pathlib.Path(arguments.out) / (arguments.study or settings.name())
    if arguments.workers > 1:
        storage.refuse_more_than_one_worker(studies.location_of(folder, arguments.storage))
    threads = max(1, (os.cpu_count() or 1) // arguments.workers)
    backend.threads(ray_workers.threads(arguments) if arguments.ray else threads)
    parts, progress = parts_of(settings), Progress()
    start_workers: Callable[[], processes.Workers]
    start_workers = functools.partial(_start_workers, arguments.argv, arguments.workers - 1)
    if arguments.ray:
        start_workers = ray_workers.starter(arguments, folder, parts, progress)
    study = journey.search(
        parts,
        settings,
        folder,
        trials=arguments.trials,
        minutes=arguments.minutes,
        most_finalists=arguments.finalists,
        storage=arguments.storage,
        prove=arguments.prove,
        child=arguments.child is not None,
        start_workers=start_workers,
        on_event=progress,
    )
    if arguments.child is None:
        _print(study, arguments.json)
    return 130 if study.interrupted else 0


def run_show(arguments: argparse.Namespace) -> None:
    """Print the result of a study, finished or not."""
    if arguments.follow:
        if arguments.json:
            raise ValueError("--follow prints tables: leave out --json, or --follow")
        return follow(pathlib.Path(arguments.folder))
    from nas.searching.result import Study

    _print(Study.load(arguments.folder), arguments.json)


def run_export(arguments: argparse.Namespace) -> None:
    """Rebuild the network of a trial, train it, write its files."""
    from nas.searching import study as studies
    from nas.searching.result import Study

    folder = pathlib.Path(arguments.folder)
    settings = studies.read_settings(folder)
    if settings.space.startswith("scaling:"):
        raise ValueError(f"{folder} is of nas scale, whose networks are all in {folder.parent}")
    parts = parts_of(settings) if studies.made_of_names(folder) else None
    study = Study.load(folder, parts)
    exported = study.export(arguments.trial, epochs=arguments.epochs, out=arguments.out)
    print(json.dumps(exported.to_json(), indent=1) if arguments.json else exported)


def _print(study: "Study", as_json: bool) -> None:
    print(json.dumps(study.to_json(), indent=1) if as_json else study)


def _start_workers(argv: list[str], count: int) -> list[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "nas", *argv, "--child", str(os.getpid())]
    return [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(count)]


def _settings(arguments: argparse.Namespace) -> "Settings":
    """The names that the flags give."""
    from nas import registry
    from nas.searching.study import Settings

    given = {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(Settings)
        if hasattr(arguments, field.name)
    }
    given["targets"] = arguments.target or Settings.targets
    given["budgets_ms"] = arguments.budget_ms
    task = registry.parse(arguments.task)
    if task.name == "table":  # its own space and devices
        if arguments.target:
            raise ValueError("--task table has its own devices; name them: table:FILE,cost=A+B")
        if arguments.methods or arguments.evaluator != "train":
            flag = "--method" if arguments.methods else f"--evaluator {arguments.evaluator}"
            raise ValueError(f"--task table has figures only: there is no network for {flag}")
        given["space"] = "table"
        given["targets"] = _columns(arguments.task)
    return Settings(**given)


def _columns(task: str) -> tuple[str, ...]:
    """The names of a table's costs; "cost", as ever, where it has one and that is not named."""
    from nas import registry

    named = dict(registry.parse(task).options).get("cost")
    if named is not None:
        return tuple(str(named).split("+"))
    names = registry.task(task).cost_names
    return names if len(names) > 1 else ("cost",)


def parts_of(settings: "Settings") -> "Parts":
    """The objects that the names of a study stand for; `ValueError` of an unknown name."""
    from nas import backend, registry
    from nas.searching.parts import Parts

    controller = functools.partial(registry.controller, settings.controller)
    one_shot = _one_shot(settings.evaluator)
    if registry.parse(settings.task).name == "table":
        return Parts(table=registry.task(settings.task), controller=controller)
    registry.known("space", registry.parse(settings.space).name)
    registry.known("task", registry.parse(settings.task).name)
    targets = tuple(registry.target(text) for text in settings.targets)
    for text in settings.methods:
        _check_alternatives(text, settings.targets, targets)
    backend.load()
    sample, baseline = registry.space(settings.space)
    return Parts(
        controller=controller,
        task=registry.task(settings.task),
        task_at=lambda size: registry.task(settings.task, size=size),
        task_name=settings.task,
        sample=sample,
        baseline=baseline,
        targets=targets,
        device=registry.target,
        alternatives=tuple(_alternatives(text) for text in settings.methods),
        one_shot=one_shot,
    )


def _one_shot(text: str) -> "OneShot | None":
    """How --evaluator judges: in a supernet, or (None) by trainings."""
    from nas import registry
    from nas.supernets.one_shot import OneShot

    named = registry.parse(text)
    options = {"epochs": named.value, **dict(named.options)}
    if named == registry.Spec("train"):
        return None
    if named.name != "supernet":
        raise ValueError(f"--evaluator {text}: expected train, or supernet[:EPOCHS][,examples=N]")
    for name in options:
        if name not in ("epochs", "examples"):
            raise ValueError(
                f"--evaluator supernet has no option {name!r} (it has: epochs, examples)"
            )
    return OneShot(**options)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|"))


def _check_alternatives(text: str, specs: tuple[str, ...], targets: tuple[Any, ...]) -> None:
    """`ValueError` of a --method that names no methods, before anything heavy is loaded."""
    from nas import registry

    names = _names(text)
    if len(set(names)) < len(names):
        raise ValueError(f"--method {text!r} names an alternative twice")
    for name in names:
        if name != NONE:
            registry.known("method", registry.parse(name).name)
    for target, named in zip(targets, specs, strict=True):
        if not target.runs_tflite:
            raise ValueError(
                f"--target {named} does not run the .tflite files that --method makes; expected a"
                " target that runs them, such as cpu, android or ssh"
            )


def _alternatives(text: str) -> dict[str, Any]:
    """What a --method lets a search choose from: name -> method, None for "none"."""
    from nas import registry

    return {name: None if name == NONE else registry.method(name) for name in _names(text)}
