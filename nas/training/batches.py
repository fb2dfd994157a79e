"""What the training steps of both backends share: arrays in, which weights decay, what is kept."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from nas.tasks.task import Task, Tree, pixels
from nas.training.recipe import Recipe

ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-7}  # as keras.optimizers.Adam
LARGE_OUTPUT = 2**16  # numbers an example; above, larger batches no longer speed up evaluation


def valid_batch(model, task: Task, recipe: Recipe) -> int:
    """Examples judged at once; without gradients, small ones four times as many as trained on."""
    import keras

    numbers = sum(math.prod(output.shape[1:]) for output in keras.tree.flatten(model.output))
    size = recipe.batch_size * (4 if numbers <= LARGE_OUTPUT else 1)
    return min(size, count(task.valid))


def count(part: tuple[Tree, Tree]) -> int:
    """How many examples a part of a task has."""
    tree = part[0]
    return len(next(iter(tree.values())) if isinstance(tree, dict) else tree)


def prepared(model) -> Callable[[Tree], Tree]:
    """A function that makes a task's inputs those of `model`: `pixels`, or its integers."""
    kinds = each(struct(model.input), lambda tensor: tensor.dtype)

    def one(array: np.ndarray, kind: str) -> np.ndarray:
        return array.astype(kind, copy=False) if "int" in kind else pixels(array)

    def prepare(inputs: Tree) -> Tree:
        if isinstance(kinds, dict):
            return {name: one(inputs[name], kind) for name, kind in kinds.items()}
        return one(inputs, kinds)

    return prepare


def labels(targets: Tree) -> Tree:
    """Targets as a loss sees them: float32, or int32."""
    return each(
        targets,
        lambda array: array.astype(np.float32 if array.dtype.kind == "f" else np.int32, copy=False),
    )


def in_float32(outputs: Any) -> Any:
    """Outputs of a network in mixed precision as a loss wants them."""
    import keras

    def one(tensor):
        kind = keras.backend.standardize_dtype(tensor.dtype)
        return keras.ops.cast(tensor, "float32") if kind in ("bfloat16", "float16") else tensor

    return keras.tree.map_structure(one, outputs)


def per_example(losses: Any, batch_size: int) -> Any:
    """The losses of a task, or ValueError unless there is one an example."""
    if tuple(losses.shape) not in ((batch_size,), (None,)):
        raise ValueError(
            f"the task's loss gives {tuple(losses.shape)} for a batch of {batch_size}; expected "
            f"one loss an example, ({batch_size},)"
        )
    return losses


def decays(variable) -> bool:
    """Whether weight decay applies: to kernels and embeddings, not to biases and norms."""
    return len(variable.shape) >= 2 and not variable.name.endswith("bias")


def averaged_weights(model) -> list:
    """The weights of which `Recipe.ema` keeps an average, statistics of batches included."""
    return [weight for weight in model.weights if "float" in str(weight.dtype)]


def fits(shapes: list[tuple[int, ...]], arrays: list[np.ndarray]) -> None:
    """Raise ValueError unless kept arrays are those of this training."""
    found = [array.shape for array in arrays]
    if found != shapes:
        raise ValueError(f"the checkpoint holds {len(found)} arrays of another network's shapes")


def each(tree: Any, function: Callable) -> Any:
    if isinstance(tree, dict):
        return {name: function(value) for name, value in tree.items()}
    return function(tree)


def arrays_of(tree: Any) -> Tree:
    if isinstance(tree, list | tuple):
        return [np.asarray(value) for value in tree]
    return each(tree, np.asarray)


def struct(tensors: Any) -> Any:
    """The inputs or outputs of a model: a dict, or the tensor where there is only one."""
    return tensors[0] if isinstance(tensors, list | tuple) and len(tensors) == 1 else tensors
