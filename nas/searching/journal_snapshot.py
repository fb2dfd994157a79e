"""A journal that opens at once, however long it is: what it says so far, kept beside it.

Optuna reads a journal from its first line. Its own snapshots (BaseJournalSnapshot) hold all trials
anew each time, and what loads them runs any code that is in them. Here finished trials, which
never change, are appended to `<journal>.snapshot` once; `<journal>.snapshot.head` has the rest, and
is replaced whole. Both can be removed at any time: they are made again of the journal.
"""

import contextlib
import dataclasses
import gc
import hashlib
import io
import itertools
import os
import pathlib
import pickle
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal._storage import JournalStorageReplayResult
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial

from latency.system.atomic_write import atomic_write
from nas.locks import Flock
from nas.searching.journal import Journal

EVERY = 10_000  # lines of a journal; to read them takes 0.2 s
STRAGGLER = 2_000  # trials; one that is not finished so long after holds up no later ones
_VERSION = f"1, optuna {optuna.__version__}, python {sys.version_info[0]}.{sys.version_info[1]}"
_CHECKED = 4096  # bytes of the journal, the last ones read, by which a snapshot knows it again
_CLASSES = {
    "datetime": {"datetime"},
    "optuna.distributions": {
        "CategoricalDistribution",
        "FloatDistribution",
        "IntDistribution",
    },
    "optuna.study._frozen": {"FrozenStudy"},
    "optuna.study._study_direction": {"StudyDirection"},
    "optuna.trial._frozen": {"FrozenTrial"},
    "optuna.trial._state": {"TrialState"},
}


@dataclasses.dataclass
class _Head:
    """All of a snapshot but the finished trials in its blocks."""

    log_number: int = 0  # lines of the journal that are in it
    position: int = 0  # where in the journal the next one begins
    before: str = ""  # what tells the lines before that from others
    bytes: int = 0  # of the blocks
    trials: int = 0  # those with a lower id are in the blocks, or in `others`
    others: dict[int, tuple[int, FrozenTrial]] = dataclasses.field(default_factory=dict)
    studies: dict[int, FrozenStudy] = dataclasses.field(default_factory=dict)
    next_study: int = 0


