"""How long the parts of a search take: one training is watched, and the rest planned by it."""

import dataclasses
import functools
import math
import time
from typing import Any

import numpy as np

from compress.examples.data import taken
from nas.events import Listener
from nas.report.format import duration
from nas.searching.candidate import Candidate
from nas.searching.evaluator import Evaluator
from nas.searching.events import Step
from nas.tasks.task import Task
from nas.training.batches import count

# The share of the minutes after which no further candidate is tried: the rest is the finalists'.
SEARCH_SHARE = 0.75
# The base network is trained before the candidates if that takes no more of the minutes than this,
# or, without a limit, no longer than so many seconds; else after them.
BASE_SHARE, BASE_S = 0.1, 60.0
# Where fewer candidates than this could be trained in the time there is, each is trained for less.
LEAST_CANDIDATES = 6
LEAST_STEPS = 50  # of a training: below, qualities say little
LEAST_EXAMPLES = 200  # that it is judged on, where it sees fewer
# A finalist is trained for so many times the epochs of the search, as far as the time allows.
FINALIST_EPOCHS = 3
WATCHED_S = 1.0  # of a training, before what it will take is believed
JUDGED = 1.15  # an epoch with its judgement, of one without
# A measurement, of the first one, which starts a process and its runtime; of one that was recalled.
PROFILE, RECALLED_PROFILE_S = 0.4, 1.0


