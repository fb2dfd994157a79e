"""A goal instead of a method: its limits are kept and proven, and what was tried stays."""

import itertools
import json

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import nas
from nas.compression.goals import bits
from nas.compression.goals.bits import Option
from nas.compression.goals.plan import Plan


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(128, activation="relu", name="first"),
            keras.layers.Dense(64, activation="relu", name="second"),
            keras.layers.Dense(10, activation="softmax", name="head"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*digits, epochs=12, batch_size=64, verbose=0)
    path = tmp_path_factory.mktemp("goal") / "digits.keras"
    model.save(path)
    return path


def test_goals_that_ask_nothing_or_nonsense_are_refused():
    for wrong, words in (
        ({}, "without a limit"),
        ({"faster": True}, "without a limit"),
        ({"max_bytes": 1e5, "faster": True}, "max_drop"),
        ({"max_drop": -1}, "max_drop=-1"),
        ({"budget_ms": float("nan")}, "budget_ms"),
        ({"max_drop": 1, "minutes": 0}, "minutes=0"),
    ):
        with pytest.raises(ValueError, match=words):
            nas.Goal(**wrong)


def test_bits_are_the_best_sum_within_the_bytes():
    """Against all combinations."""
    random = np.random.default_rng(0)
    table = {
        f"k{n}": [
            Option(w, w * size, d)
            for w, d in zip((8, 4, 2), np.sort(random.random(3)), strict=True)
        ]
        for n, size in enumerate(random.integers(1, 50, 5))
    }
    names = list(table)
    every = [dict(zip(names, one, strict=True)) for one in itertools.product((8, 4, 2), repeat=5)]

    def size(chosen):
        return sum(next(o.bytes for o in table[p] if o.bits == b) for p, b in chosen.items())

    def cost(chosen):
        return sum(next(o.divergence for o in table[p] if o.bits == b) for p, b in chosen.items())

    most = 0.5 * size(dict.fromkeys(names, 8))
    best = min((one for one in every if size(one) <= most), key=cost)
    found = bits.choose(table, most)
    assert size(found) <= most
    assert cost(found) == pytest.approx(cost(best), rel=1e-3)
    assert bits.choose(table, 0.1 * size(dict.fromkeys(names, 2))) is None


def test_the_smallest_file_within_a_drop_is_found_proven_and_kept(
    trained, digits, tmp_path, monkeypatch
):
    out = tmp_path / "small.tflite"
    goal = nas.Goal(max_drop=1, minutes=3)
    told = []
    arguments = dict(out=out, front=tmp_path / "front", by_layer=False)
    done = nas.compress(trained, goal, digits[0], on_event=told.append, **arguments)
    plan = done.record["goal"]
    (chosen,) = (one for one in plan["tried"] if one["chosen"])
    eight = next(one for one in plan["tried"] if one["words"] == "8 bits")
    assert chosen["within"] and chosen["bytes"] < 0.8 * eight["bytes"]
    assert chosen["bytes"] == out.stat().st_size
    assert plan["proof"]["points"] <= 1 and plan["metric"] == "same answers"
    parts = plan["examples"].values()
    assert sum(parts) <= len(digits[0]) and min(parts) >= 200  # none in two parts
    # Two thirds of the examples had no part in the file: judged here by themselves.
    interpreter = __import__("ai_edge_litert.interpreter", fromlist=["Interpreter"])
    own = keras.models.load_model(trained)(digits[0]).numpy().argmax(1)
    file = interpreter.Interpreter(str(out))
    file.allocate_tensors()
    (i,), (o,) = file.get_input_details(), file.get_output_details()
    answers = []
    for one in digits[0]:
        file.set_tensor(i["index"], one[None])
        file.invoke()
        answers.append(file.get_tensor(o["index"])[0].argmax())
    assert np.mean(np.array(answers) == own) >= 0.985
    # The front is the files of which none is better.
    left = sorted((tmp_path / "front").iterdir())
    assert [one.stat().st_size for one in left] == sorted(
        one["bytes"] for one in plan["tried"] if one["on_front"]
    )
    assert "proven on" in done.table() and "first/kernel" in done.table()
    assert json.loads((tmp_path / "small.json").read_text())["goal"]["tried"] == plan["tried"]
    assert (tmp_path / "small.goal.png").stat().st_size > 5000

    # The same call makes nothing again that was measured.
    made = []
    measured = Plan._measured
    monkeypatch.setattr(Plan, "_measured", lambda *a: made.append(a[2]) or measured(*a))
    again = nas.compress(trained, goal, digits[0], out=out, by_layer=False)
    assert not made and again.record["goal"]["tried"] == plan["tried"]


def test_the_best_network_in_so_many_bytes_and_one_that_cannot_be(trained, digits, tmp_path):
    done = nas.compress(
        trained, nas.Goal(max_bytes=16e3), digits, out=tmp_path / "b.tflite", by_layer=False,
        epochs=0,
    )  # fmt: skip
    size = (tmp_path / "b.tflite").stat().st_size
    assert 10e3 < size <= 16e3
    (chosen,) = (one for one in done.record["goal"]["tried"] if one["chosen"])
    assert size == chosen["bytes"]  # what is handed over is what was judged
    with pytest.raises(nas.NotApplicable, match=r"no file is the best file of at most 500 bytes"):
        nas.compress(trained, nas.Goal(max_bytes=500), digits[0])


def test_what_a_goal_needs_is_said(trained, digits, tmp_path, capsys):
    from nas.cli.command_line import main

    with pytest.raises(ValueError, match="--data or --task"):
        nas.compress(trained, nas.Goal(max_drop=1))
    with pytest.raises(ValueError, match="--target"):
        nas.compress(trained, nas.Goal(max_drop=1, faster=True), digits)
    with pytest.raises(ValueError, match="a goal needs 40"):
        nas.compress(trained, nas.Goal(max_drop=1), digits[0][:20])
    for flags, words in (
        (["--out", "a.tflite"], "expected --method"),
        (["--out", "a.tflite", "--max-drop", "1", "--method", "ptq:8"], "one of the two"),
        (["--out", "a.keras", "--max-drop", "1"], "--out NAME.tflite"),
        (["--out", "a.tflite", "--method", "ptq:8", "--front", "x"], "belong to a goal"),
    ):
        assert main(["compress", str(trained), *flags]) == 2
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said
