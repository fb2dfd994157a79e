"""Your own data in a file or folder, by its suffix: .npz, .npy, .csv, .parquet, .tfrecord, .py."""

import csv
import dataclasses
import pathlib
from typing import Any

import numpy as np

from nas.data import LABELS, VALID, as_targets, divided, task_of
from nas.tasks import image_folder, npz
from nas.tasks.inputs import tfrecord
from nas.tasks.inputs.on_disk import Stack, mapped, most_bytes
from nas.tasks.inputs.preprocessing import Preprocessing, of_inputs, of_sound, per_channel
from nas.tasks.scoring.classes import classified, names_of
from nas.tasks.task import Task, fingerprint

COLUMNS = (*LABELS, "class")  # what the targets of a table are called
EXPECTED = (
    "expected .npz, .npy, .csv, .parquet, .tfrecord, a .py file with `def data()`, or a folder of"
    " one folder of images per class"
)


def load(path: str, **options: Any) -> Task:
    """The data of a file, with the options of its kind.

    .npz: as `npz` takes them. A folder: as `image_folder` does. .npy: inputs without targets.
    .csv and .parquet: a row is an example, and the column `target`=NAME (else y, label, labels,
    target or class; several as a+b) its target, text for a class; .parquet needs pyarrow. A .py
    file: what its function `data()` returns, anything that `nas.compress` takes.

    .tfrecord, also a pattern as train.tfrecord-*: `tf.train.Example`s of a picture, made `size` x
    `size` x `channels` (`aspect`, `background` as of `image_folder`), of numbers, or of bytes of a
    `shape` as 28x28x1; and of their `target`=NAME.

    All but .npz, .py and folders: `scale`, as 255, divides; `mean` and `std` are subtracted and
    divided by, one a channel as 0.485/0.456/0.406; `valid` is the share that judges; `labels`, a
    text file or cat+dog, names the classes; `class_weights`, balanced or numbers as 1/5/20, counts
    each class in the loss; `balanced` judges by balanced accuracy; `sample_rate`, in Hz, says that
    the inputs are samples of sound.

    >>> load("house_prices.csv,target=price")  # doctest: +SKIP
    """
    file = pathlib.Path(str(path)).expanduser()
    kind = file.suffix.lower()
    if kind == ".npz":
        return npz.load(path, **options)
    if records := tfrecord.files_of(path) if ".tfrecord" in file.name else []:
        return _of_records(file, records, **options)
    if not file.exists():
        raise ValueError(f"no file {path}; {EXPECTED}")
    if file.is_dir():
        return image_folder.load(path, **options)
    if kind == ".py":
        if options:
            raise ValueError(f"{path}: a .py file takes no {', '.join(options)}; set it in data()")
        return _of_python(file)
    if kind == ".npy":
        inputs = _array(file)
        return _task(file, inputs, None, **options)
    if kind == ".csv":
        return _table(file, *_csv(file), **options)
    if kind in (".parquet", ".pq"):
        return _table(file, *_parquet(file), **options)
    raise ValueError(f"{path}: {EXPECTED}")


def _of_python(file: pathlib.Path) -> Task:
    from nas import registry

    made = getattr(registry.load_file(file), "data", None)
    if not callable(made):
        raise ValueError(
            f"{file} has no function data(); expected `def data()` that returns (x, y)"
        )
    return task_of(made())


def _of_records(
    file: pathlib.Path,
    records: list[str],
    target: str | None = None,
    shape: str | None = None,
    size: int = 64,
    channels: int = 3,
    aspect: str = "stretch",
    background: str = "white",
    **options: Any,
) -> Task:
    try:
        sizes = None if shape is None else tuple(int(one) for one in str(shape).split("x"))
    except ValueError as error:
        raise ValueError(f"shape={shape!r}; expected sizes as 28x28x1") from error
    image_folder.check_pictures(size, channels, aspect, background)
    inputs, found, names, pictures = tfrecord.read(
        records, target, sizes, (size, size, channels), aspect, background
    )
    seen = Preprocessing("image", 255.0, aspect=aspect, background=background) if pictures else None
    targets = None if found is None else as_targets(found)
    return _task(file, inputs, targets, names, seen, **options)


def _array(file: pathlib.Path) -> Any:
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged file raises whatever NumPy meets first
        raise ValueError(f"cannot read {file}: {' '.join(str(error).split())}") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf" or found.ndim < 2:
        raise ValueError(f"{file}: expected an array of numbers (count, ...)")
    if found.size * max(found.itemsize, 4) <= most_bytes():
        return np.array(found)
    stack = Stack()
    for start in range(0, len(found), image_folder.READ):
        stack.append(found[start : start + image_folder.READ])
    return stack.array()


