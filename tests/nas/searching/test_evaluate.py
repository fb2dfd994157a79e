"""Figures in a search: estimates and measurements are never mixed, winners meet the real device."""

import dataclasses
import pathlib
import sys
import types
from typing import Any, ClassVar

import keras
import numpy as np
import pytest

from families import decoder, mnasnet
from latency.networks.count import count
from latency.target import DoesNotFit, Kind, Target, TargetUnavailable, Timing
from nas import registry
from nas.cli.command_line import main
from nas.networks import build
from nas.profiling import history
from nas.searching.candidate import Candidate
from nas.searching.evaluator import Limits
from nas.searching.networks import Networks


@dataclasses.dataclass(frozen=True)
class Changing(Target):
    """Gives the figure, of the kind, that it was made with: no device."""

    kinds: ClassVar = frozenset(Kind)
    device: ClassVar[str] = "none"
    figure_ms: float = 1.0
    kind: Kind = Kind.PREDICTED
    real: str | None = None

    @property
    def learned_from(self):
        return self.real

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def measure(self, model, batch_size, warmup, runs, details):
        if self.figure_ms > 1000:
            raise DoesNotFit("it needs 9 MB of 8", 9.0, 8.0)
        if self.figure_ms < 0:
            raise TargetUnavailable("it was unplugged")
        return Timing((self.figure_ms,) * 2, {}, self.kind)


class Task:
    name = "none"
    recipe = "none"
    fields: ClassVar = {"input_shape": (32, 32, 3), "classes": 10}
    loss = labels = preprocessing = None
    train: ClassVar = (np.zeros((1, 8), np.int32), None)


@pytest.fixture
def networks(monkeypatch, tmp_path):
    monkeypatch.setenv("NAS_CACHE", str(tmp_path))

    def of(target, **options):
        task = Task()
        return Networks(
            lambda trial: None,
            task,
            lambda config, final: task,
            [target],
            Task.fields,
            1,
            **options,
        )

    return of


def test_a_study_does_not_mix_kinds(networks):
    evaluator = networks(Changing())
    config = Candidate(evaluator.for_task(mnasnet.VARIANTS["tiny"]))
    record = evaluator.profile(config)
    assert record["latency"][0]["kind"] == "predicted"
    evaluator.kinds = ["predicted"]
    assert evaluator.profile(config)["latency"][0]["cached"]
    evaluator.targets = [Changing(kind=Kind.MEASURED)]
    with pytest.raises(ValueError, match="measured figures now, this study began with predicted"):
        evaluator.profile(config)


def test_what_does_not_fit_into_the_device_exceeds_a_limit(networks):
    evaluator = networks(Changing(1001.0))
    config = evaluator.for_task(mnasnet.VARIANTS["tiny"])
    record = evaluator.profile(Candidate(config))
    assert record["costs"] == [] and record["excess"] == "it needs 9 MB of 8"


def test_a_finalist_is_measured_on_the_device_itself(networks):
    real = {"phone": Changing(3.0, Kind.MEASURED), "away": Changing(-1.0, Kind.MEASURED)}
    device = real.__getitem__
    config = Candidate(networks(Changing()).for_task(mnasnet.VARIANTS["tiny"]))
    (there,) = networks(Changing(real="phone"), device=device).measure_again(config, "s:1")
    assert (there["kind"], there["median_ms"]) == ("measured", 3.0) and "unchecked" not in there
    (away,) = networks(Changing(real="away"), device=device).measure_again(config, "s:1")
    assert (away["kind"], away["median_ms"]) == ("predicted", 1.0)
    assert away["unchecked"] == "it was unplugged"
    names = {(row.name, row.kind) for row in history.rows()}
    assert names == {("s:1", "measured"), ("s:1", "predicted")}
    assert np.isclose(history.rows()[0].median_ms, 3.0)


def test_a_task_decides_the_fields_it_has(networks):
    evaluator = networks(Changing())
    assert evaluator.for_task(mnasnet.VARIANTS["tiny"]).input_shape == (32, 32, 3)
    words = "decoder networks cannot take task none: .* has no classes, input_shape .it has vocab"
    with pytest.raises(ValueError, match=words):
        evaluator.for_task(decoder.VARIANTS["tiny"])


def test_images_keep_the_names_under_which_they_are_remembered(networks):
    """Of a cache that an earlier version wrote."""
    config = networks(Changing()).for_task(mnasnet.VARIANTS["tiny"])
    assert build.deploy(config) == config
    record = networks(Changing()).profile(Candidate(config))
    assert record["key"] == build.key(config) == "b646a0367df14593" and "form" not in record


