"""Fronts, hypervolume and the winner, against brute force and hand-computed values."""

import numpy as np
import pytest

from nas import pareto


def brute_front(losses):
    return np.array(
        [not any((b <= a).all() and (b < a).any() for b in losses) for a in losses], dtype=bool
    )


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("levels", [3, 1000], ids=["ties", "distinct"])
def test_front_equals_brute_force(objectives, levels):
    rng = np.random.default_rng(objectives)
    for size in (1, 2, 60):
        losses = rng.integers(levels, size=(size, objectives)).astype(float)
        np.testing.assert_array_equal(pareto.front(losses), brute_front(losses))


def test_hypervolume_by_hand():
    assert pareto.hypervolume([[1, 3], [2, 1]], [4, 4]) == 3 * 1 + 2 * 2
    assert pareto.hypervolume([[1, 3], [2, 1], [2, 3], [5, 0]], [4, 4]) == 7
    assert pareto.hypervolume([[5, 5]], [4, 4]) == 0
    assert pareto.hypervolume([[1, 1, 1], [0, 2, 1]], [3, 3, 3]) == pytest.approx(10)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolume_is_the_share_of_random_points_dominated(objectives):
    rng = np.random.default_rng(0)
    losses = rng.random((30, objectives))
    probes = rng.random((40_000, objectives))
    share = (losses[None] <= probes[:, None]).all(2).any(1).mean()
    assert pareto.hypervolume(losses, np.ones(objectives)) == pytest.approx(share, abs=0.01)


def test_hypervolumes_are_shares_of_the_union():
    assert pareto.hypervolumes({"a": [(0.5, 2.0)], "c": []}) == {"a": 1.0, "c": 0.0}
    shares = pareto.hypervolumes({"a": [(0.9, 2.0), (0.1, 4.0)], "b": [(0.5, 1.0)]})
    # Reference (0.1, 4): a covers 0.8 * 2, b 0.4 * 3, both together 0.8 * 2 + 0.4 * 1.
    assert shares["a"] == pytest.approx(0.8)
    assert shares["b"] == pytest.approx(0.6)


def test_winner_lands_below_the_budget():
    quality = [0.752, 0.70, 0.75, 0.90]
    costs = [[8.0], [9.8], [9.75], [10.2]]
    assert pareto.winner(quality, costs, [10.0]) == 2  # 0.2 points for landing
    assert pareto.winner(quality, costs, [9.9]) == 2
    assert pareto.winner([0.76, *quality[1:]], costs, [10.0]) == 0  # a whole point is too much
    assert pareto.winner(quality, costs, [9.0]) == 0  # nothing lands: best within
    assert pareto.winner(quality, costs, [7.0]) == 0  # nothing within: least over
    assert pareto.winner([0.5, 0.5], [[8.0, 5.0], [8.0, 4.0]], [8.0, 5.0]) == 0
    with pytest.raises(ValueError, match="no networks"):
        pareto.winner([], np.zeros((0, 1)), [1.0])


def test_a_cost_without_a_budget_does_not_hinder_landing():
    quality, costs = [0.9, 0.899, 0.95], [[15.0, 1.0], [19.9, 9.0], [21.0, 1.0]]
    assert pareto.winner(quality, costs, [20.0, np.inf]) == 1
    assert pareto.winner(quality, costs, [np.inf, np.inf]) == 2
