"""Examples that are more than memory holds: in a temporary file, read by batches."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

MEMORY_SHARE = 0.25  # of the memory that is free; splitting and converting make copies
CHUNK_BYTES = 1 << 25  # that are read at once where all rows are looked at
SAMPLE_BYTES = 1 << 26  # of targets, that tell what they are
LIMIT = "NAS_DATA_MEMORY_MB"


@dataclasses.dataclass(frozen=True, eq=False)
class OnDisk:
    """Rows of a file in place of an array (count, ...): sliced and indexed, they become arrays.

    file: open, of rows of `stored` values of shape `example`. rows: which of them, in which order.
    changes: functions of arrays (n, ...) that each row goes through as it is read.

    >>> stack = Stack(most=8)  # bytes
    >>> stack.append(np.arange(6.0).reshape(3, 2))
    >>> rows = stack.array()
    >>> type(rows).__name__, rows.shape, rows[1:].tolist()
    ('OnDisk', (3, 2), [[2.0, 3.0], [4.0, 5.0]])
    """

    file: BinaryIO
    stored: np.dtype[Any]
    example: tuple[int, ...]
    rows: np.ndarray
    changes: tuple[Callable[[np.ndarray], np.ndarray], ...] = ()

    @functools.cached_property
    def _empty(self) -> np.ndarray:
        return self[:0]

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return (len(self.rows), *self._empty.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """As of an array."""
        return self._empty.dtype

    @property
    def ndim(self) -> int:
        """As of an array."""
        return self._empty.ndim

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Any) -> np.ndarray:
        rows = np.atleast_1d(self.rows[chosen])
        found = np.empty((len(rows), *self.example), self.stored)
        size = found[:0].dtype.itemsize * int(np.prod(self.example))
        content, number = found.reshape(-1).view(np.uint8).data, self.file.fileno()
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
            if not len(run):
                continue
            place, end = int(run[0]) * size, (int(run[-1]) + 1) * size
            offset = int(rows[run[0]]) * size - place
            while place < end:
                read = os.preadv(number, [content[place:end]], offset + place)
                if not read:
                    raise ValueError("the temporary file of the data was cut; free disk space")
                place += read
        for change in self.changes:
            found = change(found)
        return found[0] if np.ndim(self.rows[chosen]) == 0 else found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def parts(self) -> Iterator[np.ndarray]:
        """All rows, some at a time, in order."""
        step = max(1, CHUNK_BYTES // max(1, int(np.prod(self.shape[1:])) * self.dtype.itemsize))
        for start in range(0, len(self), step):
            yield self[start : start + step]


class Stack:
    """Batches that become one array, or `OnDisk` where they are more than `most` bytes."""

    def __init__(self, most: int | None = None):
        self._most = most_bytes() if most is None else most
        self._parts: list[np.ndarray] = []
        self._bytes = self._count = 0
        self._file: BinaryIO | None = None

    def append(self, batch: np.ndarray) -> None:
        """Adds rows; `ValueError` where their shapes differ, or the disk is full."""
        batch = np.ascontiguousarray(batch)
        first = self._parts[0] if self._parts else batch
        if batch.shape[1:] != first.shape[1:]:
            raise ValueError(f"shapes {first.shape[1:]} and {batch.shape[1:]}")
        self._bytes += batch.size * max(batch.itemsize, 4)  # bytes are seen as float32
        self._count += len(batch)
        if self._file is None:
            self._parts.append(batch)
            if self._bytes <= self._most or batch.ndim < 2:  # labels are looked at as a whole
                return
            # Not /tmp, which on many systems is memory; gone as the process ends.
            folder = None if "TMPDIR" in os.environ or not _VAR.is_dir() else _VAR
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (the rows read it later)
            pending, self._parts = self._parts, [first[:0].copy()]
        else:
            pending = [batch]
        kind = self._parts[0].dtype
        for one in pending:
            if one.dtype != kind:
                raise ValueError(f"types {kind} and {one.dtype}")
            try:
                self._file.write(one.data)
            except OSError as error:
                raise ValueError(
                    f"{self._bytes >> 20} MB of examples do not fit into memory, nor into a file in"
                    f" {folder_name()} ({error.strerror}): set TMPDIR to a folder with room"
                ) from error

    def array(self) -> Any:
        """All rows: an array, or `OnDisk`."""
        if self._file is None:
            return np.concatenate(self._parts)
        self._file.flush()
        kind = self._parts[0]
        return OnDisk(self._file, kind.dtype, kind.shape[1:], np.arange(self._count))


_VAR = pathlib.Path("/var/tmp")


def folder_name() -> str:
    """Where the temporary files lie."""
    return os.environ.get("TMPDIR") or (str(_VAR) if _VAR.is_dir() else tempfile.gettempdir())


def most_bytes() -> int:
    """What an array of examples may take in memory: a quarter of what is free, or as LIMIT says."""
    named = os.environ.get(LIMIT)
    if named:
        if not named.isdigit():
            raise ValueError(f"{LIMIT}={named!r}; expected a whole number of megabytes")
        return int(named) << 20
    return int(MEMORY_SHARE * _free())


def _free() -> int:
    """Bytes that this process may still take: of the machine, and of its container."""
    from latency.networks.keras_file import free_mb

    found = int(free_mb() * 2**20)
    group = pathlib.Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no container, or "max": no limit
        most, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        found = min(found, int(most) - int(used))
    return max(found, 0)


def chosen(tree: Any, rows: np.ndarray) -> Any:
    """Some of the examples, as `compress.examples.data.taken`, but those on disk stay there.

    >>> chosen({"x": np.arange(4)}, np.array([3, 0]))
    {'x': array([3, 0])}
    """
    if isinstance(tree, dict):
        return {name: chosen(array, rows) for name, array in tree.items()}
    if isinstance(tree, OnDisk):
        return dataclasses.replace(tree, rows=tree.rows[rows])
    return None if tree is None else tree[rows]


def mapped(array: Any, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """`change` of all examples; of those on disk as they are read.

    >>> mapped(np.arange(3), np.negative).tolist()
    [0, -1, -2]
    """
    if isinstance(array, OnDisk):
        return dataclasses.replace(array, changes=(*array.changes, change))
    return change(array)


def parts_of(array: Any) -> Iterator[np.ndarray]:
    """An array as it is, or what is on disk by parts."""
    return array.parts() if isinstance(array, OnDisk) else iter([array])


def sample(array: Any) -> np.ndarray:
    """An array as it is; of what is on disk some rows, those with the least and most among them."""
    if not isinstance(array, OnDisk):
        return array
    row = max(1, int(np.prod(array.shape[1:])) * array.dtype.itemsize)
    rows = np.unique(np.linspace(0, len(array) - 1, max(2, SAMPLE_BYTES // row)).astype(int))
    ends: list[np.ndarray] = []
    for part in array.parts():
        flat = part.reshape(len(part), -1)
        for row_of in (flat.min(1).argmin(), flat.max(1).argmax()):
            ends.append(part[row_of : row_of + 1])
    found = np.concatenate(ends)
    flat = found.reshape(len(found), -1)
    extremes = [flat.min(1).argmin(), flat.max(1).argmax()]
    return np.concatenate([array[rows], found[extremes]])
