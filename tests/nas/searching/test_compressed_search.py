"""Compression as choices of a search: candidates are the files they will be, and so are winners."""

import dataclasses
import json
import shlex

import keras
import numpy as np
import pytest

from families import decoder, mnasnet
from latency.cpu import CPU
from latency.tflite import convert
from nas import registry
from nas.cli.command_line import main
from nas.cli.progress import Progress
from nas.cli.search import parts_of
from nas.files.writers.litert import read_codes
from nas.files.writers.tflite.editable_file import File
from nas.networks import build
from nas.profiling import history
from nas.searching import finalists, start, study
from nas.searching.candidate import Candidate
from nas.searching.events import TrialEvent
from nas.searching.networks import Networks
from nas.searching.study import Settings
from nas.training import loop

SPACE = """
import dataclasses
from families.mnasnet import VARIANTS, Block

def baseline(base="tiny"):
    block = Block("mbconv", kernel=3, stride=1, filters=16, repeats=1, expand=6)
    sizes = {"stem_filters": 16, "blocks": (block,), "head_filters": 64, "dropout": 0.0}
    return dataclasses.replace(VARIANTS[base], **sizes)

def sample(trial, base="tiny"):
    filters = trial.suggest_categorical("head_filters", (64, 96))
    return dataclasses.replace(baseline(base), head_filters=filters)
"""
SEARCH = [
    "search",
    "--space",
    "small_cnn",
    "--task",
    "digits:8",
    "--budget-ms",
    "1",
    "--epochs",
    "1",
]
SEARCH += ["--controller", "random", "--profiles", "1"]
METHODS = ["--method", "ptq:8|ptq:4|none", "--method", "prune_channels:0.5|drop_experts:0.5|none"]
SMALL = ["--max-bytes", "14e3"]  # float takes 22 kB


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A space of two networks."""
    import search_spaces

    (tmp_path / "small_cnn.py").write_text(SPACE)
    monkeypatch.setattr(search_spaces, "__path__", [*search_spaces.__path__, str(tmp_path)])
    listing = registry.listing
    monkeypatch.setattr(
        registry,
        "listing",
        lambda kind: listing(kind) | ({"small_cnn": ""} if kind == "space" else {}),
    )
    return tmp_path


def networks(config, task, *names: str) -> Networks:
    return Networks(
        lambda trial: config,
        task,
        lambda config, final: task,
        [CPU(threads=1)],
        task.fields,
        epochs=1,
        alternatives=start._with_teachers([{name: registry.method(name)} for name in names]),
    )


def profiles(folder):
    _, found = study.load(folder)
    return [trial.user_attrs["profile"] for trial in found.get_trials(deepcopy=False)]


def test_a_search_of_networks_and_methods(toy, capsys):
    """Only compressed candidates are small enough; the winner is one of them, with its codes."""
    out = ["--out", str(toy), "--study", "s", "--trials", "2", "--finalists", "0"]
    assert main([*SEARCH, *METHODS, *SMALL, *out]) == 0
    folder = toy / "s"
    printed, found = capsys.readouterr(), profiles(folder)
    for profile in found:
        if "drop_experts:0.5" in profile.get("methods", ()):
            assert "no mixture of experts" in profile["excess"]
        elif not profile.get("methods"):
            assert "bytes, over --max-bytes 14,000" in profile["excess"]
        elif profile["costs"]:
            assert profile["file_bytes"] <= 14e3
    assert any("drop_experts:0.5" in profile.get("methods", ()) for profile in found)
    assert any("methods" not in profile for profile in found)

    winner = json.loads((folder / "result.json").read_text())["winner"]
    methods = " ".join(winner["methods"])
    assert "ptq" in methods and winner["within_budget"]
    assert methods in printed.out and methods in printed.err
    tflite = folder / "best.tflite"
    assert tflite.stat().st_size == winner["file_bytes"] <= 14e3
    searched = found[winner["number"]]["file_bytes"]
    # What was weighed is what it became, but for the few bytes that trained values decide.
    assert abs(searched / winner["file_bytes"] - 1) < 0.05
    kinds = {constant.kind for constant in read_codes(tflite).values()}
    assert kinds & {"int8", "int4"}
    model = keras.saving.load_model(folder / "best.keras", compile=False)
    task = registry.task("digits:8")
    assert loop.evaluate(model, task) == winner["quality"] > 0.2
    images, labels = (part[:100] for part in task.valid)
    answers = convert.run(tflite, images).argmax(-1)
    assert np.mean(answers == np.argmax(model(images), -1)) > 0.8
    assert abs(np.mean(answers == labels) - winner["quality"]) < 0.1

    report = (folder / "report.html").read_text()
    assert f"compressed: {methods}" in report
    exec((folder / "config.py").read_text(), python := {})
    assert python["methods"] == tuple(winner["methods"])
    assert repr(python["config"]) == winner["config"]

    number = next(n for n, p in enumerate(found) if p["costs"])
    assert main(["export", str(folder), "--trial", str(number), "--epochs", "0"]) == 0
    exported = folder / f"trial_{number}" / f"trial_{number}.tflite"
    assert exported.stat().st_size == found[number]["file_bytes"]


@pytest.mark.slow
def test_config_py_holds_the_command_that_does_it_again(toy, monkeypatch):
    out = ["--out", str(toy), "--study", "s", "--trials", "1", "--finalists", "1"]
    methods = ["--method", "qat:4", "--method", "prune:0.5"]
    assert main([*SEARCH, *methods, *SMALL, *out]) == 0
    winner = json.loads((toy / "s" / "result.json").read_text())["winner"]
    assert winner["retrained"] and winner["methods"] == ["qat:4", "prune:0.5"]
    assert winner["quality"] > max(0.6, winner["proxy_quality"])
    size = (toy / "s" / "best.tflite").stat().st_size
    assert size == winner["file_bytes"] and winner["within_budget"] == (size <= 14e3)
    text = (toy / "s" / "config.py").read_text()
    exec(text, found := {})
    monkeypatch.setitem(mnasnet.VARIANTS, "found", found["config"])
    monkeypatch.chdir(toy)
    command = shlex.split(text.splitlines()[-1].removeprefix("# nas "))
    assert main([*command, "--out", "found.keras", "--no-sensitivity"]) == 0
    best, again = (
        keras.saving.load_model(path, compile=False)
        for path in (toy / "s" / "best.keras", toy / "found.keras")
    )
    for ours, theirs in zip(best.weights, again.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)
    found, best = (  # without what each says of the command that made it
        File(path.read_bytes()).pack() for path in (toy / "found.tflite", toy / "s" / "best.tflite")
    )
    assert found == best


def test_an_interrupted_search_hands_over_its_best_and_goes_on(toy, monkeypatch):
    folder = toy / "s"
    command = [*SEARCH, "--method", "qat:8|qat:4", "--out", str(toy), "--finalists", "0"]

    show = Progress.__call__

    def interrupt(self, event):
        if isinstance(event, TrialEvent):
            raise KeyboardInterrupt
        show(self, event)

    with monkeypatch.context() as patched:  # Ctrl-C, when the first network is trained
        patched.setattr(Progress, "__call__", interrupt)
        assert main([*command, "--study", "s", "--trials", "50"]) == 130
    winner = json.loads((folder / "result.json").read_text())["winner"]
    assert winner["methods"] and not winner.get("retrained")
    assert (folder / "best.tflite").read_bytes() == (folder / "so_far.tflite").read_bytes()
    assert {"int8", "int4"} & {one.kind for one in read_codes(folder / "best.tflite").values()}
    model = keras.saving.load_model(folder / "best.keras", compile=False)
    assert loop.evaluate(model, registry.task("digits:8")) == winner["quality"]
    settings, found = study.load(folder)
    small = dataclasses.replace(settings, max_bytes=100)
    evaluator, _ = start.evaluator_of(parts_of(small), small)
    goal = study.objective(found, settings)
    large = finalists.best_as_searched(folder, found, evaluator, goal)["winner"]
    assert winner["within_budget"] and not large["within_budget"]
    for name in ("s", "calm"):
        assert main([*command, "--study", name, "--trials", "2"]) == 0
    keys = [[profile["key"] for profile in profiles(toy / name)] for name in ("s", "calm")]
    assert keys[0] == keys[1] and len(set(keys[0])) == 2


def test_candidates_are_told_apart_by_what_their_methods_are():
    task = registry.task("digits:8")
    config = build.for_task(mnasnet.VARIANTS["tiny"], task.fields, task.name)
    of = networks(config, task, "ptq:8", "ptq:4", "prune:0.5", "prune:0.8", "ptq", "ptq:bits=8")
    texts = [("ptq:8",), ("ptq:4",), ("ptq:8", "prune:0.5"), ("prune:0.8",)]
    keys = {of.key(Candidate(config, methods)) for methods in texts} | {of.key(Candidate(config))}
    assert len(keys) == 5 and of.key(Candidate(config)) == build.key(config)
    assert of.key(Candidate(config, ("ptq",))) == of.key(Candidate(config, ("ptq:bits=8",)))
    other = dataclasses.replace(config, head_filters=32)
    assert of.key(Candidate(other, ("ptq:8",))) not in keys


def test_a_teacher_in_another_file_is_another_method(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = registry.task("digits:8")
    config = build.for_task(mnasnet.VARIANTS["tiny"], task.fields, task.name)
    candidate, found = Candidate(config, ("distill:teacher=t.keras",)), set()
    for seed in range(2):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((8, 8, 1))
        hidden = keras.layers.Flatten()(inputs)
        keras.Model(inputs, keras.layers.Dense(10)(hidden)).save("t.keras")
        found.add(networks(config, task, *candidate.methods).key(candidate))
    assert len(found) == 2


def test_a_decoder_is_timed_as_its_step_with_codes(shared_data):
    text = shared_data / "text" / "tinyshakespeare.txt"
    task = registry.task(f"text:{text},length=16")
    small = {"dim": 16, "head_width": 8, "layers": 1, "hidden": 24}
    config = build.for_task(
        dataclasses.replace(decoder.VARIANTS["tiny"], **small), task.fields, task.name
    )
    of = networks(config, task, "qat:4", "prune_channels:0.5")
    candidate = Candidate(config, ("qat:4",))
    record, form = of.profile(candidate), of.form(candidate)
    assert record["form"] == repr(decoder.deploy(config)) == repr(form.config)
    kinds = [constant.kind for constant in read_codes(form.artifact).values()]
    assert "int4" in kinds and record["costs"]
    assert convert.Session(form.artifact).inputs.keys() == build.build(form.config).input.keys()
    assert history.rows()[-1].network == form.network  # the same file, to the bit
    narrow = of.profile(Candidate(config, ("prune_channels:0.5",)))
    assert "the deployed form cannot follow" in narrow["excess"] and not narrow["costs"]


def searches(folder, command):
    """A command in a folder whose space is found as if it were ours."""
    import search_spaces

    listing, toy = registry.listing, {"small_cnn": ""}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(search_spaces, "__path__", [*search_spaces.__path__, str(folder)])
        patch.setattr(
            registry, "listing", lambda kind: listing(kind) | (toy if kind == "space" else {})
        )
        return keras.config.backend(), main(command)


@pytest.mark.slow
def test_jax_searches_as_well(toy, on_jax):
    command = [*SEARCH, "--method", "qat:4", "--trials", "1", "--finalists", "0", "--study", "s"]
    assert on_jax(searches, toy, command) == ("jax", 0)
    found = read_codes(toy / "runs" / "s" / "best.tflite").values()
    assert "int4" in {constant.kind for constant in found}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--method", "prun:.8|none"], "did you mean 'prune'"),
        (["--method", "ptq:7"], "7"),
        (["--method", "ptq:8|none|ptq:8"], "an alternative twice"),
        (["--method", "ptq:8", "--target", "tpu:v5e"], "target that runs them, such as cpu"),
        (["--method", "ptq:8", "--input", "16"], "leave out --input"),
        (["--method", "ptq:8", "--task", "table:none.npz"], "table has figures only"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, flags, expected):
    assert main(["search", "--task", "digits:8", *flags, "--out", str(tmp_path)]) == 2
    assert expected in capsys.readouterr().err.strip().splitlines()[-1]


def test_studies_without_methods_stay_what_they_were(tmp_path):
    settings = Settings()
    assert settings.name() == "mnasnet_digits_cpu_f7141f"  # of before there were methods
    assert Settings(methods=["ptq:8|none"]).name() != settings.name()
    described = dataclasses.asdict(settings)
    del described["methods"]
    (tmp_path / "study.json").write_text(json.dumps({"settings": described, "storage": None}))
    assert study.read_settings(tmp_path) == settings
