"""The contract of a controller: an `optuna.samplers.BaseSampler`, pure in seed and history."""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from nas.testing.expectations import expect

OBJECTIVES = (("maximize",), ("maximize", "minimize"))


def check_controller(
    make_sampler: Callable[[int | None], BaseSampler],
    *,
    objectives: Sequence[Sequence[str]] = OBJECTIVES,
    trials: int = 40,
) -> None:
    """What every controller holds: a search that was killed goes on with the same proposals.

    make_sampler: seed -> a new sampler. objectives: the directions of the studies that it is tried
    on. trials: of each study; more than it draws at random first.

    All that it knows is its seed and the trials in the study: state of its own is lost in a kill,
    and is not there in other workers. Another seed is another search. Raises `AssertionError` at
    the first promise that is not kept. What Optuna asks of samplers is in
    `optuna.testing.pytest_samplers`.

    >>> import optuna
    >>> check_controller(lambda seed: optuna.samplers.RandomSampler(seed), trials=5)
    Traceback (most recent call last):
    AssertionError: RandomSampler: ... resumed after trial ... proposes ...
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            sampler = make_sampler(0)
            name = type(sampler).__name__
            expect(isinstance(sampler, BaseSampler), f"{name} is no optuna.samplers.BaseSampler")
            for directions in objectives:
                with tempfile.TemporaryDirectory() as folder:
                    _check_resumed(make_sampler, directions, trials, Path(folder), name)
            _check_seeds(make_sampler, name)
        finally:
            optuna.logging.set_verbosity(verbosity)


def choose(trial: optuna.Trial) -> list[int]:
    """A small space with interacting decisions, as a search space asks for it."""
    return [trial.suggest_categorical(f"block{i}/choice", tuple(range(4))) for i in range(6)]


def quality_and_cost(choices: list[int]) -> tuple[float, float]:
    """What the networks of `choose` are worth, and what they cost (ms)."""
    quality = sum(choices) / 18 + 0.2 * (choices[0] == choices[1]) - 0.1 * (choices[2] > choices[3])
    return quality, 1.0 + sum(c * (i + 1) for i, c in enumerate(choices)) / 10


def open_study(path: Path, directions: Sequence[str], sampler: BaseSampler) -> optuna.Study:
    """A study in a file, created or opened again."""
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))),
        study_name="s",
        sampler=sampler,
        directions=[*directions],  # type: ignore[list-item]
        load_if_exists=True,
    )


def one_trial(study: optuna.Study, *, prune: bool) -> None:
    """Ask, evaluate, tell, as a search does; with `prune`, networks that cost much are pruned."""
    trial = study.ask()
    choices = choose(trial)
    quality, cost = quality_and_cost(choices)
    trial.set_user_attr("profile", {"key": str(choices), "costs": [cost]})
    if prune and cost > 3.5:
        study.tell(trial, state=TrialState.PRUNED)
        return
    trial.set_user_attr("evaluation", {"quality": quality})
    multi = len(study.directions) > 1
    study.tell(trial, [quality, cost] if multi else quality - 0.1 * abs(cost / 3 - 1))


def proposals(study: optuna.Study) -> list[dict[str, Any]]:
    """The parameters of all trials that did not fail."""
    return [t.params for t in study.get_trials(deepcopy=False) if t.state != TrialState.FAIL]


def _check_resumed(
    make_sampler: Callable[[int | None], BaseSampler],
    directions: Sequence[str],
    total: int,
    folder: Path,
    name: str,
) -> None:
    """Two kills, each between a proposal and its result, against a search that ran through."""
    whole = open_study(folder / "whole.log", directions, make_sampler(0))
    for _ in range(total):
        one_trial(whole, prune=True)
    expected = proposals(whole)

    drawn = np.random.default_rng(len(name)).choice(np.arange(1, total), 2, replace=False)
    for cut in (*sorted(drawn.tolist()), total):
        study = open_study(folder / "killed.log", directions, make_sampler(0))
        for leftover in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            study.tell(leftover.number, state=TrialState.FAIL)
        while len(found := proposals(study)) < cut:
            one_trial(study, prune=True)
        at = next((i for i in range(cut) if found[i] != expected[i]), None)
        expect(
            at is None,
            f"{name}: a search that was killed and resumed after trial {at} proposes"
            f" {found[at or 0]}; without the kill it was {expected[at or 0]}: what a controller"
            " draws may depend on its seed and the trials in the study only",
        )
        if cut < total:
            choose(study.ask())  # killed after its proposal


def _check_seeds(make_sampler: Callable[[int | None], BaseSampler], name: str) -> None:
    first = []
    for seed in (0, 1):
        study = optuna.create_study(sampler=make_sampler(seed))
        one_trial(study, prune=False)
        first.append(study.trials[0].params)
    expect(first[0] != first[1], f"{name}: seeds 0 and 1 both begin with {first[0]}")
