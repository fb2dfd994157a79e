"""The loop on a problem with known answers: rounds, duplicates, stopping, resuming, workers."""

import hashlib
import math
import multiprocessing
import os
import signal
import time
from collections import Counter
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from latency.target import TargetUnavailable
from nas import registry
from nas.locks import Flock
from nas.searching import leases, start
from nas.searching.candidate import Candidate
from nas.searching.failures import EveryCandidateFails
from nas.searching.finalists import final_epochs_of
from nas.searching.leases import Worker
from nas.searching.loop import explore, trained
from nas.searching.objective import Objective
from nas.searching.reward import Reward
from nas.searching.storage import open_storage
from nas.searching.study import Settings

optuna.logging.set_verbosity(optuna.logging.ERROR)
BUDGET = 6.0


class Towers:
    """Networks of layers of width 1..5: cost is their sum, quality grows with it.

    Reversing a tower gives the same network, so that there are duplicates to recognise. Every
    training is written to `log`, so that a second one is seen, whichever process does it.
    """

    def __init__(self, log, seconds: float = 0.0, layers: int = 4):
        self.log, self.seconds, self.layers = log, seconds, layers

    def candidate(self, trial):
        names = [f"width{index}" for index in range(self.layers)]
        widths = tuple(trial.suggest_categorical(name, (1, 2, 3, 4, 5)) for name in names)
        return Candidate(min(widths, widths[::-1]))

    def key(self, candidate):
        return "-".join(map(str, candidate.config))

    def profile(self, candidate):
        return {"key": self.key(candidate), "costs": [float(sum(candidate.config)) / 2]}

    def quality(self, config):
        return 1 - 1 / (sum(config) + 0.1 * config[1])

    def train(self, candidate, on_epoch=None, keep=None, epochs=None, final=False):
        time.sleep(self.seconds)
        curve = []
        for epoch in range(1, 5):
            curve.append(self.quality(candidate.config) * epoch / 4)
            if on_epoch is not None and on_epoch(epoch, curve[-1]):
                break
        with open(self.log, "a") as file:
            file.write(self.key(candidate) + "\n")
        return {"quality": curve[-1], "curve": curve, "stopped": len(curve) < 4}

    def forget(self):
        pass


def a_study(folder, controller: str = "evolution", seed: int = 0, reward: str | None = "absolute"):
    objective = Objective((BUDGET,), Reward(reward, (BUDGET,)) if reward else None)
    study = optuna.create_study(
        study_name="s",
        storage=open_storage(folder),
        sampler=registry.controller(controller, seed=seed, reward=objective.reward),
        directions=objective.directions,
        load_if_exists=True,
    )
    return study, objective


def run(folder, trials, profiles=1, controller="evolution", layers=4, deadline=math.inf, **options):
    study, objective = a_study(folder, controller, **options)
    worker = Worker(Flock(folder / "locks"), "s")
    evaluator = Towers(folder / "log", layers=layers)
    try:
        why = explore(
            study,
            evaluator,
            objective,
            trials=trials,
            worker=worker,
            profiles=profiles,
            deadline=deadline,
        )
    finally:
        worker.leave()
    return study, why


