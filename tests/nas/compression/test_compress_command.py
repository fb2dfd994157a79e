"""`nas compress` as a user runs it: files, tables, kills, one line where it goes wrong."""

import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[3]
TASK = ["--task", "digits:16"]
TRAINED = ["--method", "prune:0.5", "--method", "qat:4", *TASK, "--epochs", "3", "--ema", "0.9"]


def command(folder, *arguments):
    return [sys.executable, "-m", "nas", *map(str, arguments)], {
        "cwd": folder,
        "env": os.environ | {"PYTHONPATH": str(ROOT), "TF_NUM_INTRAOP_THREADS": "1"},
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }


def here(folder, monkeypatch, *arguments):
    """In this process, where Keras is imported already."""
    from nas.cli.command_line import main

    monkeypatch.chdir(folder)
    return main([*map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a small trained network lies."""
    from nas import backend

    backend.load()
    from nas import registry
    from nas.networks import build
    from nas.training import loop

    folder = tmp_path_factory.mktemp("compress")
    family, config = registry.network("mobilenet_v2:tiny")
    task = registry.task("digits:16")
    model = build.build(build.for_task(config, task.fields, task.name))
    loop.fit(model, task, 4, 0)
    model.save(folder / "a.keras")
    return folder


def weights(path):
    from nas.files.open_network import open_network

    return {w.path: np.asarray(w) for w in open_network(str(path)).model.weights}


def test_it_leaves_smaller_files_a_record_and_what_each_layer_bears(folder, monkeypatch, capfd):
    before = hashlib.sha256((folder / "a.keras").read_bytes()).hexdigest()
    flags = ["--method", "ptq:8", *TASK, "--target", "cpu:threads=1", "--examples", 64]
    outs = ["--out", "small.tflite", "--out", "small.safetensors", "--out", "small.keras"]
    assert here(folder, monkeypatch, "compress", "a.keras", *flags, *outs) == 0
    printed = capfd.readouterr().out
    record = json.loads((folder / "small.json").read_text())
    for name in ("accuracy", "parameters", "bits a weight", "cpu:threads=1", "measured"):
        assert name in printed
    assert abs(record["after"]["quality"] - record["before"]["quality"]) < 0.03
    tflite, packed, _ = record["files"]
    assert tflite["after"]["bytes"] == (folder / "small.tflite").stat().st_size
    assert tflite["after"]["bytes"] < 0.6 * tflite["before"]["bytes"]
    assert packed["after"]["bits_per_weight"] < 16 and packed["before"]["bits_per_weight"] >= 32
    assert record["before"]["latency"]["cpu:threads=1"]["measured"]
    layers = [row["layer"] for row in record["sensitivity"]]
    assert layers[0] is None and len(layers) > 5
    assert (folder / "small.png").read_bytes()[:4] == b"\x89PNG"
    assert hashlib.sha256((folder / "a.keras").read_bytes()).hexdigest() == before
    found = weights(folder / "small.keras")
    for path, array in weights(folder / "small.safetensors").items():
        np.testing.assert_allclose(array, found[path], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a.keras", "--method", "prun", "--out", "b.keras"], "did you mean 'prune'"),
        (["a.keras", "--method", "prune:0.5", "--out", "b.txt"], "ends in .keras, .tflite"),
        (["a.keras", "--method", "prune:0.5", "--out", "a.keras"], "never changed"),
        (["none.keras", "--method", "prune:0.5", "--out", "b.keras"], "no file none.keras"),
        (["a.keras", "--method", "prune:1.5", "--out", "b.keras"], "1.5"),
        (["a.keras", "--method", "drop_experts:0.5", *TASK, "--out", "b.keras"], "expert"),
        (["a.keras", "--method", "prune:0.5", "--epochs", "2", "--out", "b.keras"], "--task"),
    ],
)
def test_errors_are_one_line_and_exit_2(folder, monkeypatch, capfd, arguments, expected):
    assert here(folder, monkeypatch, "compress", *arguments) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert expected in lines[-1] and lines[-1].startswith("nas: ")
    assert not (folder / "b.keras").exists()


def test_a_teacher_is_known_by_its_weights(folder, monkeypatch):
    from nas import registry
    from nas.compression import teachers

    def opened(text):
        return teachers.with_teacher(registry.method(text))

    monkeypatch.chdir(folder)
    model = opened("distill:teacher=a.keras").teacher
    names = set()
    for change in (0.0, 0.0, 1e-3):
        weight = model.weights[0]
        weight.assign(weight + change)
        model.save(folder / "teacher.keras")
        names.add(repr(opened("distill:teacher=teacher.keras")))
    assert len(names) == 2


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(folder):
    generator = random.Random(os.environ.get("KILL_SEED", 0))
    flags = [*TRAINED, "--no-sensitivity", "--checkpoint-seconds", "0.2"]
    line, options = command(folder, "compress", "a.keras", *flags, "--out", "whole.keras")
    done = subprocess.run(line, timeout=300, **options)
    assert done.returncode == 0, done.stderr
    line, options = command(folder, "compress", "a.keras", *flags, "--out", "killed.keras")
    checkpoint = folder / "killed.checkpoint.npz"
    kills = 0
    for _ in range(30):
        process = subprocess.Popen(line, **options)
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and not (
            checkpoint.exists() and checkpoint.stat().st_mtime_ns > before
        ):
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.3))
        if process.poll() is None and kills < 3:
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, error = process.communicate()
        if process.returncode == 0:
            break
    assert process.returncode == 0, error
    assert kills and "going on at step" in error and not checkpoint.exists()
    one, two = weights(folder / "whole.keras"), weights(folder / "killed.keras")
    assert one.keys() == two.keys()
    for path, array in one.items():
        np.testing.assert_array_equal(array, two[path], err_msg=path)
    records = [json.loads((folder / f"{name}.json").read_text()) for name in ("whole", "killed")]
    assert records[0]["after"] == records[1]["after"]
    assert records[0]["after"]["nonzeros"] < 0.75 * records[0]["before"]["nonzeros"]
