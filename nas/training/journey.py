"""The journey behind `nas train`: a catalog network and a task to a trained .keras file."""

import argparse
import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
from typing import Any

from nas import backend, registry
from nas.networks import build
from nas.training.recipe import Recipe

EPOCHS = 10  # where neither the flags nor the task say


def train(arguments: argparse.Namespace) -> int:
    """`nas train`: begin or go on with a training, leave the network and what is known of it."""
    out = pathlib.Path(arguments.out)
    if out.suffix != ".keras":
        raise ValueError(f"--out {out}: expected a name that ends in .keras")
    if arguments.start and not pathlib.Path(arguments.start).is_file():
        raise ValueError(f"--from: no file {arguments.start}")
    registry.known("family", registry.parse(arguments.network).name)
    registry.known("task", registry.parse(arguments.task).name)
    keras = backend.load()
    family, config = registry.network(arguments.network)
    task = registry.task(arguments.task)
    config = build.suited(config, task.fields, task.name)
    recipe, epochs = _recipe(arguments, task)
    identity = {
        "network": repr(config),
        "family": family.__name__,
        "task": task.recipe,
        "epochs": epochs,
        "minutes": arguments.minutes,
        "seed": arguments.seed,
        **dataclasses.asdict(recipe),
        "mixed precision": arguments.mixed_precision,
        "from": _digest(arguments.start),
        "backend": keras.config.backend(),
    }
    if (done := _finished(out, identity)) is not None:
        print(
            f"{out} is trained already; another --out, or delete it, to begin again",
            file=sys.stderr,
        )
        _tell(done, arguments.json)
        return 0
    return _run(arguments, keras, family, config, task, recipe, epochs, identity)


def _recipe(arguments: argparse.Namespace, task: Any) -> tuple[Recipe, int | None]:
    from nas.training.recipe import asked, recipe_of

    recipe = dataclasses.replace(recipe_of(task), **asked(arguments))
    epochs = arguments.epochs
    if epochs is None and arguments.minutes is None:
        epochs = task.training.get("epochs", EPOCHS)
    return recipe, epochs


def _digest(path: str | None) -> str | None:
    if path is None:
        return None
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:16]


def _finished(out: pathlib.Path, identity: dict) -> dict | None:
    """The record of an earlier, finished run of the same command; ValueError of another one."""
    from nas.training.checkpoint import difference

    if not out.exists():
        return None
    try:
        record = json.loads(out.with_suffix(".json").read_text())
        found = record["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{out} is there already, and no record of its training beside it: name another --out"
        ) from error
    expected = json.loads(json.dumps(identity))
    if found != expected:
        raise ValueError(
            f"{out} is there already, trained otherwise: {difference(found, expected)}; "
            "delete it, or name another --out"
        )
    return record


def _run(arguments, keras, family, config, task, recipe, epochs, identity) -> int:
    from nas.training import loop as training
    from nas.training.checkpoint import Checkpoint
    from nas.training.progress_line import Line

    out = pathlib.Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    say = functools.partial(print, file=sys.stderr, flush=True)
    model = _built(keras, family, config, arguments.seed, arguments.mixed_precision)
    if arguments.start:
        say(_start_from(model, pathlib.Path(arguments.start)))
    training.check(model, task, epochs, arguments.minutes)
    checkpoint = Checkpoint(
        out.with_name(f"{out.stem}.checkpoint.npz"), identity, arguments.checkpoint_seconds
    )
    count = len(next(iter(keras.tree.flatten(task.train))))
    say(
        f"{arguments.network}, {model.count_params():,} parameters, on {arguments.task}: "
        f"{count:,} examples, batches of {min(recipe.batch_size, count)}, {_about(recipe)}"
    )
    found = checkpoint.read()
    if found is not None:
        say(f"going on at step {found.step}, after {found.seconds:.0f} s of training")
    line = Line(task, recipe.batch_size, epochs, arguments.minutes)
    try:
        with checkpoint.interruptible():
            done = training.fit(
                model,
                task,
                epochs,
                arguments.seed,
                recipe=recipe,
                minutes=arguments.minutes,
                watch=line,
                checkpoint=checkpoint,
            )
    except training.Interrupted:
        line.end()
        say(f"interrupted at step {line.step}: the same command goes on from there")
        return 130
    except FloatingPointError as error:  # what is kept may be spoiled as well
        checkpoint.delete()
        raise ValueError(str(error)) from error
    if arguments.mixed_precision:
        from families.layers import copy_weights

        trained, model = model, _built(keras, family, config, arguments.seed, False)
        copy_weights(trained, model)
    record = _record(arguments, keras, model, config, task, done, identity)
    _write(out, model, config, task, recipe, record)
    checkpoint.delete()
    _tell(record, arguments.json)
    return 0


