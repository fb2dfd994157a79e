"""The search loop: ask, profile, choose, train, tell - over any Optuna study and any controller.

A round asks up to `profiles` trials, measures each (cheap), trains the most promising one
(expensive) and ends the rest as PRUNED; a score of untrained networks may filter them first. The
study is the only state: a killed loop goes on where it was. A candidate that fails is PRUNED with
its reason; where all fail, the search ends.
"""

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from nas import interruption, pareto
from nas.events import Listener, Message, ignore
from nas.profiling.wait_for_device import wait_for_device
from nas.proposals.chooser import chooser_of
from nas.searching import failures, leases, storage
from nas.searching.candidate import Candidate
from nas.searching.evaluator import Evaluator, MakeNetwork
from nas.searching.events import TrialEvent
from nas.searching.leases import FINISHED, Worker
from nas.searching.objective import Objective

# After so many proposals of known networks in a row the controller proposes nothing new.
CONVERGED = 100
# Finished curves before a network may be stopped for being worse than their median.
STARTUP_CURVES = 5
LOOK_S = 1.0  # between two looks for trials of workers that have died
MOST_BROKEN = 3  # rounds in a row that the storage has cut off
Ended = Literal["trials", "deadline", "converged"]


def _was_trained(trial: FrozenTrial) -> bool:
    found = trial.user_attrs  # one of a known network has the figures of that
    return "evaluation" in found and "duplicate_of" not in found.get("profile", {})


def trained(study: optuna.Study) -> list[FrozenTrial]:
    """One trial for each network that was trained, the first where several describe it."""
    found: dict[str, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False, states=FINISHED):
        if "evaluation" in trial.user_attrs:
            found.setdefault(trial.user_attrs["profile"]["key"], trial)
    return list(found.values())


def explore(
    study: optuna.Study,
    evaluator: Evaluator,
    objective: Objective,
    *,
    trials: int,
    worker: Worker,
    profiles: int = 1,
    score: Callable[[Candidate], float] | None = None,
    deadline: float = math.inf,
    on_event: Listener = ignore,
    keep: Callable[[MakeNetwork, dict, dict], None] | None = None,
    patience: int = 0,
) -> Ended:
    """Search until `trials` networks are trained; why it stopped.

    `deadline` is a `time.monotonic()`: no round starts that would probably end after it, but until
    a network is trained, for without one there is nothing to hand over; unless none may be.
    Of `patience` networks that are timed one after the other none is trained, if none is within
    the budgets: then one may come that is.
    `score(candidate)` of a network that need not be trained for it, higher is better, decides which
    of a round are left to the controller; where that has no opinion, which one is trained.
    `keep(make_network, profile, evaluation)` sees each network just trained, before the study does.
    `on_event` is called with each `TrialEvent`. Whatever ends it, KeyboardInterrupt too, the trials
    of this worker are given back before. `failures.EveryCandidateFails` where no candidate gets
    through.
    """
    loop = _Loop(study, evaluator, objective, worker, profiles, on_event, keep, score, patience)
    try:
        return loop.run(trials, deadline)
    except BaseException:
        with contextlib.suppress(Exception):  # else the next worker does
            leases.give_back_own(study, worker)
        raise


