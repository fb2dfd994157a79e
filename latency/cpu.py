"""This machine's CPU: LiteRT (XNNPACK) on pinned cores, timed in turns with a reference network."""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from latency import litert, reference, timing
from latency.target import Target, Timing

_NOMINAL_BLOCKS = 600  # blocks of each reference that make its nominal time: about 1.5 s
_LOW = 0.03  # quantile of them that counts as undisturbed
_FASTER = 0.95  # the nominal time is replaced when the reference is seen below this share of it
_TRUSTED = 1.8  # drift beyond which a correction is not trusted
_SPREAD = 0.06  # half width of the median's confidence interval beyond which it is not stable


@dataclasses.dataclass(frozen=True)
class CPU(Target):
    """This machine with `threads` LiteRT threads at batch 1.

    Candidate and reference network take turns in blocks of about a millisecond. A sample is the
    fastest stretch of a block, divided by how much slower than nominal the reference ran just
    before and after it (`drift`). Of twice as many blocks as asked, those count in which the
    reference ran fastest. The nominal time of a reference is established once a machine and kept in
    the user's cache; the wall-clock median of all runs stays in the conditions.

    Chosen by measurement among 30 estimators (6 networks, 16 fresh processes, load average 7, the
    neighbouring core busy): standard deviation of the median 0.6 % below 0.5 ms and 3 % at 2-4 ms.
    There the plain median of wall times is off by up to 50 % and more, its minimum by 40 %, CPU
    time by 50 %, and dividing medians of separate runs (not of turns) by 13 %.

    >>> CPU(threads=1)
    CPU(threads=1)
    """

    threads: int = 1

    def __post_init__(self):
        cores = len(timing.allowed_cores())
        if not isinstance(self.threads, int) or not 1 <= self.threads <= cores:
            raise ValueError(
                f"threads={self.threads!r}: expected 1 to {cores}, the cores of this process"
            )

    @property
    def device(self) -> str:
        return f"{timing.cpu_model()}, {platform.machine()}, {os.cpu_count()} cores"

    def identity(self) -> dict[str, Any]:
        """The conditions under which an earlier measurement still holds, nominal times included."""
        return self._conditions() | {"nominal_ms": self._nominal()}

    def measure(self, model: Any, batch_size: int, warmup: int, runs: int) -> Timing:
        if batch_size != 1:
            raise ValueError(f"batch_size={batch_size}: a LiteRT file is written for batch 1")
        tflite = _tflite(model)
        nominal = self._nominal()
        with timing.undisturbed(self.threads, _cache()) as cores:
            candidate = timing.Stopwatch(
                _runner(tflite, self.threads), self.threads, max(warmup, 1)
            )
            name = _nearest(nominal, candidate.run_ns / 1e6)
            beside = timing.Stopwatch(_reference(name, self.threads), self.threads, 3)
            beside.block()
            for _ in range(2 * runs):
                candidate.block()
                beside.block()
            state = timing.machine_state(cores[0] if cores else 0)
        network, measured = candidate.blocks(), beside.blocks()
        around = (measured.fastest_ms[:-1] + measured.fastest_ms[1:]) / 2
        drifts = around / nominal[name]
        self._lower(name, measured.fastest_ms, nominal)
        calm = np.sort(np.argsort(drifts, kind="stable")[:runs])
        samples = tuple(float(sample) for sample in (network.fastest_ms / drifts)[calm])
        drift = float(np.median(drifts[calm]))
        conditions = self._conditions() | {
            "pinned_cores": list(cores) if cores else None,
            **state,
            "contention": round(network.share, 3),
            "reference": name,
            "reference_nominal_ms": nominal[name],
            "drift": round(drift, 4),
            "raw_median_ms": float(np.median(network.wall_ms)),
            "blocks": 2 * runs,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        return Timing(samples, conditions | _stability(samples, drift))

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
            if all(stored[name] > 0 for name in reference.NAMES):
                return {name: stored[name] for name in reference.NAMES}
        with timing.undisturbed(self.threads, _cache()):
            watches = {
                name: timing.Stopwatch(_reference(name, self.threads), self.threads, 3)
                for name in reference.NAMES
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

    def _lower(self, name: str, seen_ms: np.ndarray, nominal: dict[str, float]) -> None:
        """Stores a lower nominal time where a reference is clearly faster now."""
        fast = float(np.quantile(seen_ms, 0.25))
        if len(seen_ms) > 20 and fast < _FASTER * nominal[name]:
            self._store(nominal | {name: float(np.quantile(seen_ms, _LOW))})

    def _nominal_path(self) -> Path:
        conditions = json.dumps(self._conditions(), sort_keys=True)
        return _cache() / f"{hashlib.sha256(conditions.encode()).hexdigest()[:16]}.json"

    def _store(self, nominal: dict[str, float]) -> None:
        path = self._nominal_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        record = self._conditions() | {
            "nominal_ms": nominal,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(record, indent=1))
        partial.replace(path)


def _cache() -> Path:
    """Where nominal times and core locks live: NAS_CACHE, else ~/.cache/nas."""
    return Path(os.environ.get("NAS_CACHE") or Path.home() / ".cache" / "nas") / "cpu"


def _tflite(model: Any) -> bytes | Path:
    """The LiteRT file of a model or of a .keras file; the path of a .tflite file as it is."""
    if isinstance(model, (str, Path)):
        path = Path(model)
        if path.suffix == ".tflite":
            return path
        if path.suffix != ".keras":
            raise ValueError(f"{path}: expected a .tflite or .keras file")
        import keras

        model = keras.saving.load_model(path, compile=False)
    try:
        return litert.assemble(model)
    except ValueError as unsupported:
        try:
            return litert.convert(model)
        except ValueError as error:
            raise ValueError(f"{error}; and written directly: {unsupported}") from error


@functools.cache
def _reference(name: str, threads: int) -> Callable[[], None]:
    return _runner(reference.network(name), threads)


def _runner(tflite: bytes | Path, threads: int) -> Callable[[], None]:
    """What runs a network once. Its inputs are filled: what memory held before may be denormals."""
    interpreter = litert.load(tflite, threads)
    random = np.random.default_rng(0)
    for entry in interpreter.get_input_details():
        values = random.random(tuple(entry["shape"]), np.float32).astype(entry["dtype"])
        interpreter.set_tensor(entry["index"], values)
    return interpreter.invoke


def _nearest(nominal: dict[str, float], run_ms: float) -> str:
    """The reference whose time is nearest to that of a network, as a ratio."""
    return min(nominal, key=lambda name: abs(np.log(run_ms / nominal[name])))


def _stability(samples: tuple[float, ...], drift: float) -> dict[str, Any]:
    """Whether the median can be believed, and if not, why."""
    low, high = np.quantile(samples, (0.25, 0.75))
    # Standard error of a median from the quartiles: 1.25 sigma / sqrt(n), sigma = (q3 - q1) / 1.35.
    error = 1.96 * 1.25 * (high - low) / 1.35 / len(samples) ** 0.5 / float(np.median(samples))
    if drift > _TRUSTED or drift < 1 / _TRUSTED:
        return {
            "stable": False,
            "reason": f"the reference ran at {drift:.2f} times its nominal time",
        }
    if error > _SPREAD:
        return {"stable": False, "reason": f"the median is uncertain by {error:.0%}; use more runs"}
    return {"stable": True}
