"""`nas.train`: a network and a task to a trained network, its files and what is known of it."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import pathlib
import platform
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from latency.networks import keras_file
from latency.system.json_records import utc_now, write_json
from nas import backend, interruption
from nas.events import Listener, Message, ignore
from nas.files.flatten import check_graph
from nas.files.hand_over.attach import write_script
from nas.files.hand_over.model_card import Origin, without_folders
from nas.files.open_network import Network
from nas.networks.build import build, digest_of, for_task, identity_of, name_of
from nas.tasks.scoring.compiled import compiled_of
from nas.tasks.task import Task
from nas.training import loop
from nas.training.batches import count, named_inputs
from nas.training.chance import beside
from nas.training.checkpoint import Checkpoint, difference
from nas.training.network_task import network_task
from nas.training.recipe import Recipe, recipe_of
from nas.training.state import TrainingBegins

EPOCHS = 10  # where neither the caller nor the task says
CHECKED_S = 30.0  # between two checks that the loss is finite
PROBABILITIES = "ends in softmax: the loss is that of the logarithm of its probabilities"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Trained:
    """A trained network and how it came about.

    network: the `keras.Model`, or the .keras file that holds it. config: its family's Config, or
    None. record: all that is known, as JSON: quality, curves, recipe, versions. task_files: what
    the task adds to the files, such as a tokenizer: suffix -> content. origin: what files say.
    """

    network: Any
    config: Any
    record: dict[str, Any]
    task_files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    origin: Origin = Origin("network", "a training")

    @functools.cached_property
    def model(self) -> Any:
        """The `keras.Model`; read from its file where an earlier call trained it."""
        if isinstance(self.network, pathlib.Path):
            return keras_file.load(self.network)
        return self.network

    @property
    def quality(self) -> float:
        """Quality 0..1 of the validation part, in the task's metric."""
        return self.record["quality"]

    @property
    def history(self) -> list[dict[str, Any]]:
        """One dict an epoch: loss, valid_loss, quality, seconds."""
        return self.record["history"]

    @property
    def files(self) -> list[str]:
        """The files that were written."""
        return self.record.get("files", [])

    def __repr__(self) -> str:
        record = self.record
        early = record["epoch"] < len(record["history"])
        kept = f" after epoch {record['epoch']}" if early else ""
        balanced = record.get("balanced_accuracy")
        also = "" if balanced is None else f" (balanced accuracy {balanced:.4f})"
        text = (
            f"{record['metric']} {record['quality']:.4f}{also}, validation loss "
            f"{record['valid_loss']:.4f}{kept}, {record['seconds']:.0f} s"
        )
        return "\n".join([text, *(f"WARNING: {one}" for one in record.get("warnings", ()))])

    def _repr_html_(self) -> str:
        from nas.report.plots import figure, training

        return figure.svg(training.draw(self.record))

    def to_json(self) -> dict[str, Any]:
        """All that is known, as plain data."""
        return self.record

    def write(self, path: str | pathlib.Path) -> None:
        """Write a .tflite file of the deployed form, and use.py; `ValueError` if there is none."""
        from nas.files.network_files import write_tflite

        out = pathlib.Path(path)
        if out.suffix != ".tflite":
            raise ValueError(f"{path}: expected a name that ends in .tflite; save() writes .keras")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_tflite(self.model, self.config, out, self.origin)
        self.record["files"] = [one for one in self.files if one != str(out)] + [str(out)]

    def save(self, path: str | pathlib.Path) -> None:
        """Write the network, its record, its curves and its Config, where it has one.

        path: a name that ends in .keras, beside which the others are put, or a folder, which
            `nas.open` then takes (`nas.files.result_files.keras_file`).
        """
        from nas.files.network_files import save
        from nas.files.result_files import keras_file as file_of
        from nas.files.writers.config_file import as_python
        from nas.report.plots import figure, training

        out = file_of(path)
        files = [out, out.with_suffix(".json"), out.with_suffix(".png"), write_script(out.parent)]
        if self.config is not None:
            in_folder = out != pathlib.Path(path).expanduser()
            files.append(out.with_name("config.py") if in_folder else out.with_suffix(".py"))
            files[-1].write_text(as_python(self.config))
        for suffix, content in self.task_files.items():
            files.append(out.with_suffix(suffix))
            files[-1].write_bytes(content)
        self.record["files"] = [str(file) for file in files]
        write_json(out.with_suffix(".json"), self.record)
        figure.save(out.with_suffix(".png"), training.draw(self.record))
        save(self.model, out, self.record.get("card"))  # last: where it is, everything is


