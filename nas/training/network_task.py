"""A user's own data as the task of one network: names, targets, loss, metric and scale, checked."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from compress.examples.data import taken
from compress.rewriting import graph
from nas.tasks.inputs.on_disk import chosen, mapped, parts_of, sample
from nas.tasks.inputs.preprocessing import of_inputs
from nas.tasks.scoring.classes import BALANCED, ClassWeighted, weighted_loss
from nas.tasks.scoring.compiled import Compiled
from nas.tasks.scoring.judgement import CLASSES, WEIGHTS, Judgement, judgement, scorer
from nas.tasks.task import Task, Tree, classification, pixels, split
from nas.training import loop
from nas.training.batches import count, single
from nas.training.chance import beats_chance

SCALES = {"x / 255": (0.0, 1 / 255), "x": (0.0, 1.0), "x / 127.5 - 1": (127.5, 1 / 127.5)}
LOOKED = 256  # examples that the scale is chosen on
RESCALED = (
    64  # black and white pixels are 255 apart, and no more than this in a network's own scale
)


@dataclasses.dataclass(frozen=True)
class Losses:
    """The loss of each output, summed, times the weight of each example.

    outputs_are: what the only output is ("classes", "sigmoid", ...); None of several. each_is: of
    each, by its name and its number.
    """

    each: Mapping[str, Judgement]
    names: tuple[str, ...]  # of the outputs, in order

    @property
    def outputs_are(self) -> str | None:
        only = list(self.each.values())
        return only[0].outputs if len(self.names) == 1 else None

    @property
    def each_is(self) -> dict[str | int, str]:
        known = {name: one.outputs for name, one in self.each.items()}
        return known | {self.names.index(name): kind for name, kind in known.items()}

    def __call__(self, outputs: Any, targets: Any) -> Any:
        if targets is None:
            raise ValueError("there are no targets (y): such examples serve to calibrate only")
        found = by_name(outputs, self.names)
        total = sum(
            one.loss(found[name], targets_of(targets, name, len(self.each)))
            for name, one in self.each.items()
        )
        if isinstance(targets, dict) and WEIGHTS in targets:
            total = total * targets[WEIGHTS]
        return total


def by_name(outputs: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Outputs of a network as a dict."""
    if isinstance(outputs, dict):
        return outputs
    found = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    return dict(zip(names, found, strict=True))


def targets_of(targets: Any, name: str, outputs: int) -> Any:
    """The targets of one output."""
    return targets[name] if isinstance(targets, dict) else targets


