"""Files written whole or not at all, and a worker process whose end does not end its caller."""

import os
import signal
import threading

import pytest

from latency.system.atomic_write import atomic_write
from latency.system.worker_process import WorkerDied, WorkerProcess, WorkerTimeout

WORKER = """
import os, signal, sys, time
from latency.system import worker_process

def answer(request):
    print("noise")  # is no answer
    if "signal" in request:
        sys.stderr.write("first\\nlast words\\n")
        os.kill(os.getpid(), request["signal"])
    if "exit" in request:
        raise SystemExit(request["exit"])
    time.sleep(request.get("sleep", 0))
    return {"pid": os.getpid(), "folder": os.getcwd(), "VARIABLE": os.environ.get("VARIABLE")}

worker_process.serve(answer)
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "answering.py").write_text(WORKER)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "queue.py").write_text("raise ImportError('of the current directory')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    with WorkerProcess("answering", {"VARIABLE": "1"}) as process:
        yield process


def test_a_worker_answers_again_and_again(worker):
    first, second = worker.ask({}, 60), worker.ask({}, 60)
    assert first == second and first["pid"] == worker.pid != os.getpid()
    assert first["VARIABLE"] == "1" and first["folder"].endswith("here")


def test_a_worker_that_died_is_replaced(worker):
    first = worker.ask({}, 60)["pid"]
    with pytest.raises(
        WorkerDied, match="was killed by SIGSEGV; its last words: last words$"
    ) as at:
        worker.ask({"signal": int(signal.SIGSEGV)}, 60)
    assert at.value.cause == "SIGSEGV" and worker.pid is None
    assert worker.ask({}, 60)["pid"] != first
    with pytest.raises(WorkerDied, match=r"ended with exit code 1 and no answer; .*SystemExit: 3"):
        worker.ask({"exit": 3}, 60)


def test_a_worker_that_takes_too_long_is_killed(worker):
    pid = worker.ask({}, 60)["pid"]
    with pytest.raises(WorkerTimeout, match=r"no answer within 0\.2 s"):
        worker.ask({"sleep": 600}, 0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_ends_with_its_callers_context(worker):
    pid = worker.ask({}, 60)["pid"]
    asking = threading.Thread(target=worker.__exit__)
    asking.start()
    asking.join(10)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "model.keras"
    with atomic_write(path) as partial:
        assert partial.suffix == ".keras" and partial.parent == path.parent
        partial.write_text("one")
        assert not path.exists()
    with pytest.raises(KeyError), atomic_write(path) as partial:
        partial.write_text("half of tw")
        raise KeyError
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / "net.mlpackage"
    for content in ("one", "two"):
        with atomic_write(path) as partial:
            partial.mkdir()
            (partial / content).write_text(content)
    with pytest.raises(KeyError), atomic_write(path) as partial:
        partial.mkdir()
        (partial / "three").write_text("thr")
        raise KeyError
    assert [one.name for one in path.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [path]