@interruption.interruptible()
def train(
    network: Any,
    task: Task,
    *,
    epochs: int | None = None,
    minutes: float | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    start: str | pathlib.Path | None = None,
    mixed_precision: bool = False,
    out: str | pathlib.Path | None = None,
    checkpoint_seconds: float = 60.0,
    name: str | None = None,
    task_name: str | None = None,
    loss: Any = None,
    metric: Any = None,
    target_is_input: bool = False,
    on_event: Listener = ignore,
) -> Trained:
    """Train a network on a task.

    network: the Config of a family, of which a network with new weights is made, or a
        `keras.Model` or an opened `Network`, which is trained in place.
    task: a `nas.Task`.
    epochs: times through the data (the task's, or 10). minutes: train for this long at most.
    recipe: how; the task's unless given. seed: of weights, order of examples, dropout.
    start: a .keras file whose weights of equal path and shape are taken over.
    mixed_precision: compute in bfloat16; the weights that are kept are float32. For a Config only.
    out: the .keras file to write. With it there are checkpoints: killed or interrupted, the same
        call goes on and ends with the same weights; finished, it is read and returned.
    name, task_name: what network and task are called in the record.
    loss, metric, target_is_input: of data that leave them open (`nas.training.network_task`).
    on_event: is called with `nas.Message`, `TrainingBegins` and `nas.training.state.Now`.

    Raises `ValueError` where network and task do not fit, or `out` holds another training;
    `nas.training.loop.Interrupted` after Ctrl-C, with the state kept where there is an `out`.
    """
    keras = backend.load()
    model, config = None, network
    compiled = None
    if isinstance(network, keras.Model):
        model, config = network, None
        compiled = compiled_of(model)
    elif isinstance(network, Network):
        model, config = network.model, network.config
        compiled = compiled_of(model, network.read_from)
    path = None if out is None else pathlib.Path(out)
    if path is not None and path.suffix != ".keras":
        raise ValueError(f"out={out}: expected a name that ends in .keras")
    if start is not None and not pathlib.Path(start).is_file():
        raise ValueError(f"no file {start} to take weights from")
    if model is None:
        config = for_task(config, task.fields, task.name)
    elif mixed_precision:
        raise ValueError("mixed_precision rebuilds a network: expected the Config of a family")
    choices = {"loss": loss, "metric": metric, "target_is_input": target_is_input}
    asked = {key: str(one) for key, one in choices.items() if one}
    notes: list[str] = []
    if model is not None:
        task, notes = network_task(task, _functional(keras, model), compiled=compiled, **choices)
    recipe = recipe or recipe_of(task)
    if epochs is None and minutes is None:
        epochs = task.training.get("epochs", EPOCHS)
    identity = {
        "network": identity_of(config) if model is None else digest_of(model),
        "family": type(config).__module__ if model is None else None,
        "task": task.recipe,
        "epochs": epochs,
        "minutes": minutes,
        "seed": seed,
        **dataclasses.asdict(recipe),
        "mixed precision": mixed_precision,
        "from": None if start is None else _digest(pathlib.Path(start)),
        "backend": keras.config.backend(),
        **asked,
    }
    if path is not None and (record := _finished(path, identity)) is not None:
        on_event(Message(f"{path} is trained already; another --out, or delete it, to begin again"))
        origin = Origin.of(record["network"], f"trained as {path.name}", None, path)
        return Trained(path, config, record, origin=origin)
    name = name or (name_of(config) if model is None else model.name)
    model = _built(keras, config, seed, mixed_precision) if model is None else model
    task_name = task_name or task.name
    if start is not None:
        on_event(Message(_start_from(model, pathlib.Path(start))))
    trained = _functional(keras, model)
    if config is not None and task.of_network:
        task, notes = network_task(task, trained, **choices)
    for note in notes:
        on_event(Message(f"{name}: {note}"))
    if isinstance(task.train[0], dict):
        trained = named_inputs(trained)
    loop.check(trained, task, epochs, minutes)
    if config is None and loop.gives_probabilities(trained, task):
        on_event(Message(f"{name} {PROBABILITIES}"))
    examples = count(task.train)
    on_event(
        Message(
            f"{name}, {model.count_params():,} parameters, on {task_name}: {examples:,} examples, "
            f"batches of {min(recipe.batch_size, examples)}, {_described(recipe)}"
        )
    )
    checkpoint = None
    if path is not None:
        checkpoint = Checkpoint(
            path.with_name(f"{path.stem}.checkpoint.npz"), identity, checkpoint_seconds
        )
    on_event(TrainingBegins(task, recipe.batch_size, epochs, minutes))
    done = fit(
        trained,
        task,
        checkpoint,
        on_event,
        epochs=epochs,
        seed=seed,
        recipe=recipe,
        minutes=minutes,
    )
    if mixed_precision:
        from families.layers import copy_weights

        trained, model = model, _built(keras, config, seed, False)
        copy_weights(trained, model)
    record = _record(keras, name, model, config, task, task_name, done, identity)
    source = name if not isinstance(network, Network) else without_folders(network.source)
    record |= beside(trained, task, done.quality)
    origin = Origin.of(name, f"{source}; trained on {task_name}", task)
    record["card"] = origin.card(model)
    result = Trained(model, config, record, task.files, origin)
    if path is not None and checkpoint is not None:
        interruption.hand_over()
        result.save(path)
        checkpoint.delete()
    return result


