"""Any classification, with a router of whole images that learns super-classes beside it.

Daxberger et al., "Mobile V-MoEs", arXiv 2309.04354; for families with `router_outputs`:
`nas train mobile_vmoe:tiny --task routed:fashion_mnist`.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from compress.examples.data import taken
from latency.networks import keras_file
from nas.tasks.task import Score, Task, pixels

WEIGHT = 0.3  # of the router's loss: the paper's lambda


def load(
    task: Task, groups: int | None = None, model: str | None = None, weight: float = WEIGHT
) -> Task:
    """A task with `groups` super-classes that a router learns.

    Fewer groups than classes, as there are fewer experts, are found in the confusions of `model`,
    a .keras file of a network trained on the same task: `ValueError` without one.

    >>> from nas.tasks import digits
    >>> load(digits.load(size=8)).fields["router_outputs"]
    True
    """
    from families.objectives.super_classes import super_classes

    if groups is None:
        groups = task.classes
    if groups < task.classes and model is None:
        raise ValueError(
            f"{groups} groups of {task.classes} classes are found in the confusions of a network: "
            "expected model=FILE.keras, trained on the same task"
        )
    counts = np.eye(task.classes) if model is None else confusion(model, task)
    return routed(task, super_classes(counts, groups), weight)


def routed(task: Task, mapping: np.ndarray, weight: float = WEIGHT) -> Task:
    """`task` with loss L_C + weight * L_g; L_g teaches the router the super-class of the label.

    mapping: (classes,), the super-class of each class.
    """
    from families.objectives.super_classes import router_loss  # imports Keras

    mapping = np.asarray(mapping, np.int32)

    def loss(outputs: Any, labels: Any) -> Any:
        own = task.loss(outputs["logits"], labels)
        return own + weight * router_loss(outputs["router"], labels, mapping)

    def scorer(model: Any, predict: Callable[[Any], Any]) -> Score:
        return task.scorer(model, lambda inputs: predict(inputs)["logits"])

    return dataclasses.replace(
        task,
        name=f"routed_{task.name}",
        fields=task.fields | {"router_outputs": True},
        loss=loss,
        scorer=scorer,
        recipe=f"{task.recipe} routed {','.join(map(str, mapping))} weight={weight:g}",
    )


def confusion(model: Any, task: Task, batch_size: int = 256) -> np.ndarray:
    """Counts (classes, classes): validation images of class i that `model` takes for class j.

    model: a `keras.Model`, or the path of a .keras file; `ValueError` where there is none.
    """
    import keras

    if not isinstance(model, keras.Model):
        file = pathlib.Path(model).expanduser()
        if not file.is_file():
            raise ValueError(f"no file {file}; expected a .keras file")
        model = keras_file.load(file)
    images, labels = task.valid
    counts = np.zeros((task.classes, task.classes), np.int64)
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        logits = model(pixels(taken(images, part)), training=False)
        if isinstance(logits, dict):
            logits = logits["logits"]
        np.add.at(counts, (labels[part], np.argmax(keras.ops.convert_to_numpy(logits), -1)), 1)
    return counts
