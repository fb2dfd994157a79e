"""What a quality is worth: beside a constant answer's, and of each class by itself."""

import dataclasses
from typing import Any

import numpy as np

from nas.tasks.scoring.classes import balanced_scorer, is_classification, mean_of_classes, uneven
from nas.tasks.task import Task, accuracy
from nas.training import loop
from nas.training.batches import count


def beats_chance(task: Task, quality: float, spreads: float = 2) -> bool:
    """Whether a quality is clearly better than a constant answer's; True where that is unknown."""
    if task.chance is None:
        return True
    if not task.higher_is_better:
        return quality < (1 - spreads / 100) * task.chance
    spread = np.sqrt(task.chance * (1 - min(task.chance, 1)) / count(task.valid))
    return bool(quality > min(task.chance + spreads * spread, 0.5 + task.chance / 2))


def at_chance(task: Task, quality: float) -> str | None:
    """A warning where a network does no better on its own data than a constant answer would."""
    if beats_chance(task, quality):
        return None
    return (
        f"the network is at chance on these data: {task.metric} {quality:.4g}, a constant answer "
        f"gets {task.chance:.4g}"
    )


def chance_of(task: Task, quality: float) -> dict[str, float]:
    """What a record says beside a quality: a constant answer's, where it is no better."""
    if task.chance is None or beats_chance(task, quality):
        return {}
    return {"chance": task.chance}


def beside(model: Any, task: Task, quality: float) -> dict[str, Any]:
    """What the record of a training says beside its quality: of each class, and of chance."""
    found: dict[str, Any] = {}
    if (balanced := balanced_accuracy(model, task)) is not None:
        found["balanced_accuracy"] = balanced
    if (warning := at_chance(task, quality)) is not None:
        found["warnings"] = [warning]
    return found


def balanced_accuracy(model: Any, task: Task) -> float | None:
    """That of a network whose quality is the accuracy on classes that are uneven; None of others.

    >>> from nas.tasks import digits
    >>> balanced_accuracy(None, digits.load(size=8))
    """
    labels = task.train[1]
    if not is_classification(task.loss) or task.scorer is not accuracy:
        return None
    if not isinstance(labels, np.ndarray) or uneven(labels) is None:
        return None
    return loop.measure(
        model, dataclasses.replace(task, scorer=balanced_scorer, average=mean_of_classes)
    )[0]
