"""The search loop: ask, profile, choose, train, tell - over any Optuna study and any controller.

A round asks up to `profiles` trials, measures each (cheap), trains the one worth most (dear) and
tells the rest PRUNED; a score of untrained networks may filter them first. The study is the only
state: a killed loop goes on where it was.
"""

import dataclasses
import math
import statistics
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from nas import pareto
from nas.locks import locked
from nas.profiling.wait_for_device import wait_for_device
from nas.searching.journal import Worker, end_unchosen, give_back
from nas.searching.reward import Reward

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
# A network slower than this many budgets is not worth training: rewards fall steeply beyond it.
FAR_OVER_BUDGET = 1.5
# After so many proposals of known networks in a row the controller has nothing new to say.
CONVERGED = 100
# Lock files shared by all networks, so that a folder does not fill with one for each.
LOCKS = 64
# Finished curves before a network may be stopped for being worse than their median.
STARTUP_CURVES = 5


@dataclasses.dataclass(frozen=True)
class Objective:
    """What trials are told: a scalar reward, or (quality, *costs) for a Pareto study."""

    budgets: tuple[float, ...]  # one a target, in its unit; math.inf: none
    reward: Reward | None = None  # None: multi-objective

    @property
    def directions(self) -> list[str]:
        return ["maximize"] if self.reward else ["maximize"] + ["minimize"] * len(self.budgets)

    def values(self, quality: float, costs: Iterable[float]) -> list[float]:
        if self.reward:
            return [float(self.reward(np.array([quality]), np.array([list(costs)]))[0])]
        return [float(quality), *(float(cost) for cost in costs)]

    def worth(self, quality, costs) -> np.ndarray:
        """Qualities (n,) as far as what costs (n, m) without a budget leave of them."""
        return np.asarray(quality) if self.reward is None else self.reward.worth(quality, costs)

    def hopeless(self, record: dict) -> bool:
        """Whether a profiled network is not worth training at all."""
        return not record["costs"] or (
            self.reward is not None
            and any(
                cost > FAR_OVER_BUDGET * budget
                for cost, budget in zip(record["costs"], self.budgets, strict=True)
            )
        )


@dataclasses.dataclass(frozen=True)
class Event:
    """Something the user may want to see; `trial` is as stored after it."""

    kind: str  # "trained", "stopped", "pruned", "duplicate", "failed", "returned", "waiting"
    trial: FrozenTrial
    trained: int  # networks trained so far in this study
    message: str = ""


def trained(study: optuna.Study) -> list[FrozenTrial]:
    """One trial for each network that was trained, the first where several describe it."""
    found = {}
    for trial in study.get_trials(deepcopy=False, states=FINISHED):
        if "evaluation" in trial.user_attrs:
            found.setdefault(trial.user_attrs["profile"]["key"], trial)
    return list(found.values())


