"""What is handed over is never replaced by something worse, nor mixed with something else."""

import json

import optuna

from nas import backend, handover
from nas.reward import Reward
from nas.search import Objective

OBJECTIVE = Objective((1.0,), Reward("absolute", (1.0,)))


def trained(keep, quality: float, cost: float):
    keras = backend.load()
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    keep(model, {"key": f"{quality}", "costs": [cost]}, {"quality": quality, "stopped": False})


def test_the_best_so_far_is_kept_apart_from_what_was_handed_over(tmp_path):
    (tmp_path / "best.keras").write_text("the winner")
    keep = handover.BestSoFar(tmp_path, OBJECTIVE)
    for quality, cost, best in [(0.7, 0.9, 0.7), (0.9, 1.1, 0.7), (0.6, 0.5, 0.7), (0.8, 1, 0.8)]:
        trained(keep, quality, cost)
        assert keep.read()["evaluation"]["quality"] == best
    assert (tmp_path / "so_far.keras").stat().st_size > 1000
    assert (tmp_path / "best.keras").read_text() == "the winner"


def test_an_interrupted_search_keeps_a_retrained_winner(tmp_path):
    earlier = {
        "winner": {"number": 3, "retrained": True},
        "finalists": [{"number": 3}],
        "baseline": {"quality": 0.5},
    }
    (tmp_path / "result.json").write_text(json.dumps(earlier))
    found = handover.hand_over_as_trained(tmp_path, optuna.create_study(), None, OBJECTIVE)
    assert found["winner"] == earlier["winner"] and found["baseline_quality"] == 0.5
