"""`nas show --follow`: the table again after each change, until the result is written."""

import json

import optuna
import pytest

from nas.cli import command_line, follow
from nas.searching import study as studies
from nas.searching.study import Settings

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def running(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "_EACH_S", 0.0)
    folder = tmp_path / "s"
    worker = studies.worker_of(folder, None)
    settings = Settings(space="table", task="table:t.csv", targets=("cost",), budgets_ms=(6.0,))
    yield folder, studies.create(folder, settings, None, worker)
    worker.leave()


def train(study, quality):
    trial = study.ask()
    trial.set_user_attr("profile", {"key": str(trial.number), "costs": [5.0 + trial.number]})
    trial.set_user_attr("evaluation", {"quality": quality})
    study.tell(trial, quality)


def test_a_running_study_is_followed_to_its_end(running, capsys):
    folder, study = running
    shown = follow.tables(folder)
    assert "No network is trained yet" in next(shown)
    train(study, 0.5)
    assert "50.00" in next(shown)
    (folder / "result.json").write_text(json.dumps({"study": "s"}))
    train(study, 0.75)  # of a search that goes on
    assert "75.00" in next(shown)
    begun = study.ask()
    (folder / "result.json").write_text(json.dumps({"study": "s", "space": "a space"}))
    assert "a space" in next(shown)
    study.tell(begun, state=optuna.trial.TrialState.FAIL)
    (folder / "result.json").write_text(json.dumps({"study": "s", "space": "the end"}))
    assert [text.splitlines()[0] for text in shown] == ["the end"]
    assert command_line.main(["show", str(folder), "--follow"]) == 0
    assert capsys.readouterr().out.count("the end") == 1


def test_what_cannot_be_followed(tmp_path, capsys):
    assert command_line.main(["show", str(tmp_path), "--follow"]) == 2
    assert command_line.main(["show", str(tmp_path), "--follow", "--json"]) == 2
    assert "leave out --json" in capsys.readouterr().err
