"""The contract of a space: a function of an Optuna trial that gives a Config."""

import sys
from collections.abc import Callable
from typing import Any

import optuna

from families.layers import shapes_only
from nas.networks.build import check_importable
from nas.testing.expectations import expect, expect_flat, expect_frozen

TRIALS = 8
STORED = (type(None), bool, int, float, str)  # what Optuna's storages give back as it was


def check_space(sample: Callable[[Any], Any], baseline: Any = None) -> None:
    """What every space holds: the same choices in every trial, and Configs that can be built.

    sample: an Optuna trial -> Config, as `nas.search` takes it. baseline: the Config that it
    begins from, or a function that gives it; None: there is none.

    What a name offers is the same in all trials (controllers learn of fixed choices), the same
    choices give the same Config, different ones differ, and networks of the space are flat. Raises
    `AssertionError` at the first promise that is not kept.

    >>> from search_spaces import mnasnet
    >>> check_space(mnasnet.sample, mnasnet.baseline)
    """
    name = getattr(sample, "func", sample).__module__
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    finally:
        optuna.logging.set_verbosity(verbosity)
    trials = [study.ask() for _ in range(TRIALS)]
    try:
        configs = [sample(trial) for trial in trials]
    except ValueError as error:  # of Optuna, where choices differ from those of another trial
        raise AssertionError(f"{name}: {error}") from error
    expect(trials[0].distributions, f"{name}: a trial chooses nothing; expected trial.suggest_...")
    offered: dict[str, Any] = {}
    for trial in trials:
        _check_choices(trial.distributions, name)
        for choice, distribution in trial.distributions.items():
            before = offered.setdefault(choice, distribution)
            expect(
                distribution == before,
                f"{name}: {choice} offers {distribution} in one trial, {before} in another;"
                " expected the same in all (choose a share, or the place in a list)",
            )
    for trial, config in zip(trials, configs, strict=True):
        expect_frozen(config, name)
        try:
            again = sample(optuna.trial.FixedTrial(trial.params))
        except ValueError as error:
            raise AssertionError(f"{name}: the same choices lead to other ones: {error}") from error
        expect(again == config, f"{name}: the same choices {trial.params} gave {config}, {again}")
    expect(len(set(configs)) > 1, f"{name}: {TRIALS} random trials all gave {configs[0]}")
    if baseline is not None:
        configs.insert(0, baseline() if callable(baseline) else baseline)
        expect(
            type(configs[0]) is type(configs[1]),
            f"{name}: the baseline is a {type(configs[0]).__module__} network, what it samples is"
            f" a {type(configs[1]).__module__} one",
        )
    for config in configs[:3]:
        check_importable(config)
        family = sys.modules[type(config).__module__]
        expect(hasattr(family, "build"), f"{name}: {family.__name__} has no build beside Config")
        with shapes_only():
            expect_flat(family.build(config), f"{name}: {config}")


def _check_choices(distributions: dict[str, Any], name: str) -> None:
    for choice, distribution in distributions.items():
        for value in getattr(distribution, "choices", ()):
            expect(
                isinstance(value, STORED),
                f"{name}: {choice} offers {value!r}; expected numbers, texts, bools or None, which"
                " a study can store (choose a name and look the rest up)",
            )
        expect(not distribution.single(), f"{name}: {choice} has one value only; leave it out")