def _built(keras, family, config, seed: int, mixed_precision: bool) -> Any:
    keras.utils.set_random_seed(seed)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if mixed_precision else "float32")
    try:
        return family.build(config)
    finally:
        keras.config.set_dtype_policy(before)


def _start_from(model, path: pathlib.Path) -> str:
    """Take over the weights of equal path and shape; what was taken, in words."""
    from latency.networks import keras_file

    source = keras_file.load(path)
    found = {weight.path: weight for weight in source.weights}
    new = []
    for weight in model.weights:
        if weight.path in found and found[weight.path].shape == weight.shape:
            weight.assign(found[weight.path])
        else:
            new.append(weight.path)
    taken = len(model.weights) - len(new)
    if not taken:
        raise ValueError(f"--from {path}: it has no weight that this network has")
    told = f"{taken} of {len(model.weights)} weights from {path}"
    return f"{told}; new: {', '.join(new[:4])}{' ...' if len(new) > 4 else ''}" if new else told


def _about(recipe: Recipe) -> str:
    told = f"{recipe.optimizer} {recipe.learning_rate:g}, {recipe.schedule}"
    told += f", weight decay {recipe.weight_decay:g}" if recipe.weight_decay else ""
    told += f", clip {recipe.clip:g}" if recipe.clip else ""
    return told + (f", average {recipe.ema:g}" if recipe.ema else "")


def _record(arguments, keras, model, config, task, done, identity) -> dict:
    import platform

    import numpy

    import nas
    from latency.system.json_records import utc_now

    module = sys.modules.get(keras.config.backend())
    return {
        "network": arguments.network,
        "config": repr(config),
        "params": model.count_params(),
        "task": arguments.task,
        "metric": task.metric,
        "quality": done.quality,
        "valid_loss": done.kept.valid_loss,
        "epoch": done.kept.number,
        "seconds": done.history[-1].seconds,
        "identity": identity,
        "history": [dataclasses.asdict(epoch) for epoch in done.history],
        "date": utc_now(),
        "machine": platform.processor() or platform.machine(),
        "versions": {
            "nas": nas.__version__,
            "python": platform.python_version(),
            "keras": keras.__version__,
            "numpy": numpy.__version__,
            keras.config.backend(): getattr(module, "__version__", "unknown"),
        },
    }


def _write(out: pathlib.Path, model, config, task, recipe: Recipe, record: dict) -> None:
    """The network last: where it is, everything is."""
    from latency.system.json_records import write_json
    from nas.files.network_files import as_python, save
    from nas.report.plots.training import curves_png

    out.with_suffix(".py").write_text(as_python(config))
    for suffix, content in task.files.items():
        out.with_suffix(suffix).write_bytes(content)
    made = [out.with_suffix(suffix) for suffix in (".keras", ".json", ".png", ".py", *task.files)]
    record["files"] = [str(path) for path in made]
    write_json(out.with_suffix(".json"), record)
    curves_png(out.with_suffix(".png"), record)
    save(model, out)


def _tell(record: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(record, indent=1))
        return
    kept = f" after epoch {record['epoch']}" if record["epoch"] < len(record["history"]) else ""
    print(
        f"{record['metric']} {record['quality']:.4f}, validation loss {record['valid_loss']:.4f}"
        f"{kept}, {record['seconds']:.0f} s"
    )
    print("\n".join(record["files"]))