def finished(study):
    """What a search has done, in order."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return [(t.params, t.state, t.values) for t in study.get_trials(states=states)]


def test_it_finds_the_best_tower_within_the_budget(tmp_path):
    study, why = run(tmp_path, trials=60)
    assert why == "trials"
    assert len(trained(study)) == 60
    best = max(trained(study), key=lambda trial: trial.value if trial.values else -1)
    assert best.user_attrs["profile"]["costs"] == [BUDGET]


def test_late_as_it_is_one_network_is_trained(tmp_path):
    study, why = run(tmp_path, trials=60, deadline=time.monotonic() - 1)
    assert why == "deadline" and len(trained(study)) == 1


class Limited(Towers):
    """Towers that may have so many units at most, as real networks have limits."""

    most = 40.0

    def profile(self, candidate):
        record = super().profile(candidate)
        share = sum(candidate.config) / self.most
        costs = record["costs"] if share <= 1 else []
        return record | {"of_limits": {"--max-params": share}, "costs": costs}


def test_a_limit_that_nothing_meets_ends_at_the_deadline(tmp_path):
    """Without a training, and without going on until everything is known."""
    study, objective = a_study(tmp_path)
    evaluator = Limited(tmp_path / "log")
    evaluator.most = 3.0
    worker = Worker(Flock(tmp_path / "locks"), "s")
    why = explore(
        study, evaluator, objective, trials=5, worker=worker, deadline=time.monotonic() - 1
    )
    worker.leave()
    assert why == "deadline" and not trained(study)
    assert [trial.constraints["--max-params"] > 0 for trial in study.trials] == [True]


@pytest.mark.parametrize("budget", [4.0, 3.0])
def test_what_is_trained_fits_where_something_fits(tmp_path, budget):
    """Random towers cost 6 on average, and one in 30 or 100 at most these budgets."""
    objective = Objective((budget,), Reward("absolute", (budget,)))
    study, _ = a_study(tmp_path)
    worker = Worker(Flock(tmp_path / "locks"), "s")
    options = {"trials": 3, "worker": worker, "profiles": 2, "patience": 32}
    explore(study, Limited(tmp_path / "log"), objective, **options)
    worker.leave()
    costs = [trial.user_attrs["profile"]["costs"][0] for trial in trained(study)]
    assert len(costs) == 3 and max(costs) <= budget


def test_nothing_is_trained_twice(tmp_path):
    study, why = run(tmp_path, trials=1000, controller="random", layers=2)
    log = Counter((tmp_path / "log").read_text().split())
    assert why == "converged"
    assert set(log.values()) == {1}
    assert len(trained(study)) == len(log)
    copies = [t for t in study.trials if "duplicate_of" in t.user_attrs.get("profile", ())]
    for copy in copies:
        original = study.trials[copy.user_attrs["profile"]["duplicate_of"]]
        assert copy.values == original.values and copy.state == original.state


def test_far_over_budget_is_never_trained(tmp_path):
    run(tmp_path, trials=200, controller="random")
    costs = [sum(map(int, key.split("-"))) / 2 for key in (tmp_path / "log").read_text().split()]
    assert max(costs) <= 1.5 * BUDGET and len(costs) > 50


def test_a_round_trains_one_of_those_it_times(tmp_path):
    study, _ = run(tmp_path, trials=10, profiles=4, controller="random")
    rounds = {}
    for trial in study.trials:
        rounds.setdefault(trial.user_attrs["round"], []).append(trial)
    assert all(len(members) == 4 for members in rounds.values())
    for members in rounds.values():
        costs = [t.user_attrs["profile"]["costs"][0] for t in members]
        chosen = [t for t in members if "evaluation" in t.user_attrs]
        chosen = [t for t in chosen if "duplicate_of" not in t.user_attrs["profile"]]
        assert len(chosen) <= 1
        if len(chosen) == 1 and len(set(costs)) == 4:
            new = [
                t.user_attrs["profile"]["costs"][0]
                for t in members
                if "duplicate_of" not in t.user_attrs["profile"]
            ]
            nearest = min(abs(cost - BUDGET) for cost in new)
            assert abs(chosen[0].user_attrs["profile"]["costs"][0] - BUDGET) == nearest


def test_hopeless_networks_are_stopped_early(tmp_path):
    study, _ = run(tmp_path, trials=60, controller="random")
    stopped = [t for t in trained(study) if t.user_attrs["evaluation"]["stopped"]]
    assert stopped and all(t.state == TrialState.PRUNED for t in stopped)
    values = [t.value for t in trained(study) if t.state == TrialState.COMPLETE]
    for trial in stopped:
        _, objective = a_study(tmp_path)
        record = trial.user_attrs["profile"]
        quality = 1 - 1 / (2 * record["costs"][0] + 0.1 * int(record["key"].split("-")[1]))
        assert objective.values(quality, record["costs"])[0] < max(values)


def test_pareto_studies_have_no_scalar(tmp_path):
    study, _ = run(tmp_path, trials=40, reward=None, controller="nsgaii")
    assert len(study.directions) == 2
    best = {t.values[1]: t.values[0] for t in study.best_trials}
    assert list(dict(sorted(best.items())).values()) == sorted(best.values())


class Flaky(Towers):
    """A device that is away for the first call."""

    away = 1

    def profile(self, candidate):
        if self.away:
            self.away -= 1
            raise TargetUnavailable("the device is unplugged")
        return super().profile(candidate)


def test_a_vanished_device_pauses_the_search(tmp_path, monkeypatch):
    from nas.profiling import wait_for_device

    monkeypatch.setattr(wait_for_device, "WAIT_FOR_DEVICE_S", 0.05)
    study, objective = a_study(tmp_path)
    worker, seen = Worker(Flock(tmp_path / "locks"), "s"), []
    explore(
        study,
        Flaky(tmp_path / "log"),
        objective,
        trials=5,
        worker=worker,
        on_event=lambda event: seen.append((event.kind, event.message)),
    )
    assert ("waiting", "the device is unplugged") in seen
    assert len(trained(study)) == 5
    assert not [t for t in study.trials if t.state == TrialState.FAIL]


class Broken(Towers):
    """Odd towers need more memory than there is, and from the tenth network on all meet a bug."""

    tried = 0

    def train(self, candidate, **options):
        self.tried += 1
        if self.tried >= 10:
            raise RuntimeError("a bug")
        if sum(candidate.config) % 2:
            raise MemoryError
        return super().train(candidate, **options)


def test_memory_fails_a_trial_and_a_bug_stops_the_search(tmp_path):
    study, objective = a_study(tmp_path, "random")
    worker, seen = Worker(Flock(tmp_path / "locks"), "s"), []
    with pytest.raises(EveryCandidateFails, match="the last 5 .* RuntimeError: a bug"):
        explore(
            study,
            Broken(tmp_path / "log"),
            objective,
            trials=100,
            worker=worker,
            on_event=lambda event: seen.append(getattr(event, "message", str(event))),
        )
    assert "out of memory" in seen
    assert 'raise RuntimeError("a bug")' in seen[-1]  # the traceback


def search_until_killed(folder, trials, profiles, controller):
    study, objective = a_study(folder, controller)
    worker = Worker(Flock(folder / "locks"), "s")
    evaluator = Towers(folder / "log", seconds=0.03)  # outlasts several kills on any machine
    explore(study, evaluator, objective, trials=trials, worker=worker, profiles=profiles)


@pytest.mark.parametrize(
    ("controller", "profiles"), [("evolution", 1), ("random", 3), ("surrogate", 4), ("tpe", 2)]
)
def test_killed_anywhere_it_goes_on_as_if_never_stopped(
    tmp_path, monkeypatch, controller, profiles
):
    monkeypatch.setattr(leases, "MOST_TRIES", 1000)  # no candidate is to blame for these
    (tmp_path / "calm").mkdir()
    (tmp_path / "killed").mkdir()
    expected, _ = run(tmp_path / "calm", 30, profiles, controller)
    context = multiprocessing.get_context("fork")
    kills = 0
    for attempt in range(200):
        process = context.Process(
            target=search_until_killed, args=(tmp_path / "killed", 30, profiles, controller)
        )
        process.start()
        digest = hashlib.sha256(f"{controller}{attempt}".encode()).digest()
        process.join(0.03 + 0.25 * digest[0] / 255)
        if process.exitcode == 0:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    assert kills >= 3
    study, _ = run(tmp_path / "killed", 30, profiles, controller)
    assert finished(study) == finished(expected)


def test_two_workers_share_one_study(tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path, 40, 2, "evolution")
    workers = [context.Process(target=search_until_killed, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    study, _ = run(tmp_path, trials=40, profiles=2)
    owners = {t.user_attrs["round"].split("/")[0] for t in study.trials}
    assert len(owners) >= 2
    assert len(trained(study)) == 40
    assert set(Counter((tmp_path / "log").read_text().split()).values()) == {1}
    assert [t.number for t in study.trials] == list(range(len(study.trials)))


@pytest.mark.parametrize(
    "asked, task, found",
    [(None, {}, (4, 12)), (None, {"epochs": 60}, (20, 60)), (5, {"epochs": 60}, (5, 15))],
)
def test_a_candidate_has_a_third_of_the_epochs_of_its_task(asked, task, found):
    """4 epochs of 205 images are a hundred steps: a detector has learned nothing by then."""
    epochs = start.epochs_of(Settings(epochs=asked), SimpleNamespace(training=task))
    evaluator = SimpleNamespace(epochs=epochs)
    assert (epochs, final_epochs_of(evaluator)) == found
