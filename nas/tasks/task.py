"""What a network is trained and judged on: arrays, a loss, a score."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from nas.tasks.inputs.on_disk import mapped, parts_of
from nas.tasks.inputs.preprocessing import Preprocessing, of_inputs

Tree = np.ndarray | dict[str, np.ndarray]  # arrays that share their first axis, the examples
Loss = Callable[[Any, Any], Any]  # (outputs, targets) -> losses (batch,)
Score = Callable[[Any, Any], np.ndarray]  # (inputs, targets) -> scores (batch,) or (batch, ...)
Scorer = Callable[[Any, Callable[[Any], Any]], Score]  # (model, predict) -> Score

LEAST = 1e-7  # of a probability, before its logarithm: keras.config.epsilon()


def classification(outputs: Any, labels: Any) -> Any:
    """Cross-entropy (batch,) of integer labels (batch,): the default loss.

    outputs: logits (batch, classes), or probabilities: rows of a network that ends in softmax are
        taken for what they are (`are_probabilities`), and never put through another softmax.

    Raises `ValueError` where there are no labels.

    >>> logits, labels = np.array([[2.0, -1.0, 0.5]]), np.array([0])
    >>> probabilities = np.exp(logits) / np.exp(logits).sum()
    >>> [round(float(classification(each, labels)[0]), 4) for each in (logits, probabilities)]
    [0.2413, 0.2413]
    """
    from keras import ops

    _check_labels(labels)
    logarithms = ops.log(ops.maximum(outputs, LEAST))
    logits = ops.where(are_probabilities(outputs), logarithms, outputs)
    return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def are_probabilities(outputs: Any) -> Any:
    """Whether all rows (batch, classes) are probabilities: none below 0, each with the sum 1.

    A boolean tensor of the Keras backend, so that a compiled step can decide by it.

    >>> bool(are_probabilities(np.array([[0.25, 0.75]]))), bool(are_probabilities(np.eye(2) - 0.5))
    (True, False)
    """
    from keras import ops

    sums = ops.sum(outputs, -1)
    return ops.all(outputs >= 0) & ops.all(ops.abs(sums - 1) < 1e-2)  # 1e-2: bfloat16 rounds


def accuracy(model: Any, predict: Callable[[Any], Any]) -> Score:
    """The scorer of classification: 1 where the largest output is the label's, else 0.

    >>> score = accuracy(None, lambda inputs: np.array([[0.1, 0.9], [0.8, 0.2]]))
    >>> score(None, np.array([1, 1]))
    array([ True, False])
    """

    def score(inputs: Any, labels: Any) -> np.ndarray:
        _check_labels(labels)
        return np.argmax(predict(inputs), -1) == labels

    return score


def _check_labels(labels: Any) -> None:
    if labels is None:
        raise ValueError("there are no labels (y): such examples serve to calibrate only")


def mean(scores: np.ndarray) -> float:
    """The average of scores that are shares, such as accuracies.

    >>> mean(np.array([True, False, True, True]))
    0.75
    """
    return float(np.mean(scores))


def geometric_mean(scores: np.ndarray) -> float:
    """The average of scores that are likelihoods: exp of their mean logarithm.

    >>> round(geometric_mean(np.array([0.1, 0.4])), 6)
    0.2
    """
    return float(np.exp(np.mean(np.log(np.maximum(scores, np.finfo(np.float64).tiny)))))


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Examples, in memory or on disk, and what a network is to make of them.

    >>> x, y = np.zeros((9, 8, 8, 1), np.float32), np.arange(9) % 3
    >>> Task(train=(x, y), valid=(x, y)).fields
    {'input_shape': (8, 8, 1), 'classes': 3}

    train, valid: pairs (inputs, targets), each an array (count, ...) or a dict of arrays: float32,
        integers, or uint8 pixels, of which the network sees x / 255 (`pixels`). Targets are None
        where nothing can be trained or judged. More than memory holds is `inputs.on_disk.OnDisk`.
    name: of the data, for messages and records.
    fields: what the data decides of a family's Config; of arrays input_shape and, of integer
        labels, classes, unless given.
    recipe: what the numbers depend on (data, preprocessing, split): equal recipes, comparable
        qualities; a hash of the data unless given.
    loss: (outputs, targets) -> losses (batch,) in `keras.ops`, minimized on average. The default
        takes logits or probabilities, so a network may end in softmax (`classification`).
    scorer: (model, predict) -> a function (inputs, targets) -> scores (batch,) from 0 to 1, or rows
        of numbers (batch, ...). `predict(inputs)` runs the network on a batch; `model` is there
        for scorers that need a part of it.
    average: the quality of the scores of all examples. metric: its name.
    higher_is_better: of the quality. percent: whether it is a share, 0 to 1, written in %.
    of_network: the loss and metric are still to be chosen, for the network that is trained or
        compressed (`nas.training.network_task`), as for a user's own arrays.
    chance: the quality of the best constant answer, where that is known; of classes the share of
        the largest one, unless given.
    training: the fields of `nas.Recipe` in which this task differs, and "epochs".
    augment: (inputs, targets, generator) -> both, changed: a batch of training data before
        `pixels`; `generator` is a `np.random.Generator`.
    files: to be left beside a trained network: suffix -> content (a tokenizer).
    labels: the names of classes, or of tokens, in order. preprocessing: what was applied to an
        example of a user before it became an input here; None: as types and shapes say.
    notes: what whoever trains on it has to know, in sentences: files left out, uneven classes.

    Raises `ValueError` where inputs and targets do not have equally many examples.
    """

    train: tuple[Tree, Any]
    valid: tuple[Tree, Any]
    name: str = "data"
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    recipe: str = ""
    loss: Loss = classification
    scorer: Scorer = accuracy
    average: Callable[[np.ndarray], float] = mean
    metric: str = "accuracy"
    higher_is_better: bool = True
    percent: bool = True
    of_network: bool = False
    chance: float | None = None
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    augment: Callable[..., tuple[Any, Any]] | None = None
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in ("train", "valid"):
            pair = getattr(self, part)
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise ValueError(
                    f"{part} is a {type(pair).__name__}; expected a pair (inputs, targets)"
                )
            sizes = {len(array) for tree in pair if tree is not None for array in _leaves(tree)}
            if len(sizes) > 1:
                raise ValueError(f"{part}: inputs and targets have {sorted(sizes)} examples")
        if not self.fields and not isinstance(self.train[0], dict):
            object.__setattr__(self, "fields", _fields(self.train, self.valid))
        labels = self.valid[1]
        if self.chance is None and self.scorer is accuracy and _are_classes(labels):
            object.__setattr__(self, "chance", float(np.bincount(labels).max() / len(labels)))
        if not self.recipe:
            arrays = [array for tree in (*self.train, *self.valid) for array in _leaves(tree)]
            object.__setattr__(self, "recipe", f"{self.name} data={fingerprint(*arrays)}")

    @property
    def labelled(self) -> bool:
        """Whether there are targets, so that networks can be trained and judged."""
        return self.train[1] is not None and self.valid[1] is not None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of an image: (height, width, channels)."""
        return self.fields["input_shape"]

    @property
    def classes(self) -> int:
        """Of a classification: how many there are."""
        return self.fields["classes"]


def _leaves(tree: Any) -> list[np.ndarray]:
    if tree is None:
        return []
    return list(tree.values()) if isinstance(tree, dict) else [tree]


def _fields(train: tuple[Any, Any], valid: tuple[Any, Any]) -> dict[str, Any]:
    """input_shape, and classes where all targets are integers (count,)."""
    found: dict[str, Any] = {"input_shape": train[0].shape[1:]}
    labels = [part[1] for part in (train, valid)]
    if all(_are_classes(one) for one in labels):
        found["classes"] = max(int(one.max()) for one in labels) + 1
    return found


def _are_classes(labels: Any) -> bool:
    array = isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu"
    return array and bool(len(labels)) and int(labels.min()) >= 0


def pixels(inputs: np.ndarray) -> np.ndarray:
    """Inputs as a network sees them: float32, and uint8 pixels divided by 255.

    >>> pixels(np.array([0, 255], np.uint8))
    array([0., 1.], dtype=float32)
    """
    if inputs.dtype == np.uint8:
        return inputs.astype(np.float32) / np.float32(255)
    return inputs.astype(np.float32, copy=False)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize of (count, height, width, channels) to `size` x `size`, float32.

    Half-pixel centres; the filter widens when shrinking, as in PIL and `jax.image.resize`.

    >>> resize(np.arange(4.0).reshape(1, 2, 2, 1), 1).item()
    1.5
    """
    rows = _interpolation(images.shape[1], size)
    columns = _interpolation(images.shape[2], size)
    small = np.empty((len(images), size, size, images.shape[3]), np.float32)
    for start in range(0, len(images), 1024):  # bounds the float32 copy
        part = images[start : start + 1024].astype(np.float32)
        part = np.einsum("rh,nhwc->nrwc", rows, part, optimize=True)
        small[start : start + 1024] = np.einsum("sw,nrwc->nrsc", columns, part, optimize=True)
    return small


