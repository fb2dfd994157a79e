"""`nas.searching.journey.search` of objects: what a script gets, without names or flags."""

import dataclasses
import json
import sys
import types

import numpy as np
import optuna
import pytest

from latency.cpu import CPU
from nas import backend, registry
from nas.cli.command_line import main
from nas.cli.progress import Progress
from nas.cli.search import parts_of
from nas.controllers.random import Random
from nas.events import Message
from nas.files.hand_over.use import read_card
from nas.files.writers.config_file import as_python
from nas.searching import journey, plan
from nas.searching import study as studies
from nas.searching.candidate import Candidate
from nas.searching.events import SearchBegins, Step, TrialEvent
from nas.searching.loop import trained
from nas.searching.parts import Parts
from nas.searching.result import Study
from nas.searching.start import evaluator_of
from nas.searching.study import Settings
from nas.tasks.task import Task
from nas.training import loop

FAMILY = '''
"""A family outside the package."""

import dataclasses

import keras


@dataclasses.dataclass(frozen=True)
class Config:
    units: int = 8
    features: int = 4
    classes: int = 3


VARIANTS = {"tiny": Config()}


def build(config):
    inputs = keras.Input((config.features,))
    hidden = keras.layers.Dense(config.units, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(config.classes, name="head")(hidden))
'''
NAMES = Settings(space="mine", task="mine", targets=("CPU(threads=1)",), budgets_ms=(50.0,))


def task() -> Task:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(96, 4)).astype("float32")
    labels = inputs[:, :3].argmax(1)
    fields = {"features": 4, "classes": 3}
    valid = (inputs[:32], labels[:32])
    return Task(train=(inputs, labels), valid=valid, name="mine", fields=fields)


@pytest.fixture
def family(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "outside_family.py").write_text(FAMILY)
    yield registry.load_file(tmp_path / "outside_family.py")
    del sys.modules["outside_family"]


def parts(family, **options) -> Parts:
    def sample(trial):
        return family.Config(units=trial.suggest_categorical("units", (4, 8, 16)))

    return Parts(
        controller=lambda seed, **_: Random(seed=seed),
        task=task(),
        sample=sample,
        targets=(CPU(threads=1),),
        **options,
    )


def test_objects_in_a_study_out(family, tmp_path, capsys):
    """A family in a file of one's own; its winner can be opened, exported and read back."""
    events = []
    found = journey.search(
        parts(family),
        NAMES,
        tmp_path / "run",
        trials=2,
        most_finalists=1,
        by_name=False,
        on_event=events.append,
    )
    assert capsys.readouterr() == ("", "")  # all that is said is an event
    kinds = [event.kind for event in events if isinstance(event, TrialEvent)]
    assert kinds.count("trained") == 2
    assert sum(isinstance(event, SearchBegins) for event in events) == 1
    assert any("finalist" in event.text for event in events if isinstance(event, Message))
    winner = found.winner
    assert winner.quality == found.content["winner"]["quality"]
    assert winner.latency.median_ms == winner.costs[0] and winner.latency.measured
    assert winner.config.units in (4, 8, 16) and type(winner.config) is family.Config
    assert winner.model.input_shape == (None, 4)
    assert {path.name for path in winner.files} == {"best.keras", "best.tflite", "config.py"}
    assert (
        len(found.trials) >= 2
        and found.front
        and found.front[0].config in [family.Config(units=units) for units in (4, 8, 16)]
    )
    assert "winner" in repr(found) and "<svg" in found._repr_html_()
    assert found.to_json() == json.loads((tmp_path / "run" / "result.json").read_text())
    exec((tmp_path / "run" / "config.py").read_text(), again := {})
    assert again["config"] == winner.config
    card = read_card(tmp_path / "run" / "best.tflite")  # as handed over: found.content names it
    assert found.content["card"] == card and card["made"]["command"].startswith("nas search")
    found.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "best.tflite").exists()
    exported = found.export(epochs=0, out=tmp_path / "out")
    for folder in ("run", "copy", "out"):
        assert (tmp_path / folder / "use.py").exists()
    assert exported.quality is None and len(exported.files) == 3 and exported.costs
    # From another process, which has none of the objects:
    assert main(["show", str(tmp_path / "run")]) == 0
    assert "winner" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "run")]) == 2
    assert "in the script that made it" in capsys.readouterr().err
    loaded = Study.load(tmp_path / "run")
    assert loaded.winner.number == winner.number and loaded.winner.config == winner.config


def test_an_interrupt_hands_over_what_there_is(family, tmp_path):
    def interrupt(event):
        if isinstance(event, TrialEvent):
            raise KeyboardInterrupt

    options = {"trials": 2, "most_finalists": 0}
    found = journey.search(parts(family), NAMES, tmp_path / "run", on_event=interrupt, **options)
    assert found.interrupted and found.winner.model is not None
    again = journey.search(parts(family), NAMES, tmp_path / "run", **options)
    assert not again.interrupted
    states = [trial.state for trial in again.trials]
    assert states.count(optuna.trial.TrialState.COMPLETE) >= 2


def handed_over(found: Study) -> float:
    """The quality of the network in best.keras, judged again."""
    backend.load()
    return loop.evaluate(found.winner.model, task())


