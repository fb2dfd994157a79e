"""A task of examples as users have them: arrays, `tf.data`, `keras.utils.PyDataset`, batches."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nas.tasks.inputs.on_disk import OnDisk, Stack, chosen, mapped
from nas.tasks.scoring.judgement import WEIGHTS
from nas.tasks.task import Task, split

VALID = 0.2  # the share of labelled examples that judges, where no others are given
EXPECTED = (
    "expected a nas.Task, arrays x or (x, y), a tf.data.Dataset, a keras.utils.PyDataset, a Hugging"
    " Face dataset or an iterable of batches"
)
LABELS = ("y", "label", "labels", "target")  # of columns
ROWS = 256  # of a table of columns, that are read at once


def task_of(data: Any, valid: Any = None) -> Task:
    """The task of some examples, for the network that is trained or compressed with them.

    data: a `Task`, which is returned as it is; inputs (count, ...), or a pair (inputs, targets), or
        (inputs, targets, sample weights): integers (count,) or one-hot rows (count, classes) for
        classes, numbers of the output's shape for anything else; several inputs and outputs as
        dicts of arrays by their names; a batched `tf.data.Dataset`, a `keras.utils.PyDataset`, a
        Hugging Face `Dataset` with a column `label`, or any iterable of such batches, which is
        read through once, and lies on disk where it is more than memory holds.
    valid: the same, to judge on; None: a fifth of each class of `data`, always the same.

    The loss and the metric are chosen for the network later (`nas.training.network_task`). Raises
    `ValueError` for anything else.

    >>> task = task_of((np.zeros((30, 4), "float32"), np.arange(30) % 3))
    >>> task.classes, len(task.train[1]), len(task.valid[1])
    (3, 24, 6)
    """
    if isinstance(data, Task):
        return data
    if (
        isinstance(data, Mapping)
        and data
        and valid is None
        and all(map(_is_columns, data.values()))
    ):
        data, valid = _splits(data)  # a DatasetDict
    names = _labels(data)
    inputs, targets = _pair(data)
    if valid is not None:
        return Task(train=(inputs, targets), valid=_pair(valid), of_network=True, labels=names)
    first, second = divided(inputs, targets, VALID)
    return Task(train=first, valid=second, of_network=True, labels=names)


def divided(inputs: Any, targets: Any, valid: float, seed: int = 0) -> tuple[Any, Any]:
    """Two pairs (inputs, targets): the share `valid` of each class, or of all, is the second.

    Without targets both are all there is. Raises `ValueError` where there are too few examples.

    >>> [len(part[1]) for part in divided(np.zeros((10, 2)), np.linspace(0, 1, 10), 0.2)]
    [8, 2]
    """
    if targets is None:
        return (inputs, None), (inputs, None)
    first = next(iter(targets.values())) if isinstance(targets, dict) else targets
    grouped = np.zeros(len(first), int)
    if first.ndim == 1 and first.dtype.kind in "iub" and not isinstance(first, OnDisk):
        grouped = first
    parts = split(grouped, valid, seed)
    if not all(len(one) for one in parts):  # as many values as examples: no classes
        parts = split(np.zeros(len(first), int), valid, seed)
    if not all(len(one) for one in parts):
        raise ValueError(f"{len(first)} labelled examples are too few to judge on a part of them")
    one, other = ((chosen(inputs, rows), chosen(targets, rows)) for rows in parts)
    return one, other


def _pair(data: Any) -> tuple[Any, Any]:
    """Inputs, and targets or None, as arrays."""
    if isinstance(data, tuple):
        if len(data) not in (1, 2, 3):
            raise ValueError(f"data is a tuple of {len(data)}, not (inputs, targets); {EXPECTED}")
        targets = as_targets(data[1]) if len(data) > 1 and data[1] is not None else None
        if len(data) == 3 and data[2] is not None:
            targets = weighted(targets, data[2])
        return _arrays(data[0]), targets
    if _is_columns(data):
        return _columns(data)
    if isinstance(data, (np.ndarray, OnDisk, Mapping)) or hasattr(data, "__array__"):
        return _arrays(data), None
    return _stacked(
        tuple(batch) if isinstance(batch, (list, tuple)) else (batch,) for batch in _batches(data)
    )


def _stacked(batches: Iterable[tuple[Any, ...]]) -> tuple[Any, Any]:
    """The inputs and targets of batches, in memory or on disk; targets None where there are none.

    batches: (inputs,), (inputs, targets) or (inputs, targets, sample weights).
    """
    stacks: dict[tuple[str, str], Stack] = {}
    sides: set[tuple[str, ...]] = set()
    plain: dict[str, bool] = {}
    for batch in batches:
        if len(batch) not in (1, 2, 3):
            raise ValueError(f"a batch is a tuple of {len(batch)}; {EXPECTED}")
        named = dict(zip(("inputs", "targets", WEIGHTS), batch, strict=False))
        named = {side: tree for side, tree in named.items() if tree is not None}
        sides.add(tuple(named))
        if len({one[:2] for one in sides}) > 1:
            raise ValueError("some batches of the data have labels and some have none")
        for side, tree in named.items():
            found = _arrays(tree) if side == "inputs" else _raw_targets(tree)
            plain[side] = not isinstance(found, Mapping)
            leaves = {"": found} if plain[side] else found
            for name, array in leaves.items():
                try:
                    stacks.setdefault((side, name), Stack()).append(array)
                except ValueError as error:
                    if "fit into memory" in str(error):
                        raise
                    raise ValueError(
                        f"the batches do not fit together ({error}); {EXPECTED}"
                    ) from error
    if not stacks:
        raise ValueError(f"data holds no batch; {EXPECTED}")

    def tree_of(side: str) -> Any:
        arrays = {name: one.array() for (of, name), one in stacks.items() if of == side}
        if len({len(array) for array in arrays.values()}) > 1:
            raise ValueError(f"the batches do not fit together (in some {side} are missing)")
        return arrays.get("") if plain[side] else arrays

    inputs = tree_of("inputs")
    if "targets" not in plain:
        return inputs, None
    targets = as_targets(tree_of("targets"))
    return inputs, weighted(targets, tree_of(WEIGHTS)) if WEIGHTS in plain else targets


def _is_columns(data: Any) -> bool:
    """Whether this is a Hugging Face `datasets.Dataset`, in memory or streamed."""
    return hasattr(data, "column_names") and hasattr(data, "with_format")


def _splits(data: Mapping[str, Any]) -> tuple[Any, Any]:
    """The parts of a Hugging Face `DatasetDict` to train and to judge with."""
    if "train" not in data:
        raise ValueError(
            f"the data has the splits {', '.join(data)}; expected train, and validation"
        )
    held = next((name for name in ("validation", "valid", "val", "test") if name in data), None)
    return data["train"], None if held is None else data[held]


def _labels(data: Any) -> tuple[str, ...]:
    """The names of classes that data knows: of `image_dataset_from_directory`, of Hugging Face."""
    names = getattr(data, "class_names", None)
    if names is None and _is_columns(data):
        features = getattr(data, "features", None) or {}
        label = next((name for name in LABELS if name in features), None)
        names = getattr(features.get(label), "names", None)
    return tuple(map(str, names)) if names is not None else ()


def _columns(data: Any) -> tuple[Any, Any]:
    """Inputs and targets of a Hugging Face dataset, by the names of its columns."""
    rows = data.with_format("numpy")
    if hasattr(data, "__len__"):
        batches: Iterable[Any] = (rows[start : start + ROWS] for start in range(0, len(rows), ROWS))
    elif hasattr(rows, "batch"):  # an IterableDataset
        batches = rows.batch(ROWS)
    else:
        batches = [rows[:]]
    return _stacked(map(_of_columns, batches))


def _of_columns(found: Mapping[str, Any]) -> tuple[Any, ...]:
    label = next((name for name in LABELS if name in found), None)
    inputs = {name: _even(name, array) for name, array in found.items() if name != label}
    only = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    return (only,) if label is None else (only, found[label])


def _even(name: str, rows: Any) -> np.ndarray:
    """The rows of a column as one array; pictures of their own sizes are an error."""
    shapes = {np.shape(row) for row in rows}
    if len(shapes) > 1:
        raise ValueError(
            f"column {name!r} has rows of the shapes {sorted(map(str, shapes))[0]} and others; "
            "expected one: map the dataset to one size first"
        )
    return np.stack([np.asarray(row) for row in rows])


def _batches(data: Any) -> Iterable[Any]:
    cardinality = getattr(data, "cardinality", None)  # of a tf.data.Dataset
    if cardinality is not None and int(cardinality()) == -1:
        raise ValueError("the tf.data.Dataset has no end; expected one without repeat()")
    if not isinstance(data, (str, bytes)):
        if hasattr(data, "__getitem__") and hasattr(data, "__len__"):  # a PyDataset, a list
            return (data[number] for number in range(len(data)))
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
    found = inputs if isinstance(inputs, OnDisk) else np.asarray(inputs)
    first = found.flat[:1] if isinstance(found, np.ndarray) and found.ndim else ()
    if any(isinstance(one, (str, bytes)) for one in first):
        raise ValueError(
            f"inputs are text {found.shape}; expected numbers: give what a look-up makes of it "
            "(StringLookup, TextVectorization), and the part of the network after the look-up"
        )
    if found.dtype.kind not in "biuf" or not found.ndim:
        raise ValueError(f"inputs are {found.dtype} {found.shape}; {EXPECTED}")
    return found


def as_targets(targets: Any) -> Any:
    """Targets as arrays: classes as integers (count,), also of one-hot rows and of a column.

    >>> as_targets(np.eye(3)), as_targets([[0.5], [1.5]]).shape
    (array([0, 1, 2], dtype=int32), (2, 1))
    """
    if isinstance(targets, Mapping):
        return {name: as_targets(value) for name, value in targets.items()}
    if isinstance(targets, OnDisk):  # as many are no classes (count,)
        kind = np.float32 if targets.dtype.kind == "f" else np.int32
        return mapped(targets, lambda array: array.astype(kind))
    found = _raw_targets(targets)
    one_hot = found.ndim == 2 and found.shape[1] > 1 and np.isin(found, (0, 1)).all()
    if one_hot and (found.sum(1) == 1).all():
        return found.argmax(1).astype(np.int32)
    if found.dtype.kind == "f":
        whole = np.isfinite(found).all() and (found == np.floor(found)).all()
        if not whole or found.ndim != 1 and found.shape[1:] != (1,):
            return found.astype(np.float32)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.dtype.kind == "f" and (np.abs(found) > 2**30).any():
        return found.astype(np.float32)
    return found.astype(np.int32)


def _raw_targets(targets: Any) -> Any:
    """Targets as arrays of numbers (count, ...), of whatever kind they came."""
    if isinstance(targets, Mapping):
        return {name: _raw_targets(value) for name, value in targets.items()}
    if isinstance(targets, (list, tuple)) and any(hasattr(one, "ndim") for one in targets):
        sizes = {getattr(one, "shape", None) for one in targets}
        if any(shape for shape in sizes):
            raise ValueError(
                f"targets are a {type(targets).__name__} of {len(targets)} arrays; expected one "
                "array, or for a network of several outputs a dict of arrays by their names"
            )
    found = np.asarray(targets)
    if not found.ndim:
        raise ValueError("the data come one by one; expected batches, as of dataset.batch(64)")
    if found.dtype.kind not in "biuf":
        raise ValueError(
            f"labels are {found.dtype}; expected integers from 0 on, for each class its number"
        )
    return found


def weighted(targets: Any, weights: Any) -> dict[str, Any]:
    """Targets that carry what each example counts in the loss.

    >>> sorted(weighted(np.arange(2), np.ones(2)))
    ['sample_weight', 'y']
    """
    if targets is None:
        raise ValueError("sample weights without targets (y)")
    found = np.asarray(weights)
    if found.dtype.kind not in "biuf" or found.ndim != 1 or not (found >= 0).all():
        raise ValueError(
            f"sample weights are {found.dtype} {found.shape}; expected numbers >= 0, (count,)"
        )
    named = targets if isinstance(targets, dict) else {"y": targets}
    return named | {WEIGHTS: found.astype(np.float32)}
