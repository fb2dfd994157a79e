"""Classes that are unevenly many: balanced accuracy, weights in the loss, what to say of them.

Brodersen et al., "The balanced accuracy and its posterior distribution", ICPR 2010.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nas.tasks.task import Loss, Score, Task, classification

BALANCED = "balanced accuracy"
UNEVEN = 2.0  # times as many examples of the largest class as of the smallest
TOLD = 3  # classes that are named in a sentence


def balanced_scorer(model: Any, predict: Callable[[Any], Any]) -> Score:
    """The scorer of balanced accuracy: rows (batch, 2) of the label, and whether it was found."""

    def score(inputs: Any, labels: Any) -> np.ndarray:
        right = np.argmax(predict(inputs), -1) == labels
        return np.stack([np.asarray(labels), right], 1)

    return score


def mean_of_classes(rows: np.ndarray) -> float:
    """The share of each class that was found, averaged over the classes that there are.

    >>> mean_of_classes(np.array([[0, 1], [0, 1], [0, 0], [0, 0], [1, 1]]))
    0.75
    """
    labels, right = rows[:, 0], rows[:, 1]
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


@dataclasses.dataclass(frozen=True)
class ClassWeighted:
    """A loss whose examples count by their class: `weights`, one a class, times `loss`."""

    weights: tuple[float, ...]
    loss: Loss = classification

    @property
    def outputs_are(self) -> str | None:
        """What the outputs are, as the loss that is weighted says."""
        return getattr(self.loss, "outputs_are", "classes")

    def __call__(self, outputs: Any, labels: Any) -> Any:
        from keras import ops

        weights = ops.convert_to_tensor(np.array(self.weights, np.float32))
        return self.loss(outputs, labels) * ops.take(weights, labels)


def weighted_loss(loss: Loss, like: ClassWeighted | None) -> Loss:
    """A loss with the class weights of another; itself where there are none."""
    return loss if like is None else ClassWeighted(like.weights, loss)


def balanced_weights(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """Weights with which each class counts the same: n / (classes * n of the class).

    >>> balanced_weights(np.array([0, 0, 0, 1]), 2)
    (0.6666666666666666, 2.0)
    """
    counts = np.bincount(labels, minlength=classes)
    return tuple(
        float(one) for one in len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    )


def weights_of(name: Any, labels: Any, classes: int) -> tuple[float, ...] | None:
    """What the option `class_weights` says: "balanced", or numbers as 1/5/20; None for None.

    Raises `ValueError` of anything else, and where there are no classes.
    """
    if name is None:
        return None
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"class_weights={name!r} is for targets that are classes (count,)")
    if name == "balanced":
        return balanced_weights(labels, classes)
    try:
        found = tuple(float(one) for one in str(name).split("/"))
    except ValueError:
        found = ()
    if len(found) != classes or min(found) < 0 or not any(found):
        raise ValueError(
            f"class_weights={name!r}; expected balanced, or {classes} numbers as 1/5/20"
        )
    return found


def classified(task: Task, *, class_weights: Any = None, balanced: bool = False) -> Task:
    """A classification whose classes count as `weights_of` says, judged by balanced accuracy.

    Its notes say where classes are uneven, and what was done about it.
    """
    labels, held = task.train[1], task.valid[1]
    classes = task.fields.get("classes", 0)
    if task.labels and classes > len(task.labels):
        raise ValueError(f"{len(task.labels)} labels, but the targets are {classes} classes")
    weights = weights_of(class_weights, labels, classes)
    changes: dict[str, Any] = {}
    recipe = task.recipe
    if weights is not None:
        changes["loss"] = ClassWeighted(weights)
        recipe += f" class_weights={class_weights}"
    if balanced:
        if not isinstance(held, np.ndarray) or held.ndim != 1 or held.dtype.kind not in "iu":
            raise ValueError("balanced=true is for targets that are classes (count,)")
        changes |= {"scorer": balanced_scorer, "average": mean_of_classes, "metric": BALANCED}
        changes["chance"] = 1 / len(np.unique(held))
        recipe += f" metric={BALANCED}"
    notes = task.notes
    if isinstance(labels, np.ndarray) and (found := uneven(labels, task.labels)) is not None:
        judged = f"balanced accuracy judges ({1 / len(np.unique(held)):.1%} at chance)"
        if not balanced:
            judged = (
                f"always saying the largest gets {majority(held):.1%}; balanced=true judges each"
            )
        weighted = "are" if weights is not None else "are not (class_weights=balanced)"
        notes = (*notes, f"{found}; they {weighted} weighted in the loss; {judged}")
    return dataclasses.replace(task, **changes, recipe=recipe, notes=notes)


def names_of(given: Any, known: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of classes: of a text file, one a line, or as cat+dog; None: those that are known.

    >>> names_of("cat+dog"), names_of(None, ["a"])
    (('cat', 'dog'), ('a',))
    """
    if given is None:
        return tuple(known)
    file = pathlib.Path(str(given)).expanduser()
    text = (
        file.read_text(encoding="utf-8").splitlines() if file.is_file() else str(given).split("+")
    )
    if len(text) < 2 or len(set(text)) < len(text):
        raise ValueError(
            f"labels={given!r}; expected a text file of one name a line, or names as cat+dog"
        )
    return tuple(text)


def is_classification(loss: Any) -> bool:
    """Whether a loss is that of integer labels (batch,), weighted or not."""
    return loss is classification or (
        isinstance(loss, ClassWeighted) and is_classification(loss.loss)
    )


def uneven(labels: np.ndarray, names: Sequence[str] = ()) -> str | None:
    """A sentence about classes that are unevenly many in training; None where they are even.

    >>> uneven(np.repeat([0, 1], [90, 10]), ["ham", "spam"])
    'classes are uneven: ham 90, spam 10'
    """
    found, counts = np.unique(labels, return_counts=True)
    if len(found) < 2 or counts.max() < UNEVEN * counts.min():
        return None
    order = np.argsort(-counts, kind="stable")
    words = [f"{_name(found[place], names)} {counts[place]}" for place in order]
    if len(words) > 2 * TOLD:
        words = [*words[:TOLD], "...", *words[-TOLD:]]
    return f"classes are uneven: {', '.join(words)}"


def majority(labels: np.ndarray) -> float:
    """The share of the largest class: what always saying it gets.

    >>> majority(np.array([0, 0, 1]))
    0.6666666666666666
    """
    return float(np.bincount(np.asarray(labels).ravel()).max() / np.size(labels))


def _name(label: Any, names: Sequence[str]) -> str:
    return str(names[label]) if label < len(names) else f"class {label}"
