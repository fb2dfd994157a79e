"""The journey behind `nas.search` and `nas search`: objects in, a `Study` and its folder out."""

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import optuna

from latency.system.json_records import write_json
from nas import interruption
from nas.controllers.random import Random
from nas.events import Listener, Message, ignore
from nas.searching import finalists, nearest
from nas.searching import study as studies
from nas.searching import workers as processes
from nas.searching.candidate import Candidate
from nas.searching.evaluator import Evaluator
from nas.searching.events import SearchBegins, Step
from nas.searching.failures import EveryCandidateFails
from nas.searching.leases import Worker
from nas.searching.loop import explore, trained
from nas.searching.objective import Objective
from nas.searching.parts import Parts
from nas.searching.plan import FINALIST_EPOCHS, SEARCH_SHARE, Plan
from nas.searching.result import Study
from nas.searching.start import begin, evaluator_of, filter_of, profiles_of, sampler_of
from nas.searching.study import Settings
from nas.supernets.one_shot import NotReady, stepped_aside

# The time of a search without a number of trials: the first one ends within five minutes.
DEFAULT_MINUTES = 4.0
DEFAULT_TRIALS = 16
# Networks that are timed, where each must be trained, before one is that is over the budget.
PATIENCE = 32
DEFAULT_ONE_SHOT_TRIALS = 400  # in a supernet a network is judged in less than a second


@interruption.interruptible()
def search(
    parts: Parts,
    settings: Settings,
    folder: pathlib.Path,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    most_finalists: int = 3,
    storage: str | None = None,
    by_name: bool = True,
    prove: bool = False,
    child: bool = False,
    start_workers: Callable[[], processes.Workers] = tuple,
    on_event: Listener = ignore,
) -> Study:
    """Begin or resume the study of `folder`, and write the best network into it.

    parts: the objects. settings: their names, kept in the folder. trials: networks to train (16; in
    a supernet 400). minutes: of all of it (4 unless there are trials). most_finalists: trained for
    longer at the end; 0: the winner is as it was judged. storage: an Optuna RDB URL; None: a
    journal in the folder. by_name: whether the command line can find what the settings describe.
    prove: spend as many trainings on random search. child: one of several workers, which leaves the
    end to the first; start_workers: starts the others. on_event: sees `Message`, `SearchBegins`
    and `TrialEvent`, and the events of a supernet's training.

    Interrupted (KeyboardInterrupt), it writes the best network as it was judged, and returns a
    `Study` that is `interrupted`; before there is anything to write, the interrupt goes on.
    """
    if trials is None and minutes is None:
        minutes = DEFAULT_MINUTES
    if trials is not None and trials < 1 or most_finalists < 0:
        raise ValueError("trials must be at least 1, finalists at least 0")
    if parts.one_shot is not None and stepped_aside(folder):
        parts = dataclasses.replace(parts, one_shot=None)
    evaluator, baseline = evaluator_of(parts, settings, folder)
    score = filter_of(parts, settings, evaluator)
    worker = studies.worker_of(folder, storage)
    try:
        study = studies.create(folder, settings, storage, worker, by_name)
    except BaseException:
        worker.leave()
        raise
    run = _Run(parts, settings, folder, study, worker, evaluator, baseline, on_event)
    started, minutes = time.monotonic(), minutes or math.inf
    summary: dict[str, Any] = {}
    workers: processes.Workers = ()
    interrupted, failed = False, None
    try:
        try:
            evaluator.prepare(minutes, on_event)
        except NotReady as error:
            run.say(str(error))
            evaluator = run.train_instead()
        evaluator.watch = lambda now: on_event(Step(now))
        if trials is None:
            trials = DEFAULT_TRIALS if run.parts.one_shot is None else DEFAULT_ONE_SHOT_TRIALS
        run.objective = begin(
            study,
            settings,
            run.worker,
            evaluator,
            run.baseline,
            on_event,
            minutes=minutes,
            profiles=run.profiles,
        )
        if not child:
            run.announce(trials, minutes, most_finalists)
            workers = start_workers()
        search_for = functools.partial(
            run.explore, trials, started + 60 * minutes * SEARCH_SHARE, score
        )
        summary["before_s"] = time.monotonic() - started
        ended = search_for()
        if child:
            return run.study_found({})
        processes.wait(workers)
        if workers:
            ended = search_for()  # what a killed worker left undone
        if ended == "deadline" and not trained(study):  # then there is nothing to do after it
            ended = run.explore(trials, started + 60 * minutes, score)
        run.say_end(ended)
        if prove:
            summary["prove"] = run.prove()
        after = time.monotonic()
        summary |= run.finish(most_finalists, started + 60 * minutes)
        summary["finalists_s"] = time.monotonic() - after
    except EveryCandidateFails as error:
        processes.end(workers)
        if child or run.objective is None:
            raise
        failed = error
        summary |= finalists.best_as_searched(folder, study, evaluator, run.objective, run.say)
    except KeyboardInterrupt:
        interruption.hand_over()
        if child or run.objective is None:
            raise
        interrupted = True
        on_event(Message("\ninterrupted: nothing finished is lost, the same command resumes"))
        processes.end(workers)
        summary |= finalists.best_as_searched(folder, study, evaluator, run.objective, run.say)
    finally:
        run.worker.leave()
    interruption.hand_over()
    summary["seconds"] = time.monotonic() - started
    found = run.study_found(summary, interrupted)
    found.write()
    if failed is not None:
        raise failed
    return found


