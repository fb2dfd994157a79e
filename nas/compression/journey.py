"""`nas.compress`: a network and methods to a smaller network, files, and what both cost."""

import dataclasses
import html
import pathlib
import platform
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from compress import method as core
from compress.examples.data import Data
from compress.method import Method
from latency.system.json_records import utc_now, write_json
from latency.target import Target
from nas import backend, interruption
from nas.compression import before_and_after, sensitivity, teachers
from nas.compression.examples import EXAMPLES, examples
from nas.compression.opened import opened
from nas.events import Listener, Message, ignore
from nas.files.flatten import check_copies
from nas.files.given_shapes import Shapes
from nas.files.hand_over.attach import write_script
from nas.files.hand_over.model_card import Origin
from nas.files.open_network import Network
from nas.files.writers import SUFFIXES
from nas.networks.build import digest_of, identity_of
from nas.report import doubts
from nas.tasks.task import Task
from nas.training import loop
from nas.training.chance import at_chance, balanced_accuracy
from nas.training.checkpoint import Checkpoint
from nas.training.journey import PROBABILITIES, fit
from nas.training.recipe import Recipe, recipe_of
from nas.training.state import TrainingBegins

EPOCHS = 10  # where a method trains, and neither the caller nor the task says how long
FEW = 2  # examples that copies of the network are compared on
FEW_OUTPUTS = 32  # examples without targets that outputs are compared on
FINE_TUNING = 0.25  # of the task's learning rate, for networks that are trained already


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Compressed:
    """A compressed network beside the one that it was made of.

    network: the original, opened. done: the `keras.Model` and what the methods did to it. data:
    the examples that methods looked at. task: what it was trained and judged on. record: all that
    is known, as JSON: before, after, files, what was left alone and why. prefer: "size" or "speed".
    """

    network: Network
    done: core.Compressed
    data: Data | None
    task: Task | None
    record: dict[str, Any]
    prefer: str = "size"

    @property
    def model(self) -> Any:
        """The compressed `keras.Model`."""
        return self.done.model

    @property
    def before(self) -> dict[str, Any]:
        """Of the original: params, nonzeros, and where there are labels quality and loss."""
        return self.record["before"]

    @property
    def after(self) -> dict[str, Any]:
        """The same of the compressed network."""
        return self.record["after"]

    def write(self, path: str | pathlib.Path) -> dict[str, Any]:
        """Write a .keras, .tflite, .mlpackage or .safetensors file, read back and compared.

        Returns what is known of the file and of the original in the same format: bytes, bits a
        weight. Raises `ValueError`, or `nas.CannotWrite`, where the file cannot hold the network.
        """
        out = _out(path, self.network)
        found = before_and_after.write(
            out, self.network, self.done, self.data, self.task, self.prefer, self.origin
        )
        if out.suffix in (".keras", ".tflite"):
            self.record["use"] = str(write_script(out.parent))
        others = [one for one in self.record["files"] if one["path"] != found["path"]]
        self.record["files"] = [*others, found]
        return found

    def time(self, targets: Iterable[Target]) -> dict[str, Any]:
        """Latencies of the .tflite files on targets: {"before": {repr of a target: ...}, ...}."""
        named = [(repr(target), target) for target in targets]
        return _timed(self, named)

    @property
    def origin(self) -> Origin:
        """What the files say of the network beside itself."""
        record = self.record
        return before_and_after.origin_of(
            self.network, record["model"], record["methods"], self.task
        )

    def table(self) -> str:
        """Before and after, as text."""
        from nas.report.tables import compression

        return compression.table(self.record)

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        from nas.report.plots import compression, figure, goal, sensitivity

        pictures = [figure.svg(compression.draw(self.record))]
        if "goal" in self.record:
            pictures.append(figure.svg(goal.draw(self.record)))
        if self.record.get("sensitivity"):
            pictures.append(figure.svg(sensitivity.draw(self.record)))
        return f"<pre>{html.escape(self.table())}</pre>{''.join(pictures)}"

    def to_json(self) -> dict[str, Any]:
        """All that is known, as plain data."""
        return self.record

    def save(self, path: str | pathlib.Path) -> None:
        """Write the network, its record, and a plot where it was measured layer by layer.

        path: a name that ends in .keras, beside which the others are put, or a folder, which
            `nas.open` then takes (`nas.files.result_files.keras_file`).
        """
        from nas.files.result_files import keras_file

        out = keras_file(path)
        self.write(out)
        self.save_record(out)

    def save_record(self, stem: str | pathlib.Path) -> None:
        """Write `stem`.json, and `stem`.png where it was measured layer by layer."""
        stem = pathlib.Path(stem)
        if self.record.get("sensitivity"):
            from nas.report.plots import figure, sensitivity

            picture = figure.save(stem.with_suffix(".png"), sensitivity.draw(self.record))
            self.record["plot"] = str(picture)
        if "goal" in self.record:
            from nas.report.plots import figure, goal

            drawing = goal.draw(self.record)
            path = stem.with_name(f"{stem.stem}.goal.png")
            self.record["goal_plot"] = str(figure.save(path, drawing))
        write_json(stem.with_suffix(".json"), self.record)


