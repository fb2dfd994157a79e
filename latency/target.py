"""What a device answers (`Latency`) and how it is asked (`Target`)."""

import abc
import dataclasses
import functools
import math
import os
from pathlib import Path
from typing import Any, final

import numpy as np


def cache_directory() -> Path:
    """The user's cache: NAS_CACHE, else ~/.cache/nas."""
    return Path(os.environ.get("NAS_CACHE") or Path.home() / ".cache" / "nas")


class TargetUnavailable(RuntimeError):
    """The device cannot be reached now; the message says what is missing and how to get it."""


@dataclasses.dataclass(frozen=True)
class Latency:
    """What one network costs on one device: every timed sample, and the conditions.

    `measured` is true only for times that the device itself took: never for an estimate.
    """

    target: str
    device: str
    batch_size: int
    samples_ms: tuple[float, ...]
    measured: bool
    memory_mb: float | None = None
    per_op: tuple | None = None
    conditions: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def median_ms(self) -> float:
        return float(np.median(self.samples_ms))

    @property
    def p10_ms(self) -> float:
        return float(np.quantile(self.samples_ms, 0.1))

    @property
    def p90_ms(self) -> float:
        return float(np.quantile(self.samples_ms, 0.9))

    @functools.cached_property
    def interval_ms(self) -> tuple[float, float]:
        """The 95 % confidence interval of the median, from order statistics (binomial)."""
        ordered = sorted(self.samples_ms)
        count = len(ordered)
        # From r-th smallest to r-th largest misses the median with P = 2 P(Binomial(n, 1/2) < r).
        missed, rank = 0.0, 0
        while rank < count // 2:
            missed += math.comb(count, rank) / 2**count
            if 2 * missed > 0.05:
                break
            rank += 1
        rank = max(rank, 1)
        return ordered[rank - 1], ordered[count - rank]

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON, with the statistics spelled out; `from_json` reads it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["samples_ms"] = list(self.samples_ms)
        fields["per_op"] = None if self.per_op is None else list(self.per_op)
        return fields | {
            "median_ms": self.median_ms,
            "interval_ms": list(self.interval_ms),
            "p10_ms": self.p10_ms,
            "p90_ms": self.p90_ms,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Latency":
        """The inverse of `to_json`; what the record holds beyond the fields is ignored."""
        fields = {field.name: record[field.name] for field in dataclasses.fields(cls)}
        fields["samples_ms"] = tuple(fields["samples_ms"])
        fields["per_op"] = None if fields["per_op"] is None else tuple(fields["per_op"])
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Timing:
    """What a target's `measure` returns: the part of a `Latency` that only the device knows."""

    samples_ms: tuple[float, ...]
    conditions: dict[str, Any]
    measured: bool = True
    memory_mb: float | None = None
    per_op: tuple | None = None


class Target(abc.ABC):
    """A device, or a model of one, that tells the latency of a network.

    Subclasses are final frozen dataclasses.
    `model` is a `keras.Model` or the path of a `.tflite` or `.keras` file.
    """

    @property
    @abc.abstractmethod
    def device(self) -> str:
        """What the device says it is."""

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """The conditions under which an earlier measurement of the same network still holds."""

    @abc.abstractmethod
    def measure(self, model: Any, batch_size: int, warmup: int, runs: int) -> Timing:
        """Times `model`: `warmup` runs that do not count, then `runs` samples."""

    @final
    def time(self, model: Any, batch_size=1, warmup=10, runs=50) -> list[float]:
        """The timed samples in milliseconds."""
        return list(self.profile(model, batch_size, warmup, runs).samples_ms)

    @final
    def profile(self, model: Any, batch_size=1, warmup=10, runs=50) -> Latency:
        """The latency of `model` with the conditions of the measurement."""
        if batch_size < 1 or warmup < 0 or runs < 1:
            raise ValueError(
                f"batch_size={batch_size}, warmup={warmup}, runs={runs}: expected at least 1, 0, 1"
            )
        if isinstance(model, (str, Path)) and not Path(model).is_file():
            raise ValueError(f"{model}: expected a .tflite or .keras file, found none")
        timing = self.measure(model, batch_size, warmup, runs)
        return Latency(target=repr(self), device=self.device, batch_size=batch_size, **vars(timing))