class _Run:
    """One process that searches."""

    def __init__(
        self,
        parts: Parts,
        settings: Settings,
        folder: pathlib.Path,
        study: optuna.Study,
        worker: Worker,
        evaluator: Evaluator,
        baseline: Candidate | None,
        on_event: Listener,
    ):
        self.parts, self.settings, self.folder, self.study = parts, settings, folder, study
        self.worker = worker
        self.evaluator, self.baseline, self.on_event = evaluator, baseline, on_event
        self.objective: Objective | None = None

    def say(self, text: str) -> None:
        self.on_event(Message(text))

    def train_instead(self) -> Evaluator:
        """Train candidates by themselves from here on; what does."""
        self.parts = dataclasses.replace(self.parts, one_shot=None)
        self.evaluator, self.baseline = evaluator_of(self.parts, self.settings, self.folder)
        return self.evaluator

    def explore(
        self, trials: int, deadline: float, score: Callable[[Candidate], float] | None
    ) -> str:
        """Search until there are so many networks, or it is so late; why it ended."""
        study, objective, parts = self.study, self._goal, self.parts
        self.on_event(SearchBegins(objective, trials, deadline, finished=tuple(trained(study))))
        sampler = sampler_of(self.parts.controller, self.settings, objective, self.evaluator)
        study.sampler = sampler
        return explore(
            study,
            self.evaluator,
            objective,
            trials=trials,
            worker=self.worker,
            profiles=self.profiles,
            patience=PATIENCE if parts.table is None and parts.one_shot is None else 0,
            score=score,
            deadline=deadline,
            on_event=self.on_event,
            keep=finalists.BestSoFar(self.folder, objective, self.evaluator.save, self.say),
        )

    @property
    def _goal(self) -> Objective:
        assert self.objective is not None  # `begin` comes first
        return self.objective

    @property
    def profiles(self) -> int:
        """Networks timed for each one trained, as planned."""
        if self._plan is not None:
            return self._plan.profiles
        options = {"reward": None, "candidates": self.evaluator.candidates}
        sampler = self.parts.controller(seed=self.settings.seed, **options)
        return profiles_of(self.parts, self.settings, sampler)

    @property
    def _plan(self) -> Plan | None:
        """None of a study of before there were plans, and of a table."""
        kept = self.study.user_attrs.get("plan")
        return None if kept is None else Plan.of(kept)

    def announce(self, trials: int, minutes: float, most_finalists: int) -> None:
        """Say what is searched for, and how long it will take."""
        settings, attributes = self.settings, self.study.user_attrs
        kept = attributes["objective"]
        self.say(
            f"study {self.folder}: {settings.space} on {settings.task},"
            f" controller {settings.controller}"
        )
        if (metric := attributes.get("metric")) is not None:
            self.say(f"quality is {metric}")
        for note in () if self.parts.task is None else self.parts.task.notes:
            self.say(f"data: {note}")
        baseline = kept["baseline"] or {}
        for index, target in enumerate(settings.targets):
            budget = self._goal.budgets[index]
            line = f"as fast as possible on {target}"
            if math.isfinite(budget):
                line = f"budget {budget:.3f} ms on {target}"
            if baseline.get("costs"):
                line += f" (the base network takes {baseline['costs'][index]:.3f} ms"
                quality = baseline.get("quality")
                line += ")" if quality is None else f", {quality:.1%})"
            self.say(line)
        if kept["beta"] is not None:
            self.say(f"beta {kept['beta']}")
        done = len(trained(self.study))
        if self._plan is not None and trials > done:
            words = self._plan.words(trials - done, minutes, most_finalists)
            if words:
                self.say(words)
        if done:
            self.say(f"resuming: {done} networks are trained already")

    def say_end(self, ended: str) -> None:
        """Say why the search ended; `ValueError` where it is that no network can be trained."""
        if ended == "deadline" and trained(self.study):
            self.say("time for the finalists; the same command goes on with the search")
        if trained(self.study):
            if ended == "converged":
                self.say("stopped: the last proposals were all known, or far over budget")
            return
        trials = self.study.get_trials(deepcopy=False)
        miss = nearest.nearest(trials, self._goal.budgets)
        if miss is None:
            return
        self.study_found({}).write()
        raise ValueError(
            f"no network was trained: of {len(trials)} each is over a limit, or far over budget;"
            f" the nearest is {miss}; raise what it exceeds (a new --study), or have this one:"
            f" nas export {self.folder} --trial {miss.number}"
        )

    def prove(self) -> dict[str, Any]:
        """Spend as many trained networks on random search; both fronts and their hypervolume."""
        from nas import pareto

        objective, budget = self._goal, len(trained(self.study))
        rival = optuna.create_study(
            study_name=f"{self.study.study_name}-random",
            storage=self.study._storage,
            sampler=Random(seed=self.settings.seed),
            directions=objective.directions,
            load_if_exists=True,
        )
        self.say(f"random search, for comparison: {budget} networks")
        self.on_event(SearchBegins(objective, budget, label="random "))
        explore(
            rival,
            self.evaluator,
            objective,
            trials=budget,
            worker=self.worker,
            on_event=self.on_event,
        )
        points = {
            kind: [
                (trial.user_attrs["evaluation"]["quality"], *trial.user_attrs["profile"]["costs"])
                for trial in trained(one)
            ]
            for kind, one in (("controller", self.study), ("random", rival))
        }
        return {
            "random": [{"quality": q, "costs": list(costs)} for q, *costs in points["random"]],
            "hypervolume": pareto.hypervolumes(points),
        }

    def finish(self, most: int, end: float) -> dict[str, Any]:
        """Write the winner; what `nas.searching.finalists` finds."""
        if not most:
            return finalists.best_as_searched(
                self.folder, self.study, self.evaluator, self._goal, self.say
            )
        plan, rest = self._plan, end - time.monotonic()
        multiple = FINALIST_EPOCHS if plan is None else plan.multiple(rest)
        if multiple == 1:
            self.say("no time to train the best for longer: it is handed over as it was judged")
            return finalists.best_as_searched(
                self.folder, self.study, self.evaluator, self._goal, self.say
            )
        epochs = finalists.final_epochs_of(self.evaluator, multiple)
        pace = None if plan is None else plan.pace
        each = 0.0 if pace is None or epochs is None else pace.finalist(epochs)
        found = finalists.train_finalists(
            self.folder,
            self.study,
            self.evaluator,
            self._goal,
            most=most,
            epochs=epochs,
            end=end,
            each=each,
            say=self.say,
        )
        if found:
            write_json(self.folder / "result.json", self.study_found(found).content)
        if self.baseline is not None and epochs is not None:
            if time.monotonic() + each > end:
                self.say("no time left to train the base network as long, for comparison")
                return found
            self.say(f"training the base network for {epochs:g} epochs, for comparison")
            found["baseline_quality"] = finalists.train_baseline(
                self.folder, self.evaluator, self.baseline, epochs
            )
        return found

    def study_found(self, summary: dict[str, Any], interrupted: bool = False) -> Study:
        return Study(self.folder, self.settings, self.study, summary, self.evaluator, interrupted)
