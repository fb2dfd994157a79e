"""Processes that take and leave the same locks, and are killed meanwhile: none may overlap."""

import multiprocessing
import os
import pathlib
import signal
import time
from collections.abc import Callable

from nas.locks import Locks

FORK = multiprocessing.get_context("fork")


def hammer(make_locks: Callable[[], Locks], scratch: pathlib.Path, until: float) -> None:
    """Take one of two locks again and again; write down whoever else comes in meanwhile."""
    locks, name = make_locks(), f"{os.getpid()}"
    while time.time() < until:
        number = int(time.time() * 1000) % 2
        inside = scratch / f"inside{number}"
        with locks.lock(f"s/{number}"):
            inside.write_text(name)  # over what a killed holder left
            time.sleep(0.001)
            if (other := inside.read_text()) != name:
                with open(scratch / "overlaps", "a") as overlaps:
                    overlaps.write(f"{other} came in to {name}\n")
        with open(scratch / "taken", "a") as taken:
            taken.write(f"{number}\n")


def hammered(
    make_locks: Callable[[], Locks], scratch: pathlib.Path, seconds: float, workers: int = 4
) -> int:
    """How often locks were taken while workers were killed and started; none of them twice."""
    until, kills = time.time() + seconds, 0
    arguments = (make_locks, scratch, until)
    crowd = [FORK.Process(target=hammer, args=arguments) for _ in range(workers)]
    for one in crowd:
        one.start()
    while not kills or time.time() < until - 0.3:
        time.sleep(0.25)
        victim = crowd.pop(0)
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        kills += 1
        crowd.append(FORK.Process(target=hammer, args=arguments))
        crowd[-1].start()
    for one in crowd:
        one.join(30)
        assert one.exitcode == 0
    assert not (scratch / "overlaps").exists(), (scratch / "overlaps").read_text()
    return len((scratch / "taken").read_text().splitlines())
