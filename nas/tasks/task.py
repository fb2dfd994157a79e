"""What a network is trained and judged on: arrays, a loss, a score."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

Tree = np.ndarray | dict[str, np.ndarray]  # arrays that share their first axis, the examples


def classification(outputs, labels):
    """Cross-entropy (batch,) of logits (batch, classes) and integer labels (batch,)."""
    import keras

    return keras.ops.sparse_categorical_crossentropy(labels, outputs, from_logits=True)


def accuracy(model, predict: Callable[[Tree], Tree]) -> Callable[[Tree, Tree], np.ndarray]:
    """The scorer of classification: 1 where the largest logit is the label's, else 0."""
    return lambda inputs, labels: np.argmax(predict(inputs), -1) == labels


def mean(scores: np.ndarray) -> float:
    """The average of scores that are shares, such as accuracies."""
    return float(np.mean(scores))


def geometric_mean(scores: np.ndarray) -> float:
    """The average of scores that are likelihoods: exp of their mean logarithm."""
    return float(np.exp(np.mean(np.log(np.maximum(scores, np.finfo(np.float64).tiny)))))


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Examples held in memory, and what a network is to make of them.

    >>> x, y = np.zeros((9, 8, 8, 1), np.float32), np.arange(9) % 3
    >>> Task(train=(x, y), valid=(x, y)).fields
    {'input_shape': (8, 8, 1), 'classes': 3}

    `train` and `valid` are pairs (inputs, targets), each an array (count, ...) or a dict of such:
    float32, integers, or uint8 pixels of which the network sees x / 255 (`pixels`).
    `fields` are what the data decides of a family's Config, e.g. input_shape and classes.
    `loss(outputs, targets)` gives losses (batch,), in `keras.ops`, to be minimized on average.
    `scorer(model, predict)` gives a function (inputs, targets) -> scores (batch,) from 0 to 1, or
    rows of numbers (batch, ...), of which `average` makes the quality, from those of all examples;
    `predict(inputs)` runs the network on a batch, `model` is there for what needs parts of it.
    `metric` is the score's name.
    Of arrays `fields` and `recipe` need not be given: the former are input_shape and, of integer
    labels, classes; the latter a hash of the data. Targets are None where nothing can be judged.
    `training` are the fields of nas.training.recipe.Recipe in which this task differs, and
    "epochs".
    `augment(inputs, targets, generator)` gives a changed batch of training data, before `pixels`.
    `recipe` says what the numbers depend on (data, preprocessing, split): equal recipes,
    comparable qualities. `files` go beside a trained network: name suffix -> content (a tokenizer).
    """

    train: tuple[Tree, Any]
    valid: tuple[Tree, Any]
    name: str = "data"
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    recipe: str = ""
    loss: Callable[[Any, Any], Any] = classification
    scorer: Callable[[Any, Callable], Callable[[Tree, Tree], np.ndarray]] = accuracy
    average: Callable[[np.ndarray], float] = mean
    metric: str = "accuracy"
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    augment: Callable[[Tree, Tree, np.random.Generator], tuple[Tree, Tree]] | None = None
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in ("train", "valid"):
            pair = getattr(self, part)
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise ValueError(f"{part}: expected a pair (inputs, targets), got {type(pair)}")
            sizes = {len(array) for tree in pair if tree is not None for array in _leaves(tree)}
            if len(sizes) > 1:
                raise ValueError(f"{part}: inputs and targets have {sorted(sizes)} examples")
        if not self.fields and isinstance(self.train[0], np.ndarray):
            object.__setattr__(self, "fields", _fields(self.train, self.valid))
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
        return self.fields["classes"]


def _leaves(tree: Any) -> list[np.ndarray]:
    if tree is None:
        return []
    return list(tree.values()) if isinstance(tree, dict) else [tree]


def _fields(train: tuple[Any, Any], valid: tuple[Any, Any]) -> dict[str, Any]:
    """input_shape, and classes where all targets are integers (count,)."""
    found: dict[str, Any] = {"input_shape": train[0].shape[1:]}
    labels = [part[1] for part in (train, valid)]
    if all(
        isinstance(one, np.ndarray) and one.ndim == 1 and one.dtype.kind in "iu" for one in labels
    ):
        found["classes"] = max(int(one.max()) for one in labels) + 1
    return found


def pixels(inputs: np.ndarray) -> np.ndarray:
    """Inputs as a network sees them: float32, and uint8 pixels divided by 255."""
    if inputs.dtype == np.uint8:
        return inputs.astype(np.float32) / np.float32(255)
    return inputs.astype(np.float32, copy=False)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize of (count, height, width, channels) to `size` x `size`, float32.

    Half-pixel centres; the filter widens when shrinking, as in PIL and `jax.image.resize`.
    """
    rows = _interpolation(images.shape[1], size)
    columns = _interpolation(images.shape[2], size)
    small = np.empty((len(images), size, size, images.shape[3]), np.float32)
    for start in range(0, len(images), 1024):  # bounds the float32 copy
        part = images[start : start + 1024].astype(np.float32)
        part = np.einsum("rh,nhwc->nrwc", rows, part, optimize=True)
        small[start : start + 1024] = np.einsum("sw,nrwc->nrsc", columns, part, optimize=True)
    return small


def _interpolation(length: int, size: int) -> np.ndarray:
    """Matrix (size, length) of the weights of a triangle filter; its rows sum to 1."""
    scale = length / size
    centres = (np.arange(size) + 0.5) * scale - 0.5
    distances = np.abs(np.arange(length) - centres[:, None]) / max(scale, 1.0)
    weights = np.maximum(0, 1 - distances)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def split(labels: np.ndarray, valid: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices (train, valid): the share `valid` of every class, drawn from `seed`."""
    generator = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        held_out.append(generator.permutation(members)[: round(len(members) * valid)])
    mask = np.zeros(len(labels), bool)
    mask[np.concatenate(held_out)] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def fingerprint(*arrays: np.ndarray) -> str:
    """Short hash of the contents of arrays, for a recipe."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:12]


def whole(name: str, value, least: int) -> int:
    """`value` if it is a whole number >= `least`, else ValueError naming the option."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}; expected a whole number >= {least}")
    return value
