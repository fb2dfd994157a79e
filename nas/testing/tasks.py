"""The contract of a task: examples, a loss, a score."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from nas.tasks.scoring.classes import is_classification
from nas.tasks.task import Task
from nas.testing.expectations import expect
from nas.training.recipe import recipe_of


def check_task(
    task: Task | Callable[[], Task], outputs: Callable[[np.ndarray], Any] | None = None
) -> None:
    """What every task holds: sound arrays, labels below `classes`, a loss and scores.

    task: a `nas.Task`, or the function that loads it, which is then called twice: equal recipes,
    equal data. outputs: labels (batch,) of classes -> what a network gives that is right; None:
    logits (batch, classes). Of right ones the loss must be lower and the score higher.

    Raises `AssertionError` or `ValueError` at the first promise that is not kept.

    >>> from nas.tasks import digits
    >>> check_task(lambda: digits.load(size=8))
    """
    loaded = task if isinstance(task, Task) else task()
    expect(isinstance(loaded, Task), f"load gave a {type(loaded).__name__}; expected a nas.Task")
    name = f"task {loaded.name}"
    _check_arrays(loaded, name)
    expect(loaded.recipe, f"{name}: recipe is empty; expected what its figures depend on")
    recipe_of(loaded)  # `training` has fields of a Recipe only
    if loaded.labelled and ("classes" in loaded.fields or is_classification(loaded.loss)):
        _check_classes(loaded, outputs, name)
    if loaded.augment is not None:
        _check_augment(loaded, name)
    if not isinstance(task, Task):
        again = task()
        same = _arrays(again)
        expect(
            again.recipe == loaded.recipe
            and all(np.array_equal(*pair) for pair in zip(_arrays(loaded), same, strict=True)),
            f"{name}: loaded twice, its data or its recipe differ; draw from a seed",
        )


def _arrays(task: Task) -> list[np.ndarray]:
    return [array for tree in (*task.train, *task.valid) for array in _leaves(tree)]


def _named(tree: Any) -> dict[str, np.ndarray]:
    return tree if isinstance(tree, dict) else {"": tree}


def _leaves(tree: Any) -> list[np.ndarray]:
    return [] if tree is None else list(_named(tree).values())


def _check_arrays(task: Task, name: str) -> None:
    for part in ("train", "valid"):
        for array in (array for tree in getattr(task, part) for array in _leaves(tree)):
            expect(len(array), f"{name}: {part} has no examples")
            kind = array.dtype
            expect(
                kind == np.float32 or kind.kind in "iub",
                f"{name}: {part} has an array of {kind}; expected float32, integers or uint8",
            )
            finite = kind.kind != "f" or np.isfinite(array).all()
            expect(finite, f"{name}: {part} has numbers that are not finite")
    for ours, theirs in zip(task.train, task.valid, strict=True):
        expect((ours is None) == (theirs is None), f"{name}: only one of train, valid has targets")
        if ours is None:
            continue
        one, two = (
            {key: (array.shape[1:], array.dtype) for key, array in _named(tree).items()}
            for tree in (ours, theirs)
        )
        expect(one == two, f"{name}: train holds {one}, valid {two}; expected the same")
    inputs = task.train[0]
    if "input_shape" in task.fields and isinstance(inputs, np.ndarray):
        said = tuple(task.fields["input_shape"])
        expect(
            said == inputs.shape[1:],
            f"{name}: fields say input_shape {said}, the inputs are {inputs.shape[1:]}",
        )
    first = [_leaves(part[0])[0] for part in (task.train, task.valid)]
    seen = {example.tobytes() for example in first[0]}
    shared = sum(example.tobytes() in seen for example in first[1])
    expect(
        shared < len(first[1]),
        f"{name}: all examples of valid are in train too: nothing is judged that was not learned",
    )


def _check_classes(task: Task, outputs: Callable[[np.ndarray], Any] | None, name: str) -> None:
    classes = task.fields.get("classes", 0)
    for part in ("train", "valid"):
        labels = getattr(task, part)[1]
        if not isinstance(labels, np.ndarray) or labels.ndim != 1:
            return  # a task of its own kind: what its outputs are is its own to say
        expect(labels.dtype.kind in "iu", f"{name}: labels are {labels.dtype}; expected integers")
        low, high = int(labels.min()), int(labels.max())
        expect(
            low >= 0 and high < classes,
            f"{name}: labels of {part} go from {low} to {high}; expected 0 to {classes - 1}"
            f" (fields say {classes} classes)",
        )
    _check_scores(task, outputs or (lambda labels: 10 * np.eye(classes)[labels]), name)


def _check_scores(task: Task, outputs: Callable[[np.ndarray], Any], name: str) -> None:
    """Of outputs that are right, and of ones that are wrong."""
    inputs, labels = (_first(tree, 64) for tree in task.valid)
    right, wrong = (
        _map(outputs(shown), lambda array: array.astype(np.float32))
        for shown in (labels, (labels + 1) % task.classes)
    )
    found = {}
    for kind, given in (("right", right), ("wrong", wrong)):
        losses = np.asarray(task.loss(given, labels))
        expect(
            losses.shape == (len(labels),) and np.isfinite(losses).all(),
            f"{name}: loss gave {losses.shape}; expected finite losses ({len(labels)},), one for"
            " each example",
        )
        scores = task.scorer(None, _constant(given))(inputs, labels)
        quality = task.average(np.asarray(scores))
        expect(
            len(np.asarray(scores)) == len(labels) and 0 <= quality <= 1,
            f"{name}: {task.metric} is {quality} of {np.shape(scores)} scores; expected one score"
            f" for each of {len(labels)} examples, on average from 0 to 1",
        )
        found[kind] = float(losses.mean()), quality
    expect(
        found["right"][0] < found["wrong"][0] and found["right"][1] > found["wrong"][1],
        f"{name}: (loss, {task.metric}) of right outputs {found['right']}, of wrong ones"
        f" {found['wrong']}; expected a lower loss and a higher score of right ones",
    )


def _constant(given: Any) -> Callable[[Any], Any]:
    return lambda inputs: given


def _check_augment(task: Task, name: str) -> None:
    few = dataclasses.replace(task, train=tuple(_first(tree, 16) for tree in task.train))
    kept = [array.copy() for tree in few.train for array in _leaves(tree)]
    assert task.augment is not None
    inputs, targets = task.augment(*few.train, np.random.default_rng(0))
    arrays = [array for tree in few.train for array in _leaves(tree)]
    untouched = all(np.array_equal(*pair) for pair in zip(kept, arrays, strict=True))
    expect(untouched, f"{name}: augment changes the arrays that it is given; expected new ones")
    changed = [array for tree in (inputs, targets) for array in _leaves(tree)]
    for before, after in zip(kept, changed, strict=True):
        expect(
            (before.shape, before.dtype) == (after.shape, after.dtype),
            f"{name}: augment makes {after.dtype} {after.shape} of {before.dtype} {before.shape}",
        )


def _first(tree: Any, count: int) -> Any:
    return None if tree is None else _map(tree, lambda array: array[:count])


def _map(tree: Any, function: Callable[[np.ndarray], np.ndarray]) -> Any:
    if isinstance(tree, dict):
        return {key: function(array) for key, array in tree.items()}
    return function(tree)
