"""`nas train` as a user runs it: files, kills, interrupts, one line where it goes wrong."""

import ast
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from nas.cli import training_line
from nas.training import checkpoint as resume
from nas.training.loop import Epoch, State

ROOT = pathlib.Path(__file__).parents[3]
TEXT = "".join(f"the {number} boats of {number * number} sailors. " for number in range(900))


def command(folder, *arguments):
    return [sys.executable, "-m", "nas", "train", *map(str, arguments)], {
        "cwd": folder,
        "env": os.environ | {"PYTHONPATH": str(ROOT), "TF_NUM_INTRAOP_THREADS": "1"},
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }


def run(folder, *arguments):
    line, options = command(folder, *arguments)
    return subprocess.run(line, timeout=300, **options)


def here(folder, monkeypatch, *arguments):
    """In this process, where Keras is imported already."""
    from nas.cli.command_line import main

    monkeypatch.chdir(folder)
    return main(["train", *map(str, arguments)])


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "boats.txt").write_text(TEXT)
    return folder


# Small, but with everything that a checkpoint must hold: dropout, moments, an average, the best.
DECODER = "decoder:tiny,dim=32,layers=2,heads=2,key_value_heads=1,hidden=48,dropout=0.1"
FLAGS = ["--task", "text:boats.txt,length=32", "--epochs", 6, "--batch-size", 16, "--seed", 3]
FLAGS += ["--learning-rate", "3e-3", "--ema", "0.98", "--patience", 6, "--clip", 1]
FLAGS += ["--weight-decay", 0.01, "--checkpoint-seconds", 0.2]


def weights(path):
    import h5py

    found = {}

    def take(name, item):
        if hasattr(item, "shape"):
            found[name] = item[()]

    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content) as file:
        file.visititems(take)
    assert len(found) > 10
    return found


def curve(path):
    record = json.loads(path.read_text())
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in record["history"]]


@pytest.fixture(scope="module")
def whole(text):
    """A training that nobody interrupts."""
    done = run(text, DECODER, *FLAGS, "--out", "whole.keras")
    assert done.returncode == 0, done.stderr
    return done


def test_it_leaves_a_network_its_record_its_curves_and_what_the_task_adds(text, whole):
    printed = whole.stdout.splitlines()
    record = json.loads((text / "whole.json").read_text())
    assert record["files"] == printed[1:] and all(
        (text / name).stat().st_size for name in printed[1:]
    )
    assert {pathlib.Path(name).suffix for name in printed[1:]} >= {".keras", ".json", ".png", ".py"}
    assert "whole.tokenizer.txt" in printed[1:]
    assert not list(text.glob("*whole.checkpoint*"))
    assert record["quality"] == max(epoch["quality"] for epoch in record["history"]) > 0.25
    losses = [epoch["valid_loss"] for epoch in record["history"]]
    assert len(losses) == 6 and losses[-1] < 0.7 * losses[0]
    assert record["quality"] == pytest.approx(np.exp(-record["valid_loss"]), rel=1e-4)
    assert record["identity"]["optimizer"] == "adamw"  # plain adam has no decay
    ast.parse((text / "whole.py").read_text())
    lines = [line for line in whole.stderr.splitlines() if line.startswith("epoch")]
    assert len(lines) == 6 and all("tokens/s" in line and "left" in line for line in lines)


def test_the_saved_network_is_the_one_that_was_judged(text, whole):
    from nas import backend

    keras = backend.load()
    import families.layers  # noqa: F401
    from nas import registry
    from nas.training import loop

    model = keras.models.load_model(text / "whole.keras", compile=False)
    task = registry.task(f"text:{text}/boats.txt,length=32")
    found = loop.evaluate(model, task)
    assert found == pytest.approx(
        json.loads((text / "whole.json").read_text())["quality"], abs=1e-6
    )


