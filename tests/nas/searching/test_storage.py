"""Studies survive torn writes, full disks, killed writers; dead workers give back what they had."""

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import textwrap

import optuna
import pytest
from optuna.trial import TrialState

from nas.locks import Flock
from nas.searching import journal, leases
from nas.searching.storage import open_storage

optuna.logging.set_verbosity(optuna.logging.ERROR)


def a_worker(folder) -> leases.Worker:
    return leases.Worker(Flock(folder / "locks"), "s")


def fill(folder, count: int) -> optuna.Study:
    study = optuna.create_study(study_name="s", storage=open_storage(folder), load_if_exists=True)
    for _ in range(count):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", 0, 1))
    return study


@pytest.mark.parametrize("torn", [b'{"op_code":4,"wor', b"\x00\x00\x00", b"garbage\n", b"{}{\n"])
def test_a_torn_last_line_costs_nothing_finished(tmp_path, torn):
    values = [trial.value for trial in fill(tmp_path, 3).trials]
    path = tmp_path / journal.JOURNAL
    with open(path, "ab") as file:
        file.write(torn)
    study = fill(tmp_path, 2)
    assert [trial.value for trial in study.trials][:3] == values
    assert len(study.trials) == 5
    assert all(json.loads(line) for line in path.read_bytes().splitlines())
    assert (tmp_path / "journal.log.damaged").read_bytes().strip() == torn.strip()


def test_a_full_disk_takes_back_the_half_line_and_says_so(tmp_path):
    """The limit on file size stands for the disk: the kernel refuses the same write."""
    study = fill(tmp_path, 3)
    path = tmp_path / journal.JOURNAL
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, hard))
    try:
        with pytest.raises(OSError, match="every finished trial is in it"):
            study.ask()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == whole
    assert len(fill(tmp_path, 1).trials) == 4


def append_many(folder):
    fill(pathlib.Path(folder), 25)


def child(function: str, *arguments) -> subprocess.Popen:
    """A process that calls a function of this file; pytest imports it under no name."""
    code = "import runpy, sys; runpy.run_path(sys.argv[1])[sys.argv[2]](*sys.argv[3:])"
    words = [sys.executable, "-c", code, __file__, function, *map(str, arguments)]
    return subprocess.Popen(words)


def test_writers_do_not_tread_on_each_other(tmp_path):
    fill(tmp_path, 0)
    writers = [child("append_many", tmp_path) for _ in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    trials = fill(tmp_path, 0).trials
    assert [trial.number for trial in trials] == list(range(50))
    assert all(trial.state == TrialState.COMPLETE for trial in trials)


def test_a_lock_dies_with_its_holder(tmp_path):
    """With Optuna's own lock file, a writer killed inside its lock blocks all others for 30 s."""
    holder = textwrap.dedent(
        """
        import pathlib, sys, time
        from nas.locks import locked
        with locked(pathlib.Path(sys.argv[1])):
            print("locked", flush=True)
            time.sleep(600)
        """
    )
    lock = tmp_path / f"{journal.JOURNAL}.lock"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(lock)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "locked\n"
        process.kill()
    assert len(fill(tmp_path, 2).trials) == 2


def die_in_a_round(folder, finished):
    """Ask three trials as a round, tell some as the search does, and die."""
    folder = pathlib.Path(folder)
    study = fill(folder, 0)
    worker = a_worker(folder)
    asked = []
    for number in range(3):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr("round", f"{worker.id}/0")
        trial.set_user_attr("profile", {"key": str(number), "costs": [1.0]})
        asked.append(trial)
    for trial in asked[: int(finished)]:
        study.tell(trial, 1.0)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("finished", [0, 1])
def test_a_dead_worker_gives_back_its_round(tmp_path, finished):
    assert child("die_in_a_round", tmp_path, finished).wait(60) == -signal.SIGKILL
    study = fill(tmp_path, 0)
    worker = a_worker(tmp_path)
    given_back = leases.give_back(study, worker)
    assert len(given_back) == 3 - finished
    states = [trial.state for trial in study.trials]
    if finished:  # the round had ended: the others are what they would have been
        assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED]
    else:
        assert states == [TrialState.FAIL] * 3 + [TrialState.WAITING] * 3
        again = [study.ask().suggest_float("x", 0, 1) for _ in range(3)]
        assert again == [trial.params["x"] for trial in given_back]


def test_a_live_worker_keeps_its_trials(tmp_path):
    study = fill(tmp_path, 0)
    ours, theirs = a_worker(tmp_path), a_worker(tmp_path)
    trial = study.ask()
    trial.set_user_attr("round", f"{theirs.id}/0")
    assert leases.give_back(study, ours) == [] and ours.alive(theirs.id)
    theirs.leave()
    assert [one.number for one in leases.give_back(study, ours)] == [trial.number]
    assert not ours.alive(theirs.id)