@dataclasses.dataclass
class _Loop:
    study: optuna.Study
    evaluator: Evaluator
    objective: Objective
    worker: Worker
    profiles: int
    on_event: Listener
    keep: Callable[[MakeNetwork, dict, dict], None] | None
    score: Callable[[Candidate], float] | None
    patience: int
    idle: int = 0  # trials since the last training
    trained: int = 0
    longest: float = 0.0
    looked: float = -math.inf
    nothing_new: int = 0
    known: dict[str, FrozenTrial] = dataclasses.field(default_factory=dict)
    failed: dict[str, FrozenTrial] = dataclasses.field(default_factory=dict)
    in_a_row: failures.InARow = dataclasses.field(default_factory=failures.InARow)
    broken: int = 0
    curves: list[tuple[list[float], np.ndarray]] = dataclasses.field(default_factory=list)
    _read: int = 0

    def run(self, trials: int, deadline: float) -> Ended:
        """Search; why it stopped."""
        while True:
            try:
                ended = self.step(trials, deadline)
                self.broken = 0
                if ended is not None:
                    return ended
                continue
            except UpdateFinishedTrialError as error:
                reason = f"{error}: it was given to another worker, which took this one for dead"
            except StorageInternalError as error:
                self.broken += 1
                reason = f"the storage broke off: {storage.reason(error)}"
                if self.broken == MOST_BROKEN:
                    raise ValueError(f"{reason}; the same command goes on when it works") from error
            for trial in leases.give_back_own(self.study, self.worker):
                self.on_event(TrialEvent("returned", trial, self.trained, reason))
            self.on_event(Message(f"a round is dropped: {reason}"))

    def step(self, trials: int, deadline: float) -> Ended | None:
        """Do one round, or say why there is none to do."""
        interruption.check()
        started = time.monotonic()
        self.patience = self.patience if started < deadline else 0
        just_looked = started > self.looked + LOOK_S
        if just_looked:
            self.looked = started
            self.take_back()
        # One worker at a time decides to go on, and the next sees its trial: else two would train
        # the last network.
        with self.worker.lock(leases.ASK):
            every = self.study.get_trials(deepcopy=False)
            at_work = self.others_at_work(every)
            self.refresh(every)
            ended: Ended | None = None
            if self.trained + at_work >= trials:
                ended = "trials"
            elif (self.trained or self.nothing_new) and started + self.longest > deadline:
                ended = "deadline"
            elif self.nothing_new >= CONVERGED:
                ended = "converged"
            else:
                first = leases.take(self.study, self.worker)
        if ended is None:
            self.round(first)
            self.longest = max(self.longest * 0.9, time.monotonic() - started)
        elif not just_looked:  # of those at work one may have died
            self.looked = -math.inf
            return None
        return ended

    def take_back(self) -> None:
        """Give back what dead workers had."""
        for trial in leases.give_back(self.study, self.worker):
            if (failure := leases.failure(trial)) is not None:
                self.on_event(TrialEvent("failed", trial, self.trained, failure["message"]))
            else:
                why = "its worker died; proposal kept"
                self.on_event(TrialEvent("returned", trial, self.trained, why))

    def refresh(self, every: list[FrozenTrial]) -> None:
        """Learn of the trials that other workers, or earlier processes, finished."""
        finished = [trial for trial in every if trial.state in FINISHED]
        if len(finished) != self._read:
            for trial in finished:
                self._learn(trial)
        since = (n for n, one in enumerate(reversed(finished)) if _was_trained(one))
        self.idle = next(since, len(finished))
        self._read = len(finished)

    def _learn(self, trial: FrozenTrial) -> None:
        record = trial.user_attrs.get("profile", {})
        if "key" not in record or "duplicate_of" in record or record["key"] in self.known:
            return
        if leases.failure(trial) is not None:
            self.failed[record["key"]] = trial
        evaluation = trial.user_attrs.get("evaluation")
        if evaluation is not None:
            self.known[record["key"]] = trial
            self.trained += 1
            if not evaluation.get("stopped") and evaluation.get("curve"):
                self.curves.append((record["costs"], self._values(evaluation["curve"], record)))

    def others_at_work(self, every: list[FrozenTrial]) -> int:
        """Rounds that other workers have not ended yet: each will train one network."""
        running = [trial for trial in every if trial.state == TrialState.RUNNING]
        return len({trial.user_attrs.get("round", trial.number) for trial in running})

    def round(self, first: int) -> None:
        """Profile some candidates and train one; `first` is a trial that was taken."""
        asked: list[Trial] = []
        candidates: list[Candidate] = []
        errors: list[Exception | None] = []
        name = ""
        for number in range(self.profiles):
            with self.worker.lock(leases.ASK) if number else contextlib.nullcontext():
                trial_id = leases.take(self.study, self.worker) if number else first
            trial = Trial(self.study, trial_id)
            candidate = self._candidate(trial)
            if candidate is None:
                continue
            asked.append(trial)
            candidates.append(candidate)
            name = name or f"{self.worker.id}/{trial.number}"
            trial.set_user_attr("round", name)  # all of its parameters are known
            errors.append(self._profile(trial, candidate))
        new = [i for i, trial in enumerate(asked) if self._is_candidate(trial)]
        wait = self.idle < self.patience and not any(self._fits(asked[i]) for i in new)
        chosen = new[self._choose([asked[i] for i in new])] if new and not wait else None
        self.nothing_new = 0 if new else self.nothing_new + self.profiles
        if chosen is not None:
            self._train(asked[chosen], candidates[chosen])
        for index, (trial, error) in enumerate(zip(asked, errors, strict=True)):
            if index != chosen:
                self._end_unchosen(trial, error)
        for error in errors:
            self.in_a_row.note("timed", error, self.on_event)
        self.evaluator.forget()

    def _candidate(self, trial: Trial) -> Candidate | None:
        """What a trial describes; None where that fails: it may lack parameters, so it is FAIL."""
        try:
            return self.evaluator.candidate(trial)
        except Exception as error:
            message = self._note(trial, error)
            frozen = leases.tell(self.study, trial._trial_id, TrialState.FAIL)
            self.on_event(TrialEvent("failed", frozen, self.trained, message))
            self.in_a_row.note("timed", error, self.on_event)
            return None

    def _profile(self, trial: Trial, candidate: Candidate) -> Exception | None:
        """Write down what is known of a candidate and what it costs; why that failed."""
        record: dict[str, Any] = {"config": repr(candidate.config)}
        failed = None
        try:
            record["key"] = self.evaluator.key(candidate)
            earlier = self.known.get(record["key"]) or self.failed.get(record["key"])
            if earlier is not None:
                record |= earlier.user_attrs["profile"] | {"duplicate_of": earlier.number}
            else:
                record |= self._retry(trial, lambda: self.evaluator.profile(candidate))
                failures.check_finite("latency", *record["costs"])
                if self.score is not None and not self.objective.hopeless(record):
                    record["score"] = self.score(candidate)
        except Exception as error:
            self._note(trial, error)
            record["costs"], failed = [], error
        trial.set_user_attr("profile", record)
        for limit, over in self.objective.constraints(record).items():
            trial.set_constraint(limit, over)
        return failed

    def _note(self, trial: Trial, error: Exception) -> str:
        """Write down why a trial fails; what is not the candidate's fault goes on. The message."""
        if failures.is_of_the_machine(error):
            raise error
        kind, message = failures.described(error)
        frozen = _frozen(self.study, trial)
        leases.note_failure(self.study, frozen, self.worker.id, kind, message)
        return message

    def _end_unchosen(self, trial: Trial, error: Exception | None) -> None:
        kind = "duplicate" if "duplicate_of" in trial.user_attrs["profile"] else "pruned"
        ended = leases.end_unchosen(self.study, _frozen(self.study, trial))
        if error is None:
            self._report(kind, ended)
        else:
            self._report("failed", ended, failures.described(error)[1])

    def _retry(self, trial: Trial, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        def say(reason: str) -> None:
            self.on_event(TrialEvent("waiting", _frozen(self.study, trial), self.trained, reason))

        return wait_for_device(work, say)

    def _is_candidate(self, trial: Trial) -> bool:
        record = trial.user_attrs["profile"]
        return "duplicate_of" not in record and not self.objective.hopeless(record)

    def _choose(self, candidates: list[Trial]) -> int:
        """Index of the candidate to train: one within budget if any, the controller's choice."""
        left, scored = list(range(len(candidates))), self.score is not None
        if self.objective.reward is not None:
            fitting = [i for i in left if self._fits(candidates[i])]
            left, scored = fitting or left, scored and bool(fitting)
        if scored:
            left = [left[i] for i in self._filtered([candidates[i] for i in left])]
        if len(left) == 1:
            return left[0]
        chooser = chooser_of(self.study.sampler)
        if chooser is not None:
            frozen = [_frozen(self.study, candidates[i]) for i in left]
            return left[chooser.select(self.study, frozen)]
        if self.objective.reward is None or scored:
            return left[0]
        # All else unknown and so equal, the one whose cost the reward likes most.
        costs = np.array([candidates[i].user_attrs["profile"]["costs"] for i in left])
        return left[int(np.argmax(self.objective.reward(np.full(len(costs), 0.5), costs)))]

    def _filtered(self, candidates: list[Trial]) -> list[int]:
        """Indices of candidates within the budget that the score leaves.

        Of a scalar reward the better half, the best first; else those that no other one exceeds in
        score at no higher cost, in the order they were asked in.
        """
        records = [trial.user_attrs["profile"] for trial in candidates]
        losses = np.array([[-record["score"], *record["costs"]] for record in records])
        if self.objective.reward is None:
            return [int(i) for i in np.flatnonzero(pareto.front(losses))]
        return [int(i) for i in np.argsort(losses[:, 0], kind="stable")[: (len(losses) + 1) // 2]]

    def _fits(self, trial: Trial) -> bool:
        costs = trial.user_attrs["profile"]["costs"]
        return all(cost <= b for cost, b in zip(costs, self.objective.budgets, strict=True))

    def _train(self, trial: Trial, candidate: Candidate) -> None:
        """Train a network and tell the study; of several workers with the same one, one does."""
        profile = trial.user_attrs["profile"]
        with self._only_one(trial, f"train/{profile['key']}"):
            self.refresh(self.study.get_trials(deepcopy=False))
            earlier = self.known.get(profile["key"]) or self.failed.get(profile["key"])
            if earlier is None:
                self._train_new(trial, candidate, profile)
                return
        trial.set_user_attr("profile", profile | {"duplicate_of": earlier.number})
        self._end_unchosen(trial, None)

    @contextlib.contextmanager
    def _only_one(self, trial: Trial, name: str) -> Iterator[None]:
        with self.worker.try_lock(name) as free:
            if free:
                yield
                return
        frozen, why = _frozen(self.study, trial), "another worker is training the same network"
        self.on_event(TrialEvent("waiting", frozen, self.trained, why))
        with self.worker.lock(name):
            yield

    def _train_new(self, trial: Trial, candidate: Candidate, profile: dict[str, Any]) -> None:
        curves = self._comparable(profile["costs"])

        def hopeless(epoch: int, quality: float) -> bool:
            at_epoch = [curve[epoch - 1] for curve in curves if len(curve) >= epoch]
            if epoch == 1 or len(at_epoch) < STARTUP_CURVES:
                return False
            return self._values([quality], profile)[0] < statistics.median(at_epoch)

        def keep(network: MakeNetwork, record: dict[str, Any]) -> None:
            if self.keep is not None and math.isfinite(record["quality"]):
                self.keep(network, profile, record)

        record = trial.user_attrs.get("evaluation")  # of a worker that died right after it
        if record is None:
            trial.set_user_attr("training", True)
            try:
                record = self.evaluator.train(candidate, on_epoch=hopeless, keep=keep)
                failures.check_finite("quality", record["quality"])
            except Exception as error:
                message = self._note(trial, error)
                # PRUNED, not FAIL: a failed trial is no history, and would be proposed again.
                self._tell("failed", trial, TrialState.PRUNED, None, message)
                self.in_a_row.note("trained", error, self.on_event)
                return
            trial.set_user_attr("evaluation", record)
        if record.get("stopped"):
            self._tell("stopped", trial, TrialState.PRUNED, None)
        else:
            values = self.objective.values(record["quality"], profile["costs"])
            self._tell("trained", trial, TrialState.COMPLETE, values)
        self.in_a_row.note("trained", None, self.on_event)

    def _values(self, qualities: list[float], profile: dict[str, Any]) -> np.ndarray:
        """The value of a network at each of these qualities: the reward, else the quality."""
        if self.objective.reward is None:
            return np.asarray(qualities)
        costs = np.tile(profile["costs"], (len(qualities), 1))
        return self.objective.reward(np.asarray(qualities), costs)

    def _comparable(self, costs: list[float]) -> list[np.ndarray]:
        """Whole curves that a network must keep up with: without a scalar, of no costlier ones."""
        return [
            curve
            for theirs, curve in self.curves
            if self.objective.reward is not None
            or all(their <= our for their, our in zip(theirs, costs, strict=True))
        ]

    def _tell(
        self,
        kind: Any,
        trial: Trial,
        state: TrialState,
        values: list[float] | None,
        message: str = "",
    ) -> None:
        self._report(kind, leases.tell(self.study, trial._trial_id, state, values), message)

    def _report(self, kind: Any, frozen: FrozenTrial, message: str = "") -> None:
        self._read += 1
        self._learn(frozen)
        self.on_event(TrialEvent(kind, frozen, self.trained, message))


def _frozen(study: optuna.Study, trial: Trial) -> FrozenTrial:
    return study._storage.get_trial(trial._trial_id)
