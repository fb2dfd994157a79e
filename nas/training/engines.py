"""The compiled training step of the Keras backend in use."""

import math

from nas.tasks.task import Task
from nas.training.recipe import Recipe


def engine(model, task: Task, recipe: Recipe, batch_size: int, steps: float = math.inf):
    """The compiled step of this backend: a context in which it may be called, about `steps` times.

    A compiler takes longer for a long training.
    """
    import keras

    backend = keras.config.backend()
    if backend == "tensorflow":
        from nas.training.tensorflow_engine import compiled
    elif backend == "jax":
        from nas.training.jax_engine import compiled
    else:
        raise ValueError(f"no training step for KERAS_BACKEND={backend}; tensorflow and jax have")
    return compiled(model, task, recipe, batch_size, steps)
