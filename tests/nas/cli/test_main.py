"""The commands as a user runs them: processes, exit codes, files, one line where it goes wrong."""

import ast
import csv
import itertools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from nas import registry


def nas(*arguments, cwd, **options):
    return subprocess.run(
        [sys.executable, "-m", "nas", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        **options,
    )


@pytest.fixture
def table(tmp_path):
    """A tabular benchmark of 81 networks as a user would write one."""
    path = tmp_path / "towers.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["first", "second", "third", "fourth", "quality", "phone_ms"])
        for widths in itertools.product((1, 2, 3), repeat=4):
            rows.writerow([*widths, round(1 - 1 / (1 + sum(widths)), 4), sum(widths) / 2])
    return path


def test_help_and_list_answer_at_once(tmp_path):
    for arguments in (["--help"], ["list"], ["list", "controller", "--json"]):
        times = []
        for _ in range(3):
            before = os.times()
            done = nas(*arguments, cwd=tmp_path)
            after = os.times()
            times.append(after.children_user - before.children_user)
            assert done.returncode == 0 and done.stdout
        assert min(times) < 0.4, f"nas {arguments} took {min(times):.2f} CPU s"
    assert set(json.loads(done.stdout)["controller"]) == set(registry.listing("controller"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["search", "--space", "mnasnt"], "did you mean 'mnasnet'"),
        (["search", "--target", "cpu:threads=99"], "threads=99"),
        (["search", "--budget-ms", "-1"], "must be above 0"),
        (["search", "--target", "cpu", "--budget-ms", "1", "--budget-ms", "2"], "2 --budget-ms"),
        (["search", "--task", "table:nowhere.npz", "--budget-ms", "1"], "nowhere.npz"),
        (["search", "--reward", "pareto", "--beta", "auto"], "--reward pareto has none"),
        (["show", "nowhere"], "no study in nowhere"),
        (["export", "nowhere", "--trial", "3"], "no study in nowhere"),
        (["profile", "nowhere.tflite"], "no file nowhere.tflite"),
        (["list", "colour"], "no kind 'colour'"),
    ],
)
def test_errors_are_one_line_and_exit_2(tmp_path, arguments, told):
    done = nas(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("nas:")]
    assert len(lines) == 1 and told in lines[0]
    assert "Traceback" not in done.stderr and not done.stdout
    assert "Traceback" in nas(*arguments, "--debug", cwd=tmp_path).stderr


def test_a_search_on_a_table_resumes_shows_and_refuses_other_flags(tmp_path, table):
    flags = ["search", "--task", f"table:{table}", "--budget-ms", "4", "--study", "s"]
    first = nas(*flags, "--trials", "5", "--json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert result["counts"]["complete"] == 5
    more = nas(*flags, "--trials", "12", "--json", cwd=tmp_path)
    assert "resuming: 5 networks" in more.stderr
    result = json.loads(more.stdout)
    assert result["winner"]["costs"] == [4.0]  # the best quality that fits is eight wide
    assert result["winner"]["quality"] == pytest.approx(1 - 1 / 9, abs=1e-4)
    shown = nas("show", "runs/s", "--json", cwd=tmp_path)
    assert json.loads(shown.stdout) == result
    assert "winner" in nas("show", "runs/s", cwd=tmp_path).stdout
    for name in ("result.json", "pareto.png", "report.html"):
        assert (tmp_path / "runs" / "s" / name).stat().st_size > 1000
    other = nas(*flags, "--controller", "ppo", cwd=tmp_path)
    assert other.returncode == 2 and "controller was surrogate, now ppo" in other.stderr


def test_several_workers_pareto_and_proof(tmp_path, table):
    flags = ["--task", f"table:{table},seed=1", "--reward", "pareto", "--controller", "nsgaii"]
    done = nas("search", *flags, "--trials", 20, "--workers", 2, "--prove", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["counts"]["complete"] - result["counts"]["duplicates"] == 20
    assert len(result["prove"]["random"]) == 20
    assert 0 < result["prove"]["hypervolume"]["random"] <= 1


@pytest.mark.parametrize("controller", sorted(set(registry.listing("controller")) - {"gp"}))
def test_every_controller_searches(tmp_path, table, controller):
    flags = ["--task", f"table:{table}", "--budget-ms", "4", "--trials", "4"]
    done = nas("search", *flags, "--controller", controller, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["winner"]["within_budget"]


def test_beta_is_calibrated_on_the_first_networks(tmp_path, table):
    flags = ["--task", f"table:{table}", "--budget-ms", "4", "--beta", "auto", "--trials", "10"]
    done = nas("search", *flags, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # d quality / d log cost at 4 ms: quality is 1 - 1 / (1 + 2 cost), its slope 2 c / (1 + 2 c)^2.
    assert json.loads(done.stdout)["beta"] == pytest.approx(-8 / 81, rel=0.35)


def test_nothing_within_budget_is_said(tmp_path, table):
    done = nas("search", "--task", f"table:{table}", "--budget-ms", "0.5", cwd=tmp_path)
    assert done.returncode == 2 and "far over budget" in done.stderr


@pytest.mark.slow
def test_the_first_search_hands_over_its_network(tmp_path):
    """README's first command with few networks, interrupted, resumed, exported, timed again."""
    command = [sys.executable, "-m", "nas", "search", "--epochs", "2", "--study", "s"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [*command, "--trials", "50"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    for line in process.stderr:
        if line.split()[0].startswith("2/"):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=900)
    assert process.returncode == 130, err
    assert "interrupted: nothing finished is lost" in err and "trial" in out
    done = nas(*command[3:], "--trials", 3, "--finalists", 1, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    run = tmp_path / "runs" / "s"
    for name in ("best.keras", "best.tflite", "config.py", "pareto.png", "report.html"):
        assert (run / name).stat().st_size > 500
    timed = nas("profile", run / "best.tflite", "--json", cwd=tmp_path)
    (row,) = json.loads(timed.stdout)
    assert row["measured"] and row["median_ms"] == pytest.approx(
        result["winner"]["costs"][0], rel=0.2
    )
    tree = ast.parse((run / "config.py").read_text())
    names: dict = {}
    exec(compile(tree, "config.py", "exec"), names)
    from families import mnasnet

    assert mnasnet.Config(**vars(names["config"])) == names["config"]
    exported = nas("export", run, "--trial", 0, "--epochs", 0, "--json", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    _same_outputs(run / "best.keras", run / "best.tflite")
    keras_file, tflite_file, _ = json.loads(exported.stdout)["files"]
    _same_outputs(tmp_path / keras_file, tmp_path / tflite_file)


def _same_outputs(keras_file, tflite_file):
    from nas import backend

    keras = backend.load()
    from latency.tflite import convert

    model = keras.models.load_model(keras_file)
    inputs = np.random.default_rng(1).random((8, *model.input_shape[1:]), np.float32)
    difference = np.abs(convert.run(tflite_file, inputs) - model.predict(inputs, verbose=0)).max()
    assert difference < 1e-4
