"""What a report says of figures that do not move, and what it calls what was found."""

import dataclasses

import pytest

from nas.report import study_rows
from nas.report.study_rows import Goal, Network

GOALS = [Goal("cpu", "", 1.0, "ms")]


def rows(qualities, costs) -> list[Network]:
    return [
        Network(
            number=number,
            state=study_rows.TRAINED,
            quality=quality,
            costs=(cost,),
            latency=(),
            reward=None,
            choices={},
            params=1,
            macs=1,
            config=None,
        )
        for number, (quality, cost) in enumerate(zip(qualities, costs, strict=True))
    ]


@pytest.mark.parametrize(
    ("qualities", "costs", "expected"),
    [
        ([0.0, 0.0, 0.0], [1, 2, 3], "all 3 trained networks have quality 0:"),
        ([0.1, 0.1, 0.1], [1, 2, 3], "have quality 0.1: the metric does not tell them apart"),
        ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5], "all 3 networks take 0.5 ms on cpu: its latency does"),
    ],
)
def test_figures_that_do_not_move_are_warned_of(qualities, costs, expected):
    (warning,) = study_rows.warnings(rows(qualities, costs), GOALS)
    assert expected in warning


def test_figures_that_move_are_not():
    assert study_rows.warnings(rows([0.1, 0.2, 0.1], [1, 1.01, 1]), GOALS) == []
    assert study_rows.warnings(rows([0.0, 0.0], [1, 1]), GOALS) == []  # may be chance
    few = [
        dataclasses.replace(row, state=study_rows.STOPPED) for row in rows([0] * 4, [1, 2, 3, 4])
    ]
    assert study_rows.warnings(few, GOALS) == []


SEARCHED = {"number": 3, "quality": 0.9, "proxy_quality": 0.9, "costs": [0.8], "file_bytes": 9}


def test_what_was_not_trained_or_timed_again_is_not_said_to_be():
    as_searched = SEARCHED | {"within_budget": True, "retrained": False, "timed_again": False}
    winner = study_rows.winner({"winner": as_searched, "finalists": []})
    assert "quality" not in winner and winner["proxy_quality"] == 0.9
    assert not study_rows.timed_again(winner)
    table = SEARCHED | {"within_budget": True, "file_bytes": None}  # as earlier versions wrote it
    assert study_rows.retrained({"winner": table, "finalists": [table]}) == {}
    trained = SEARCHED | {"within_budget": True, "retrained": True}
    assert study_rows.retrained({"winner": trained, "finalists": [trained]}).keys() == {3}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"costs": [1.2], "timed_again": True}, "over budget when timed again"),
        ({"costs": [1.2], "timed_again": False}, "over budget"),
        ({"costs": [0.8], "timed_again": True}, "over --max-bytes"),
    ],
)
def test_what_fits_no_limit_is_no_winner(change, words):
    nearest = SEARCHED | {"within_budget": False} | change
    assert study_rows.winner_word({"winner": nearest}) == "nearest"
    assert study_rows.over(nearest, GOALS) == words
    assert study_rows.winner_word({"winner": SEARCHED}) == "winner"
