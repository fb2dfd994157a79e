"""What a search may take, and what it does with the time."""

import math
import types

import numpy as np
import pytest

from nas.events import Message
from nas.searching import plan
from nas.searching.events import Step
from nas.searching.plan import Pace, Plan, planned, shortened
from nas.tasks.task import Task

PACE = Pace(profile_s=1.0, start_s=2.0, epoch_s=100.0, steps=1000)


def test_a_finalist_is_trained_for_as_long_as_there_is_time():
    found = Plan(0.2, 4, PACE)  # a finalist of 0.6 epochs takes 66 s, of 0.4 46 s
    assert [found.multiple(seconds) for seconds in (math.inf, 70, 50, 30)] == [3, 3, 2, 1]
    assert Plan(4, 1).multiple(0) == 3  # of a table nothing takes time


def test_candidates_are_shortened_until_several_fit():
    short = planned(PACE, 4, seconds=240, profiles=4)
    each = PACE.training(short.epochs) + short.profiles * PACE.profile_s
    assert plan.LEAST_CANDIDATES <= plan.SEARCH_SHARE * 240 / each < plan.LEAST_CANDIDATES + 1
    assert planned(PACE, 4, seconds=1e6, profiles=4).epochs == 4
    assert planned(PACE, 4, seconds=1700, profiles=4).epochs == 2  # whole ones where it can be
    slow = Pace(profile_s=30.0, start_s=2.0, epoch_s=100.0, steps=1000)
    assert planned(slow, 4, seconds=240, profiles=4).profiles == 1
    # Below some steps a training says nothing: rather fewer candidates.
    assert planned(PACE, 4, seconds=30, profiles=4).epochs == plan.LEAST_STEPS / PACE.steps


def test_the_plan_in_words():
    assert planned(PACE, 4, seconds=240, profiles=4).words(16, 4, 3) == (
        "plan for 4 min: about 6 candidates of 0.24 epochs (4 timed for each, 30 s); then the best"
        " 1, 0.48 epochs (54 s each)"
    )
    assert Plan(4, 4, PACE).words(2, math.inf, 0) == (
        "plan: 2 candidates of 4 epochs (4 timed for each, 6 min 46 s), 13 min 32 s in all"
    )
    assert Plan(1, 4).words(16, 4, 3) is None


def test_part_of_an_epoch_is_part_of_the_examples():
    x, y = np.arange(1000, dtype=np.float32).reshape(-1, 1), np.arange(1000) % 3
    task = Task(train=(x, y), valid=(x, y), name="all")
    assert shortened(task, 4, seed=0) == (task, 4)
    short, epochs = shortened(task, 0.25, seed=0)
    assert epochs == 1 and len(short.train[0]) == len(short.valid[0]) == 250
    assert (short.train[0][:, 0] % 3 == short.train[1]).all()  # inputs keep their targets
    assert short.recipe != task.recipe and shortened(task, 0.25, seed=0)[0] is short
    longer, epochs = shortened(task, 1.5, seed=0)
    assert epochs == 2 and len(longer.train[0]) == 750


class Slow:
    """An evaluator whose training takes what it is told, on a clock of its own."""

    epochs, watch = 2, None

    def __init__(self, step_s: float, monkeypatch):
        self.now, self.step_s = 100.0, step_s
        monkeypatch.setattr(plan, "time", types.SimpleNamespace(monotonic=lambda: self.now))

    def train(self, candidate):
        self.now += 3.0
        for step in range(1, 201):
            self.watch(types.SimpleNamespace(step=step, steps=200))
            self.now += self.step_s
        return {"quality": 0.5, "train_s": 1.0, "cached": False}


@pytest.mark.parametrize(("step_s", "ends"), [(0.05, True), (0.5, False)])
def test_the_base_network_is_trained_first_only_where_that_is_soon(monkeypatch, step_s, ends):
    slow, events = Slow(step_s, monkeypatch), []
    profile = {"build_s": 1.0, "profile_s": 4.0}
    seen = plan.watch(slow, None, profile, minutes=4, on_event=events.append)
    assert (seen.record is not None) == ends
    assert all(isinstance(event, Step) for event in events) and events
    if not ends:  # a few steps show what all would take
        assert slow.now < 100 + 3 + 3 and seen.seconds == pytest.approx(3 + 100 * 1.15, rel=0.05)
        assert seen.pace.steps == 100 and seen.pace.start_s == pytest.approx(3.0)
    assert seen.pace.epoch_s == pytest.approx(100 * step_s, rel=0.2)
    slow.watch("a step")
    assert events[-1] == Step("a step") and Message not in map(type, events)