@pytest.mark.parametrize("reward", ["absolute", "pareto"])
def test_the_winner_is_what_is_handed_over_though_all_were_trained_before(
    family, tmp_path, monkeypatch, reward
):
    """Recalled from the cache a network has no weights: the best is trained again, no other."""
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    settings = dataclasses.replace(NAMES, reward=reward)
    trainings = []
    fit = loop.fit
    monkeypatch.setattr(
        loop, "fit", lambda *of, **options: trainings.append(of) or fit(*of, **options)
    )
    for name in ("first", "again"):
        trainings.clear()
        found = journey.search(parts(family), settings, tmp_path / name, trials=3, most_finalists=0)
        best = max(
            trained(found._study), key=lambda trial: trial.user_attrs["evaluation"]["quality"]
        )
        winner = found.winner
        assert winner.quality == best.user_attrs["evaluation"]["quality"] == handed_over(found)
        assert len(trainings) == 3 if name == "first" else 1 <= len(trainings) <= 3
    # What is kept was lost, or is of a network that no worker lived to tell of.
    (tmp_path / "again" / "so_far.json").unlink()
    said = []
    lost = journey.search(
        parts(family),
        settings,
        tmp_path / "again",
        trials=3,
        most_finalists=0,
        on_event=lambda event: said.append(str(event)),
    )
    assert any("once more" in text for text in said)
    assert lost.winner.number == winner.number and handed_over(lost) == winner.quality


def test_a_limit_that_nothing_meets_ends_with_what_is_nearest(
    family, tmp_path, capsys, monkeypatch
):
    """It is told as it happens, and does not end with an empty success."""
    monkeypatch.setattr("nas.searching.loop.CONVERGED", 6)
    settings = dataclasses.replace(NAMES, max_params=20)
    base = parts(family, baseline=family.Config(units=16))
    nearest = (
        r"the nearest is trial \d+: 35 params, over --max-params 20 \(1.75 times .* nas export"
    )
    with pytest.raises(ValueError, match=nearest):
        journey.search(base, settings, tmp_path / "run", trials=2, on_event=Progress())
    said = capsys.readouterr().err
    assert "the base network itself is over a limit: 131 params, over --max-params 20" in said
    assert "fits, the nearest is trial" in said and "35 params" in said
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["winner"] is None and not (tmp_path / "run" / "best.keras").exists()


def test_a_slow_base_network_waits_until_after_the_candidates(family, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "BASE_SHARE", 0.0)
    monkeypatch.setattr(plan, "WATCHED_S", -1.0)
    events = []
    found = journey.search(
        parts(family, baseline=family.Config(units=16)),
        NAMES,
        tmp_path / "run",
        trials=2,
        minutes=5,
        most_finalists=1,
        on_event=events.append,
    )
    told = [str(event) for event in events if isinstance(event, (Message, TrialEvent))]
    first = next(n for n, text in enumerate(told) if "kind='trained'" in text)
    waits = next(n for n, text in enumerate(told) if "it waits until" in text)
    plans = next(n for n, text in enumerate(told) if text.startswith("plan for 5 min: about 2"))
    compared = next(n for n, text in enumerate(told) if "for comparison" in text)
    assert waits < plans < first < compared
    assert any(isinstance(event, Step) for event in events)
    baseline = found.content["baseline"]
    assert baseline["proxy_quality"] is None and baseline["quality"] is not None
    assert found.winner.record["retrained"] and found.winner.record["timed_again"]


def test_a_config_of_a_script_is_refused_at_once(family, tmp_path, monkeypatch):
    monkeypatch.setattr(family.Config, "__module__", "__main__")
    with pytest.raises(ValueError, match="put Config and build into a file, as my_family.py"):
        journey.search(parts(family), NAMES, tmp_path / "run", trials=1)
    assert not (tmp_path / "run").exists()


def test_config_py_of_a_package_and_of_a_file(family, monkeypatch):
    assert f"load_file({family.__file__!r})" in as_python(family.Config())
    package = types.ModuleType("package.family")
    monkeypatch.setattr(family.Config, "__module__", package.__name__)
    assert as_python(family.Config()).startswith("from package.family import Config\n")


def test_what_cannot_be_searched_is_refused(family):
    with pytest.raises(ValueError, match="needs a space, a task and at least one target"):
        Parts(controller=Random, task=task())
    table = types.SimpleNamespace(candidates=None)
    with pytest.raises(ValueError, match="figures only: there is no network for --method"):
        Parts(controller=Random, table=table, alternatives=[{"none": None}])
    with pytest.raises(ValueError, match="input: another size of images needs task_at"):
        arrays = (np.zeros((4, 8, 8, 1), np.float32), np.arange(4) % 2)
        images = Task(train=arrays, valid=arrays)
        one = Parts(controller=Random, task=images, sample=lambda trial: None, targets=(CPU(),))
        evaluator_of(one, Settings(input=16))
    with pytest.raises(ValueError, match="RMSE less is better"):
        worse = dataclasses.replace(images, metric="RMSE", higher_is_better=False)
        evaluator_of(dataclasses.replace(one, task=worse), Settings())


@pytest.mark.slow
def test_methods_in_a_supernet_from_end_to_end(tmp_path, capsys):
    flags = ["search", "--space", "mnasnet:tiny", "--task", "digits:size=16", "--trials", "3"]
    flags += ["--evaluator", "supernet:2", "--method", "ptq:8|qat:4", "--epochs", "1"]
    flags += ["--finalists", "1", "--json", "--out", str(tmp_path), "--study", "s"]
    flags += ["--target", "cpu:threads=1", "--target", "cpu:threads=2", "--reward", "pareto"]
    assert main(flags) == 0
    winner = json.loads(capsys.readouterr().out)["winner"]
    assert winner["retrained"] and winner["methods"][0] in ("ptq:8", "qat:4")
    assert len(winner["costs"]) == 2 and (tmp_path / "s" / "best.tflite").exists()
    settings, study = studies.load(tmp_path / "s")
    evaluator, baseline = evaluator_of(parts_of(settings), settings, tmp_path / "s")
    trial = next(one for one in study.get_trials() if one.number == winner["number"])
    assert evaluator.candidate(trial).methods == tuple(winner["methods"])
    assert baseline == Candidate(baseline.config)