def test_the_same_command_again_says_that_it_is_done(text, whole, capfd, monkeypatch):
    assert here(text, monkeypatch, DECODER, *FLAGS, "--out", "whole.keras", "--json") == 0
    printed = capfd.readouterr()
    assert "trained already" in printed.err
    assert json.loads(printed.out) == json.loads((text / "whole.json").read_text())
    assert here(text, monkeypatch, DECODER, *FLAGS, "--out", "whole.keras", "--clip", "2") == 2
    assert "clip is 1.0 there and 2.0 here" in capfd.readouterr().err


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(text, whole):
    generator = random.Random(os.environ.get("KILL_SEED", 0))
    line, options = command(text, DECODER, *FLAGS, "--out", "killed.keras")
    checkpoint = text / "killed.checkpoint.npz"
    kills = 0
    for _ in range(60):
        process = subprocess.Popen(line, **options)
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and not (
            checkpoint.exists() and checkpoint.stat().st_mtime_ns > before
        ):
            time.sleep(0.01)  # every life gets ahead by a checkpoint, or the test never ends
        time.sleep(generator.uniform(0, 0.5))
        if process.poll() is None and kills < 4:
            process.send_signal(signal.SIGKILL)
            kills += 1
            process.wait()
            continue
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        break
    assert kills >= 2
    assert "going on at step" in stderr
    assert curve(text / "killed.json") == curve(text / "whole.json")
    expected, found = weights(text / "whole.keras"), weights(text / "killed.keras")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_ctrl_c_keeps_the_state_and_the_same_command_goes_on(text, whole, capfd, monkeypatch):
    line, options = command(text, DECODER, *FLAGS, "--out", "stopped.keras")
    line[line.index("--checkpoint-seconds") + 1] = "1000"  # so it is Ctrl-C that writes
    process = subprocess.Popen(line, **options)
    seen = ""
    while "epoch 2" not in seen:
        seen = process.stderr.readline()
        assert seen, "it ended before epoch 2"
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and not stdout
    assert "the same command goes on" in stderr and "Traceback" not in stderr
    kept = (text / "stopped.checkpoint.npz").read_bytes()
    damaged = bytearray(kept)
    damaged[len(kept) // 2] ^= 0xFF
    (text / "stopped.checkpoint.npz").write_bytes(damaged)
    again = [DECODER, *FLAGS, "--out", "stopped.keras"]
    assert here(text, monkeypatch, *again) == 2
    printed = [line for line in capfd.readouterr().err.splitlines() if line.startswith("nas:")]
    assert len(printed) == 1 and "damaged" in printed[0]
    (text / "stopped.checkpoint.npz").write_bytes(kept)
    assert here(text, monkeypatch, *again, "--seed", 4) == 2
    assert "seed is 3 there and 4 here" in capfd.readouterr().err
    done = run(text, DECODER, *FLAGS, "--out", "stopped.keras")
    assert done.returncode == 0 and "going on at step" in done.stderr
    assert curve(text / "stopped.json") == curve(text / "whole.json")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["mnasnt", "--task", "digits"], "did you mean 'mnasnet'"),
        (["mnasnet:a9", "--task", "digits"], "no variant 'a9'"),
        (["mnasnet:tiny,colour=3", "--task", "digits"], "no field 'colour'"),
        (["mnasnet:tiny", "--task", "text:boats.txt"], "cannot take task text"),
        (["mnasnet:tiny", "--task", "digits", "--schedule", "steps"], "one of cosine"),
        (["mnasnet:tiny", "--task", "digits", "--epochs", "0"], "epochs=0"),
        (["mnasnet:tiny", "--task", "digits", "--from", "nowhere.keras"], "no file nowhere.keras"),
        (["mnasnet:tiny", "--task", "digits", "--from", "boats.txt"], "boats.txt"),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else None,
)
def test_errors_are_one_line_and_exit_2(text, capfd, monkeypatch, arguments, expected):
    assert here(text, monkeypatch, *arguments, "--out", "wrong.keras") == 2
    captured = capfd.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("nas:")]
    assert len(lines) == 1 and expected in lines[0] and not captured.out
    assert not (text / "wrong.keras").exists()