def network_task(
    task: Task,
    model: Any,
    *,
    compiled: Compiled | None = None,
    loss: Any = None,
    metric: Any = None,
    target_is_input: bool = False,
    trained: bool = False,
) -> tuple[Task, list[str]]:
    """The task of `model` on these data, and what was chosen or is suspicious, in lines.

    task: with `of_network`, what is still open is chosen: `loss` and `metric` as given, else those
        of `compiled`, else as outputs and targets say (`nas.tasks.scoring.judgement`). Another
        task is returned as it is, unless loss, metric or target_is_input are given.
    target_is_input: the targets are the inputs, as of an autoencoder; `ValueError` beside targets.

    trained: whether the network knows such data, so that the scale of pixels can be told by it.

    Raises `ValueError`, one line, where data and network do not fit.
    """
    asked = loss is not None or metric is not None or target_is_input
    if not task.of_network and not asked:
        return task, []
    parts = [_named(part, model) for part in (task.train, task.valid)]
    for name, part in zip(("train", "valid"), parts, strict=True):
        _check_finite(name, part)
    notes: list[str] = []
    notes += [f"data: {note}" for note in task.notes]
    if task.of_network:
        task, parts, notes = _raw(task, parts, model, notes)
    if target_is_input:
        notes = [*notes, "targets: the inputs"]
        if task.labelled:
            raise ValueError("--target-is-input beside targets (y); expected one of them")
        parts = [(inputs, _inputs_as_targets(inputs)) for inputs, _ in parts]
        rows = split(np.zeros(count(parts[0]), int), 0.2, 0)
        if parts[0][0] is parts[1][0] and all(len(one) for one in rows):
            parts = [(chosen(parts[0][0], one), chosen(parts[0][1], one)) for one in rows]
    task = dataclasses.replace(task, train=parts[0], valid=parts[1], of_network=False)
    if not task.labelled:
        return task, notes
    names, tensors = output_tensors(model)
    goals = [_by_output(targets, names) for _, targets in parts]
    known = {name: sample(array) for name, array in goals[0].items() if name != WEIGHTS}
    if metric is None and task.metric == BALANCED:
        metric = BALANCED
    weighted = WEIGHTS in goals[0]
    each = {
        name: judgement(
            tensors[name], array, _of(loss, name, names), _of(metric, name, names),
            None if compiled is None
            else (_of(compiled[0], name, names), _of(compiled[1], name, names)),
        )
        for name, array in known.items()
    }  # fmt: skip
    first = next(iter(each.values()))
    classes = len(each) == 1 and not weighted and first.outputs == CLASSES

    def converted(found: dict[str, Any]) -> Any:
        for name in known.keys() - found.keys():
            raise ValueError(
                f"targets {name} to judge with are missing, those to train with are not"
            )
        arrays = {name: mapped(found[name], one.targets) for name, one in each.items()}
        if WEIGHTS in found and weighted:
            arrays[WEIGHTS] = np.asarray(found[WEIGHTS], np.float32)
        elif weighted:
            arrays[WEIGHTS] = np.ones(len(next(iter(arrays.values()))), np.float32)
        return arrays if weighted or len(names) > 1 else next(iter(arrays.values()))

    for array in known.values():
        if first.outputs == CLASSES and len(np.unique(array)) == 1:
            notes.append(f"warning: all labels are {np.unique(array)[0]}: there is one class only")
    train, valid = ((part[0], converted(found)) for part, found in zip(parts, goals, strict=True))
    judged = valid[1][next(iter(each))] if isinstance(valid[1], dict) else valid[1]
    weights = task.loss if isinstance(task.loss, ClassWeighted) else None
    if weights is not None and not classes:
        raise ValueError(
            f"class_weights are for one output of integer labels; this one is {first.reason}"
        )
    default = classes and first.metric == "accuracy" and len(tensors[names[0]].shape) == 2
    default = default and not isinstance(model.output, (dict, list))
    if default and first.loss_name == "sparse_categorical_crossentropy":
        changes: dict[str, Any] = {"loss": weights or classification}
        changes |= {"recipe": task.recipe + (" target=input" if target_is_input else "")}
    else:
        losses = "+".join(one.loss_name for one in each.values())
        if len(each) > 1 and not all(one.metric == first.metric for one in each.values()):
            notes.append(f"the metric is that of output {next(iter(each))}")
        name = next(iter(each))
        changes = {
            "loss": weighted_loss(Losses(each, names), weights),
            "scorer": scorer(
                lambda outputs, targets: first.score(
                    by_name(outputs, names)[name], targets_of(targets, name, len(each))
                )
            ),
            "average": first.average,
            "metric": first.metric,
            "higher_is_better": first.higher_is_better,
            "percent": first.percent,
            "recipe": f"{task.recipe} loss={losses} metric={first.metric}",
        }
    task = dataclasses.replace(
        task, train=train, valid=valid, chance=first.chance(sample(judged)), **changes
    )
    reasons = "; ".join(dict.fromkeys(one.reason for one in each.values()))
    direction = "" if first.higher_is_better else " (lower is better)"
    names_of = " + ".join(one.loss_name for one in each.values())
    notes.insert(0, f"loss: {names_of} ({reasons}); metric: {task.metric}{direction}")
    return _scaled(task, model, notes) if trained else (task, notes)