@dataclasses.dataclass(frozen=True)
class Pace:
    """Seconds that the base network takes: to be built and timed, and to be trained.

    start_s: before the first step. epoch_s: an epoch and its judgement. steps: of an epoch.
    """

    profile_s: float
    start_s: float
    epoch_s: float
    steps: float

    def training(self, epochs: float) -> float:
        """Seconds of a training.

        >>> Pace(2.0, 3.0, 10.0, steps=100).training(0.5)
        8.0
        """
        return self.start_s + epochs * self.epoch_s

    def finalist(self, epochs: float) -> float:
        """Seconds of a finalist: it is timed with more runs before and after, and written."""
        return self.training(epochs) + 4 * self.profile_s


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the time is spent on.

    epochs: of a candidate; a fraction is so much of the examples. profiles: networks timed for each
    that is trained. pace: None where it is not known, as where nothing is trained.
    """

    epochs: float
    profiles: int
    pace: Pace | None = None

    @classmethod
    def of(cls, kept: dict[str, Any]) -> "Plan":
        """The one that a study has kept as plain data."""
        pace = kept["pace"]
        return cls(kept["epochs"], kept["profiles"], None if pace is None else Pace(**pace))

    def multiple(self, seconds: float) -> int:
        """How many times the epochs of a candidate a finalist can be trained for: 1, 2 or 3."""
        if self.pace is None:
            return FINALIST_EPOCHS
        fits = (
            times
            for times in range(FINALIST_EPOCHS, 1, -1)
            if self.pace.finalist(times * self.epochs) <= seconds
        )
        return next(fits, 1)

    def words(self, trials: int, minutes: float, finalists: int) -> str | None:
        """The plan for the user; None where the pace is not known."""
        if self.pace is None:
            return None
        each = self.pace.training(self.epochs) + self.profiles * self.pace.profile_s
        known = f"{self.epochs:g} epochs ({self.profiles} timed for each, {duration(each)})"
        if math.isinf(minutes):
            text = f"plan: {trials} candidates of {known}, {duration(trials * each)} in all"
            rest = math.inf
        else:
            rest = 60 * minutes * (1 - SEARCH_SHARE)
            fits = max(1, round(60 * minutes * SEARCH_SHARE / each))
            text = f"plan for {minutes:g} min: about {min(fits, trials)} candidates of {known}"
        if not finalists:
            return text
        times = self.multiple(rest)
        if times == 1:
            return f"{text}; no time to train the best for longer"
        final = self.pace.finalist(times * self.epochs)
        most = finalists if math.isinf(rest) else max(1, min(finalists, int(rest / final)))
        return (
            f"{text}; then the best {most}, {times * self.epochs:g} epochs ({duration(final)} each)"
        )


def planned(pace: Pace, epochs: float, seconds: float, profiles: int) -> Plan:
    """The plan of a search of so many seconds whose candidates are trained for `epochs`, or less.

    Less where too few would fit; of the `profiles` networks that are timed for each, too.

    >>> planned(Pace(1.0, 2.0, 100.0, steps=1000), 4, seconds=240, profiles=4)
    Plan(epochs=0.24, profiles=4, pace=Pace(profile_s=1.0, start_s=2.0, epoch_s=100.0, steps=1000))
    """
    each = SEARCH_SHARE * seconds / LEAST_CANDIDATES
    profiles = max(1, min(profiles, int(each / 2 / pace.profile_s)))
    affordable = (each - profiles * pace.profile_s - pace.start_s) / pace.epoch_s
    affordable = min(max(affordable, LEAST_STEPS / pace.steps), epochs)
    shorter = math.floor(affordable) if affordable >= 1 else round(affordable, 2)
    return Plan(shorter, profiles, pace)


@dataclasses.dataclass
class _Late(Exception):
    """A training that would take longer than it may."""

    seconds: float


@dataclasses.dataclass
class _Clock:
    """Watches a training, tells of it, and ends it where it would take more than `limit` s."""

    limit: float
    on_event: Listener
    begun: float = dataclasses.field(default_factory=lambda: time.monotonic())
    first: float = math.nan
    done: int = 0  # steps, before the second one that is seen
    steps: int = 0  # of all

    def __call__(self, now: Any) -> None:
        self.on_event(Step(now))
        moment = time.monotonic()
        if math.isnan(self.first):
            self.first, self.done, self.steps = moment, now.step, now.steps
            return
        each = (moment - self.first) / max(now.step - self.done, 1)
        whole = self.first - self.begun + each * now.steps * JUDGED
        if moment - self.first > WATCHED_S and whole > self.limit:
            raise _Late(whole)


@dataclasses.dataclass(frozen=True)
class Watched:
    """What a training has shown. record: None where it was ended. seconds: that it takes."""

    record: dict[str, Any] | None
    pace: Pace | None
    seconds: float


def watch(
    evaluator: Evaluator,
    candidate: Candidate,
    profile: dict[str, Any],
    minutes: float,
    on_event: Listener,
) -> Watched:
    """Train the base network for as long as a candidate, unless that takes too long.

    profile: its record. minutes: of the whole search.
    """
    clock = _Clock(BASE_S if math.isinf(minutes) else 60 * BASE_SHARE * minutes, on_event)
    evaluator.watch = clock
    try:
        record = evaluator.train(candidate)
        seconds = record["train_s"] if record.get("cached") else time.monotonic() - clock.begun
    except _Late as late:
        record, seconds = None, late.seconds
    finally:
        evaluator.watch = lambda now: on_event(Step(now))
    epochs = evaluator.epochs
    if epochs is None or (record is not None and "cached" not in record):  # judged, not trained
        return Watched(record, None, seconds)
    recalled = any(latency.get("cached") for latency in profile.get("latency", ()))
    profile_s = PROFILE * (profile.get("build_s", 0.0) + profile.get("profile_s", 0.0))
    start = 0.1 * seconds if math.isnan(clock.first) else clock.first - clock.begun
    pace = Pace(
        profile_s=max(profile_s, RECALLED_PROFILE_S) if recalled else profile_s,
        start_s=start,
        epoch_s=(seconds - start) / epochs,
        steps=clock.steps / epochs,
    )
    return Watched(record, pace, seconds)


def shortened(task: Task, epochs: float, seed: int) -> tuple[Task, int]:
    """The task and whole epochs that make `epochs`: with 0.3 of them 1, of 0.3 of the examples."""
    whole = math.ceil(epochs)
    return (task, whole) if whole == epochs else (_part(task, epochs / whole, seed), whole)


@functools.lru_cache(maxsize=2)
def _part(task: Task, share: float, seed: int) -> Task:
    train = max(1, round(share * count(task.train)))
    valid = min(count(task.valid), max(train, LEAST_EXAMPLES))
    return dataclasses.replace(
        task,
        train=_examples(task.train, train, seed),
        valid=_examples(task.valid, valid, seed),
        recipe=f"{task.recipe} share={share:.4f}",
    )


def _examples(part: tuple[Any, Any], number: int, seed: int) -> tuple[Any, Any]:
    chosen = np.sort(np.random.default_rng(seed).permutation(count(part))[:number])
    return taken(part[0], chosen), taken(part[1], chosen)
