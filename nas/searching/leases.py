"""Whose a trial is: signed when it is taken, given back when its worker dies or stops.

A worker is alive while its lock is held (`nas.locks`); no time and no name says so. A trial has the
attributes "owner" and "host" of its worker; "round", once its parameters are complete; "training",
once that begins; and, of a proposal that was given back, "retry_of", "tries" and "failures".
"""

import contextlib
import datetime
import socket
import uuid
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from latency.system import device_lock
from nas.locks import Locks

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
MOST_TRIES = 3  # of a candidate whose workers die
ASK = "ask"  # held by who takes from the queue of trials, or puts into it
_CARRIED = ("evaluation", "tries", "failures")  # from a proposal to the one that repeats it


class Worker:
    """This process as one of the workers of a study: `id` is alive until it leaves, or ends.

    >>> import tempfile
    >>> from nas.locks import Flock
    >>> worker = Worker(Flock(tempfile.mkdtemp()), "mine")
    >>> worker.alive(worker.id), worker.alive("another")
    (True, False)
    """

    def __init__(self, locks: Locks, study: str):
        self.locks, self._study = locks, study
        self.id, self.host = uuid.uuid4().hex, socket.gethostname()
        self._held = contextlib.ExitStack()
        self._held.enter_context(self.lock(f"worker/{self.id}"))
        # Of a PostgreSQL: no other machine times a phone that this worker times.
        self._held.enter_context(device_lock.beyond(locks.lock))

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Wait for a lock among the workers of this study."""
        return self.locks.lock(f"{self._study}/{name}")

    def try_lock(self, name: str) -> AbstractContextManager[bool]:
        """Hold such a lock if it is free; whether it is held."""
        return self.locks.try_lock(f"{self._study}/{name}")

    def alone(self) -> bool:
        """Whether this is the only worker that asked so, until it leaves."""
        return self._held.enter_context(self.try_lock("alone"))

    def alive(self, worker: str) -> bool:
        """Whether a worker of this study lives, on whatever machine."""
        return worker == self.id or self.locks.held(f"{self._study}/worker/{worker}")

    def leave(self) -> None:
        """Stop being a worker; what it has not finished is given back by the next one."""
        self.locks.close()
        self._held.close()


def take(study: optuna.Study, worker: Worker) -> int:
    """Take the first trial of the queue, or a new one, and sign it: its id, for `begin`.

    The lock `ASK` must be held: a trial that runs unsigned while it is free has lost its worker.
    """
    storage, signature = study._storage, {"owner": worker.id, "host": worker.host}
    study._thread_local.cached_all_trials = None  # as `study.ask` does
    trial_id = study._pop_waiting_trial_id()
    if trial_id is None:
        new = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=signature)
        return storage.create_new_trial(study._study_id, template_trial=new)
    for name, value in signature.items():
        storage.set_trial_user_attr(trial_id, name, value)
    return trial_id


def tell(
    study: optuna.Study, trial_id: int, state: TrialState, values: list[float] | None = None
) -> FrozenTrial:
    """End a trial; `UpdateFinishedTrialError` where it was given to another worker meanwhile."""
    trial = study._storage.get_trial(trial_id)
    if trial.state != TrialState.RUNNING:
        raise UpdateFinishedTrialError(f"trial {trial.number} was given to another worker")
    return study.tell(trial.number, values, state=state)


def end_unchosen(study: optuna.Study, trial: FrozenTrial) -> FrozenTrial:
    """Tell a timed trial that its round did not train: a copy of what is known, or PRUNED."""
    number = trial.user_attrs["profile"].get("duplicate_of")
    if number is not None:
        original = study.get_trials(deepcopy=False)[number]
        if (evaluation := original.user_attrs.get("evaluation")) is not None:
            study._storage.set_trial_user_attr(trial._trial_id, "evaluation", evaluation)
            return tell(study, trial._trial_id, original.state, original.values)
    return tell(study, trial._trial_id, TrialState.PRUNED)


def note_failure(
    study: optuna.Study, trial: FrozenTrial, worker: str, kind: str, message: str
) -> None:
    """Write into a trial why it failed; more than one entry: it was tried again."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entry = {"worker": worker, "kind": kind, "message": message, "at": now}
    failures = [*trial.user_attrs.get("failures", ()), entry]
    study._storage.set_trial_user_attr(trial._trial_id, "failures", failures)


def failure(trial: FrozenTrial) -> dict[str, Any] | None:
    """Why a trial failed for good, {worker, kind, message, at}; None of any other."""
    attributes = trial.user_attrs
    profile = attributes.get("profile", {})
    if "evaluation" in attributes or "failures" not in attributes:
        return None
    if trial.state == TrialState.FAIL:  # else its proposal was queued again
        return None if "round" in attributes else attributes["failures"][-1]
    judged = "training" not in attributes and profile.get("costs")  # after it had been given back
    other = judged or "excess" in profile or "duplicate_of" in profile
    return attributes["failures"][-1] if trial.state == TrialState.PRUNED and not other else None


