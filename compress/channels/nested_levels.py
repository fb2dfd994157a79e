"""Several nested networks in one set of weights: which level each weight belongs to, and training.

Yu and Huang, "Universally Slimmable Networks", arXiv 1903.05134: in each step the whole network
learns from the data, and the smallest and one other from what the whole one says.
"""

import types
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from compress.rewriting import graph
from compress.rewriting.parametrized import Parametrization


class NestedMask(Parametrization):
    """A weight as the level that runs now sees it: unchanged, but for what is not of that level."""

    last = True

    def __init__(self, mask: Callable, **kwargs: Any):
        super().__init__(**kwargs)
        self.mask = mask  # a function: the variables that it reads belong to `Levels`

    def call(self, weight: Any) -> Any:
        return self.mask(weight)


class Levels(keras.layers.Layer):
    """Stands before the outputs while nested networks are trained, and owns what tells them apart.

    `ranks`: for a key the highest level that still has each value: level 0 has all, and what a
    level has, the lower ones have, too. In training it runs the network of the last level, and of
    one between that is drawn anew for every step, as at inference (normalized by the averages of
    the whole network, so that all levels share them); their loss is the divergence from the outputs
    of level 0, times `weight`.
    """

    chooses_units = True
    parametrizations: dict = {}  # as `Parametrized`, it goes from graph to graph as it is

    def __init__(self, count: int, weight: float = 1.0, seed: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        self.count, self.weight = count, weight
        self.random = keras.random.SeedGenerator(seed)
        self.ranks: dict[str, keras.Variable] = {}
        # What Keras is not to track: the layers of the network belong to the graph.
        self._now = types.SimpleNamespace(level=None, network=None, probabilities=())

    def add(self, key: str, rank: np.ndarray) -> None:
        """A rank of that key, from now on a variable."""
        name = key.replace("/", "_") + "_rank"
        self.ranks[key] = self.add_weight(
            shape=rank.shape, dtype="uint8", initializer="zeros", trainable=False, name=name
        )
        self.ranks[key].assign(rank)

    def mask(self, key: str, shape: Sequence[int]) -> NestedMask:
        """For a weight: `shape` is the rank's, with 1 where it is to be repeated."""
        now, rank, shape = self._now, self.ranks[key], tuple(shape)

        def mask(weight):
            if now.level is None:
                return weight
            keep = ops.greater_equal(ops.reshape(rank, shape), ops.cast(now.level, "uint8"))
            return weight * ops.cast(keep, weight.dtype)

        return NestedMask(mask)

    def __call__(self, output: Any, inputs: Any, others: Any = (), **kwargs: Any) -> Any:
        if isinstance(output, keras.KerasTensor):  # in whatever graph it is put now
            self._now.network = keras.Model(list(inputs), [output, *others])
            self._now.probabilities = [_sums_to_one(tensor) for tensor in (output, *others)]
        return super().__call__(output, inputs, others, **kwargs)

    def call(self, output: Any, inputs: Any, others: Any = (), training: bool | None = None) -> Any:
        if training:
            teachers = [ops.stop_gradient(tensor) for tensor in (output, *others)]
            for level in self._levels():
                students = self.at(level, list(inputs))
                kinds = self._now.probabilities
                for teacher, student, kind in zip(teachers, students, kinds, strict=True):
                    self.add_loss(self.weight * divergence(teacher, student, kind))
        return output

    def at(self, level: Any, inputs: Any) -> Any:
        """All outputs of the network of a level."""
        self._now.level = level
        try:
            return keras.tree.flatten(self._now.network(inputs, training=False))
        finally:
            self._now.level = None

    def _levels(self) -> list:
        between = self.count - 2  # neither the whole nor the smallest
        if between < 1:
            return [self.count - 1]
        drawn = 1
        if between > 1:
            drawn = keras.random.randint((), 1, self.count - 1, dtype="int32", seed=self.random)
        return [self.count - 1, drawn]

    def compute_output_spec(
        self, output: Any, inputs: Any, others: Any = (), training: bool | None = None
    ) -> Any:
        return keras.KerasTensor(output.shape, output.dtype)


def divergence(teacher: Any, student: Any, probabilities: bool = False) -> Any:
    """How far a student's outputs are from a teacher's: Kullback-Leibler, over the last axis.

    The outputs are logits, unless they are `probabilities`; of single numbers, the squared
    difference.
    """
    if teacher.shape[-1] == 1:
        return ops.mean(ops.square(student - teacher))
    teacher, student = (ops.cast(tensor, "float32") for tensor in (teacher, student))
    if probabilities:
        teacher, student = (ops.log(ops.maximum(tensor, 1e-7)) for tensor in (teacher, student))
    teacher, student = ops.log_softmax(teacher), ops.log_softmax(student)
    return ops.mean(ops.sum(ops.exp(teacher) * (teacher - student), -1))


def _sums_to_one(tensor: Any) -> bool:
    layer = tensor._keras_history.operation
    layer = getattr(layer, "layer", layer)
    return isinstance(layer, keras.layers.Softmax) or (
        getattr(layer, "activation", None) is keras.activations.softmax
    )


def with_levels(model: keras.Model, levels: Levels) -> keras.Model:
    """The model with `levels` before its first output."""
    model = graph.rewrite(model, lambda _, copy: copy)
    outputs = keras.tree.flatten(model.output)
    outputs[0] = levels(outputs[0], model.inputs, outputs[1:])
    outputs = keras.tree.pack_sequence_as(model.output, outputs)
    return keras.Model(model.input, outputs, name=model.name)


def has_levels(model: keras.Model) -> bool:
    """Whether a model is prepared by `with_levels`."""
    return any(isinstance(layer, Levels) for layer in model.layers)


def levels_of(model: keras.Model) -> Levels:
    """The levels of such a model; `ValueError` of another."""
    for layer in model.layers:
        if isinstance(layer, Levels):
            return layer
    raise ValueError(f"{model.name} has no levels; expected a network prepared by dynamic_sparsity")


def without_levels(model: keras.Model) -> keras.Model:
    """The model as it was before `with_levels`."""
    return graph.rewrite(model, lambda _, copy: None if isinstance(copy, Levels) else copy)


def rank_levels(scores: np.ndarray, kept: Sequence[int]) -> np.ndarray:
    """The highest level that has each value: level n + 1 has the `kept[n]` best, ties by place.

    >>> rank_levels(np.array([3.0, 1.0, 2.0, 0.0]), [2, 1]).tolist()
    [2, 0, 1, 0]
    """
    order = np.argsort(-scores.ravel(), kind="stable")
    rank = np.zeros(scores.size, np.uint8)
    for level, count in enumerate(kept, 1):
        rank[order[:count]] = level
    return rank.reshape(scores.shape)
