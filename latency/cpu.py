"""This machine's CPU: LiteRT (XNNPACK) on pinned cores, timed in turns with a reference network."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from latency.measuring import reference_networks, stopwatch
from latency.roofline import of_tflite
from latency.roofline.explanation import Explanation
from latency.system.json_records import utc_now
from latency.system.spared import keep_json
from latency.target import FoundDevice, Kind, Latency, Target, Timing, cache_directory
from latency.tflite import convert, process, profiler

_NOMINAL_BLOCKS = 600  # blocks of each reference that make its nominal time: about 1.5 s
_LOW = 0.03  # quantile of them that counts as free of interference
_FASTER = 0.95  # the nominal time is replaced when the reference is seen below this share of it
_TRUSTED = 1.8  # drift beyond which a correction is not trusted
_SPELL_S = 1.0  # of a long run
_KEPT = 101  # quantiles of the runs of a spell: all of 10,000 runs a second would fill the disk

_timed: dict[Path, dict[str, float]] = {}  # nominal times that the cache could not keep


@dataclasses.dataclass(frozen=True)
class CPU(Target):
    """This machine with `threads` LiteRT threads.

    Candidate and reference networks take turns in blocks of a few milliseconds. A sample is the
    fastest stretch of a block, divided by how much slower than nominal the references ran just
    before and after it (`drift`). The nominal time of a reference is established once a machine and
    kept in the user's cache; the wall-clock median of all runs stays in the conditions.

    Chosen by measurement among some 40 estimators (8 networks, 10 fresh processes of 60 blocks, a
    load average of 8 on 2 cores): over the processes the median has a standard deviation of 1.0 to
    1.5 % where the weights fit the core's cache and of 2 to 4 % for larger networks. Without the
    references it is 9 to 18 %, by CPU time as by its minimum, and wall medians are off by factors.
    Ratios of quantiles, other mixes of references and the calmer half of the blocks are no better.
    Networks bound by reading their weights (over 10 MB a millisecond) vary by 10 %.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "net.tflite")
    ...     size = path.write_bytes(reference_networks.network("small"))
    ...     latency = CPU(threads=1).profile(path, runs=10)
    >>> latency.kind.value, len(latency.samples_ms), 0 < latency.median_ms < 50
    ('measured', 10, True)
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.MEASURED})
    runs_tflite: ClassVar[bool] = True
    threads: int = 1

    @classmethod
    def discover(cls) -> list[FoundDevice]:
        return [FoundDevice("cpu:threads=1", cls().device, Kind.MEASURED)]

    def __post_init__(self):
        cores = len(stopwatch.allowed_cores())
        if not isinstance(self.threads, int) or not 1 <= self.threads <= cores:
            raise ValueError(
                f"threads={self.threads!r}: expected 1 to {cores}, the cores of this process"
            )

    @property
    def device(self) -> str:
        return f"{stopwatch.cpu_model()}, {platform.machine()}, {os.cpu_count()} cores"

    def identity(self) -> dict[str, Any]:
        """The conditions under which an earlier measurement still holds, nominal times included."""
        return self._conditions() | {"nominal_ms": self._nominal()}

    def measure(self, model: Any, batch_size: int, warmup: int, runs: int, details: bool) -> Timing:
        return self.measure_together([model], batch_size, warmup, runs, details)[0]

    def measure_together(
        self, models: Sequence[Any], batch_size: int, warmup: int, runs: int, details: bool
    ) -> list[Timing]:
        """Times several models block by block in turns, the references before and after each."""
        if not models:
            return []
        files = [convert.file_of(model, batch_size) for model in models]
        nominal = self._nominal()
        with stopwatch.exclusive_cores(self.threads) as cores:
            candidates = [
                stopwatch.Stopwatch(
                    convert.runner(file, self.threads), self.threads, max(warmup, 1)
                )
                for file in files
            ]
            chosen = [_references_for(nominal, candidate.run_ns / 1e6) for candidate in candidates]
            references = {
                name: stopwatch.Stopwatch(_reference(name, self.threads), self.threads, 3)
                for name in reference_networks.NAMES
                if any(name in names for names in chosen)
            }
            order = _take_turns(candidates, list(references.values()), runs)
            state = stopwatch.machine_state(cores[0] if cores else 0)
            details_of = [self._details(file, runs) if details else {} for file in files]
        seen_ms = {name: watch.blocks().fastest_ms for name, watch in references.items()}
        slowness = {name: seen / nominal[name] for name, seen in seen_ms.items()}
        self._lower(seen_ms, nominal)
        common = {
            **self._conditions(),
            "pinned_cores": list(cores) if cores else None,
            **state,
            "runs": runs,
            "values": convert.VALUES,
            "taken_in_turns_with": len(models) - 1,
            "date": utc_now(),
        }
        timings = []
        for number, (candidate, names, more) in enumerate(
            zip(candidates, chosen, details_of, strict=True)
        ):
            blocks = candidate.blocks()
            before = np.flatnonzero(order == number)
            slow = np.mean([slowness[name] for name in names], axis=0)
            drifts = (slow[before] + slow[before + 1]) / 2
            samples = tuple((blocks.fastest_ms / drifts).tolist())
            drift = float(np.median(drifts))
            conditions = common | {
                "contention": round(blocks.share, 3),
                "reference_ms": {name: nominal[name] for name in names},
                "drift": round(drift, 4),
                "raw_median_ms": float(np.median(blocks.wall_ms)),
                **more.pop("conditions", {}),
                **stopwatch.stability(_instabilities(samples, drift)),
            }
            timings.append(Timing(samples, conditions, Kind.MEASURED, **more))
        return timings

    def spells(self, model: Any, batch_size: int, seconds: float) -> Iterator[Timing]:
        """Wall times of single runs, uncorrected: a machine that warms up must show."""
        run = convert.runner(convert.file_of(model, batch_size), self.threads)
        with stopwatch.exclusive_cores(self.threads) as cores:
            conditions = self._conditions() | {"pinned_cores": list(cores) if cores else None}
            started = time.monotonic()
            while (at_s := time.monotonic() - started) < seconds:
                samples: list[float] = []
                busy = time.process_time()
                while sum(samples) < 1e3 * _SPELL_S:
                    before = time.perf_counter()
                    run()
                    samples.append(1e3 * (time.perf_counter() - before))
                share = 1e3 * (time.process_time() - busy) / sum(samples) / self.threads
                now = {
                    "at_s": round(at_s, 1),
                    **stopwatch.machine_state(cores[0] if cores else 0),
                    "contention": round(min(share, 1.0), 3),
                    "runs": len(samples),
                    "date": utc_now(),
                }
                few = np.quantile(samples, np.linspace(0, 1, min(len(samples), _KEPT)))
                yield Timing(tuple(few.tolist()), conditions | now, Kind.MEASURED)

    def explain(self, model: Any, latency: Latency) -> Explanation:
        return of_tflite.explain(self, model, latency)

    def _details(self, tflite: bytes | Path, runs: int) -> dict[str, Any]:
        """Memory and the time of each operation, on the cores of this thread; or why not."""
        details: dict[str, Any] = {}
        conditions = details["conditions"] = {}
        with contextlib.ExitStack() as stack:
            if isinstance(tflite, bytes):
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nas_cpu_"))
                path = Path(folder) / "model.tflite"
                path.write_bytes(tflite)
            else:
                path = tflite
            try:
                details["memory_mb"] = process.memory_mb(path, self.threads)
                conditions["memory"] = "peak resident memory of a new process, less that at start"
            except ValueError as error:
                conditions["memory"] = f"unknown: {error}"
            try:
                details["per_op"], count = profiler.operations(path, self.threads, runs)
                details["per_op_kind"] = Kind.MEASURED
                conditions["per_op"] = f"LiteRT's profiler, whole microseconds, {count} runs"
            except profiler.ProfilerFailed as error:
                conditions["per_op"] = f"unknown: {error}"
        return details

    def _conditions(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "runtime": f"LiteRT {metadata.version('ai-edge-litert')}, XNNPACK",
            "threads": self.threads,
        }

    def _nominal(self) -> dict[str, float]:
        """The nominal milliseconds of each reference on this machine; timed at the first call."""
        path = self._nominal_path()
        with contextlib.suppress(OSError, ValueError, KeyError):
            stored = json.loads(path.read_text())["nominal_ms"]
            if all(stored[name] > 0 for name in reference_networks.NAMES):
                return {name: stored[name] for name in reference_networks.NAMES}
        if path in _timed:
            return _timed[path]
        with stopwatch.exclusive_cores(self.threads):
            watches = {
                name: stopwatch.Stopwatch(_reference(name, self.threads), self.threads, 3)
                for name in reference_networks.NAMES
            }
            for _ in range(_NOMINAL_BLOCKS):
                for watch in watches.values():
                    watch.block()
        nominal = {
            name: float(np.quantile(watch.blocks().fastest_ms, _LOW))
            for name, watch in watches.items()
        }
        self._store(nominal)
        return nominal

    def _lower(self, seen_ms: dict[str, np.ndarray], nominal: dict[str, float]) -> None:
        """Stores lower nominal times where the references are clearly faster now."""
        faster = {
            name: float(np.quantile(seen, _LOW))
            for name, seen in seen_ms.items()
            if len(seen) > 20 and np.quantile(seen, 0.25) < _FASTER * nominal[name]
        }
        if faster:
            self._store(nominal | faster)

    def _nominal_path(self) -> Path:
        conditions = json.dumps(self._conditions(), sort_keys=True)
        return _cache() / f"{hashlib.sha256(conditions.encode()).hexdigest()[:16]}.json"

    def _store(self, nominal: dict[str, float]) -> None:
        path = self._nominal_path()
        content = self._conditions() | {"nominal_ms": nominal, "date": utc_now()}
        keep_json(path, content)
        if not path.is_file():
            _timed[path] = nominal