def explore(
    study: optuna.Study,
    evaluator: Any,
    objective: Objective,
    *,
    trials: int,
    worker: Worker,
    profiles: int = 1,
    score: Callable[[Any], float] | None = None,
    deadline: float = math.inf,
    on_event: Callable[[Event], None] = lambda event: None,
    keep: Callable[[Any, dict, dict], None] | None = None,
) -> str:
    """Search until `trials` networks are trained; say why it stopped.

    `deadline` is a `time.monotonic()`: no round starts that would probably end after it, but until
    a network is trained, for without one there is nothing to hand over.
    `score(config)` of a network that need not be trained for it, higher is better, decides which of
    a round are left to the controller; where that has no opinion, which one is trained.
    `keep(model, profile, evaluation)` sees each network just trained, before the study hears of it.
    Returns "trials", "deadline" or "converged". KeyboardInterrupt and every error other than a lost
    device or memory leave the round to be given back (`nas.searching.journal.give_back`) by the
    next worker.
    """
    loop = _Loop(study, evaluator, objective, worker, profiles, on_event, keep, score)
    longest = 0.0
    while True:
        for trial in give_back(study, worker):
            on_event(Event("returned", trial, loop.trained, "its worker died; proposal kept"))
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
    evaluator: Any
    objective: Objective
    worker: Worker
    profiles: int
    on_event: Callable[[Event], None]
    keep: Callable[[Any, dict, dict], None] | None
    score: Callable[[Any], float] | None
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
                self.curves.append((record["costs"], self._worth(evaluation["curve"], record)))

    def others_at_work(self) -> int:
        """Rounds that other workers have not ended yet: each will train one network."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return len({trial.user_attrs.get("round", trial.number) for trial in running})

    def round(self, first: Trial) -> None:
        name = f"{self.worker.id}/{self.rounds}"
        self.rounds += 1
        asked, configs = [], []
        for _ in range(self.profiles):
            trial = self.study.ask() if asked else first
            asked.append(trial)
            configs.append(self.evaluator.config(trial))
            trial.set_user_attr("round", name)  # signed: all of its parameters are known
            self._profile(trial, configs[-1])
        new = [i for i, trial in enumerate(asked) if self._is_candidate(trial)]
        chosen = new[self._choose([asked[i] for i in new])] if new else None
        self.nothing_new = 0 if new else self.nothing_new + self.profiles
        if chosen is not None:
            self._train(asked[chosen], configs[chosen])
        for index, trial in enumerate(asked):
            if index != chosen:
                kind = "duplicate" if "duplicate_of" in trial.user_attrs["profile"] else "pruned"
                self._report(kind, end_unchosen(self.study, _frozen(self.study, trial)))
        self.evaluator.forget()

    def _profile(self, trial: Trial, config: Any) -> None:
        network = self.evaluator.key(config)
        earlier = self.known.get(network)
        if earlier is not None:
            record = earlier.user_attrs["profile"] | {"duplicate_of": earlier.number}
        else:
            record = self._retry(trial, lambda: self.evaluator.profile(config))
            if self.score is not None and not self.objective.hopeless(record):
                record = record | {"score": self.score(config)}
        trial.set_user_attr("profile", {"config": repr(config)} | record)

    def _retry(self, trial: Trial, work: Callable[[], dict]) -> dict:
        def say(reason: str) -> None:
            self.on_event(Event("waiting", _frozen(self.study, trial), self.trained, reason))

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
        select = getattr(self.study.sampler, "select", None)
        if select is not None:
            return left[select(self.study, [_frozen(self.study, candidates[i]) for i in left])]
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

    def _train(self, trial: Trial, config: Any) -> None:
        """Train a network and tell; of several workers that come to the same one, one trains it."""
        profile = trial.user_attrs["profile"]
        bucket = zlib.crc32(profile["key"].encode()) % LOCKS
        with locked(self.worker.folder / f"train{bucket}"):
            self.refresh()
            earlier = self.known.get(profile["key"])
            if earlier is None:
                self._train_new(trial, config, profile)
                return
        trial.set_user_attr("profile", profile | {"duplicate_of": earlier.number})
        self._report("duplicate", end_unchosen(self.study, _frozen(self.study, trial)))

    def _train_new(self, trial: Trial, config: Any, profile: dict) -> None:
        curves = self._comparable(profile["costs"])

        def hopeless(epoch: int, quality: float) -> bool:
            at_epoch = [curve[epoch - 1] for curve in curves if len(curve) >= epoch]
            if epoch == 1 or len(at_epoch) < STARTUP_CURVES:
                return False
            return self._worth([quality], profile)[0] < statistics.median(at_epoch)

        keep = self.keep and (lambda model, record: self.keep(model, profile, record))
        try:
            record = trial.user_attrs.get("evaluation")  # of a worker that died right after it
            record = record or self.evaluator.train(config, on_epoch=hopeless, keep=keep)
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

    def _worth(self, qualities: list[float], profile: dict) -> np.ndarray:
        """What a network would be worth at each of these qualities."""
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
        kind: str,
        trial: Trial,
        state: TrialState,
        values: list[float] | None,
        message: str = "",
    ) -> None:
        self._report(kind, self.study.tell(trial, values, state=state), message)

    def _report(self, kind: str, frozen: FrozenTrial, message: str = "") -> None:
        self._read += 1
        self._learn(frozen)
        self.on_event(Event(kind, frozen, self.trained, message))


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"


def _frozen(study: optuna.Study, trial: Trial) -> FrozenTrial:
    return study._storage.get_trial(trial._trial_id)


def excess(objective: Objective, costs: list[float]) -> float:
    """By how much the worst cost exceeds its budget, relative to it; 0 within all budgets."""
    return max(
        0.0,
        *(cost / budget - 1 for cost, budget in zip(costs, objective.budgets, strict=True)),
    )
