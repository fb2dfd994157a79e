"""Where a study lives, and how it survives whatever happens to the processes that write it.

One file of the run folder is the journal (Optuna's JournalStorage); one locked file a worker says
that the worker lives. The kernel drops a lock when its process dies, however it dies: nothing has
to be timed out, and nothing dead can keep a lock.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import uuid
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from nas.locks import locked

JOURNAL = "journal.log"
_SET_TRIAL_STATE_VALUES = 6  # optuna.storages.journal._storage.JournalOperation


class Journal(JournalFileBackend):
    """Optuna's journal file, with a lock that dies with its holder and a tail that heals.

    A write cut short (power, full disk) leaves half a line, to which the next writer would append,
    making the file unreadable for ever. Here every append first cuts such a tail off and keeps it
    in `<journal>.damaged`; a failed append takes back what it wrote.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__(os.fspath(path))
        with self._locked():
            self._heal()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append whole lines, or none; on the disk, if they finish a trial."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._locked():
            self._heal()
            with open(self._file_path, "ab", buffering=0) as file:
                size = file.tell()
                try:
                    if file.write(lines.encode()) != len(lines.encode()):
                        raise OSError(28, "No space left on device")  # ENOSPC: a short write
                    # What a power cut takes of an unfinished trial is done again: only a finished
                    # one is worth waiting for the disk, and takes all before it there.
                    if any(log["op_code"] == _SET_TRIAL_STATE_VALUES for log in logs):
                        os.fsync(file.fileno())
                except OSError as error:
                    with contextlib.suppress(OSError):
                        os.truncate(self._file_path, size)
                    raise OSError(
                        error.errno,
                        f"{error.strerror}: cannot write {self._file_path}; every finished trial is"
                        " in it: make room and run the same command again",
                    ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(pathlib.Path(self._file_path + ".lock")):
            yield

    def _heal(self) -> None:
        with open(self._file_path, "rb+") as file:
            end = file.seek(0, os.SEEK_END)
            if not end:
                return
            length, tail = 256, b""
            while True:  # the last line, with the line end before it
                start = max(end - length, 0)
                file.seek(start)
                tail = file.read(end - start)
                if start == 0 or b"\n" in tail[:-1]:
                    break
                length *= 4
            last = tail[tail[:-1].rfind(b"\n") + 1 :]
            if last.endswith(b"\n") and last.startswith(b"{") and _is_json(last):
                return
            with open(self._file_path + ".damaged", "ab") as damaged:
                damaged.write(last.rstrip(b"\n") + b"\n")
            file.truncate(end - len(last))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def open_storage(location: str | os.PathLike) -> optuna.storages.BaseStorage:
    """Open the journal of a run folder, or an RDB by its URL (`sqlite:///studies.db`)."""
    if "://" in str(location):
        return optuna.storages.RDBStorage(str(location))
    folder = pathlib.Path(location)
    folder.mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(Journal(folder / JOURNAL))


class Worker:
    """This process as one of the workers of a run: `id` is alive for as long as the object."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder / "workers"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._file = open(self._path(self.id), "ab")  # noqa: SIM115 (open until it leaves)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def alive(self, worker: str) -> bool:
        """Whether a worker lives; one of another machine is taken to."""
        if worker == self.id or not worker.startswith(socket.gethostname() + "-"):
            return True
        try:
            with open(self._path(worker), "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        self._path(worker).unlink(missing_ok=True)
        return False

    def others(self) -> list[str]:
        """The other live workers of this run on this machine."""
        names = [path.stem for path in self.folder.glob("*.lock")]
        return [name for name in names if name != self.id and self.alive(name)]

    def leave(self) -> None:
        """Stop being a worker; what it has not finished is given back by the next one."""
        self._path(self.id).unlink(missing_ok=True)
        self._file.close()

    def _path(self, worker: str) -> pathlib.Path:
        return self.folder / f"{worker}.lock"


def give_back(study: optuna.Study, worker: Worker) -> list[FrozenTrial]:
    """Settle the trials of dead workers so that a resumed search goes on as if never stopped.

    A round whose chosen network has finished is over: its other trials end as the dead worker would
    have ended them. Any other unfinished trial is failed and its proposal queued again, before
    those that wait already. Killed itself, it is made good by the next call.
    """
    if not _stale(study, worker):
        return []
    with locked(worker.folder / "giving_back"):  # two survivors must not give back twice
        stale = _stale(study, worker)
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        ended = {trial.user_attrs.get("round") for trial in finished}
        sources = []
        for trial in stale:
            if trial.user_attrs.get("round") in ended and "profile" in trial.user_attrs:
                end_unchosen(study, trial)
            else:
                sources.append(trial)
        waiting: list[FrozenTrial] = []
        if not worker.others():  # the order matters, and nobody else takes from the queue
            waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        numbers = {trial.number for trial in (*sources, *waiting)}
        for trial in waiting:
            if trial.user_attrs.get("retry_of") in numbers:  # of a call that was killed
                _fail(study, trial)
            else:
                sources.append(trial)
        for trial in sources:
            _queue_again(study, trial)
        # In this order, so that whatever is left when this is killed is queued in the right order.
        for trial in reversed(sources):
            _fail(study, trial)
    return stale


def _stale(study: optuna.Study, worker: Worker) -> list[FrozenTrial]:
    """Running trials of workers that are dead."""
    stale = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner, _, _ = trial.user_attrs.get("round", "").partition("/")
        # Killed between asking and signing: nobody's, unless somebody is just about to sign it.
        if not (worker.alive(owner) if owner else worker.others()):
            stale.append(trial)
    return stale


def _queue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a proposal again; an unsigned trial may lack parameters and will be proposed again."""
    signed = "round" in trial.user_attrs
    params = trial.params if signed else trial.system_attrs.get("fixed_params")
    if params:
        done = {key: trial.user_attrs[key] for key in ("evaluation",) if key in trial.user_attrs}
        study.enqueue_trial(params, user_attrs={"retry_of": trial.number, **done})


def _fail(study: optuna.Study, trial: FrozenTrial) -> None:
    study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def end_unchosen(study: optuna.Study, trial: FrozenTrial) -> FrozenTrial:
    """Tell a timed trial that its round did not train: a copy of what is known, or PRUNED."""
    number = trial.user_attrs["profile"].get("duplicate_of")
    if number is None:
        return study.tell(trial.number, state=TrialState.PRUNED)
    original = study.get_trials(deepcopy=False)[number]
    study._storage.set_trial_user_attr(
        trial._trial_id, "evaluation", original.user_attrs["evaluation"]
    )
    return study.tell(trial.number, original.values, state=original.state)