def failed(trials: Iterable[FrozenTrial]) -> list[dict[str, Any]]:
    """The trials that failed for good: number, worker, kind, message, at."""
    found = ((trial.number, failure(trial)) for trial in trials)
    return [{"number": number, **why} for number, why in found if why is not None]


def give_back(study: optuna.Study, worker: Worker) -> list[FrozenTrial]:
    """Settle the trials of dead workers so that a search goes on as if they had never been.

    A round whose chosen network has finished is over: its other trials end as the dead worker would
    have ended them. Of any other, the proposal is queued again, before those that wait already, and
    then the trial failed; but what a worker died of `MOST_TRIES` times is PRUNED, with "failures"
    that say so. Killed itself, it is made good by the next call. The trials, as they are now.
    """
    if not _lost(study, worker):
        return []
    with worker.lock(ASK):
        return _settle(study, _lost(study, worker), blame=True)


def give_back_own(study: optuna.Study, worker: Worker) -> list[FrozenTrial]:
    """Give back what this worker has not finished, because it stops: nothing is to blame for that.

    The trials, as they are now: FAIL, with their proposals in the queue.
    """
    with worker.lock(ASK):
        own = [trial for trial in _running(study) if _owner(trial) == worker.id]
        return _settle(study, own, blame=False)


def _running(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _owner(trial: FrozenTrial) -> str:
    """Who has signed a trial, "" of nobody; in old studies that was a part of its round."""
    return trial.user_attrs.get("owner") or trial.user_attrs.get("round", "").partition("/")[0]


def _lost(study: optuna.Study, worker: Worker) -> list[FrozenTrial]:
    """Running trials of nobody who lives; those that are just being signed unless ASK is held."""
    running = _running(study)
    dead = {one for one in set(map(_owner, running)) if not (one and worker.alive(one))}
    return [trial for trial in running if _owner(trial) in dead]


def _settle(study: optuna.Study, lost: list[FrozenTrial], blame: bool) -> list[FrozenTrial]:
    """Give back trials that nobody works on."""
    if not lost:
        return []
    every = study.get_trials(deepcopy=False)
    ended = {trial.user_attrs.get("round") for trial in every if trial.state in FINISHED}
    repeated = {
        trial.user_attrs.get("retry_of")
        for trial in every
        if trial.state not in (TrialState.WAITING, TrialState.FAIL)
    }
    again = []
    for trial in lost:
        if trial.user_attrs.get("round") in ended and "profile" in trial.user_attrs:
            end_unchosen(study, trial)
        elif blame and _is_poison(study, trial):
            tell(study, trial._trial_id, TrialState.PRUNED)
        else:
            again.append(trial)
    # The order matters: what is given back comes before what waits, as it came before it.
    waiting = [trial for trial in every if trial.state == TrialState.WAITING and again]
    numbers = {trial.number for trial in (*again, *waiting)}
    # What waits for one that is queued again here was queued by a call that was killed.
    sources = again + [t for t in waiting if t.user_attrs.get("retry_of") not in numbers]
    for trial in sources:
        if trial.number not in repeated:
            _queue_again(study, trial, blame and trial in again)
    # In this order, so that whatever is left when this is killed is queued in the right order.
    for trial in reversed([*sources, *(t for t in waiting if t not in sources)]):
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    return [study._storage.get_trial(trial._trial_id) for trial in lost]


def _guilty(trial: FrozenTrial) -> bool:
    """Whether its worker died of a trial: it was being trained, or timed; others only waited."""
    attributes = trial.user_attrs
    return (
        "profile" not in attributes or "training" in attributes and "evaluation" not in attributes
    )


def _is_poison(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Whether too many workers died of a trial; notes that one more did."""
    if not _guilty(trial) or "round" not in trial.user_attrs:
        return False
    doing = "trained" if "training" in trial.user_attrs else "built or timed"
    host = trial.user_attrs.get("host", "unknown")
    tries = trial.user_attrs.get("tries", 1)
    message = f"its worker on {host} died while it was {doing} (try {tries} of {MOST_TRIES})"
    note_failure(study, trial, _owner(trial), "died", message)
    return tries >= MOST_TRIES


def _queue_again(study: optuna.Study, trial: FrozenTrial, blame: bool) -> None:
    """Queue a proposal again; without its "round" it may lack parameters: it is proposed again."""
    trial = study._storage.get_trial(trial._trial_id)
    signed = "round" in trial.user_attrs
    params = trial.params if signed else trial.system_attrs.get("fixed_params")
    if not params:
        return
    carried: dict[str, Any] = {
        name: trial.user_attrs[name] for name in _CARRIED if name in trial.user_attrs
    }
    if blame and _guilty(trial):
        carried["tries"] = trial.user_attrs.get("tries", 1) + 1
    study.enqueue_trial(params, user_attrs={"retry_of": trial.number, **carried})
