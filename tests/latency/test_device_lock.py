"""Whoever times a device has it alone on this machine: whatever its cache and its user."""

import contextlib
import os
import subprocess
import sys
import uuid

import pytest

from latency.measuring import reference_networks, stopwatch
from latency.system import device_lock
from latency.target import TargetUnavailable

NOBODY = 65534
# Times a network on core 0 with a cache of its own, and prints when it did.
TIMES = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[2])})
from latency.cpu import CPU
from latency.measuring import reference_networks, stopwatch
CPU()._store(dict.fromkeys(reference_networks.NAMES, 1.0))
block = stopwatch.Stopwatch.block
def timed(self):
    begin = time.monotonic()
    block(self)
    spans.append((begin, time.monotonic()))
stopwatch.Stopwatch.block = timed
print("ready", flush=True)
sys.stdin.readline()
for _ in range(4):
    spans = []
    CPU().profile(sys.argv[1], warmup=1, runs=15)
    print(spans[0][0], spans[-1][1], flush=True)
"""
# Another user: prints whether it gets a lock.
TRIES = """
import os, sys
from latency.system import device_lock
os.umask(0o077)
os.setuid(int(sys.argv[2]))
held = device_lock.try_lock(sys.argv[1])
print(held is not None, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def device():
    name = f"a device of the tests, {uuid.uuid4()}"
    yield name
    device_lock._file(name).unlink(missing_ok=True)


@contextlib.contextmanager
def child(code, *arguments, **environment):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pins cores: Linux")
def test_two_processes_with_two_caches_take_turns_on_a_core(tmp_path):
    model = tmp_path / "small.tflite"
    model.write_bytes(reference_networks.network("small"))
    core, spans = min(stopwatch.allowed_cores()), []
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(child(TIMES, model, core, NAS_CACHE=str(tmp_path / name)))
            for name in ("one", "two")
        ]
        for process in both:
            assert process.stdout.readline() == "ready\n"
        for process in both:
            process.stdin.write("\n")
            process.stdin.flush()
        for process in both:
            spans.append([tuple(map(float, line.split())) for line in process.stdout])
    one, two = spans
    assert len(one) == len(two) == 4
    assert one[0][0] < two[-1][1] and two[0][0] < one[-1][1]  # at the same time, but never at once
    overlaps = [(a, b) for a in one for b in two if a[0] < b[1] and b[0] < a[1]]
    assert overlaps == []


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root: two users")
def test_two_users_exclude_each_other(device):
    """Whoever of them came first, and whatever the umask of that one."""
    with child(TRIES, device, NOBODY) as theirs:
        assert theirs.stdout.readline() == "True\n"
        assert os.stat(device_lock._file(device)).st_uid == NOBODY
        assert device_lock.try_lock(device) is None
    with device_lock.try_lock(device), child(TRIES, device, NOBODY) as theirs:
        assert theirs.stdout.readline() == "False\n"
    device_lock._file(device).unlink()
    with device_lock.try_lock(device), child(TRIES, device, NOBODY) as theirs:  # root's file
        assert theirs.stdout.readline() == "False\n"


def test_a_busy_device_is_unavailable_in_the_end(device, monkeypatch):
    monkeypatch.setattr(device_lock, "BUSY_S", 0.05)
    with device_lock.alone(device, "the board"):  # noqa: SIM117 - the second is the other process
        with pytest.raises(TargetUnavailable, match="the board is busy"):
            with device_lock.alone(device, "the board"):
                pass
    with device_lock.alone(device, "the board"):
        pass


def test_a_lock_is_no_link_to_a_file_of_somebody(device, tmp_path):
    device_lock._file(device).symlink_to(tmp_path / "theirs")
    with pytest.raises(TargetUnavailable, match="remove it"):
        device_lock.try_lock(device)
    assert list(tmp_path.iterdir()) == []


def test_a_removed_lock_is_made_anew(device):
    with device_lock.try_lock(device):
        device_lock._file(device).unlink()
    with device_lock.try_lock(device):
        assert device_lock._file(device).exists() and device_lock.try_lock(device) is None


def test_what_other_machines_reach_is_locked_for_them_too(device):
    seen = []

    @contextlib.contextmanager
    def farm(name):
        seen.append(name)
        yield
        seen.append("free")

    with device_lock.beyond(farm):
        with device_lock.alone(device, "the phone", anywhere=True):
            assert seen == [f"device/{device}"]
        with device_lock.alone(device, "a core"):
            pass
    with device_lock.alone(device, "the phone", anywhere=True):
        assert seen == [f"device/{device}", "free"]
