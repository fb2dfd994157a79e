"""Locks by name, whose a trial is, candidates that fail or kill: nothing is lost or done twice."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter

import optuna
import pytest
from lock_hammer import FORK, hammered
from number_line import Line
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from nas import registry
from nas.cli.command_line import main
from nas.locks import Flock
from nas.searching import failures, journal, leases, storage
from nas.searching import study as studies
from nas.searching.candidate import Candidate
from nas.searching.loop import explore, trained
from nas.searching.objective import Objective
from nas.searching.study import Settings

optuna.logging.set_verbosity(optuna.logging.ERROR)


def test_a_flock_is_nobody_elses_and_dies_with_its_holder(tmp_path):
    assert hammered(lambda: Flock(tmp_path / "locks"), tmp_path, 1.5) > 10
    assert len(list((tmp_path / "locks").iterdir())) <= 2  # let go of, a lock leaves no file


def test_names_of_locks_are_any_text(tmp_path):
    locks = Flock(tmp_path)
    for name in ("device/../../x", "study/train/" + "k" * 400, "ä/é"):
        with locks.lock(name), locks.try_lock(name) as second:
            assert locks.held(name) and not second
        assert not locks.held(name)
    assert not list(tmp_path.iterdir())


# --- Trials ---------------------------------------------------------------------------------------


def worker_of(folder) -> leases.Worker:
    return leases.Worker(Flock(folder / "locks"), "s")


def a_study(folder, controller="random"):
    return optuna.create_study(
        study_name="s",
        storage=storage.open_storage(folder),
        sampler=registry.controller(controller, seed=0),
        directions=Objective((2.0,)).directions,
        load_if_exists=True,
    )


def search(folder, poison=(), trials=12, **options):
    study, worker = a_study(folder), worker_of(folder)
    try:
        explore(
            study, Line(folder, poison), Objective((2.0,)), trials=trials, worker=worker, **options
        )
    finally:
        worker.leave()
    return study


@pytest.mark.parametrize("profiles", [1, 3])
def test_poison_is_pruned_with_its_reason_and_the_search_goes_on(tmp_path, profiles):
    poison = {1: "convert", 2: "nan", 3: "float", 4: "cost", 5: "describe", 6: "kill"}
    deaths = 0
    for _ in range(60):
        process = FORK.Process(
            target=search, args=(tmp_path, poison), kwargs={"profiles": profiles}
        )
        process.start()
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        deaths += 1
    assert process.exitcode == 0 and deaths >= 3
    study = a_study(tmp_path)
    assert len(trained(study)) == 12
    assert {trial.user_attrs["profile"]["key"][-1] for trial in trained(study)} <= set("0789")
    failed = [t for t in study.trials if leases.failure(t) is not None]
    said = {leases.failure(trial)["message"] for trial in failed}
    assert {
        "ValueError: no operator for this",
        "ValueError: no such network",
        "FloatingPointError: its quality is nan",
        "FloatingPointError: underflow",
        "FloatingPointError: its latency is nan",
    } <= said
    killers = [t for t in failed if leases.failure(t)["kind"] == "died"]
    assert killers and "while it was trained (try 3 of 3)" in leases.failure(killers[0])["message"]
    assert [len(trial.user_attrs["failures"]) for trial in killers] == [3] * len(killers)
    # Each killed three workers, no more, and everything else was trained once.
    log = Counter((tmp_path / "log").read_text().split())
    assert {count for number, count in log.items() if number[-1] == "6"} == {3}
    assert {count for number, count in log.items() if number[-1] != "6"} == {1}
    assert not [t for t in study.trials if not t.state.is_finished()]


def test_five_failures_in_a_row_stop_the_search_with_the_traceback(tmp_path):
    events = []
    with pytest.raises(failures.EveryCandidateFails, match="the last 5 candidates .* no operator"):
        search(tmp_path, dict.fromkeys(range(10), "convert"), on_event=events.append, profiles=4)
    assert "no operator" in str(events[-1]) and "Traceback" in str(events[-1])
    assert not [t for t in a_study(tmp_path).trials if not t.state.is_finished()]
    # Mended, the same command goes on.
    assert len(trained(search(tmp_path))) == 12


def test_a_full_disk_is_no_candidates_fault(tmp_path):
    class Full(Line):
        def train(self, candidate, **options):
            raise OSError(28, "No space left on device")

    study, worker = a_study(tmp_path), worker_of(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        explore(study, Full(tmp_path), Objective((2.0,)), trials=3, worker=worker)
    states = Counter(trial.state for trial in study.trials)
    assert states == {TrialState.FAIL: 1, TrialState.WAITING: 1}  # given back, nobody's fault
    assert "tries" not in study.trials[-1].user_attrs


def test_who_stops_gives_back_and_who_is_cut_off_drops(tmp_path):
    """SIGSTOP for longer than the others wait, seen from the one that was stopped."""
    study, ours = a_study(tmp_path), worker_of(tmp_path)

    class Stopped(Line):
        slow = True

        def train(self, candidate, **options):
            if self.slow:
                type(self).slow = False
                ours._held.close()  # the others take it for dead, and give back what it had
                other = worker_of(tmp_path)
                assert len(leases.give_back(a_study(tmp_path), other)) == 1
                other.leave()
                ours._held.enter_context(ours.lock(f"worker/{ours.id}"))
            return super().train(candidate, **options)

    events = []
    explore(
        study,
        Stopped(tmp_path),
        Objective((2.0,)),
        trials=3,
        worker=ours,
        on_event=events.append,
    )
    assert len(trained(study)) == 3
    assert any("given to another worker" in str(event) for event in events)
    with pytest.raises(UpdateFinishedTrialError, match="given to another worker"):
        leases.tell(study, study.trials[0]._trial_id, TrialState.PRUNED)


def test_a_trial_killed_between_its_asking_and_its_signature_is_given_back(tmp_path):
    study, worker = a_study(tmp_path), worker_of(tmp_path)
    study.enqueue_trial({"x": 7, "y": 1})
    study._pop_waiting_trial_id()  # and dies
    with worker.lock(leases.ASK):
        assert leases._lost(study, worker)  # seen, but whoever holds the lock may be signing it
    (lost,) = leases.give_back(study, worker)
    assert lost.state == TrialState.FAIL
    assert study.trials[-1].system_attrs["fixed_params"] == {"x": 7, "y": 1}
    with worker.lock(leases.ASK):
        trial_id = leases.take(study, worker)
    trial = study._storage.get_trial(trial_id)
    assert trial.user_attrs["owner"] == worker.id and trial.user_attrs["host"] == worker.host


def test_what_is_given_back_twice_is_done_once(tmp_path):
    """Killed between queueing a proposal again and failing its trial; another took it meanwhile."""
    study, worker = a_study(tmp_path), worker_of(tmp_path)
    with worker.lock(leases.ASK):
        lost = study._storage.get_trial(leases.take(study, worker))
    study._storage.set_trial_user_attr(lost._trial_id, "round", f"{worker.id}/0")
    study.enqueue_trial({"x": 1, "y": 1}, user_attrs={"retry_of": lost.number})
    worker.leave()
    survivor = worker_of(tmp_path)
    with survivor.lock(leases.ASK):
        leases.take(study, survivor)
    leases.give_back(study, survivor)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.RUNNING]


def test_the_same_network_is_trained_by_one_of_two(tmp_path):
    class Slow(Line):
        def train(self, candidate, **options):
            time.sleep(0.3)
            return super().train(candidate, **options)

        def candidate(self, trial):
            trial.suggest_int("z", 0, 10**6)
            return Candidate(len(trained(trial.study)) * 10 + 7)  # all propose the same

    def work():
        explore(
            a_study(tmp_path),
            Slow(tmp_path),
            Objective((2.0,)),
            trials=3,
            worker=worker_of(tmp_path),
        )

    crowd = [FORK.Process(target=work) for _ in range(2)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join(30)
    assert [one.exitcode for one in crowd] == [0, 0]
    assert set(Counter((tmp_path / "log").read_text().split()).values()) == {1}
    assert len(trained(a_study(tmp_path))) == 3


# --- Where a study is kept ------------------------------------------------------------------------


@pytest.mark.parametrize("line", [0, 1, 5, 9])
def test_a_damaged_line_of_a_journal_is_all_that_is_lost(tmp_path, line, caplog):
    study = a_study(tmp_path)
    for index in range(4):
        trial = study.ask()
        trial.suggest_int("x", 0, 9)
        study.tell(trial, [index, 1.0])
    before = [(trial.params, trial.values) for trial in study.trials]
    path = tmp_path / journal.JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    hit = json.loads(lines[line])
    lines[line] = b"\x00" * (len(lines[line]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    if line == 0:
        with pytest.raises(ValueError, match="line 1 is damaged .* restore the file from a backup"):
            storage.open_storage(tmp_path)
        return
    after = [(trial.params, trial.values) for trial in a_study(tmp_path).trials]
    assert f"{path}, line {line + 1} is damaged" in caplog.text and len(after) == 4
    changed = [number for number in range(4) if after[number] != before[number]]
    assert changed == ([] if hit["op_code"] == 4 else [hit["trial_id"]])
    assert len(search(tmp_path).trials) > 4  # and it can be gone on with


def test_a_study_opens_in_a_folder_of_another_name(tmp_path):
    settings = Settings()
    for name in ("new", "old"):
        folder = tmp_path / name
        worker = studies.worker_of(folder, None)
        study = studies.create(folder, settings, None, worker)
        study.tell(study.ask(), 1.0)
        worker.leave()
        described = json.loads((folder / "study.json").read_text())
        if name == "old":  # of before the name was kept
            del described["study"]
            (folder / "study.json").write_text(json.dumps(described))
        moved = folder.rename(tmp_path / f"{name}_moved")
        assert len(studies.load(moved)[1].trials) == 1


def test_sqlite_has_one_worker(tmp_path, capsys):
    url = f"sqlite:///{tmp_path}/study.db"
    first = studies.worker_of(tmp_path / "s", url)
    with pytest.raises(ValueError, match="more than one worker at a time on SQLite"):
        studies.worker_of(tmp_path / "s", url)
    first.leave()
    studies.worker_of(tmp_path / "s", url).leave()
    flags = ["--workers", "2", "--storage", url, "--out", str(tmp_path)]
    assert main(["search", *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me:secret@127.0.0.1:1/nas", "is the server there"),
        ("postgresql+pg8000://me:secret@127.0.0.1:1/nas", "pip install 'nas[postgresql]'"),
        ("postgresql://me@127.0.0.1:1/nas?password=secret", "is the server there"),
        ("mysql://me:secret@db/nas", "expected postgresql://"),
        ("nosuch://me:secret@db/nas", "expected postgresql://"),
        ("://me:secret@db", "no URL of a database"),
        ("sqlite:////proc/nothing/study.db", "there is no folder /proc/nothing"),
        ("sqlite:///setup.cfg", "name a file that is one of SQLite"),
    ],
)
def test_storages_that_cannot_be_opened_are_one_line(tmp_path, monkeypatch, capsys, url, expected):
    pytest.importorskip("psycopg")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "setup.cfg").write_text("no database" * 100)
    assert main(["search", "--out", str(tmp_path), "--storage", url]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and "secret" not in error


def test_the_clock_may_be_set_back(tmp_path):
    """An hour back before each training: the clock of a process whose time functions are ours."""
    code = """
