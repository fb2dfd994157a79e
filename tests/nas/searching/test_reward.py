"""Rewards against values computed by hand, and what they are for."""

import numpy as np
import pytest

from nas.searching import reward
from nas.searching.reward import Reward

BUDGET = (75.0,)


def one(function, quality, cost, **options):
    return float(function(np.array([quality]), np.array([[cost]]), np.array(BUDGET), **options)[0])


def test_soft_is_mnasnets_equation():
    # 0.75 * 2 ** -0.07 = 0.75 * 0.952638 ; 0.75 * 0.5 ** -0.07 = 0.75 * 1.049717
    assert one(reward.soft, 0.75, 150) == pytest.approx(0.7144785, abs=1e-6)
    assert one(reward.soft, 0.75, 37.5) == pytest.approx(0.7872874, abs=1e-6)
    assert one(reward.soft, 0.75, 75) == 0.75


def test_hard_is_free_within_and_steep_beyond():
    assert one(reward.hard, 0.75, 37.5) == 0.75
    assert one(reward.hard, 0.75, 150) == pytest.approx(0.375)


def test_absolute_is_tunas():
    assert one(reward.absolute, 0.75, 82.5) == pytest.approx(0.74)
    assert one(reward.absolute, 0.75, 67.5) == pytest.approx(0.74)
    assert one(reward.absolute, 0.75, 82.5, beta=-0.2) == pytest.approx(0.73)


def test_relu_is_single_sided():
    assert one(reward.relu, 0.75, 10) == 0.75
    assert one(reward.relu, 0.75, 90) == pytest.approx(0.65)


def test_several_targets():
    quality, costs, budgets = np.array([0.8]), np.array([[2.0, 30.0]]), np.array([1.0, 20.0])
    assert reward.absolute(quality, costs, budgets)[0] == pytest.approx(0.8 - 0.1 - 0.05)
    assert reward.hard(quality, costs, budgets)[0] == pytest.approx(0.8 / 2 / 1.5)
    with pytest.raises(ValueError, match="2 costs a network, but 1 budgets"):
        reward.absolute(quality, costs, np.array([1.0]))


def test_equal_exponents_do_not_steer_and_absolute_does():
    rng = np.random.default_rng(0)
    costs = np.geomspace(10, 200, 500)[:, None]
    quality = 0.6 + 0.05 * np.log(costs[:, 0] / 10) + rng.normal(0, 0.001, 500)
    best = {name: set() for name in reward.SCALAR}
    for budget in (20.0, 60.0, 150.0):
        for name in best:
            best[name].add(int(np.argmax(Reward(name, (budget,))(quality, costs))))
    assert len(best["soft"]) == 1 and not Reward("soft", BUDGET).steers
    assert len(best["absolute"]) == 3 and Reward("absolute", BUDGET).steers
    for budget in (20.0, 60.0, 150.0):
        landed = costs[np.argmax(Reward("absolute", (budget,))(quality, costs)), 0]
        assert landed == pytest.approx(budget, rel=0.05)


def test_a_given_beta_reaches_both_sides_of_soft():
    made = Reward("soft", BUDGET, beta=-0.15)
    assert made([0.75], [[150.0]])[0] == pytest.approx(0.75 * 2**-0.15)
    assert made([0.75], [[37.5]])[0] == pytest.approx(0.75 * 0.5**-0.15)


def test_calibration_finds_the_slope_of_a_known_front():
    costs = np.geomspace(1, 8, 40)
    quality = 0.7 + 0.06 * np.log(costs)
    beta = reward.calibrate("absolute", quality, costs[:, None], (3.0,))
    assert beta == pytest.approx(-0.06, rel=0.1)
    with pytest.raises(ValueError, match="at least four"):
        reward.calibrate("absolute", [0.5], [[1.0]], (1.0,))


def test_nonsense_costs_are_refused():
    with pytest.raises(ValueError, match="positive and finite"):
        reward.absolute([0.5], [[np.nan]], (1.0,))


def test_a_target_without_a_budget_is_to_be_as_fast_as_possible():
    goal = Reward("absolute", (20.0, np.inf), scales=(40.0, 10.0))
    quality, costs = np.array([0.8, 0.8, 0.84]), np.array([[20, 10.0], [20, 5.0], [20, 10.0]])
    # On the budget; half the other latency is worth 2 ** 0.07 = 1.0497 times the quality.
    assert goal(quality, costs) == pytest.approx([0.8, 0.8397736, 0.84], abs=1e-6)
    assert goal.discounted(quality, costs) == pytest.approx(goal(quality, costs))
    beyond = goal(quality[:1], np.array([[22.0, 10.0]]))
    assert beyond == pytest.approx(0.79)
    only = Reward("soft", (np.inf,), scales=(10.0,))
    assert only(np.array([0.8]), np.array([[10.0]])) == pytest.approx(0.8)
