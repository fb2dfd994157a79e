"""Timing on a shared and busy machine: pinned cores, two clocks, short blocks taken in turns.

A candidate and a reference network run alternately in blocks of a few milliseconds. The time of a
block is its fastest sample; a sample that was preempted counts the time that it had the core.
"""

import contextlib
import dataclasses
import gc
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from latency.system import device_lock

_SAMPLE_NS = 200_000  # a sample: long for the clock (0.1 us), short for the scheduler (3 ms slices)
_BLOCK_NS = 2_500_000  # a block: short against the phases of a busy neighbour (tens of ms)
_WARM_NS = 1_000_000  # networks below this find their caches emptied by the other one: run once
_WARMING = 30  # times three runs at most, beyond the warm-up that is asked for
_WARM = 0.97  # of the fastest so far: what is not below it is no faster
SPREAD = 0.03  # half width of a median's confidence interval beyond which it is not stable
_PREEMPTED = 0.97  # CPU time below this share of wall time: something else had the core


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Times of one network in milliseconds, one a block."""

    fastest_ms: np.ndarray  # the fastest sample of each block
    wall_ms: np.ndarray  # the mean wall time of a run in each block
    share: float  # CPU time over wall time: below 1 where something else ran meanwhile


class Stopwatch:
    """Times blocks of runs of a network on the calling thread (and its pool, if `threads` > 1)."""

    def __init__(self, run: Callable[[], None], threads: int, warmup: int):
        self._run = run
        # The clock of the thread tells its time on the core, but nothing of a pool's other threads.
        self._cpu_clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
        for _ in range(warmup):
            run()
        self.run_ns = min(self._sample(1)[0] for _ in range(3))
        for _ in range(_WARMING):  # until it gets no faster
            before, now = self.run_ns, min(self._sample(1)[0] for _ in range(3))
            self.run_ns = min(before, now)
            if now > _WARM * before:
                break
        self._group = max(1, round(_SAMPLE_NS / self.run_ns))
        self._samples = max(1, round(_BLOCK_NS / (self._group * self.run_ns)))
        self._fastest: list[float] = []
        self._wall: list[float] = []
        self._share: list[float] = []

    def block(self) -> None:
        """Times one block."""
        if self.run_ns < _WARM_NS:
            self._run()
        samples = [self._sample(self._group) for _ in range(self._samples)]
        wall = [sample[0] for sample in samples]
        self._fastest.append(min(busy for _, busy in samples) / 1e6)
        self._wall.append(sum(wall) / len(wall) / 1e6)
        self._share.append(sum(min(busy, all_) for all_, busy in samples) / sum(wall))

    def blocks(self) -> Blocks:
        """What was timed so far."""
        return Blocks(np.array(self._fastest), np.array(self._wall), float(np.mean(self._share)))

    def _sample(self, runs: int) -> tuple[float, float]:
        """Nanoseconds of a run: wall clock, and without the time of other processes."""
        run = self._run
        cpu, wall = self._cpu_clock(), time.perf_counter_ns()
        for _ in range(runs):
            run()
        wall = time.perf_counter_ns() - wall
        cpu = self._cpu_clock() - cpu
        return wall / runs, (wall if cpu > _PREEMPTED * wall else cpu) / runs


def allowed_cores() -> tuple[int, ...]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


@contextlib.contextmanager
def exclusive_cores(threads: int) -> Iterator[tuple[int, ...] | None]:
    """Pins the calling thread to `threads` cores that no other measurement uses.

    Garbage collection is off meanwhile. Threads started inside inherit the cores. Waits while
    other processes, of any user, measure on all cores. Yields the cores, or None where the system
    cannot pin (macOS, Windows).
    """
    collecting = gc.isenabled()
    gc.disable()
    before = allowed_cores()
    try:
        with _locked(before, threads) as cores:
            can_pin = hasattr(os, "sched_setaffinity")
            if can_pin:
                os.sched_setaffinity(0, cores)
                niceness = _raise_priority()
            try:
                yield cores if can_pin else None
            finally:
                if can_pin:
                    os.sched_setaffinity(0, before)
                    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    finally:
        if collecting:
            gc.enable()


def _raise_priority() -> int:
    """Puts the calling thread before others, where the user may (root); its niceness until now."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    return niceness


@contextlib.contextmanager
def _locked(cores: tuple[int, ...], count: int) -> Iterator[tuple[int, ...]]:
    """Locks `count` of `cores` against other measurements on this machine."""
    with contextlib.ExitStack() as stack:
        taken: list[int] = []

        def take() -> bool | None:
            for core in cores:
                if core in taken or len(taken) == count:
                    continue
                if (lock := device_lock.try_lock(f"core{core}")) is not None:
                    stack.enter_context(lock)
                    taken.append(core)
            return len(taken) == count or None

        # One process at a time picks: two that want two cores each cannot block each other.
        with device_lock.alone("cores", "the CPU"):
            device_lock.wait_for(take, "the CPU")
        yield tuple(sorted(taken))


def cpu_model() -> str:
    """The name that the CPU gives itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Hardware", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def instabilities(samples_ms: Sequence[float], spread: float = SPREAD) -> list[str]:
    """Why the median of these samples is unstable: its uncertainty exceeds `spread`."""
    low, high = np.quantile(samples_ms, (0.25, 0.75))
    # Standard error of a median from the quartiles: 1.25 sigma / sqrt(n), sigma = (q3 - q1) / 1.35.
    sigma_ms = (high - low) / 1.35
    error = 1.96 * 1.25 * sigma_ms / len(samples_ms) ** 0.5 / float(np.median(samples_ms))
    return [f"the median is uncertain by {error:.0%}: use more runs"] if error > spread else []


def stability(reasons: Sequence[str]) -> dict[str, object]:
    """The conditions that say whether a figure is stable, and if not, the reason."""
    return {"stable": not reasons} | ({"reason": "; ".join(reasons)} if reasons else {})


def machine_state(core: int) -> dict[str, object]:
    """The load, the clock of a core and the temperature, as far as the system reports them."""
    state: dict[str, object] = {}
    with contextlib.suppress(OSError, AttributeError):
        state["load_average"] = round(os.getloadavg()[0], 2)
        state["niceness"] = os.getpriority(os.PRIO_PROCESS, 0)
    frequency = Path(f"/sys/devices/system/cpu/cpu{core}/cpufreq")
    with contextlib.suppress(OSError, ValueError):
        state["governor"] = (frequency / "scaling_governor").read_text().strip()
        state["frequency_mhz"] = int((frequency / "scaling_cur_freq").read_text()) // 1000
    hottest = [
        heat for zone in Path("/sys/class/thermal").glob("thermal_zone*") if (heat := _heat(zone))
    ]
    if hottest:
        state["temperature_c"] = max(hottest)
    return state


def _heat(zone: Path) -> float | None:
    """Degrees of a thermal zone, if it is one of the processor."""
    with contextlib.suppress(OSError, ValueError):
        kind = (zone / "type").read_text().lower()
        if any(word in kind for word in ("cpu", "pkg", "soc", "core")):
            return int((zone / "temp").read_text()) / 1000
    return None
