"""Ctrl-C and SIGTERM: whenever they come, nothing is lost and nothing is left behind."""

import csv
import gc
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from optuna.trial import TrialState

from nas import interruption
from nas.searching import study as studies

UNTIL_S = 30.0


@pytest.fixture(autouse=True)
def ctrl_c(monkeypatch):
    """Python's own handlers, which a shell in the background takes away; quick ticks."""
    monkeypatch.setattr(interruption, "_TICK_S", 0.02)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    signal.signal(signal.SIGINT, before)


def later(*numbers, each_s=0.1):
    """Signals that come while something else is done."""

    def send():
        for number in numbers:
            time.sleep(each_s)
            os.kill(os.getpid(), number)

    threading.Thread(target=send).start()


def forever():
    """A wait that nobody asks in."""
    time.sleep(UNTIL_S)
    pytest.fail("nothing was raised")


def turn():
    end = time.monotonic() + UNTIL_S
    while time.monotonic() < end:
        interruption.check()
    pytest.fail("nothing was raised")


def test_it_ends_between_two_steps_and_what_does_not_ask_after_a_while():
    for work, raised in ((turn, interruption.Interrupted), (forever, KeyboardInterrupt)):
        with pytest.raises(KeyboardInterrupt) as error, interruption.interruptible():
            later(signal.SIGINT)
            work()
        assert error.type is raised


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_does_not_vanish_in_a_callback(monkeypatch, capfd):
    """The default handler's exception does: Python prints what is raised at garbage collection."""

    def lost(phase, info):
        if phase == "start":
            gc.callbacks.remove(lost)
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                pass

    monkeypatch.setattr(sys, "unraisablehook", lambda error: None)
    gc.callbacks.append(lost)
    gc.collect()  # and so it is lost, as everywhere outside of a journey
    gc.callbacks.append(lost)
    with pytest.raises(interruption.Interrupted), interruption.interruptible():
        gc.collect()
        turn()

    class Slow:
        def __del__(self):
            time.sleep(UNTIL_S / 2)  # where what is raised is lost, though nobody asks

    with pytest.raises(KeyboardInterrupt), interruption.interruptible():
        later(signal.SIGINT)
        Slow()
        forever()
    assert not capfd.readouterr().err


def test_what_is_handed_over_is_not_cut_short_but_by_a_second_ctrl_c():
    done = []
    with interruption.interruptible():
        later(signal.SIGINT, signal.SIGTERM)
        try:
            forever()
        except KeyboardInterrupt:
            interruption.hand_over()
            time.sleep(0.5)
            interruption.check()
            done.append("handed over")
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert done == ["handed over"]
    with pytest.raises(KeyboardInterrupt), interruption.interruptible():
        later(signal.SIGINT, signal.SIGINT)
        try:
            forever()
        except KeyboardInterrupt:
            interruption.hand_over()
            forever()
    with pytest.raises(KeyboardInterrupt), interruption.interruptible():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        interruption.hand_over()


def test_ctrl_c_that_comes_too_late_is_raised_after_the_journey():
    with pytest.raises(KeyboardInterrupt), interruption.interruptible():
        interruption.hand_over()
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.2)


def test_what_a_program_does_with_signals_stays():
    seen = []
    own = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruption.interruptible():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            interruption.check()
    finally:
        signal.signal(signal.SIGTERM, own)
        signal.signal(signal.SIGINT, ignored)
    assert seen == [signal.SIGTERM]

    def thread():
        with interruption.interruptible():
            seen.append(signal.getsignal(signal.SIGINT))
            interruption.check()

    other = threading.Thread(target=thread)
    other.start()
    other.join()
    assert seen[1] is signal.default_int_handler


def test_sigterm_ends_a_program_once_its_journey_has_handed_over():
    program = """
import os, signal
from nas import interruption
with interruption.interruptible():
    os.kill(os.getpid(), signal.SIGTERM)
    try:
        interruption.sleep(30)
    except KeyboardInterrupt:
        interruption.hand_over()
        print("handed over", flush=True)
print("still here")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM and done.stdout == "handed over\n", done.stderr


IMPORTING = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), int(number))
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
module, number = sys.argv.pop(1), sys.argv.pop(1)
from nas.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("module", "number", "code"),
    [
        ("nas.cli.compress", signal.SIGINT, 130),  # before there is a command
        ("optuna", signal.SIGINT, 130),
        ("optuna", signal.SIGTERM, 143),
        ("keras.src.layers", signal.SIGINT, 130),
    ],
)
def test_ctrl_c_while_things_are_imported_is_one_word(tmp_path, module, number, code):
    arguments = ["search", "--space", "mnasnet:tiny"]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, module, str(int(number)), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == code and not done.stdout and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "interrupted"


@pytest.fixture
def search(tmp_path):
    """A command that searches a table of 4,096 networks with two workers, for minutes."""
    with open(tmp_path / "towers.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*"abcdef", "quality", "phone_ms"])
        for widths in itertools.product((1, 2, 3, 4), repeat=6):
            rows.writerow([*widths, round(1 - 1 / sum(widths), 4), sum(widths) / 2])
    flags = "search --task table:towers.csv --budget-ms 4 --controller random --trials 4000"
    command = [sys.executable, "-m", "nas", *flags.split(), "--out", ".", "--study", "s"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def begin(*arguments):
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=tmp_path,
            text=True,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        for line in process.stderr:
            if re.match(r" *\d+/4000 ", line):
                return process
        pytest.fail("it ended before its first network")

    return begin


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def gone(pid: int, within_s: float) -> bool:
    """Whether a process has ended, though nobody may have waited for it."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def running(folder) -> list[int]:
    _, study = studies.load(folder)
    return [t.number for t in study.get_trials(states=(TrialState.RUNNING,))]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_search_and_its_workers_hand_over_and_end(tmp_path, search, number, code):
    process = search("--workers", "2")
    (child,) = children(process.pid)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in error
    assert "interrupted: nothing finished is lost" in error and "trial" in out
    assert (tmp_path / "s" / "result.json").exists()
    assert gone(child, 0.5) and running(tmp_path / "s") == []


def test_the_workers_of_a_killed_search_end_with_it(tmp_path, search):
    process = search("--workers", "2")
    (child,) = children(process.pid)
    process.kill()
    process.communicate()
    assert gone(child, 5)
