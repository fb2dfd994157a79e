"""The search loop: ask, profile, choose, train, tell - over any Optuna study and any controller.

A round asks up to `profiles` trials, measures each (cheap), trains the most promising one
(expensive) and ends the rest as PRUNED; a score of untrained networks may filter them first. The
study is the only state: a killed loop goes on where it was.
"""

import dataclasses
import math
import statistics
import time
import zlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from nas import pareto
from nas.events import Listener, ignore
from nas.locks import locked
from nas.profiling.wait_for_device import wait_for_device
from nas.proposals.chooser import chooser_of
from nas.searching.candidate import Candidate
from nas.searching.evaluator import Evaluator, MakeNetwork
from nas.searching.events import TrialEvent
from nas.searching.journal import Worker, end_unchosen, give_back
from nas.searching.objective import Objective

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
# After so many proposals of known networks in a row the controller proposes nothing new.
CONVERGED = 100
# Lock files shared by all networks, so that a folder does not fill with one for each.
LOCKS = 64
# Finished curves before a network may be stopped for being worse than their median.
STARTUP_CURVES = 5


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
) -> Literal["trials", "deadline", "converged"]:
    """Search until `trials` networks are trained; why it stopped.

    `deadline` is a `time.monotonic()`: no round starts that would probably end after it, but until
    a network is trained, for without one there is nothing to hand over.
    `score(candidate)` of a network that need not be trained for it, higher is better, decides which
    of a round are left to the controller; where that has no opinion, which one is trained.
    `keep(make_network, profile, evaluation)` sees each network just trained, before the study does.
    `on_event` is called with each `TrialEvent`. KeyboardInterrupt and every error other than a lost
    device or memory leave the round to be given back (`nas.searching.journal.give_back`) by the
    next worker.
    """
    loop = _Loop(study, evaluator, objective, worker, profiles, on_event, keep, score)
    longest = 0.0
    while True:
        for trial in give_back(study, worker):
            on_event(TrialEvent("returned", trial, loop.trained, "its worker died; proposal kept"))
        started = time.monotonic()
        # One worker at a time decides to go on, and the next sees its trial: else two would train
        # the last network. Who is at work is read first: who ends meanwhile is counted twice, not
        # left out.
        with locked(worker.folder / "begin"):
            at_work = loop.others_at_work()
            loop.refresh()
            if loop.trained + at_work >= trials:
                return "trials"
            if loop.trained and started + longest > deadline:
                return "deadline"
            if loop.nothing_new >= CONVERGED:
                return "converged"
            first = study.ask()
        loop.round(first)
        longest = max(longest * 0.9, time.monotonic() - started)


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
    trained: int = 0
    rounds: int = 0
    nothing_new: int = 0
    known: dict[str, FrozenTrial] = dataclasses.field(default_factory=dict)
    curves: list[tuple[list[float], np.ndarray]] = dataclasses.field(default_factory=list)
    _read: int = 0

    def refresh(self) -> None:
        """Learn of the trials that other workers, or earlier processes, finished."""
        finished = self.study.get_trials(deepcopy=False, states=FINISHED)
        if len(finished) != self._read:
            for trial in finished:
                self._learn(trial)
        self._read = len(finished)

    def _learn(self, trial: FrozenTrial) -> None:
        record = trial.user_attrs.get("profile")
        if record is None or "duplicate_of" in record or record["key"] in self.known:
            return
        evaluation = trial.user_attrs.get("evaluation")
        if evaluation is not None:
            self.known[record["key"]] = trial
            self.trained += 1
            if not evaluation.get("stopped") and evaluation.get("curve"):
                self.curves.append((record["costs"], self._values(evaluation["curve"], record)))

    def others_at_work(self) -> int:
        """Rounds that other workers have not ended yet: each will train one network."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return len({trial.user_attrs.get("round", trial.number) for trial in running})

    def round(self, first: Trial) -> None:
        name = f"{self.worker.id}/{self.rounds}"
        self.rounds += 1
        asked: list[Trial] = []
        candidates: list[Candidate] = []
        for _ in range(self.profiles):
            trial = self.study.ask() if asked else first
            asked.append(trial)
            candidates.append(self.evaluator.candidate(trial))
            trial.set_user_attr("round", name)  # signed: all of its parameters are known
            self._profile(trial, candidates[-1])
        new = [i for i, trial in enumerate(asked) if self._is_candidate(trial)]
        chosen = new[self._choose([asked[i] for i in new])] if new else None
        self.nothing_new = 0 if new else self.nothing_new + self.profiles
        if chosen is not None:
            self._train(asked[chosen], candidates[chosen])
        for index, trial in enumerate(asked):
            if index != chosen:
                kind = "duplicate" if "duplicate_of" in trial.user_attrs["profile"] else "pruned"
                self._report(kind, end_unchosen(self.study, _frozen(self.study, trial)))
        self.evaluator.forget()

    def _profile(self, trial: Trial, candidate: Candidate) -> None:
        network = self.evaluator.key(candidate)
        earlier = self.known.get(network)
        if earlier is not None:
            record = earlier.user_attrs["profile"] | {"duplicate_of": earlier.number}
        else:
            record = self._retry(trial, lambda: self.evaluator.profile(candidate))
            if self.score is not None and not self.objective.hopeless(record):
                record = record | {"score": self.score(candidate)}
        trial.set_user_attr("profile", {"config": repr(candidate.config)} | record)

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
        bucket = zlib.crc32(profile["key"].encode()) % LOCKS
        with locked(self.worker.folder / f"train{bucket}"):
            self.refresh()
            earlier = self.known.get(profile["key"])
            if earlier is None:
                self._train_new(trial, candidate, profile)
                return
        trial.set_user_attr("profile", profile | {"duplicate_of": earlier.number})
        self._report("duplicate", end_unchosen(self.study, _frozen(self.study, trial)))

    def _train_new(self, trial: Trial, candidate: Candidate, profile: dict[str, Any]) -> None:
        curves = self._comparable(profile["costs"])

        def hopeless(epoch: int, quality: float) -> bool:
            at_epoch = [curve[epoch - 1] for curve in curves if len(curve) >= epoch]
            if epoch == 1 or len(at_epoch) < STARTUP_CURVES:
                return False
            return self._values([quality], profile)[0] < statistics.median(at_epoch)

        def keep(network: MakeNetwork, record: dict[str, Any]) -> None:
            if self.keep is not None:
                self.keep(network, profile, record)

        try:
            record = trial.user_attrs.get("evaluation")  # of a worker that died right after it
            record = record or self.evaluator.train(candidate, on_epoch=hopeless, keep=keep)
        except Exception as error:
            if not _out_of_memory(error):
                raise
            # PRUNED, not FAIL: a failed trial is no history, and would be proposed again.
            self._tell("failed", trial, TrialState.PRUNED, None, "out of memory")
            return
        trial.set_user_attr("evaluation", record)
        if record.get("stopped"):
            self._tell("stopped", trial, TrialState.PRUNED, None)
        else:
            values = self.objective.values(record["quality"], profile["costs"])
            self._tell("trained", trial, TrialState.COMPLETE, values)

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
        self._report(kind, self.study.tell(trial, values, state=state), message)

    def _report(self, kind: Any, frozen: FrozenTrial, message: str = "") -> None:
        self._read += 1
        self._learn(frozen)
        self.on_event(TrialEvent(kind, frozen, self.trained, message))


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"


def _frozen(study: optuna.Study, trial: Trial) -> FrozenTrial:
    return study._storage.get_trial(trial._trial_id)
