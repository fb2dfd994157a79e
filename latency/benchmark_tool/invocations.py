"""What phones and boards share: one measurement at a time, nothing left, samples of the tool."""

import contextlib
import dataclasses
import hashlib
import math
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from latency.benchmark_tool import benchmark_model
from latency.measuring import stopwatch
from latency.system import device_lock
from latency.system.json_records import utc_now
from latency.system.spared import spared
from latency.target import Kind, TargetUnavailable, Timing, cache_directory
from latency.tflite import convert

_AGREE = 0.15  # the samples' median and the tool's own figure of one long invocation
SPREAD = 0.06  # half width of a median's confidence interval beyond which it is not stable
_SPELL_S = 5.0  # of a long run: asking for the heat in between takes some tenths of a second
_State = TypeVar("_State")


def cores(text: str) -> list[int]:
    """The cores of "4-7", "7" or "4+6-7"; none of "all"."""
    if text == "all":
        return []
    listed: set[int] = set()
    for part in text.split("+"):
        found = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", part)
        if not found:
            raise ValueError(f"cores={text!r}: expected cores as 4-7 or 4+6, or all")
        listed |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
    if not listed or max(listed) > 63:
        raise ValueError(f"cores={text!r}: expected cores as 4-7 or 4+6, or all")
    return sorted(listed)


def pinned(
    text: str | None, threads: int, usual: list[int] | None, online: Sequence[int], device: str
) -> list[int] | None:
    """The cores to pin to, None for none: those of the option `cores`, or the `usual` ones."""
    chosen = usual
    if text is not None:
        chosen = None if text == "all" else cores(text)
        unknown = sorted(set(chosen or ()) - set(online)) if online else []
        if unknown:
            raise ValueError(
                f"cores={text}: the {device} has no core {unknown[0]} (online: "
                f"{', '.join(map(str, online))})"
            )
    usable = len(online if chosen is None else chosen)
    if usable and threads > usable:
        raise ValueError(f"threads={threads}: there are {usable} cores for them")
    return chosen


def check_options(target: Any) -> None:
    """Checks the options that phones and boards share; `ValueError` says what was expected."""
    if target.cores is not None:
        object.__setattr__(target, "cores", str(target.cores))  # a spec makes numbers of digits
        cores(target.cores)
    if not isinstance(target.threads, int) or not 1 <= target.threads <= 64:
        raise ValueError(f"threads={target.threads!r}: expected 1 to 64")
    for name, least in (("max_temperature_c", 0), ("cool_down_s", 0), ("limit_s", 1)):
        value = getattr(target, name)
        if not isinstance(value, (int, float)) or not least <= value < math.inf:
            raise ValueError(f"{name}={value!r}: expected a number from {least}")


def checked_file(model: Any, folder: Path, batch_size: int = 1) -> Path:
    """The `.tflite` file of a model, which LiteRT here can load; `ValueError` where it cannot."""
    tflite = convert.file_of(model, batch_size)
    if isinstance(tflite, bytes):
        file = folder / "model.tflite"
        file.write_bytes(tflite)
        tflite = file
    convert.load(tflite)
    return tflite


@contextlib.contextmanager
def alone(family: str, device: str, name: str) -> Iterator[Path]:
    """Waits until no other process measures on a device; the folder of what is left on it.

    `family` is "android" or "ssh", `device` what tells one from another, `name` its name for users.
    """
    # What a device calls itself may be "..": never a path.
    folder = cache_directory() / family / hashlib.sha256(device.encode()).hexdigest()[:16]
    with spared():
        folder.mkdir(parents=True, exist_ok=True)
    with device_lock.alone(f"{family} {device}", name, anywhere=True):
        yield folder


@contextlib.contextmanager
def temporary_folder(
    records: Path, make: Callable[[str], str], remove: Callable[[str], None]
) -> Iterator[str]:
    """A folder on the device, made by `make` of a name, removed afterwards with what is in it.

    It is recorded here before it is made, so that what could not be removed (the device was
    unplugged, this process killed) is removed when the device is used next.
    """
    name = f"nas-{secrets.token_hex(8)}"
    with spared():
        (records / name).touch()
    try:
        yield make(name)
    finally:
        with contextlib.suppress(TargetUnavailable):
            remove(name)
            (records / name).unlink(missing_ok=True)
            remove_left(records, remove)


def remove_left(records: Path, remove: Callable[[str], None]) -> None:
    """Calls `remove` for the name of each folder that is recorded as left on the device."""
    found = records.iterdir() if records.is_dir() else ()
    names = [one.name for one in found if re.fullmatch(r"nas-[0-9a-f]{16}", one.name)]
    for name in names:
        remove(name)
        (records / name).unlink(missing_ok=True)