import sys, time
sys.path.insert(0, sys.argv[1])
real, shift = time.time, [0.0]
time.time = lambda: real() - shift[0]
import datetime
import optuna.storages.journal._storage as optunas
class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.now(tz) - datetime.timedelta(seconds=shift[0])
optunas.datetime = Clock
import test_leases
class Back(test_leases.Line):
    def train(self, candidate, **options):
        shift[0] += 3600.0
        return super().train(candidate, **options)
import pathlib
test_leases.Line = Back
test_leases.search(pathlib.Path(sys.argv[2]), trials=6)
"""
    places = [str(pathlib.Path(__file__).parent), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, *places], check=True, env=environment)
    assert len(trained(a_study(tmp_path))) == 6
    assert len(trained(search(tmp_path, trials=8))) == 8


def test_a_read_only_study_is_shown_and_not_searched():
    folder = pathlib.Path(tempfile.mkdtemp()) / "s"
    try:
        worker = studies.worker_of(folder, None)
        study = studies.create(folder, Settings(), None, worker)
        study.tell(study.ask(), 1.0)
        worker.leave()
        folder.parent.chmod(0o755)
        for path in (*folder.rglob("*"), folder):
            path.chmod(0o555 if path.is_dir() else 0o444)

        def look():
            if os.getuid() == 0:  # to whom everything is allowed
                os.setuid(65534)
            assert len(studies.load(folder)[1].trials) == 1
            with pytest.raises(OSError, match=str(folder)):
                studies.worker_of(folder, None)

        process = FORK.Process(target=look)
        process.start()
        process.join(60)
        assert process.exitcode == 0
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder.parent)
