"""The compiled training step of the Keras backend in use."""

import contextlib
import importlib
import math
from typing import Any, Protocol

import numpy as np

from nas.tasks.task import Task, Tree
from nas.training.recipe import Recipe

MODULES = {
    "tensorflow": "nas.training.tensorflow_engine",
    "jax": "nas.training.jax_engine",
}


class Judge(Protocol):
    """What runs a network on batches of a task, to judge it."""

    def judge(self, inputs: Tree, targets: Tree) -> tuple[Any, Any]:
        """Outputs, and losses (batch,), of a batch of `nas.training.batches.valid_batch`."""

    def predict(self, inputs: Tree) -> Any:
        """Outputs of a batch of any size."""


class Engine(Judge, Protocol):
    """A network that is being trained, and all that the next step depends on."""

    def step(self, inputs: Tree, targets: Tree, rate: float) -> Any:
        """Change the weights by one step at this learning rate; the mean loss before it."""

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Within it the model holds the weights to judge: the average, if the recipe has one."""

    def weights(self) -> list[np.ndarray]:
        """Those that the model holds, as `keras.Model.get_weights`."""

    def state(self) -> list[np.ndarray]:
        """All that the next step depends on: weights, states of dropout, moments, averages."""

    def restore(self, arrays: list[np.ndarray]) -> None:
        """Go on from `state()`; `ValueError` where it is of another network."""

    def finish(self, weights: list[np.ndarray] | None = None) -> None:
        """Leave in the model `weights`, or those that were judged last."""

    def put_back(self) -> None:
        """Let the model hold the weights as the last step left them."""

    def take_over(self) -> None:
        """Go on with the weights that the model holds now."""


def engine(
    model: Any, task: Task, recipe: Recipe, batch_size: int, steps: float = math.inf
) -> contextlib.AbstractContextManager[Engine]:
    """The compiled step of this backend: a context in which it may be called, about `steps` times.

    A compiler takes longer for a long training. Raises `ValueError` where Keras runs on a backend
    that has no training step.
    """
    import keras

    backend = keras.config.backend()
    if backend not in MODULES:
        raise ValueError(f"no training step for KERAS_BACKEND={backend}; tensorflow and jax have")
    return importlib.import_module(MODULES[backend]).compiled(
        model, task, recipe, batch_size, steps
    )
