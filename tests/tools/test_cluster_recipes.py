"""The recipes for clusters as far as one machine can run them: commands and their signals."""

import csv
import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys

import optuna
import pytest
import yaml
from optuna.trial import TrialState

EXAMPLES = pathlib.Path(__file__).parents[2] / "tools" / "examples"
TRIALS = 60


@pytest.fixture
def machine(tmp_path):
    """A folder with a table, and with `nas` and `scontrol`, which only notes what it is told."""
    with open(tmp_path / "towers.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*"abcd", "quality", "phone_ms"])
        for widths in itertools.product((1, 2, 3), repeat=4):
            rows.writerow([*widths, round(1 - 1 / sum(widths), 4), sum(widths) / 2])
    commands = {
        "nas": f'exec "{sys.executable}" -m nas "$@"',
        "scontrol": f'echo "$@" >> "{tmp_path}/told"',
    }
    for name, line in commands.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "NAS_STORAGE": f"sqlite:///{tmp_path}/study.db",
        "SLURM_JOB_ID": "4711",
    }
    return tmp_path, os.environ | environment


@pytest.mark.slow
def test_a_job_that_slurm_ends_is_queued_again_and_goes_on(machine):
    folder, environment = machine
    flags = f"--task table:towers.csv --budget-ms 4 --controller random --trials {TRIALS} --study s"
    told = folder / "told"

    def begin():
        return subprocess.Popen(
            ["bash", EXAMPLES / "slurm.sh", *flags.split()],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    for times, send in enumerate((os.kill, os.killpg), 1):  # the script alone, or all there is
        job = begin()
        for line in job.stderr:
            if re.match(rf" *\d+/{TRIALS} ", line):
                break
        send(job.pid, signal.SIGTERM)
        _, error = job.communicate(timeout=120)
        assert job.returncode == 143 and "Traceback" not in error, error
        assert told.read_text() == "requeue 4711\n" * times
        (study,) = optuna.get_all_study_names(environment["NAS_STORAGE"])
        trials = optuna.load_study(study_name=study, storage=environment["NAS_STORAGE"]).trials
        assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
    job = begin()
    out, error = job.communicate(timeout=300)
    assert job.returncode == 0 and f"{TRIALS} trained" in out, error
    assert told.read_text() == "requeue 4711\n" * 2


def test_a_pod_runs_the_search_itself_so_that_it_gets_the_signal(machine):
    folder, environment = machine
    job = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert job["kind"] == "Job" and spec["completionMode"] == "Indexed"
    assert pod["terminationGracePeriodSeconds"] == 120 and pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    (folder / "bin" / "nas").write_text('#!/bin/sh\necho "$@"\nexec sleep 60\n')
    process = subprocess.Popen(
        [*container["command"], *container["args"]],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    expected = ["search", *container["args"], "--storage", environment["NAS_STORAGE"]]
    assert process.stdout.readline().split() == expected
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM  # of `sleep`: no shell stood before it
    from nas.cli.command_line import parser

    parser().parse_args(expected)