def fit(
    model: Any, task: Task, checkpoint: Checkpoint | None, on_event: Listener, **options: Any
) -> loop.Training:
    """`nas.training.loop.fit` with progress as events, a checkpoint, and a check of the loss.

    Raises `ValueError` where the loss is no longer finite; the checkpoint, whose weights may not be
    either, is deleted then.
    """
    began = checkpoint.read() if checkpoint is not None else None
    if began is not None:
        on_event(Message(f"going on at step {began.step}, after {began.seconds:.0f} s of training"))
    step, looked = began.step if began is not None else 0, time.monotonic()

    def watch(now: loop.Now) -> None:
        nonlocal step, looked
        step = now.step
        if now.judged is not None or time.monotonic() - looked > CHECKED_S:
            looked = time.monotonic()
            loss = float(np.asarray(now.loss))
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at step {now.step}, epoch {now.epoch}: lower"
                    " --learning-rate, lengthen --warm-up, or bound the gradients with --clip 1"
                )
        on_event(now)

    try:
        return loop.fit(model, task, watch=watch, checkpoint=checkpoint, **options)
    except loop.Interrupted:
        if checkpoint is not None:
            on_event(Message(f"interrupted at step {step}: the same command goes on from there"))
        raise
    except FloatingPointError as error:
        if checkpoint is not None:
            checkpoint.delete()
        raise ValueError(str(error)) from error


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _finished(out: pathlib.Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The record of an earlier, finished run of the same call; `ValueError` if of another one."""
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


def _built(keras: Any, config: Any, seed: int, mixed_precision: bool) -> Any:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if mixed_precision else "float32")
    try:
        return build(config, seed)
    finally:
        keras.config.set_dtype_policy(before)


def _functional(keras: Any, model: Any) -> Any:
    """A Functional model over the same weights: the model itself, unless it is Sequential."""
    check_graph(model)
    if not isinstance(model, keras.Sequential):
        return model
    if not model.built or not model.inputs:
        raise ValueError(
            f"{model.name}: a Sequential model without an input shape; begin it with "
            "keras.Input(SHAPE), or call model.build((None, *SHAPE))"
        )
    (tensor,) = model.inputs
    inputs = keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name)
    return keras.Model(inputs, model(inputs), name=model.name)


def _start_from(model: Any, path: pathlib.Path) -> str:
    """Take over the weights of equal path and shape; what was taken, in words."""
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
    text = f"{taken} of {len(model.weights)} weights from {path}"
    return f"{text}; new: {', '.join(new[:4])}{' ...' if len(new) > 4 else ''}" if new else text


def _described(recipe: Recipe) -> str:
    text = f"{recipe.optimizer} {recipe.learning_rate:g}, {recipe.schedule}"
    text += f", weight decay {recipe.weight_decay:g}" if recipe.weight_decay else ""
    text += f", clip {recipe.clip:g}" if recipe.clip else ""
    return text + (f", average {recipe.ema:g}" if recipe.ema else "")


def _record(
    keras: Any,
    name: str,
    model: Any,
    config: Any,
    task: Task,
    task_name: str,
    done: loop.Training,
    identity: dict[str, Any],
) -> dict[str, Any]:
    module = sys.modules.get(keras.config.backend())
    return {
        "network": name,
        "config": None if config is None else repr(config),
        "params": model.count_params(),
        "task": task_name,
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "percent": task.percent,
        "quality": done.quality,
        "valid_loss": done.kept.valid_loss,
        "epoch": done.kept.number,
        "seconds": done.history[-1].seconds,
        "identity": identity,
        "history": [dataclasses.asdict(epoch) for epoch in done.history],
        "date": utc_now(),
        "machine": platform.processor() or platform.machine(),
        "versions": {
            "nas": importlib.metadata.version("nas"),
            "python": platform.python_version(),
            "keras": keras.__version__,
            "numpy": np.__version__,
            keras.config.backend(): getattr(module, "__version__", "unknown"),
        },
    }