def _by_output(targets: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Targets, and perhaps weights, by the names of outputs."""
    if not isinstance(targets, dict):
        targets = {"y": targets}
    goals = {name: array for name, array in targets.items() if name != WEIGHTS}
    if len(goals) == 1 and len(names) == 1:
        goals = {names[0]: next(iter(goals.values()))}
    if unknown := sorted(goals.keys() - set(names)):
        raise ValueError(
            f"targets {', '.join(unknown)}, but the outputs of the network are {', '.join(names)}; "
            "expected targets by these names"
        )
    return goals | {name: array for name, array in targets.items() if name == WEIGHTS}


def output_tensors(model: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Names of outputs, in order, and the tensor of each."""
    outputs = single(model.output)
    if isinstance(outputs, dict):
        return tuple(outputs), dict(outputs)
    tensors = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    names = list(model.output_names)
    if len(set(names)) < len(tensors):
        names = [f"output_{number}" for number in range(len(tensors))]
    return tuple(names), dict(zip(names, tensors, strict=True))


def _of(given: Any, name: str, names: tuple[str, ...]) -> Any:
    if isinstance(given, dict):
        return given.get(name)
    if isinstance(given, (list, tuple)):
        return given[names.index(name)] if len(given) == len(names) else given[0]
    return given


def _named(part: tuple[Tree, Any], model: Any) -> tuple[Tree, Any]:
    """Arrays that bear the names of outputs are targets; one input is no dict."""
    inputs, targets = part
    wanted = [tensor.name for tensor in model.inputs]
    if isinstance(model.input, dict):
        wanted = list(model.input)
    if isinstance(inputs, dict):
        names = output_tensors(model)[0]
        goals = {n: a for n, a in inputs.items() if n in names and n not in wanted}
        if goals and (targets is None or isinstance(targets, dict)):
            targets = goals | (targets or {})
            inputs = {name: array for name, array in inputs.items() if name not in goals}
        if len(wanted) == 1 and (len(inputs) == 1 or "x" in inputs):
            only = inputs["x"] if "x" in inputs else next(iter(inputs.values()))
            inputs = {wanted[0]: only} if isinstance(model.input, dict) else only
        elif missing := [name for name in wanted if name not in inputs]:
            raise ValueError(
                f"the network has the inputs {', '.join(wanted)}; the data hold "
                f"{', '.join(inputs)}, and no {', '.join(missing)}"
            )
        else:
            inputs = {name: inputs[name] for name in wanted}
    elif len(wanted) > 1:
        raise ValueError(
            f"the network has the inputs {', '.join(wanted)}, the data one array; the network needs"
            " arrays by these names, as of an .npz file or a dict"
        )
    return inputs, targets


def _check_finite(part: str, pair: tuple[Tree, Any]) -> None:
    for what, tree in zip(("inputs", "targets"), pair, strict=True):
        for name, array in (tree if isinstance(tree, dict) else {"": tree}).items():
            if array is None or array.dtype.kind != "f":
                continue
            start, first, bad = 0, None, 0
            for part_of in parts_of(array):
                if not np.isfinite(part_of).all():
                    wrong = ~np.isfinite(part_of.reshape(len(part_of), -1))
                    bad += int(wrong.sum())
                    if first is None:
                        first = start + int(np.flatnonzero(wrong.any(1))[0])
                start += len(part_of)
            if bad:
                raise ValueError(
                    f"{what}{' ' + name if name else ''} to {part} with: {bad} values are NaN or "
                    f"infinite, the first in example {first}; expected numbers"
                )


def _inputs_as_targets(inputs: Tree) -> Any:
    if isinstance(inputs, dict):
        raise ValueError("--target-is-input is for networks of one input")
    return mapped(inputs, pixels)


def rescales(model: Any, shape: tuple[int, ...]) -> str | None:
    """The name of what takes raw pixels, 0 to 255, to another scale before any weight; or None.

    shape: of one example. Layers and operations count alike, behind augmentation, too.
    """
    import keras

    known, found = {id(tensor) for tensor in model.inputs}, []
    for node in graph.calls(model):
        plain = isinstance(node.operation, keras.layers.Normalization)
        plain = plain or not getattr(node.operation, "weights", ())
        if plain and all(id(tensor) in known for tensor in node.input_tensors):
            known |= {id(tensor) for tensor in node.output_tensors}
            found.append((node.operation.name, node.output_tensors[0]))
    if not found:
        return None
    part = keras.Model(model.input, [tensor for _, tensor in found])
    black, white = (
        keras.tree.flatten(part(np.full((1, *shape), value, np.float32), training=False))
        for value in (0, 255)
    )
    for (name, _), first, second in zip(found, black, white, strict=True):
        if float(np.max(np.abs(np.asarray(second, np.float32) - first))) < RESCALED:
            return name
    return None


def _raw(
    task: Task, parts: list[tuple[Tree, Any]], model: Any, notes: list[str]
) -> tuple[Task, list[tuple[Tree, Any]], list[str]]:
    """uint8 pixels as they are, in float32, for a network that rescales them itself."""
    inputs: Any = parts[0][0]
    if getattr(inputs, "dtype", None) != np.uint8:
        return task, parts, notes
    layer = rescales(model, inputs.shape[1:])
    if layer is None:
        return task, parts, notes
    note = f"inputs: raw pixels 0 to 255, for layer {layer} of the network rescales them itself"
    task = _seen_as(task, 0, 1)
    return task, [(_mapped(one, 0, 1), targets) for one, targets in parts], [*notes, note]


def _seen_as(task: Task, offset: float, factor: float) -> Task:
    """The task whose examples are seen as (x - offset) * factor, which goes with its network."""
    seen = task.preprocessing or of_inputs(task.train[0])
    seen = dataclasses.replace(seen, scale=1 / factor, mean=(offset * factor,))
    return dataclasses.replace(task, preprocessing=seen)


def _scaled(task: Task, model: Any, notes: list[str]) -> tuple[Task, list[str]]:
    """uint8 pixels on the scale that the network was trained on, where only one is above chance."""
    if getattr(task.train[0], "dtype", None) != np.uint8 or task.chance is None:
        return task, notes
    if any("inputs: raw" in note for note in notes) or "int" in str(model.inputs[0].dtype):
        return task, notes
    looked = np.unique(np.linspace(0, count(task.valid) - 1, LOOKED).astype(int))
    few = dataclasses.replace(
        task, valid=(taken(task.valid[0], looked), taken(task.valid[1], looked))
    )
    above = []
    for name, (offset, factor) in SCALES.items():
        mapped = _mapped(few.valid[0], offset, factor)
        tried = dataclasses.replace(few, train=(mapped, few.valid[1]), valid=(mapped, few.valid[1]))
        if beats_chance(tried, loop.measure(model, tried)[0], 4):
            if name == "x / 255":
                return task, notes
            above.append(name)
    if not above:
        return task, notes
    if len(above) > 1:
        raise ValueError(
            f"pixels 0 to 255: the network is at chance on x / 255, and above it on "
            f"{' and on '.join(above)}; say which: --data FILE,scale=1, or scale=127.5,mean=1"
        )
    offset, factor = SCALES[above[0]]
    task = _seen_as(task, offset, factor)
    parts = [(_mapped(one[0], offset, factor), one[1]) for one in (task.train, task.valid)]
    notes = [*notes, f"inputs: {above[0]}, the only scale on which the network is above chance"]
    recipe = f"{task.recipe} inputs={above[0]}"
    return dataclasses.replace(task, train=parts[0], valid=parts[1], recipe=recipe), notes


def _mapped(inputs: Any, offset: float, factor: float) -> Any:
    if factor == 1 / 255:
        return mapped(inputs, pixels)
    return mapped(
        inputs, lambda array: (array.astype(np.float32) - np.float32(offset)) * np.float32(factor)
    )
