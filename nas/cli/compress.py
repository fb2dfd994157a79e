"""`nas compress`: from flags to `nas.compression.journey.compress`, and its result as a table."""

import argparse
import json
import pathlib
from typing import Any

from nas.cli import flags, shapes
from nas.cli.train import add_data, add_recipe, judged_by, recipe_fields, task_of

EPILOG = """examples:
  nas compress a.keras --method prune:0.8 --task fashion_mnist --out small.keras --out small.tflite
  nas compress a.h5 --method distill:teacher=b.keras --method qat:2 --data train.npz --out a.tflite
  nas compress moe.keras --method drop_experts:0.5,criterion=EAN,rounds=4 --task text:a.txt \\
               --out small_moe.keras
  nas compress a.keras --method ptq:8 --data train.npz --target cpu:threads=1 --out a.tflite
  nas compress a.keras --max-drop 1 --data x.npz --out smallest.tflite
  nas compress a.keras --max-bytes 120e3 --data x.npz --out best.tflite --front tried/
  nas compress a.keras --max-drop 1 --faster --target cpu:threads=1 --data x.npz --out fast.tflite
  nas compress autoencoder.keras --method qat:4 --data x.npy --target-is-input --out a.tflite
  nas compress a.tflite --method ptq:8,io=int8 --data inputs.npy --out microcontroller.tflite
  nas compress a.tflite --method float16 --out half.tflite
  nas compress prices.keras --method ptq:8 --data rows.csv,target=price --metric r2 --out a.tflite
Beside the first file it leaves a .json (before and after, what was left alone and why) and a .png
(which layers bear it least). Ctrl-C, or a kill, loses at most the minute since the last checkpoint:
the same command goes on. The model itself is never changed."""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """The parser of `nas compress`."""
    parser = commands.add_parser(
        "compress",
        parents=[common],
        help="make a network smaller and faster: pruning, quantization, distillation and more",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    parser.add_argument(
        "model",
        help=".keras, .h5, SavedModel, .tflite, .bin of llama2.c, .safetensors, a folder of a"
        " search, or family:variant",
    )
    parser.add_argument(
        "--method", action="append", help="see `nas list method`; repeat for several"
    )
    _add_goal(parser)
    parser.add_argument(
        "--out",
        action="append",
        required=True,
        help=".keras, .tflite, .safetensors or .mlpackage to write; repeat for several",
    )
    parser.add_argument("--task", help="what to train and judge on, see `nas list task`")
    add_data(parser)
    shapes.add(parser)
    parser.add_argument("--signature", help="of a .tflite file with several, which to compress")
    parser.add_argument(
        "--target", action="append", help="device to time the .tflite on, before and after"
    )
    parser.add_argument(
        "--epochs", type=int, help="times through the data (the task's, where a method trains)"
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=512,
        help="of the training part, that methods score and calibrate on (%(default)s)",
    )
    parser.add_argument(
        "--prefer",
        choices=["size", "speed"],
        default="size",
        help="where LiteRT runs wider integers faster than narrow ones (%(default)s)",
    )
    parser.add_argument(
        "--no-sensitivity", action="store_true", help="leave out the layer by layer plot"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    add_recipe(parser, "how to train (defaults: the task's, at a quarter of its learning rate)")
    parser.set_defaults(run=run)


def _add_goal(parser: argparse.ArgumentParser) -> None:
    from nas.compression.goals.goal import Goal

    group = parser.add_argument_group(
        "instead of --method a goal",
        "the smallest, best or fastest .tflite file within limits: what is tried is judged on one"
        " part of the examples, and proven on another",
    )
    flags.add(group, Goal)
    group.add_argument("--front", metavar="DIR", help="for the files of which no other is better")


def run(arguments: argparse.Namespace) -> int:
    """Begin or go on with a compression."""
    from nas import backend, registry

    for kind, texts in (("method", arguments.method or []), ("target", arguments.target or [])):
        for text in texts:
            registry.known(kind, registry.parse(text).name)
    _check_outs(arguments)
    backend.load()
    from nas import api
    from nas.cli.listener import Terminal
    from nas.compression.goals.journey import towards
    from nas.compression.journey import compress, fine_tuning

    task_name = task_of(arguments)
    methods = [registry.method(text) for text in arguments.method or []]
    goal = _goal(arguments)
    network = api.open(arguments.model, signature=arguments.signature)
    task = None if task_name is None else registry.task(task_name)
    options: dict[str, Any] = dict(
        out=arguments.out,
        epochs=arguments.epochs,
        recipe=fine_tuning(task, **recipe_fields(arguments)),
        targets=[(text, registry.target(text)) for text in arguments.target or []],
        examples_count=arguments.examples,
        prefer=arguments.prefer,
        by_layer=not arguments.no_sensitivity,
        seed=arguments.seed,
        checkpoint_seconds=arguments.checkpoint_seconds,
        name=arguments.model,
        task_name=arguments.task or arguments.data,
        shapes=shapes.parsed(arguments.shape),
        **judged_by(arguments),
        on_event=Terminal(),
    )
    if goal is None:
        done = compress(network, methods, task, **options)
    else:
        done = towards(network, goal, task, front=arguments.front, **options)
    print(json.dumps(done.to_json(), indent=1, default=str) if arguments.json else done.table())
    return 0


def _goal(arguments: argparse.Namespace) -> Any:
    """The goal that flags give; None where they name methods."""
    from nas.compression.goals.goal import Goal

    given = flags.given(arguments, Goal)
    limits = given.keys() & {"max_drop", "max_bytes", "budget_ms", "faster"}
    if bool(arguments.method) == bool(limits):
        raise ValueError(
            "expected --method, see `nas list method`, or a goal: --max-drop, --max-bytes or"
            " --budget-ms; one of the two"
        )
    if not limits:
        if arguments.front or "minutes" in given:
            raise ValueError("--front and --minutes belong to a goal, such as --max-drop 1")
        return None
    if not any(pathlib.Path(out).suffix == ".tflite" for out in arguments.out):
        raise ValueError("a goal is that of a .tflite file; give one --out NAME.tflite")
    return Goal(**given)


def _check_outs(arguments: argparse.Namespace) -> None:
    """Refuse names of files before anything is loaded."""
    from nas.files.writers import SUFFIXES

    for out in map(pathlib.Path, arguments.out):
        if out.suffix not in SUFFIXES:
            raise ValueError(f"--out {out}: expected a name that ends in {', '.join(SUFFIXES)}")
        if out.exists() and out.resolve() == pathlib.Path(arguments.model).resolve():
            raise ValueError(f"--out {out}: this is the file to compress, which is never changed")