def _csv(file: pathlib.Path) -> tuple[list[str], list[np.ndarray]]:
    """Names and columns; numbers where all are, else text."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            names, *rows = [row for row in csv.reader(lines) if row]
    except (ValueError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read {file}: expected a line of names, then rows") from error
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise ValueError(f"{file} line {number}: {len(row)} values, but {len(names)} names")
    if not rows:
        raise ValueError(f"{file}: no rows")
    return names, [_numbers(np.array(column)) for column in zip(*rows, strict=True)]


def _numbers(column: np.ndarray) -> np.ndarray:
    for kind in (np.int64, np.float64):
        try:
            return column.astype(kind)
        except (ValueError, OverflowError):
            continue
    return column


def _parquet(file: pathlib.Path) -> tuple[list[str], list[np.ndarray]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(
            f"{file}: .parquet needs pyarrow: pip install pyarrow, or save it as .csv"
        ) from error
    table = parquet.read_table(file)
    return list(table.column_names), [
        np.asarray(column.to_numpy(zero_copy_only=False)) for column in table.columns
    ]


def _table(
    file: pathlib.Path,
    names: list[str],
    columns: list[np.ndarray],
    target: str | None = None,
    **options: Any,
) -> Task:
    if len(set(names)) < len(names):
        raise ValueError(f"{file}: two columns bear the same name")
    found = dict(zip(names, columns, strict=True))
    wanted = (
        [name for name in COLUMNS if name in found][:1] if target is None else target.split("+")
    )
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(f"{file}: no column {missing[0]!r}; it has {', '.join(names)}")
    goals = [found.pop(name) for name in wanted]
    for name, column in found.items():
        if column.dtype.kind not in "biuf":
            raise ValueError(
                f"{file}: column {name!r} is text, as {column[0]!r}; expected numbers: leave it out"
                " or encode it"
            )
    if not found:
        raise ValueError(f"{file}: no column is left for the inputs")
    inputs = np.stack([column.astype(np.float32) for column in found.values()], 1)
    names_found: tuple[str, ...] = ()
    if len(goals) == 1 and goals[0].dtype.kind not in "biuf":  # classes by their names, sorted
        known, numbers = np.unique(goals[0].astype(str), return_inverse=True)
        goals, names_found = [numbers.reshape(-1)], tuple(known.tolist())
    targets = None
    if goals:
        targets = as_targets(goals[0] if len(goals) == 1 else np.stack(goals, 1))
    return _task(file, inputs, targets, names_found, **options)


def _task(
    file: pathlib.Path,
    inputs: Any,
    targets: Any,
    known: tuple[str, ...] = (),
    seen: Preprocessing | None = None,
    scale: float | None = None,
    mean: float | str | None = None,
    std: float | str | None = None,
    valid: float = VALID,
    seed: int = 0,
    labels: str | None = None,
    class_weights: str | None = None,
    balanced: bool = False,
    sample_rate: int | None = None,
) -> Task:
    given = [inputs] if not isinstance(inputs, dict) else list(inputs.values())
    asked = scale is not None or mean is not None or std is not None
    if asked and isinstance(inputs, dict):
        raise ValueError("scale, mean and std are for one input; this file has several")
    if scale is not None and (
        isinstance(scale, bool) or not isinstance(scale, (int, float)) or not scale
    ):
        raise ValueError(f"scale={scale!r}; expected a number, not 0")
    seen = seen or of_inputs(inputs)
    if asked:
        channels = inputs.shape[-1]
        seen = dataclasses.replace(
            seen,
            scale=seen.scale if scale is None else float(scale),
            mean=per_channel("mean", mean, 0, channels),
            std=per_channel("std", std, 1, channels),
        )
        inputs = mapped(inputs, seen)
    if sample_rate is not None:
        seen = of_sound(seen, sample_rate, given[0].dtype)
    train, held = divided(inputs, targets, npz.share(valid), seed)
    source = fingerprint(*given, *([] if targets is None else [targets]))
    kind = "tfrecord" if ".tfrecord" in file.name else file.suffix[1:]
    recipe = f"{kind} data={source} scale={scale} mean={mean} std={std} valid={valid}"
    task = Task(
        train=train,
        valid=held,
        name=file.stem,
        recipe=recipe,
        of_network=True,
        labels=names_of(labels, known),
        preprocessing=seen,
    )
    return classified(task, class_weights=class_weights, balanced=balanced)