def test_the_deployed_form_is_timed_and_counted(networks, monkeypatch):
    timed = []
    monkeypatch.setattr(
        history,
        "profile",
        lambda target, models, networks=None, **_: [
            timed.append((networks, *models.values())) or target.profile(*models.values())
        ],
    )
    evaluator = networks(Changing())
    config = dataclasses.replace(decoder.VARIANTS["tiny"], vocabulary=11, length=8)
    candidate = Candidate(config)
    record = evaluator.profile(candidate)
    form = decoder.deploy(config)
    ((names, model),) = timed
    assert record["form"] == repr(form) and names == [build.key(form)]
    assert record["key"] == build.key(config)
    assert record["macs"] == count(model).macs == count(build.build(form)).macs
    assert record["macs"] < count(build.build(config)).macs
    evaluator.measure_again(candidate, "s:1")
    assert timed[1][0] == [build.key(form)] and timed[1][1].input.keys() == model.input.keys()
    evaluator.limits = Limits(file_bytes=1000)
    assert "bytes, over --max-bytes" in evaluator.profile(candidate)["excess"]


def test_the_deployed_network_has_the_trained_weights():
    config = dataclasses.replace(decoder.VARIANTS["tiny"], vocabulary=11, length=8)
    model = build.build(config)
    for weight in model.weights:
        weight.assign(np.random.default_rng(1).normal(size=weight.shape))
    step = build.deployed(model, config)
    ours = {weight.path: np.asarray(weight) for weight in step.weights}
    assert len(ours) == len(model.weights)
    for weight in model.weights:
        np.testing.assert_array_equal(ours[weight.path], weight)


@dataclasses.dataclass(frozen=True)
class Sized:
    input_shape: tuple[int, int, int] = (8, 8, 1)
    classes: int = 10


def _places(config: Sized) -> keras.Model:
    """As a vision transformer: a weight for each position."""
    inputs = keras.Input(config.input_shape, name="image")
    places = keras.layers.Flatten(name="places")(inputs)
    return keras.Model(inputs, keras.layers.Dense(config.classes, name="head")(places))


def test_weights_that_depend_on_the_size_are_refused(networks, monkeypatch):
    module = types.ModuleType("families.sized")
    module.build = _places
    monkeypatch.setitem(sys.modules, "families.sized", module)
    monkeypatch.setattr(Sized, "__module__", "families.sized")
    evaluator = networks(Changing())
    evaluator.check(evaluator.for_task(Sized()))
    evaluator.fields = {"input_shape": (16, 16, 3), "classes": 10}
    words = r"'head/kernel' depends on .*\(768, 10\) as timed, \(3072, 10\) as trained; train at"
    with pytest.raises(ValueError, match=words):
        evaluator.check(evaluator.for_task(Sized()))


SPACE = """
import dataclasses
from families.decoder import VARIANTS

def sample(trial, base="tiny"):
    return dataclasses.replace(baseline(base), hidden=trial.suggest_categorical("hidden", (8, 16)))

def baseline(base="tiny"):
    return dataclasses.replace(VARIANTS[base], dim=16, head_width=8, layers=1, hidden=24)
"""


def test_search_beyond_images(tmp_path, monkeypatch, capsys, shared_data):
    """The journey: a decoder on a text; its step with a cache is timed, written and runs."""
    import search_spaces
    from latency.tflite import convert

    (tmp_path / "toy.py").write_text(SPACE)
    text = (shared_data / "text" / "tinyshakespeare.txt").read_text()[:20000]
    (tmp_path / "some.txt").write_text(text)
    monkeypatch.setattr(search_spaces, "__path__", [*search_spaces.__path__, str(tmp_path)])
    listing = registry.listing
    monkeypatch.setattr(
        registry, "listing", lambda kind: listing(kind) | ({"toy": ""} if kind == "space" else {})
    )
    monkeypatch.setattr(registry, "target", lambda text: Changing())
    out = ["--out", str(tmp_path), "--study", "s"]
    task = ["--space", "toy", "--task", f"text:{tmp_path}/some.txt,length=16"]
    searched = [*task, "--target", "none", "--budget-ms", "2", "--trials", "1", "--epochs", "1"]
    assert main(["search", *searched, "--finalists", "1", *out]) == 0
    printed = capsys.readouterr()
    assert "quality is 1 / perplexity" in printed.err and "1 / perplexity, in %" in printed.out
    folder = tmp_path / "s"
    trained = keras.saving.load_model(folder / "best.keras", compile=False)
    assert trained.output_shape == (None, 16, len(set(text)))
    session = convert.Session(folder / "best.tflite")
    assert session.state and (folder / "best.tokenizer.txt").is_file()
    tokens = np.array([[3, 1, 4, 1, 5, 9, 2, 6] * 2])
    for place in range(16):
        given = {name: [[place]] for name in session.inputs if name not in session.state}
        given["tokens"] = tokens[:, place : place + 1]
        logits = session.step(given)["logits"]
        expected = np.asarray(trained(tokens))[:, place : place + 1]
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    exec((folder / "config.py").read_text(), found := {})
    assert found["config"].length == 16
    assert main(["search", "--input", "32", *searched, "--out", str(tmp_path), "--study", "t"]) == 2
    assert "--input is the size of images" in capsys.readouterr().err
    assert pathlib.Path(folder / "so_far.keras").is_file()
