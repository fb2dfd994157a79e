"""Of a study of very many trials a page shows what it is about, and says what it leaves out."""

import optuna
import pytest

from nas.report import study_rows
from nas.report.html import page

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def study():
    """4,000 networks: each tenth is better than all before, cheaper ones are worse."""
    made = optuna.create_study(direction="maximize")
    for number in range(4_000):
        quality = 0.5 + number / 10_000 if number % 10 == 3 else 0.4 + (number % 7) / 100
        cost = 5 + number / 1000 if number % 10 == 3 else 6 - (number % 13) / 10
        attributes = {
            "profile": {"key": f"n{number}", "costs": [cost], "config": "x"},
            "evaluation": {"quality": quality},
        }
        made.add_trial(
            optuna.trial.create_trial(
                value=quality,
                params={"a": number % 5},
                distributions={"a": optuna.distributions.IntDistribution(0, 4)},
                user_attrs=attributes,
            )
        )
    return made


def test_a_page_is_thinned_and_keeps_what_matters(study, tmp_path):
    rows = study_rows.networks(study)
    summary = {"winner": {"number": 1234, "quality": 0.5, "costs": [5.0]}}
    few = study_rows.thinned(rows, summary, most=100)
    numbers = {row.number for row in few}
    assert {row.number for row in study_rows.front(rows)} <= numbers
    assert {3, 13, 2003, 3993, 0, 3999, 1234} <= numbers  # the best so far, the ends, the winner
    assert len(few) < 1000 and [row.number for row in few] == sorted(numbers)
    assert study_rows.front(few) == study_rows.front(rows)
    assert study_rows.thinned(few, summary, most=1000) == few
    text = page.write(tmp_path / "r.html", study, summary).read_text()
    assert "Of 4,000 trials 3,1" in text and len(text) < 4e6
