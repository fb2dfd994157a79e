"""Controllers keep to hard limits that hardly any random network meets."""

import optuna
import pytest
from optuna.trial import TrialState

from nas import registry

WIDTHS = (1, 2, 4, 8)
LIMIT = 20  # of products of neighbours' widths, 7 at least: one random network in 200 has as few


def proposals(controller: str, limited: bool, trials: int = 40) -> list[float]:
    """What each network takes of the limit."""
    study = optuna.create_study(
        sampler=registry.controller(controller, seed=0), direction="maximize"
    )
    shares = []
    for _ in range(trials):
        trial = study.ask()
        widths = [trial.suggest_categorical(f"width{n}", WIDTHS) for n in range(8)]
        shares.append(sum(a * b for a, b in zip(widths, widths[1:], strict=False)) / LIMIT)
        if limited:
            trial.set_constraint("max_params", shares[-1] - 1)
        if limited and shares[-1] > 1:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, sum(widths))
    return shares


@pytest.mark.parametrize("controller", ["surrogate", "evolution", "ppo", "tpe", "nsgaii"])
def test_a_limit_that_no_random_network_meets_is_met(controller):
    shares = proposals(controller, limited=True)
    assert sum(share <= 1 for share in shares) >= 5


def test_without_limits_and_where_most_fit_nothing_changes(monkeypatch):
    free = proposals("evolution", limited=False, trials=20)
    monkeypatch.setattr(f"{__name__}.LIMIT", 1000)
    shares = proposals("evolution", limited=True, trials=20)
    assert [round(share * 1000) for share in shares] == [round(share * 20) for share in free]