@interruption.interruptible()
def compress(
    network: Any,
    methods: Sequence[Method],
    task: Task | None = None,
    *,
    out: Sequence[str | pathlib.Path] = (),
    epochs: int | None = None,
    recipe: Recipe | None = None,
    targets: Sequence[tuple[str, Target]] = (),
    examples_count: int = EXAMPLES,
    prefer: str = "size",
    by_layer: bool = True,
    seed: int = 0,
    checkpoint_seconds: float = 60.0,
    name: str | None = None,
    task_name: str | None = None,
    loss: Any = None,
    metric: Any = None,
    target_is_input: bool = False,
    shapes: Shapes = (),
    on_event: Listener = ignore,
) -> Compressed:
    """Compress a network with methods, stacked in any order, all trained together once.

    network: a `keras.Model`, the path of one, or an opened `Network`; it is not changed. Of a
        .tflite file kernels can be changed in place (ptq, float16).
    methods: objects such as `compress.qat.QAT(bits=4)`; a `teacher` of one may be a `keras.Model`.
    task: what to train, judge and calibrate on; None: methods that need examples say so.
    out: files to write: .keras, .tflite, .mlpackage, .safetensors. Beside the first a .json and a
        .png are left, and a checkpoint while it trains: killed or interrupted, the same call goes
        on and ends with the same weights.
    epochs: times through the data; the task's, or 10, where a method trains. recipe: how; the
        task's at a quarter of its learning rate.
    targets: pairs of a name and a target to time the .tflite files on, before and after.
    examples_count: of the training part, that methods look at. prefer: "size", or "speed" where
        LiteRT runs wider integers faster than narrow ones. by_layer: measure which layers bear the
        methods least. name, task_name: what network and task are called in the record.
    loss, metric, target_is_input: of data that leave them open (`nas.training.network_task`).
    shapes: of inputs that the network leaves open (`nas.files.open_network`).

    Raises `compress.method.NotApplicable`, a `ValueError`, where a method has nothing to act on.
    """
    keras = backend.load()
    network, task, judged_by = opened(
        network,
        methods,
        task,
        out=out,
        loss=loss,
        metric=metric,
        target_is_input=target_is_input,
        shapes=shapes,
    )
    model = network.model
    outs = [_out(path, network) for path in out]
    methods = [teachers.with_teacher(method) for method in methods]
    labelled = task if task is not None and task.labelled else None
    trains = any(method.trains for method in methods)
    if epochs is None:
        epochs = labelled.training.get("epochs", EPOCHS) if labelled and trains else 0
    if epochs and labelled is None:
        raise ValueError(
            f"epochs={epochs} without labelled examples; name a --task, or --data with labels (y)"
        )
    if recipe is None:
        recipe = fine_tuning(task)
    name = name or model.name
    if task_name is None and task is not None:
        task_name = task.name
    identity = {
        "model": digest_of(model),
        "methods": [identity_of(method) for method in methods],
        "task": task and task.recipe,
        "epochs": epochs,
        "seed": seed,
        **dataclasses.asdict(recipe),
        "examples": examples_count,
        "backend": keras.config.backend(),
    }
    on_event(
        Message(
            f"{name}: {model.count_params():,} parameters in {len(model.layers)} layers; "
            f"{', '.join(map(repr, methods))}"
        )
    )
    for note in (*network.notes, *judged_by):
        on_event(Message(f"{name}: {note}"))
    warnings = [one.removeprefix("warning: ") for one in judged_by if one.startswith("warning: ")]
    if labelled is not None:
        loop.check(model, labelled)
        if network.config is None and loop.gives_probabilities(model, labelled):
            on_event(Message(f"{name} {PROBABILITIES}"))
    data = examples(task, model, examples_count, seed)
    check_copies(model, None if data is None else next(data.batches(FEW))[0])
    before = _judged(model, task)
    if labelled is not None:
        quality, before_loss = before["quality"], before["loss"]
        on_event(Message(f"before: {labelled.metric} {quality:.4f}, loss {before_loss:.4f}"))
        if warning := at_chance(labelled, quality):
            warning += (
                "; are scale (--data FILE,scale=1 or 255), order and labels those that it was"
                " trained with?"
            )
            warnings.insert(0, warning)
            on_event(Message(f"warning: {warning}"))
    checkpoint = None
    if outs:
        file = outs[0].with_name(f"{outs[0].stem}.checkpoint.npz")
        checkpoint = Checkpoint(file, identity, checkpoint_seconds)
    trainings: list[loop.Training] = []

    train = None
    if epochs and labelled is not None:
        train = training(labelled, methods, recipe, epochs, seed, checkpoint, on_event, trainings)
    keras.utils.set_random_seed(seed)
    done = core.compress(model, methods, train, data)
    if methods and not core.changed(model, done):
        untrained = "" if epochs else "; they trained on nothing: name a --task, or --data with y"
        raise core.NotApplicable(
            f"{name}: {', '.join(map(repr, methods))} changed nothing, all weights are as before"
            f"{untrained}"
        )
    history = [epoch for one in trainings for epoch in one.history]
    if labelled is not None and labelled.higher_is_better:
        qualities = [before["quality"], *(epoch.quality for epoch in history)]
        best = 1.0 if labelled.percent else None
        warnings += doubts.of_qualities(labelled.metric, qualities, best)
    for layer, reason in network.opaque.items():
        done.record.untouched.setdefault(layer, reason)
    for details in done.record.details.values():
        if "warning" in details:
            warnings.append(details["warning"])
            on_event(Message(f"warning: {details['warning']}"))
    record: dict[str, Any] = {
        "model": name,
        "source": network.source,
        "methods": [repr(method) for method in methods],
        "task": task_name,
        "metric": labelled.metric if labelled else None,
        "higher_is_better": labelled.higher_is_better if labelled else True,
        "percent": labelled.percent if labelled else True,
        "judged_by": [one for one in judged_by if not one.startswith("warning: ")],
        "warnings": warnings,
        "epochs": epochs,
        "before": before,
        "after": _judged(done.model, task),
        "untouched": done.record.untouched,
        "details": done.record.details,
        "notes": list(network.notes),
        "history": [dataclasses.asdict(epoch) for epoch in history],
        "identity": identity,
        "files": [],
    }
    if data is not None and labelled is None:
        record["output_error"] = _output_error(model, done.model, data)
    if by_layer and data is not None and data.loss is not None:
        at_once = None if epochs else done
        record["sensitivity"] = sensitivity.by_layer(model, methods, data, done=at_once)
    result = Compressed(network, done, data, task, record, prefer)
    record["card"] = result.origin.card(done.model)
    for path in outs:
        on_event(Message(f"writing {path}"))
        result.write(path)
    if targets:
        on_event(Message(f"timing on {', '.join(name for name, _ in targets)}"))
        _timed(result, targets)
    record |= {"date": utc_now(), "machine": platform.processor() or platform.machine()}
    if outs:
        result.save_record(outs[0])
    if checkpoint is not None:
        checkpoint.delete()
    return result


