"""A task of examples as users have them: arrays, `tf.data`, `keras.utils.PyDataset`, batches."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from compress.examples.data import taken
from nas.tasks.task import Task, split

VALID = 0.2  # the share of labelled examples that judges, where no others are given
EXPECTED = (
    "expected a nas.Task, arrays x or (x, y), a tf.data.Dataset, a keras.utils.PyDataset or an"
    " iterable of batches"
)


def task_of(data: Any, valid: Any = None) -> Task:
    """The task of some examples: classification where there are labels, else calibration only.

    data: a `Task`, which is returned as it is; inputs (count, ...), or a pair (inputs, labels):
        integers (count,) or one-hot rows (count, classes); inputs of several names as a dict of
        arrays; a batched `tf.data.Dataset`, a `keras.utils.PyDataset` or any iterable of such
        batches, which is read into memory.
    valid: the same, to judge on; None: a fifth of each class of `data`, always the same.

    The loss takes logits or the probabilities of a network that ends in softmax
    (`nas.tasks.task.classification`). Raises `ValueError` for anything else.

    >>> task = task_of((np.zeros((30, 4), "float32"), np.arange(30) % 3))
    >>> task.classes, len(task.train[1]), len(task.valid[1])
    (3, 24, 6)
    """
    if isinstance(data, Task):
        return data
    inputs, labels = _pair(data)
    if valid is not None:
        return Task(train=(inputs, labels), valid=_pair(valid))
    if labels is None:
        return Task(train=(inputs, None), valid=(inputs, None))
    first, second = split(labels, VALID, seed=0)
    if not len(first) or not len(second):
        raise ValueError(f"{len(labels)} labelled examples are too few to judge on a part of them")
    parts = [(taken(inputs, one), labels[one]) for one in (first, second)]
    return Task(train=parts[0], valid=parts[1])


def _pair(data: Any) -> tuple[Any, Any]:
    """Inputs, and labels or None, as arrays."""
    if isinstance(data, tuple):
        if len(data) not in (1, 2):
            raise ValueError(f"data is a tuple of {len(data)}, not (inputs, labels); {EXPECTED}")
        return _arrays(data[0]), _labels(data[1]) if len(data) == 2 else None
    if isinstance(data, (np.ndarray, Mapping)) or hasattr(data, "__array__"):
        return _arrays(data), None
    batches = _batches(data)
    pairs = [_pair(tuple(batch) if isinstance(batch, list) else batch) for batch in batches]
    if not pairs:
        raise ValueError(f"data holds no batch; {EXPECTED}")
    labels = [one for _, one in pairs if one is not None]
    if labels and len(labels) < len(pairs):
        raise ValueError("some batches of the data have labels and some have none")
    inputs = [one for one, _ in pairs]
    first = inputs[0]
    try:
        if isinstance(first, dict):
            joined: Any = {name: np.concatenate([one[name] for one in inputs]) for name in first}
        else:
            joined = np.concatenate(inputs)
        return joined, np.concatenate(labels) if labels else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the batches do not fit together ({error}); {EXPECTED}") from error


def _batches(data: Any) -> Iterable[Any]:
    cardinality = getattr(data, "cardinality", None)  # of a tf.data.Dataset
    if cardinality is not None and int(cardinality()) == -1:
        raise ValueError("the tf.data.Dataset has no end; expected one without repeat()")
    if not isinstance(data, (str, bytes)):
        if hasattr(data, "__getitem__") and hasattr(data, "__len__"):  # a PyDataset, a list
            return [data[number] for number in range(len(data))]
        if isinstance(data, Iterable):
            return data
    raise ValueError(f"data is a {type(data).__name__}; {EXPECTED}")


def _arrays(inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return {name: _arrays(value) for name, value in inputs.items()}
    if isinstance(inputs, (list, tuple)) and any(hasattr(one, "shape") for one in inputs):
        raise ValueError(
            f"inputs are a {type(inputs).__name__} of {len(inputs)} arrays; expected one array, or"
            " for a network of several inputs a dict of arrays by their names"
        )
    found = np.asarray(inputs)
    if found.dtype.kind not in "biuf" or not found.ndim:
        raise ValueError(f"inputs are {found.dtype} {found.shape}; {EXPECTED}")
    return found


def _labels(labels: Any) -> np.ndarray:
    """Integer labels (count,), also of one-hot rows (count, classes) and a column (count, 1)."""
    found = np.asarray(labels)
    if not found.ndim:
        raise ValueError("the data come one by one; expected batches, as of dataset.batch(64)")
    if found.dtype.kind not in "biuf":
        raise ValueError(f"labels are {found.dtype}; expected integers from 0 on")
    one_hot = found.ndim == 2 and found.shape[1] > 1 and np.isin(found, (0, 1)).all()
    if one_hot and (found.sum(1) == 1).all():
        return found.argmax(1).astype(np.int32)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1 or (found != np.floor(found)).any() or found.min(initial=0) < 0:
        raise ValueError(
            f"labels are {found.dtype} {found.shape}; expected integers from 0 on, (count,): for"
            " another kind of target make a nas.Task with its own loss and scorer"
        )
    return found.astype(np.int32)