class SnapshotStorage(JournalStorage):
    """Optuna's storage over a journal, which begins with the snapshot that is kept beside it."""

    _backend: Journal
    _kept = 0  # lines of the journal that are in the snapshot, as far as is known here
    _damaged = False  # whether the snapshot was found to be

    def _sync_with_backend(self) -> None:
        if not self._replay_result.log_number_read:
            self._restore()
        super()._sync_with_backend()
        if self._replay_result.log_number_read - self._kept >= EVERY:
            with contextlib.suppress(OSError):  # a full or read-only disk: it costs time only
                self._keep()
            self._kept = self._replay_result.log_number_read

    @property
    def _blocks(self) -> pathlib.Path:
        return pathlib.Path(self._backend._file_path + ".snapshot")

    def _restore(self) -> None:
        """Begin with what the snapshot says; not at all where it is damaged or of another file."""
        with contextlib.suppress(FileNotFoundError), _without_garbage_collection():
            try:
                head = self._read_head()
                with open(self._blocks, "rb") as file:
                    blocks = list(_blocks(file.read(head.bytes)))
            except _Damaged:
                self._damaged = True
                return
            every = dict(itertools.chain(*blocks, head.others.items()))
            result = JournalStorageReplayResult(self._worker_id_prefix)
            result.log_number_read = self._kept = head.log_number
            result._studies, result._next_study_id = head.studies, head.next_study
            result._study_id_to_trial_ids = {study: [] for study in range(head.next_study)}
            for trial_id in range(len(every)):
                study, trial = every[trial_id]
                result._trials[trial_id] = trial
                result._trial_id_to_study_id[trial_id] = study
                result._study_id_to_trial_ids[study].append(trial_id)
            result._last_created_trial_id_by_this_process = -1
            self._replay_result = result
            self._backend.next_log = head.log_number, head.position

    def _keep(self) -> None:
        """Add what was finished since to the snapshot, unless another process does."""
        locks = Flock(self._blocks.parent)
        with locks.try_lock(self._blocks.name) as mine:
            if not mine:
                return
            head = _Head()
            with contextlib.suppress(FileNotFoundError, _Damaged):
                head = head if self._damaged else self._read_head()
            self._damaged = False
            result = self._replay_result
            log_number, position = self._backend.next_log
            if log_number - head.log_number < EVERY // 2 or log_number != result.log_number_read:
                return
            count = len(result._trials)
            unfinished = (id_ for id_, one in result._trials.items() if not one.state.is_finished())
            until = max(head.trials, count - STRAGGLER, min(next(unfinished, count), count))
            pairs = {
                id_: (result._trial_id_to_study_id[id_], result._trials[id_])
                for id_ in (*head.others, *range(head.trials, count))
            }
            new = [
                (id_, pair)
                for id_, pair in pairs.items()
                if head.trials <= id_ < until and pair[1].state.is_finished()
            ]
            added = {id_ for id_, _ in new}
            with open(self._blocks, "ab") as file:
                file.truncate(head.bytes)
                if new:
                    file.write(_packed(_shared(new)))
                size = file.seek(0, os.SEEK_END)
            head = _Head(
                log_number=log_number,
                position=position,
                before=self._before(position),
                bytes=size,
                trials=until,
                others={id_: pair for id_, pair in pairs.items() if id_ not in added},
                studies=result._studies,
                next_study=result._next_study_id,
            )
            with atomic_write(f"{self._blocks}.head") as partial:
                partial.write_bytes(_packed({"version": _VERSION, **vars(head)}))

    def _read_head(self) -> _Head:
        """The head; `FileNotFoundError` without one, `_Damaged` where it is not of this journal."""
        (found,) = _blocks(pathlib.Path(f"{self._blocks}.head").read_bytes())
        if found.pop("version", None) != _VERSION:
            raise _Damaged
        head = _Head(**found)
        if self._before(head.position) != head.before or self._blocks.stat().st_size < head.bytes:
            raise _Damaged
        return head

    def _before(self, position: int) -> str:
        """What tells the lines of the journal up to a position from those of another one."""
        with open(self._backend._file_path, "rb") as file:
            first = file.read(min(_CHECKED, position))
            file.seek(max(0, position - _CHECKED))
            last = file.read(min(_CHECKED, position))
        return hashlib.sha256(first + last).hexdigest() + f", {len(last)} bytes"


class _Damaged(Exception):
    """A snapshot that cannot be used."""


class _Reader(pickle.Unpickler):
    """Reads plain data and what Optuna's trials are made of: no file can make it run anything."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a snapshot")
        return super().find_class(module, name)


def _packed(content: Any) -> bytes:
    """One block: its length, a checksum, the content."""
    data = pickle.dumps(content, protocol=5)
    return len(data).to_bytes(8) + zlib.crc32(data).to_bytes(4) + data


def _blocks(data: bytes) -> Iterator[Any]:
    """The contents of blocks one after the other."""
    start = 0
    while start < len(data):
        size, checksum = int.from_bytes(data[start : start + 8]), data[start + 8 : start + 12]
        block = data[start + 12 : start + 12 + size]
        if len(block) != size or zlib.crc32(block).to_bytes(4) != checksum:
            raise _Damaged
        try:
            yield _Reader(io.BytesIO(block)).load()
        except Exception as error:  # whatever a file of another version provokes
            raise _Damaged from error
        start += 12 + size


def _shared(trials: list[tuple[int, tuple[int, FrozenTrial]]]) -> list[Any]:
    """The same trials with equal texts and distributions as one object: loads ten times faster."""
    texts: dict[str, str] = {}
    distributions: dict[str, Any] = {}

    def share(content: Any) -> Any:
        if isinstance(content, str):
            return texts.setdefault(content, content)
        if isinstance(content, dict):
            return {share(key): share(value) for key, value in content.items()}
        return [share(one) for one in content] if isinstance(content, list) else content

    found = []
    for trial_id, (study, trial) in trials:
        copied = FrozenTrial.__new__(FrozenTrial)
        vars(copied).update({share(name): share(value) for name, value in vars(trial).items()})
        copied.distributions = distributions.setdefault(
            repr(trial.distributions), copied.distributions
        )
        found.append((trial_id, (study, copied)))
    return found


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Millions of new objects are searched for garbage again and again, and have none."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