def training(
    task: Task,
    methods: Sequence[Method],
    recipe: Recipe,
    epochs: int,
    seed: int,
    checkpoint: Checkpoint | None,
    on_event: Listener,
    trainings: list[loop.Training] | None = None,
) -> core.Fit:
    """What trains a network that `methods` prepared, with their figures in the progress line.

    trainings: to which what comes of it is added.
    """

    def train(prepared: Any, update: Any) -> None:
        def state() -> dict[str, float]:
            states = [method.state(prepared) for method in methods]
            return {name: value for one in states for name, value in one.items()}

        on_event(TrainingBegins(task, recipe.batch_size, epochs, None, state))
        done = fit(
            prepared, task, checkpoint, on_event,
            epochs=epochs, seed=seed, recipe=recipe, update=update,
        )  # fmt: skip
        if trainings is not None:
            trainings.append(done)

    return train


def fine_tuning(task: Task | None, **fields: Any) -> Recipe:
    """The recipe of a network that is trained already: the task's, at a quarter of its rate.

    >>> fine_tuning(None, batch_size=8).learning_rate
    0.0015
    """
    recipe = recipe_of(task) if task is not None else Recipe()
    slower = {"learning_rate": FINE_TUNING * recipe.learning_rate, "patience": None}
    return dataclasses.replace(recipe, **(slower | fields))