def _cache() -> Path:
    """Where nominal times live."""
    return cache_directory() / "cpu"


@functools.cache
def _reference(name: str, threads: int) -> Callable[[], None]:
    return convert.runner(reference_networks.network(name), threads)


def _take_turns(
    candidates: Sequence[stopwatch.Stopwatch], references: Sequence[stopwatch.Stopwatch], runs: int
) -> np.ndarray:
    """`runs` blocks of each candidate, the references between any two; whose turn each was."""
    order = []
    for turn in range(runs):
        first = turn % len(candidates)  # nobody always comes after the same one
        order += [*range(first, len(candidates)), *range(first)]
    for number in (None, *order):
        if number is not None:
            candidates[number].block()
        for watch in references:
            watch.block()
    return np.array(order)


def _references_for(nominal: dict[str, float], run_ms: float) -> tuple[str, ...]:
    """The references to time beside a network: both, or only the small one beside a small one."""
    small = run_ms < (nominal["small"] * nominal["large"]) ** 0.5
    return ("small",) if small else ("small", "large")


def _instabilities(samples: tuple[float, ...], drift: float) -> list[str]:
    """Why the median cannot be believed."""
    if drift > _TRUSTED or drift < 1 / _TRUSTED:
        return [f"the reference ran at {drift:.2f} times its nominal time"]
    return stopwatch.instabilities(samples)