def test_a_loss_that_is_no_number_ends_the_training_and_leaves_nothing(text, capfd, monkeypatch):
    arguments = ["decoder:tiny,dim=32,layers=1,hidden=48", "--task", "text:boats.txt,length=32"]
    flags = ["--learning-rate", "1e30", "--optimizer", "sgd", "--epochs", "2"]
    assert here(text, monkeypatch, *arguments, *flags, "--out", "nan.keras") == 2
    assert "lower --learning-rate" in capfd.readouterr().err
    assert not list(text.glob("*nan*"))


def test_trained_in_bfloat16_it_is_saved_in_float32(text, capfd, monkeypatch):
    import keras

    arguments = [DECODER, *FLAGS, "--epochs", 2, "--mixed-precision", "--out", "half.keras"]
    assert here(text, monkeypatch, *arguments) == 0
    record = json.loads((text / "half.json").read_text())
    first, last = (record["history"][n]["valid_loss"] for n in (0, 1))
    assert last < first < 4 and record["identity"]["mixed precision"]
    assert keras.config.dtype_policy().name == "float32"
    model = keras.models.load_model(text / "half.keras", compile=False)
    assert {layer.compute_dtype for layer in model.layers} <= {"float32", "int32"}


def test_fine_tuning_begins_with_the_weights_of_another_network(text, capfd, monkeypatch):
    first = ["mnasnet:tiny", "--task", "digits:size=16", "--epochs", "3", "--out", "first.keras"]
    assert here(text, monkeypatch, *first) == 0
    again = ["mnasnet:tiny", "--task", "digits:size=16,seed=0", "--from", "first.keras"]
    again += ["--epochs", "1", "--learning-rate", "1e-4", "--out", "second.keras", "--json"]
    capfd.readouterr()
    assert here(text, monkeypatch, *again) == 0
    captured = capfd.readouterr()
    record = json.loads(captured.out)
    assert "weights from first.keras" in captured.err
    assert record["quality"] > 0.8  # one epoch at this rate alone leaves it at chance
    assert record["identity"]["from"]


def test_a_checkpoint_is_read_as_it_was_written(tmp_path):
    epoch = Epoch(1, 7, 2.0, 1.5, 0.5, 3.25, (2.5, 1.5), (0.1, 0.2))
    state = State(9, 4.5, [1.25, 1.0], [0.3, 0.4], [epoch], [np.arange(6.0), np.int32(3)], [])
    kept = resume.Checkpoint(tmp_path / "a.npz", {"seed": 1, "clip": None})
    assert kept.read() is None and not kept.due()
    kept.write(state)
    found = kept.read()
    np.testing.assert_array_equal(found.arrays[0], state.arrays[0])
    assert found.arrays[1] == 3 and found.arrays[1].dtype == np.int32
    found.arrays = state.arrays
    assert found == state
    with pytest.raises(ValueError, match="seed is 1 there and 2 here"):
        resume.Checkpoint(tmp_path / "a.npz", {"seed": 2, "clip": None}).read()


def test_every_damage_of_a_checkpoint_is_one_clear_error(tmp_path):
    kept = resume.Checkpoint(tmp_path / "a.npz", {"seed": 1})
    kept.write(State(arrays=[np.arange(100.0)]))
    content = (tmp_path / "a.npz").read_bytes()
    generator = random.Random(0)
    damages = [content[: generator.randrange(len(content))] for _ in range(20)]
    damages += [b"", b"text", np.random.default_rng(0).bytes(500)]
    for damage in damages:
        (tmp_path / "a.npz").write_bytes(damage)
        with pytest.raises(ValueError, match="damaged.*delete it to begin again"):
            kept.read()


def test_the_clock_is_written_as_people_do():
    assert [training_line.clock(s) for s in (0, 61, 3723)] == ["0:00", "1:01", "1:02:03"]
