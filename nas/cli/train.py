"""`nas train`: from flags to `nas.training.journey.train`, and its result in words."""

import argparse
import dataclasses
import json
import pathlib
from typing import Any

from nas import registry
from nas.cli import flags

EPILOG = """examples:
  nas train mnasnet:tiny --task digits --out digits.keras
  nas train decoder:tiny,dropout=0.1 --task text:shakespeare.txt --out shakespeare.keras
  nas train mobile_vmoe:tiny --task fashion_mnist --out a.keras --epochs 30 --ema 0.999 --patience 5
  nas train mnasnet:tiny --task image_folder:photos --from digits.keras --out photos.keras \\
            --minutes 10 --optimizer adamw --weight-decay 0.05 --learning-rate 1e-3
Beside a.keras it leaves a.json (settings, curves, quality), a.png (the curves), a.py (the Config)
and what the task adds, such as a tokenizer. Ctrl-C, or a kill, loses at most the minute since the
last checkpoint: the same command goes on, and ends with the same weights as without."""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """The parser of `nas train`."""
    parser = commands.add_parser(
        "train",
        parents=[common],
        help="train a network on a task",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    parser.add_argument(
        "network", help="family[:variant][,field=value...], a .keras file, or a folder of a search"
    )
    parser.add_argument("--task", help="what to train on, see `nas list task`")
    add_data(parser)
    parser.add_argument(
        "--out",
        action="append",
        required=True,
        help="the .keras file to write; repeat for a .tflite file, as it runs on devices",
    )
    parser.add_argument("--epochs", type=int, help="times through the data (the task's, or 10)")
    parser.add_argument(
        "--minutes",
        type=float,
        help="train for this long, instead of, or at most --epochs; the learning rate follows the"
        " clock, so two runs differ",
    )
    parser.add_argument("--from", dest="start", help=".keras file to begin with the weights of")
    parser.add_argument(
        "--seed", type=int, default=0, help="of weights, order, dropout (%(default)s)"
    )
    add_recipe(parser, "how to train (defaults: the task's)")
    parser.add_argument(
        "--mixed-precision",
        action="store_true",
        help="compute in bfloat16: pays on GPUs, TPUs, and for transformers on CPUs that have it",
    )
    parser.set_defaults(run=run)


def add_data(parser: argparse.ArgumentParser) -> None:
    """The flags of a user's own data, and of how a network is judged on them."""
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="instead of --task: .npz, .npy, .csv, .parquet, a folder of images, or a .py file with"
        " data(); options follow, as FILE,scale=1 (see `nas list task`: file)",
    )
    parser.add_argument("--loss", help="of Keras, as mae (of the compiled network, or by the data)")
    parser.add_argument("--metric", help="as accuracy, auc, mean_iou, rmse, r2 (the same)")
    parser.add_argument(
        "--target-is-input", action="store_true", help="of an autoencoder: the data need no targets"
    )


def task_of(arguments: argparse.Namespace) -> str | None:
    """The task that --task or --data name; `ValueError` of both."""
    if arguments.task and arguments.data:
        raise ValueError("--task and --data both say what the examples are; expected one of them")
    return arguments.task or (f"data_file:{arguments.data}" if arguments.data else None)


def judged_by(arguments: argparse.Namespace) -> dict[str, Any]:
    """Loss and metric that flags give."""
    return {name: getattr(arguments, name) for name in ("loss", "metric", "target_is_input")}


def add_recipe(parser: argparse.ArgumentParser, title: str, *leave_out: str) -> None:
    """The flags of a training that `nas train` and `nas compress` share."""
    from nas.training.recipe import Recipe

    group = parser.add_argument_group(title)
    flags.add(group, Recipe, leave_out=("momentum", *leave_out))
    group.add_argument(
        "--checkpoint-seconds", type=float, default=60, help="between checkpoints (%(default)s)"
    )


def recipe_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of a Recipe that flags give."""
    from nas.training.recipe import Recipe

    found = flags.given(arguments, Recipe)
    if found.get("weight_decay") and "optimizer" not in found:
        found["optimizer"] = "adamw"  # plain adam has none
    return found


def run(arguments: argparse.Namespace) -> int:
    """Begin or go on with a training."""
    outs = [pathlib.Path(one) for one in arguments.out]
    for one in outs:
        if one.suffix not in (".keras", ".tflite"):
            raise ValueError(f"--out {one}: expected a name that ends in .keras, or .tflite")
    if [one.suffix for one in outs].count(".keras") != 1:
        raise ValueError("--out: expected one name that ends in .keras, and any in .tflite")
    out = next(one for one in outs if one.suffix == ".keras")
    if arguments.start and not pathlib.Path(arguments.start).is_file():
        raise ValueError(f"--from: no file {arguments.start}")
    task_text = task_of(arguments)
    if task_text is None:
        raise ValueError("expected --task, see `nas list task`, or --data FILE")
    registry.known("task", registry.parse(task_text).name)
    network = _network(arguments.network)

    from nas.cli.listener import Terminal
    from nas.training.journey import train
    from nas.training.recipe import recipe_of

    task = registry.task(task_text)
    recipe = dataclasses.replace(recipe_of(task), **recipe_fields(arguments))
    done = train(
        network,
        task,
        epochs=arguments.epochs,
        minutes=arguments.minutes,
        recipe=recipe,
        seed=arguments.seed,
        start=arguments.start,
        mixed_precision=arguments.mixed_precision,
        out=out,
        checkpoint_seconds=arguments.checkpoint_seconds,
        name=arguments.network,
        task_name=arguments.task or arguments.data,
        **judged_by(arguments),
        on_event=Terminal(),
    )
    for one in outs:
        if one != out:
            done.write(one)
    if arguments.json:
        print(json.dumps(done.to_json(), indent=1))
    else:
        print(done)
        print("\n".join(done.files))
    return 0


def _network(text: str) -> Any:
    """A Config of the catalog, or the opened network of a file or folder."""
    from nas import api, catalog

    if text.endswith(".py") or catalog.is_name(text):
        config, weights = catalog.config_and_weights(text)
        return config if weights is None else api.open(text)
    return api.open(text)
