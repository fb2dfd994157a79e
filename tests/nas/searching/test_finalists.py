"""A winner is never replaced by something worse, nor mixed with something else."""

import dataclasses
import json

import keras
import numpy as np
import optuna
import pytest

from families import decoder, efficientdet
from latency.tflite import convert
from nas import backend
from nas.files import network_files
from nas.files.writers.written_file import CannotWrite
from nas.networks import build
from nas.searching import finalists
from nas.searching.objective import Objective
from nas.searching.reward import Reward

OBJECTIVE = Objective((1.0,), Reward("absolute", (1.0,)))


def trained(keep, quality: float, cost: float):
    keras = backend.load()
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    keep(
        lambda: model,
        {"key": f"{quality}", "costs": [cost]},
        {"quality": quality, "stopped": False},
    )


def test_the_best_so_far_is_kept_apart_from_what_was_handed_over(tmp_path):
    (tmp_path / "best.keras").write_text("the winner")
    keep = finalists.BestSoFar(tmp_path, OBJECTIVE, network_files.save_model)
    for quality, cost, best in [(0.7, 0.9, 0.7), (0.9, 1.1, 0.7), (0.6, 0.5, 0.7), (0.8, 1, 0.8)]:
        trained(keep, quality, cost)
        assert finalists.best_so_far(tmp_path)["evaluation"]["quality"] == best
    assert (tmp_path / "so_far.keras").stat().st_size > 1000
    assert (tmp_path / "best.keras").read_text() == "the winner"


def test_an_interrupted_search_keeps_a_retrained_winner(tmp_path):
    earlier = {
        "winner": {"number": 3, "retrained": True},
        "finalists": [{"number": 3}],
        "baseline": {"quality": 0.5},
    }
    (tmp_path / "result.json").write_text(json.dumps(earlier))
    found = finalists.best_as_searched(tmp_path, optuna.create_study(), None, OBJECTIVE)
    assert found["winner"] == earlier["winner"] and found["baseline_quality"] == 0.5


CONFIG = dataclasses.replace(
    decoder.VARIANTS["tiny"], vocabulary=11, length=8, dim=16, head_width=8, layers=1, hidden=24
)


def test_files_hold_the_trained_and_the_deployed_form(tmp_path):
    model = build.build(CONFIG)
    size = network_files.write_network(model, CONFIG, tmp_path / "n", {".words.txt": b"abc"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("n.keras", "n.py", "n.tflite", "n.words.txt")
    ]
    assert (tmp_path / "n.tflite").stat().st_size == size
    assert keras.saving.load_model(tmp_path / "n.keras").output_shape == (None, 8, 11)
    step = build.build(decoder.deploy(CONFIG))
    assert convert.Session(tmp_path / "n.tflite").inputs.keys() == step.input.keys()
    exec((tmp_path / "n.py").read_text(), found := {})
    assert found["config"] == CONFIG


@pytest.mark.parametrize("what", [lambda x: x + 1e-3, lambda x: x * np.nan])
def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch, what):
    """One output in several is enough: the state counts as the logits do."""
    run = convert.run

    def wrong(tflite, inputs):
        outputs = run(tflite, inputs)
        name = sorted(outputs)[0]
        return outputs | {name: what(outputs[name])}

    monkeypatch.setattr(convert, "run", wrong)
    with pytest.raises(CannotWrite, match=r"n.tflite differs .* in (?!logits)\w+"):
        network_files.write_network(build.build(CONFIG), CONFIG, tmp_path / "n")
    assert not (tmp_path / "n.tflite").exists()


def test_a_model_that_amplifies_rounding_is_not_a_bug_of_its_file(tmp_path, monkeypatch):
    """Boxes of a hardly trained detector are huge: theirs is another answer, not a wrong one."""
    form = build.build(efficientdet.deploy(efficientdet.VARIANTS["tiny"]), seed=1)
    generator = np.random.default_rng(1)
    for name, scale in (("class_last_pointwise", 4), ("box_last_pointwise", 1e5)):
        kernel = form.get_layer(name).kernel
        kernel.assign(generator.normal(0, scale, kernel.shape).astype("float32"))
    monkeypatch.setattr(build, "deployed", lambda model, config: form)
    file = convert.convert(form)
    monkeypatch.setattr(convert, "convert", lambda form: file)
    run = convert.run

    def rounded(tflite, inputs):
        ((name, image),) = inputs.items()
        noise = generator.choice([-4e-6, 4e-6], image.shape)
        return run(tflite, {name: (image * (1 + noise)).astype("float32")})

    monkeypatch.setattr(convert, "run", rounded)
    monkeypatch.setattr(network_files, "INPUTS", 1)
    _, difference, most = network_files._difference(file, form)
    assert network_files.PARITY < difference <= most <= network_files.ROUNDED
    network_files.write_network(form, efficientdet.VARIANTS["tiny"], tmp_path / "n")
    assert (tmp_path / "n.tflite").read_bytes() == file

    monkeypatch.setattr(
        convert, "run", lambda *of: (it := run(*of)) | {"boxes": it["boxes"] * 0.98}
    )
    with pytest.raises(CannotWrite, match="w.tflite differs .* in boxes"):
        network_files.write_network(form, efficientdet.VARIANTS["tiny"], tmp_path / "w")