def cooled(
    read: Callable[[], _State],
    hot: Callable[[_State], str | None],
    cool_down_s: float,
    name: str,
    remedy: str,
) -> tuple[_State, float]:
    """The device's state once `hot` says nothing of it, and the seconds waited for that."""
    started = time.monotonic()
    while True:
        state = read()
        reason = hot(state)
        waited_s = time.monotonic() - started
        if reason is None:
            return state, waited_s
        if waited_s >= cool_down_s:
            raise TargetUnavailable(
                f"{name} is too hot to measure: {reason}, after waiting {waited_s:.0f} s; "
                f"{remedy}, or raise max_temperature_c"
            )
        time.sleep(min(5.0, cool_down_s / 10 + 0.1))


@dataclasses.dataclass(frozen=True)
class Invocations:
    """What the tool printed: one invocation of all runs, the samples, and of the operations."""

    whole: benchmark_model.Report
    samples_ms: tuple[float, ...]
    detail: benchmark_model.Report | None

    @property
    def memory_mb(self) -> float | None:
        return self.detail.memory_mb if self.detail else None

    @property
    def per_op(self) -> tuple[dict[str, Any], ...] | None:
        return (self.detail.operations or None) if self.detail else None

    def conditions(self) -> dict[str, Any]:
        """What anybody gets who runs the tool once, beside how the samples came about."""
        return {
            "values": "random, of benchmark_model; integers 0",
            "samples": f"runs of invocations of {benchmark_model.RUNS_AN_INVOCATION}",
            "one_invocation": {
                "runs": self.whole.runs,
                "average_ms": self.whole.average_ms,
                "median_ms": self.whole.median_ms,
                "fastest_ms": self.whole.fastest_ms,
                "slowest_ms": self.whole.slowest_ms,
            },
            "init_ms": self.whole.init_ms,
        }

    def instabilities(self) -> list[str]:
        """Why the samples' median cannot be believed."""
        usual = usual_ms(self.whole)
        found = stopwatch.instabilities(self.samples_ms, SPREAD)
        if abs(usual / float(np.median(self.samples_ms)) - 1) > _AGREE:
            found.append(f"one invocation of all runs gave {usual:.4g} ms")
        return found


def invoke(
    run: Callable[..., benchmark_model.Report], warmup: int, runs: int, details: bool
) -> Invocations:
    """One invocation of all runs as anybody would do it, the samples, and the operations.

    `run` takes the options of `benchmark_model.arguments`. The tool prints no single times, only
    the first, last, fastest, slowest and the average, which are all of three runs: the samples are
    the runs of invocations of three.
    """
    first = max(1, warmup)
    whole = run(warmup=first, runs=runs)
    samples: list[float] = []
    while len(samples) < runs:
        some = min(benchmark_model.RUNS_AN_INVOCATION, runs - len(samples))
        samples += run(warmup=min(first, 3), runs=some).runs_ms
    detail = run(warmup=1, runs=min(runs, 10), operations=True) if details else None
    return Invocations(whole, tuple(samples), detail)


def timing_of(outcome: Any, conditions: dict[str, Any], reasons: list[str]) -> Timing:
    """`outcome` (`Invocations`, or of a board's Python) as a measurement."""
    return Timing(
        outcome.samples_ms,
        conditions | stopwatch.stability(reasons),
        Kind.MEASURED,
        memory_mb=outcome.memory_mb,
        per_op=outcome.per_op,
        per_op_kind=Kind.MEASURED if outcome.per_op else None,
    )


def spells(
    sample: Callable[[int], Sequence[float]],
    state: Callable[[], dict[str, Any]],
    conditions: dict[str, Any],
    seconds: float,
) -> Iterator[Timing]:
    """Spells of some seconds back to back: `sample` times runs, `state` reads the temperature."""
    started, runs = time.monotonic(), benchmark_model.RUNS_AN_INVOCATION
    while (at_s := time.monotonic() - started) < seconds:
        samples = tuple(sample(runs))
        now = {"at_s": round(at_s, 1), "runs": runs, "date": utc_now()}
        yield Timing(samples, conditions | state() | now, Kind.MEASURED)
        runs = round(min(max(1e3 * _SPELL_S / float(np.median(samples)), 3), 10_000))


def usual_ms(report: benchmark_model.Report) -> float:
    """The one figure of an invocation: its median, or of older tools the average."""
    return report.average_ms if report.median_ms is None else report.median_ms


def failure(status: int, output: str, name: str) -> ValueError:
    """Why the tool ended with a status other than 0."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["nothing"]
    line = next((one for one in reversed(lines) if "ERROR" in one.upper()), lines[-1])
    return ValueError(
        f"benchmark_model ended with status {status} on {name}: {line[:300]}"
        + (" (killed: is its memory full?)" if status == 137 else "")
    )
