"""What is kept beside a journal says what the journal says, and is made anew where it does not."""

import os
import pathlib
import pickle
import subprocess
import sys

import optuna
import pytest
from optuna.storages import JournalStorage

from nas.searching import journal_snapshot
from nas.searching.journal import JOURNAL, Journal
from nas.searching.journal_snapshot import SnapshotStorage

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(journal_snapshot, "EVERY", 40)
    monkeypatch.setattr(journal_snapshot, "STRAGGLER", 10)


def opened(folder, name="s"):
    storage = SnapshotStorage(Journal(folder / JOURNAL))
    return optuna.create_study(study_name=name, storage=storage, load_if_exists=True)


def fill(study, count):
    for _ in range(count):
        trial = study.ask()
        value = trial.suggest_float("x", 0, 1) + trial.suggest_categorical("k", [0, 1, 2])
        trial.set_user_attr("profile", {"key": f"n{trial.number}", "costs": [value]})
        trial.report(value / 2, 1)
        study.tell(trial, value)


def read_whole(folder, name="s"):
    """The trials as Optuna itself reads them, from the first line on."""
    storage = JournalStorage(Journal(folder / JOURNAL))
    return optuna.load_study(study_name=name, storage=storage).trials


def lines_read(folder, monkeypatch):
    seen, read = [], Journal.read_logs

    def counted(self, number):
        for log in read(self, number):
            seen.append(log)
            yield log

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "read_logs", counted)
        opened(folder)
    return len(seen)


def test_a_long_journal_is_not_read_again(tmp_path, monkeypatch):
    study = opened(tmp_path)
    running = study.ask()
    running.suggest_float("x", 0, 1)
    study.enqueue_trial({"x": 0.5, "k": 1})
    fill(study, 40)  # the first of them was enqueued
    rival = opened(tmp_path, "rival")
    fill(rival, 15)
    study.tell(running, 0.25)
    fill(study, 15)
    study.set_user_attr("objective", {"beta": -1})
    total = (tmp_path / JOURNAL).read_bytes().count(b"\n")
    assert lines_read(tmp_path, monkeypatch) <= 40 < total / 10
    again = opened(tmp_path)
    assert again.trials == read_whole(tmp_path) == study.trials
    assert again.user_attrs == {"objective": {"beta": -1}}
    assert opened(tmp_path, "rival").trials == read_whole(tmp_path, "rival")
    fill(again, 12)  # goes on, also for who was there before
    assert study.trials == again.trials == read_whole(tmp_path)
    assert [trial.number for trial in again.trials] == list(range(len(again.trials)))


def write_many(folder, count):
    journal_snapshot.EVERY = 30
    fill(opened(pathlib.Path(folder)), int(count))


def test_writers_of_one_snapshot(tmp_path):
    opened(tmp_path)
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['write_many'](*sys.argv[2:])"
    words = [sys.executable, "-c", code, __file__, str(tmp_path), "40"]
    writers = [subprocess.Popen(words) for _ in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    study = opened(tmp_path)
    assert len(study.trials) == 80 and study.trials == read_whole(tmp_path)
    assert study._storage._kept > 100  # it was used


@pytest.mark.parametrize("what", ["a byte", "cut", "no blocks", "other journal", "other version"])
def test_a_snapshot_that_does_not_fit_is_made_anew(tmp_path, what, monkeypatch):
    fill(opened(tmp_path), 60)
    blocks, head = tmp_path / f"{JOURNAL}.snapshot", tmp_path / f"{JOURNAL}.snapshot.head"
    if what == "a byte":
        content = bytearray(blocks.read_bytes())
        content[len(content) // 2] ^= 1
        blocks.write_bytes(content)
    elif what == "cut":
        os.truncate(blocks, 100)
    elif what == "no blocks":
        blocks.unlink()
    elif what == "other journal":
        (tmp_path / JOURNAL).unlink()
        storage = JournalStorage(Journal(tmp_path / JOURNAL))
        fill(optuna.create_study(study_name="s", storage=storage), 70)
    else:
        monkeypatch.setattr(journal_snapshot, "_VERSION", "2")
    before = head.read_bytes()
    study = opened(tmp_path)
    assert study._storage._replay_result.log_number_read > 300
    assert study.trials == read_whole(tmp_path)
    assert head.read_bytes() != before
    assert lines_read(tmp_path, monkeypatch) <= 40
    assert opened(tmp_path).trials == read_whole(tmp_path)


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_nothing_in_a_snapshot_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(opened(tmp_path), 30)
    head = tmp_path / f"{JOURNAL}.snapshot.head"
    head.write_bytes(journal_snapshot._packed(Harm()))
    assert opened(tmp_path).trials == read_whole(tmp_path)
    assert not (tmp_path / "harm").exists()
    pickle.loads(pickle.dumps(Harm()))  # a plain reader does run it
    assert (tmp_path / "harm").exists()


def test_where_nothing_can_be_written_the_journal_is_read(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal_snapshot, "atomic_write", full)
    study = opened(tmp_path)
    fill(study, 30)
    assert opened(tmp_path).trials == study.trials == read_whole(tmp_path)