def resized(task: Task, size: int) -> Task:
    """A task of images at another size, `size` x `size`, its values as networks see them (0..1)."""
    if task.input_shape[:2] == (size, size):
        return task
    parts = [
        (mapped(inputs, lambda array: resize(pixels(array), size)), targets)
        for inputs, targets in (task.train, task.valid)
    ]
    shape = (size, size, task.input_shape[2])
    return dataclasses.replace(
        task,
        train=parts[0],
        valid=parts[1],
        fields=task.fields | {"input_shape": shape},
        preprocessing=task.preprocessing or of_inputs(task.train[0]),
        recipe=f"{task.recipe} resized to {size}",
    )


def _interpolation(length: int, size: int) -> np.ndarray:
    """Matrix (size, length) of the weights of a triangle filter; its rows sum to 1."""
    scale = length / size
    centres = (np.arange(size) + 0.5) * scale - 0.5
    distances = np.abs(np.arange(length) - centres[:, None]) / max(scale, 1.0)
    weights = np.maximum(0, 1 - distances)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def split(labels: np.ndarray, valid: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices (train, valid): the share `valid` of every class, drawn from `seed`.

    >>> [len(part) for part in split(np.arange(50) % 5, valid=0.2, seed=0)]
    [40, 10]
    """
    generator = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        held_out.append(generator.permutation(members)[: round(len(members) * valid)])
    mask = np.zeros(len(labels), bool)
    mask[np.concatenate(held_out)] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def fingerprint(*arrays: Any) -> str:
    """Short hash of the contents of arrays, or of what is on disk, for a recipe."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        for part in parts_of(array):
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:12]


def whole_number(name: str, value: Any, least: int) -> int:
    """`value`; `ValueError` that names the option unless it is a whole number >= `least`.

    >>> whole_number("size", 28, least=8)
    28
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}; expected a whole number >= {least}")
    return value
