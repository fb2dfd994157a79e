"""The journey behind `nas compress`: a network and methods to smaller files and what they cost."""

import argparse
import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
from typing import Any

from nas import backend, registry
from nas.compression.examples import examples

SUFFIXES = (".keras", ".tflite", ".mlpackage", ".safetensors")
EPOCHS = 10  # where a method trains, and neither the flags nor the task say how long
# Of the task's learning rate, for networks that are trained already.
FINE = 0.25


def compress(arguments: argparse.Namespace) -> int:
    """`nas compress`: begin or go on with a compression, leave files and what is known of them."""
    outs = [pathlib.Path(out) for out in arguments.out]
    for out in outs:
        if out.suffix not in SUFFIXES:
            raise ValueError(f"--out {out}: expected a name that ends in {', '.join(SUFFIXES)}")
        if out.exists() and out.resolve() == pathlib.Path(arguments.model).resolve():
            raise ValueError(f"--out {out}: this is the file to compress, which is never changed")
    for text in arguments.method:
        registry.known("method", registry.parse(text).name)
    keras = backend.load()
    from nas.files import open_network

    methods = [method_of(text) for text in arguments.method]
    read = open_network.read(arguments.model)
    task = _task(arguments)
    recipe, epochs = _recipe(arguments, task, methods)
    identity = {
        "model": _digest(read.model),
        "methods": [repr(method) for method in methods],
        "task": task and task.recipe,
        "epochs": epochs,
        "seed": arguments.seed,
        **dataclasses.asdict(recipe),
        "examples": arguments.examples,
        "backend": keras.config.backend(),
    }
    return _run(arguments, outs, read, task, methods, recipe, epochs, identity)


def method_of(text: str) -> Any:
    """The method a flag names; a teacher in a file is read, and known by its weights."""
    method = registry.method(text)
    teacher = getattr(method, "teacher", None)
    if isinstance(teacher, str):
        from nas.files import open_network

        model = open_network.read(teacher).model
        named = f"{teacher} {_digest(model)}"
        method = dataclasses.replace(method, teacher=model, named=named)
    return method


def _task(arguments: argparse.Namespace) -> Any:
    if arguments.task and arguments.data:
        raise ValueError("--task and --data both say what the examples are; expected one of them")
    if arguments.task is None and arguments.data is None:
        return None
    return registry.task(arguments.task or f"npz:{arguments.data}")


def _recipe(arguments, task: Any, methods: list) -> tuple[Any, int]:
    """How the network is trained and for how many epochs; 0 where no method needs it."""
    from nas.training.recipe import Recipe, asked, recipe_of

    epochs = arguments.epochs
    if epochs is None:
        epochs = 0
        if task is not None and any(method.trains for method in methods):
            epochs = task.training.get("epochs", EPOCHS)
    if epochs and task is None:
        raise ValueError(f"--epochs {epochs} without examples; name a --task, or --data FILE.npz")
    recipe = recipe_of(task) if task is not None else Recipe()
    fine = {"learning_rate": FINE * recipe.learning_rate, "patience": None}
    return dataclasses.replace(recipe, **(fine | asked(arguments))), epochs


def _digest(model: Any) -> str:
    digest = hashlib.sha256(model.to_json().encode())
    for array in model.get_weights():
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _run(arguments, outs, read, task, methods, recipe, epochs, identity) -> int:
    from compress import method as contract
    from nas.compression import before_and_after
    from nas.training import loop
    from nas.training.checkpoint import Checkpoint
    from nas.training.progress_line import Line

    say = functools.partial(print, file=sys.stderr, flush=True)
    outs[0].parent.mkdir(parents=True, exist_ok=True)
    model = read.model
    say(
        f"{arguments.model}: {model.count_params():,} parameters in {len(model.layers)} layers; "
        f"{', '.join(arguments.method)}"
    )
    if epochs:
        loop.check(model, task, epochs)
    data = examples(task, model, arguments.examples, arguments.seed)
    before = _judged(model, task)
    if task is not None:
        say(f"before: {task.metric} {before['quality']:.4f}, loss {before['loss']:.4f}")
    checkpoint = Checkpoint(
        outs[0].with_name(f"{outs[0].stem}.checkpoint.npz"), identity, arguments.checkpoint_seconds
    )
    trained = []

    def fit(prepared, update) -> None:
        found = checkpoint.read()
        if found is not None:
            say(f"going on at step {found.step}, after {found.seconds:.0f} s of training")

        def state() -> dict[str, float]:
            states = [method.state(prepared) for method in methods]
            return {name: value for one in states for name, value in one.items()}

        line = Line(task, recipe.batch_size, epochs, None, state)
        with checkpoint.interruptible():
            trained.append(
                loop.fit(
                    prepared,
                    task,
                    epochs,
                    arguments.seed,
                    recipe=recipe,
                    watch=line,
                    update=update,
                    checkpoint=checkpoint,
                )
            )

    try:
        import keras

        keras.utils.set_random_seed(arguments.seed)
        done = contract.compress(model, methods, fit if epochs else None, data)
    except loop.Interrupted:
        say("\ninterrupted: the same command goes on from there")
        return 130
    except FloatingPointError as error:  # what is kept may be spoiled as well
        checkpoint.delete()
        raise ValueError(str(error)) from error
    for name, reason in read.opaque.items():
        done.record.untouched.setdefault(name, reason)
    record = {
        "model": arguments.model,
        "source": read.source,
        "methods": identity["methods"],
        "task": arguments.task or arguments.data,
        "metric": task and task.metric,
        "epochs": epochs,
        "before": before,
        "after": _judged(done.model, task),
        "untouched": done.record.untouched,
        "told": done.record.told,
        "history": [dataclasses.asdict(epoch) for one in trained for epoch in one.history],
        "identity": identity,
    }
    if not arguments.no_sensitivity and data is not None and data.loss is not None:
        from nas.compression import sensitivity

        record["sensitivity"] = sensitivity.by_layer(model, methods, data)
    targets, prefer = arguments.target or [], arguments.prefer
    before_and_after.write(outs, read, done, data, task, record, targets, prefer, say)
    checkpoint.delete()
    _tell(record, arguments.json)
    return 0


def _judged(model: Any, task: Any) -> dict:
    """Quality and loss on the held-out part, parameters and how many of them are not 0."""
    import numpy as np

    from nas.training import loop

    arrays = model.get_weights()
    found = {
        "params": sum(array.size for array in arrays),
        "nonzeros": int(sum(np.count_nonzero(array) for array in arrays)),
    }
    if task is not None:
        found["quality"], found["loss"] = loop.measure(model, task)
    return found


def _tell(record: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(record, indent=1, default=str))
        return
    from nas.report.tables import compression

    print(compression.table(record))
