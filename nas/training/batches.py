"""What the training steps of both backends share: arrays in, which weights decay, what is kept."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nas.tasks.task import Task, Tree, pixels
from nas.training.recipe import Recipe

ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-7}  # as keras.optimizers.Adam
LARGE_OUTPUT = 2**16  # numbers an example; above, larger batches no longer speed up evaluation


def valid_batch(model: Any, task: Task, recipe: Recipe) -> int:
    """Examples judged at once; without gradients, small ones four times as many as trained on."""
    import keras

    numbers = sum(math.prod(output.shape[1:]) for output in keras.tree.flatten(model.output))
    size = recipe.batch_size * (4 if numbers <= LARGE_OUTPUT else 1)
    return min(size, count(task.valid))


def named_inputs(model: Any) -> Any:
    """A model that takes its inputs by name, over the same layers; itself where it has one input.

    >>> import keras
    >>> a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    >>> model = keras.Model([a, b], keras.layers.Concatenate()([a, b]))
    >>> sorted(named_inputs(model).input)
    ['a', 'b']
    """
    import keras

    if isinstance(model.input, dict) or len(model.inputs) == 1:
        return model
    inputs = {tensor.name: tensor for tensor in model.inputs}
    return keras.Model(inputs, model.output, name=model.name)


def count(part: tuple[Tree, Any]) -> int:
    """How many examples a part of a task has.

    >>> count(({"x": np.zeros((5, 2))}, None))
    5
    """
    tree = part[0]
    return len(next(iter(tree.values())) if isinstance(tree, dict) else tree)


def prepared(model: Any) -> Callable[[Any], Any]:
    """A function that converts inputs of a task to those of `model`: `pixels`, or integers.

    >>> import keras
    >>> inputs = keras.Input((2,))
    >>> model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    >>> prepared(model)(np.array([[0, 255]], np.uint8))
    array([[0., 1.]], dtype=float32)
    """
    kinds = mapped(single(model.input), lambda tensor: tensor.dtype)

    def one(array: np.ndarray, kind: str) -> np.ndarray:
        return array.astype(kind, copy=False) if "int" in kind else pixels(array)

    def prepare(inputs: Any) -> Any:
        if isinstance(kinds, dict):
            return {name: one(inputs[name], kind) for name, kind in kinds.items()}
        return one(inputs, kinds)

    return prepare


def labels(targets: Any) -> Any:
    """Targets as a loss sees them: float32, or int32.

    >>> labels(np.arange(2, dtype=np.uint8)).dtype
    dtype('int32')
    """
    return mapped(
        targets,
        lambda array: array.astype(np.float32 if array.dtype.kind == "f" else np.int32, copy=False),
    )


def in_float32(outputs: Any) -> Any:
    """Outputs of a network in mixed precision as a loss wants them."""
    import keras

    def one(tensor: Any) -> Any:
        kind = keras.backend.standardize_dtype(tensor.dtype)
        return keras.ops.cast(tensor, "float32") if kind in ("bfloat16", "float16") else tensor

    return keras.tree.map_structure(one, outputs)


def per_example(losses: Any, batch_size: int) -> Any:
    """The losses of a task; `ValueError` unless there is one an example."""
    if tuple(losses.shape) not in ((batch_size,), (None,)):
        raise ValueError(
            f"the task's loss gives {tuple(losses.shape)} for a batch of {batch_size}; expected "
            f"one loss an example, ({batch_size},)"
        )
    return losses


def decays(variable: Any) -> bool:
    """Whether weight decay applies: to kernels and embeddings, not to biases and norms."""
    return len(variable.shape) >= 2 and not variable.name.endswith("bias")


def averaged_weights(model: Any) -> list[Any]:
    """The weights of which `Recipe.ema` keeps an average, statistics of batches included."""
    return [weight for weight in model.weights if "float" in str(weight.dtype)]


def check_shapes(shapes: Sequence[tuple[int, ...]], arrays: Sequence[np.ndarray]) -> None:
    """Raise `ValueError` unless the arrays of a checkpoint have the shapes of this training."""
    found = [array.shape for array in arrays]
    if found != shapes:
        raise ValueError(f"the checkpoint holds {len(found)} arrays of another network's shapes")


def mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    """The function's value of each entry of a dict or list, or of what is neither.

    >>> mapped({"a": 1, "b": 2}, str)
    {'a': '1', 'b': '2'}
    """
    if isinstance(tree, dict):
        return {name: function(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [function(value) for value in tree]
    return function(tree)


def arrays_of(outputs: Any) -> Any:
    """Outputs of a network as NumPy arrays."""
    return mapped(outputs, np.asarray)


def single(tensors: Any) -> Any:
    """The inputs or outputs of a model: the tensor where there is only one, else as they are."""
    return tensors[0] if isinstance(tensors, list | tuple) and len(tensors) == 1 else tensors