def _out(path: str | pathlib.Path, network: Network) -> pathlib.Path:
    out = pathlib.Path(path)
    if out.suffix not in SUFFIXES:
        raise ValueError(f"out {path}: expected a name that ends in {', '.join(SUFFIXES)}")
    if network.read_from is not None and out.resolve() == network.read_from.resolve():
        raise ValueError(f"out {path}: this is the file to compress, which is never changed")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _judged(model: Any, task: Task | None) -> dict[str, Any]:
    """Quality and loss on the held-out part, parameters and how many of them are not 0."""
    arrays = model.get_weights()
    found: dict[str, Any] = {
        "params": sum(array.size for array in arrays),
        "nonzeros": int(sum(np.count_nonzero(array) for array in arrays)),
    }
    if task is not None and task.labelled:
        found["quality"], found["loss"] = loop.measure(model, task)
        if (balanced := balanced_accuracy(model, task)) is not None:
            found["balanced_accuracy"] = balanced
    return found


def _output_error(model: Any, small: Any, data: Data) -> float:
    """How far outputs are off on a few examples, of what they vary by: root mean squares."""
    import keras

    inputs, _ = next(data.batches(FEW_OUTPUTS))
    sides = (keras.tree.flatten(one(inputs, training=False)) for one in (model, small))
    error = spread = 0.0
    for before, after in zip(*sides, strict=True):
        was, now = (keras.ops.convert_to_numpy(one).astype(np.float64) for one in (before, after))
        error += float(np.mean(np.square(now - was)))
        spread += float(np.var(was))
    return float(np.sqrt(error / max(spread, 1e-12)))


def _timed(result: Compressed, targets: Sequence[tuple[str, Target]]) -> dict[str, Any]:
    paths = [pathlib.Path(file["path"]) for file in result.record["files"]]
    written = next((path for path in reversed(paths) if path.suffix == ".tflite"), None)
    found = before_and_after.time(
        targets, result.network, result.done, result.data, result.prefer, written
    )
    for name, latencies in found.items():
        result.record[name].setdefault("latency", {}).update(latencies)
    return found
