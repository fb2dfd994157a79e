"""A device that networks are timed on (`Target`) and the latency that it gives (`Latency`)."""

import abc
import dataclasses
import enum
import functools
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np


def cache_directory() -> Path:
    """The user's cache: NAS_CACHE, else ~/.cache/nas."""
    return Path(os.environ.get("NAS_CACHE") or Path.home() / ".cache" / "nas")


class TargetUnavailable(RuntimeError):
    """The device cannot be reached now; the message says what is missing and how to get it."""


class DoesNotFit(ValueError):
    """The network needs more memory than the device has.

    Args:
        message: one line for the user.
        needed_mb: what the network needs, where it is known.
        available_mb: what the device has, where it is known.
    """

    def __init__(self, message: str, needed_mb: float | None, available_mb: float | None):
        super().__init__(message)
        self.needed_mb = needed_mb
        self.available_mb = available_mb

    def __reduce__(self) -> tuple[type["DoesNotFit"], tuple[str, float | None, float | None]]:
        return DoesNotFit, (str(self), self.needed_mb, self.available_mb)


class Kind(enum.StrEnum):
    """Where a figure comes from."""

    MEASURED = "measured"  # the device itself took this time
    COMPILED = "compiled"  # an estimate over what the device's own compiler made of the network
    PREDICTED = "predicted"  # a model's estimate: a roofline, or one fitted to measurements


@dataclasses.dataclass(frozen=True)
class FoundDevice:
    """Something that `nas devices` lists: how to name it, what its figures are, what is missing."""

    spec: str  # e.g. "android:0A1B2C"
    device: str
    kind: Kind
    missing: str | None = None  # what is missing and how to get it; None: it can be used now


@dataclasses.dataclass(frozen=True)
class Latency:
    """The latency of one network on one device: every timed sample, and the conditions.

    Only `Target.profile` and `from_json` make one, so `kind` comes from the target's own code.

    Args:
        target: the target, as its repr.
        device: what the device calls itself.
        batch_size: examples a run; of a network that is built for a batch, that.
        samples_ms: milliseconds of each timed run, or of each sample of several runs.
        kind: whether the device took this time, or it is an estimate.
        memory_mb: peak memory, where it is known.
        per_op: a dict for each operation: "name", "type", "ms" of a run, where known "fastest_ms",
            and "within": "graph", or "delegate" for a part of an operation that is listed too.
        per_op_kind: the kind of these times: a measured latency may come with estimated operations.
        conditions: what else decides the time: runtime, threads, clocks, whether it was stable.

    >>> latency = Latency("a board", "board 1", 1, (2.0, 2.1, 2.4), Kind.MEASURED)
    >>> latency.median_ms, latency.measured, latency.interval_ms
    (2.1, True, (2.0, 2.4))
    >>> Latency.from_json(latency.to_json()) == latency
    True
    """

    target: str
    device: str
    batch_size: int
    samples_ms: tuple[float, ...]
    kind: Kind
    memory_mb: float | None = None
    per_op: tuple[dict[str, Any], ...] | None = None
    per_op_kind: Kind | None = None
    conditions: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def measured(self) -> bool:
        return self.kind is Kind.MEASURED

    @property
    def op_min_ms(self) -> float | None:
        """The sum of the fastest times of each operation, where they were measured.

        It repeats on a busy machine where the median does not, and lacks the time between
        operations: to be shown beside the median, never instead of it.
        """
        rows = [row for row in self.per_op or () if row.get("within", "graph") == "graph"]
        if self.per_op_kind is not Kind.MEASURED or not all("fastest_ms" in row for row in rows):
            return None
        return sum(row["fastest_ms"] for row in rows) if rows else None

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
            "measured": self.measured,
            "op_min_ms": self.op_min_ms,
            "median_ms": self.median_ms,
            "interval_ms": list(self.interval_ms),
            "p10_ms": self.p10_ms,
            "p90_ms": self.p90_ms,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Latency":
        """The inverse of `to_json`; entries that are no fields are ignored."""
        fields = {field.name: content[field.name] for field in dataclasses.fields(cls)}
        fields["samples_ms"] = tuple(fields["samples_ms"])
        fields["per_op"] = None if fields["per_op"] is None else tuple(fields["per_op"])
        for name in ("kind", "per_op_kind"):
            fields[name] = None if fields[name] is None else Kind(fields[name])
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Timing:
    """What a target's `measure` returns: the part of a `Latency` that only the device knows."""

    samples_ms: tuple[float, ...]
    conditions: dict[str, Any]
    kind: Kind
    memory_mb: float | None = None
    per_op: tuple[dict[str, Any], ...] | None = None
    per_op_kind: Kind | None = None


class Target(abc.ABC):
    """A device, or a model of one, that gives the latency of a network.

    Subclasses are final frozen dataclasses; their fields are the options on the command line. They
    implement `device`, `identity` and `measure`; callers use `profile`, `compare` and `sustain`,
    whose `model` is a `keras.Model` or the path of a `.tflite` or `.keras` file.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Board(Target):
    ...     kinds = frozenset({Kind.PREDICTED})
    ...     device = "a board"
    ...     ms_per_parameter: float = 1e-6
    ...     def identity(self):
    ...         return {"device": self.device, "kind": "predicted"}
    ...     def measure(self, model, batch_size, warmup, runs, details):
    ...         ms = self.ms_per_parameter * model.count_params() * batch_size
    ...         return Timing((ms,), {"rule": "parameters"}, Kind.PREDICTED)
    >>> import types
    >>> model = types.SimpleNamespace(count_params=lambda: 3_000_000)
    >>> Board().profile(model, batch_size=2).median_ms
    6.0
    """

    kinds: ClassVar[frozenset[Kind]]  # what its figures can be; `profile` raises on any other
    runs_tflite: ClassVar[bool] = False  # whether it times `.tflite` files, integers and all

    @classmethod
    def discover(cls) -> list[FoundDevice]:
        """What of this kind can be used on this machine now, or what is missing for it."""
        return []

    @property
    @abc.abstractmethod
    def device(self) -> str:
        """What the device says it is."""

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """The conditions under which an earlier measurement of the same network still holds.

        Where a target has several kinds, the kind of its figures now is one of them.
        """

    @abc.abstractmethod
    def measure(self, model: Any, batch_size: int, warmup: int, runs: int, details: bool) -> Timing:
        """Times `model`: `warmup` runs that do not count, then `runs` samples.

        `details` asks for memory and for the time of each operation too, where the device has them.
        Raises `ValueError` for a model that it cannot run, `TargetUnavailable` where the device
        cannot be reached, `DoesNotFit` where its memory is too small.
        """

    def measure_together(
        self, models: Sequence[Any], batch_size: int, warmup: int, runs: int, details: bool
    ) -> list[Timing]:
        """Times several models; a target that can takes them in turns, under equal conditions."""
        return [self.measure(model, batch_size, warmup, runs, details) for model in models]

    def spells(self, model: Any, batch_size: int, seconds: float) -> Iterator[Timing]:
        """Timings of about a second each, back to back for `seconds`, whatever the device's heat.

        Their conditions hold "at_s", seconds since the start. Raises `ValueError` where it cannot.
        """
        raise ValueError(f"{self!r} cannot run for long: nothing in it warms up")

    def explain(self, model: Any, latency: Latency) -> Any:
        """What bounds each operation of `model`: a `latency.roofline.explanation.Explanation`.

        `latency` is what this target gave for the model. A target whose limits are known overrides
        this; one that runs `.tflite` files can call `latency.roofline.of_tflite.explain`.
        """
        raise ValueError(
            f"{self!r}: what it can do at most is not known (it is of cpu, android, ssh, tpu, gpu)"
        )

    @property
    def learned_from(self) -> str | None:
        """The spec of the real device that a predictor was fitted on, where there is one."""
        return None

    @final
    def time(
        self, model: Any, batch_size: int = 1, warmup: int = 10, runs: int = 50
    ) -> list[float]:
        """The timed samples in milliseconds."""
        return list(self.profile(model, batch_size, warmup, runs).samples_ms)

    @final
    def profile(
        self,
        model: Any,
        batch_size: int = 1,
        warmup: int = 10,
        runs: int = 50,
        details: bool = False,
    ) -> Latency:
        """The latency of `model` with the conditions of the measurement.

        Args:
            model: a `keras.Model` or the path of a `.tflite` or `.keras` file.
            batch_size: examples a run, at least 1.
            warmup: runs that do not count. runs: samples.
            details: whether to find memory and the time of each operation, too; takes longer.
        """
        return self.compare([model], batch_size, warmup, runs, details)[0]

    @final
    def compare(
        self,
        models: Sequence[Any],
        batch_size: int = 1,
        warmup: int = 10,
        runs: int = 50,
        details: bool = False,
    ) -> list[Latency]:
        """The latencies of several models, timed under conditions that are as equal as can be."""
        from latency.networks import inputs

        if batch_size < 1 or warmup < 0 or runs < 1:
            raise ValueError(
                f"batch_size={batch_size}, warmup={warmup}, runs={runs}: expected at least 1, 0, 1"
            )
        for model in models:
            if isinstance(model, (str, Path)) and not Path(model).is_file():
                raise ValueError(f"{model}: expected a .tflite or .keras file, found none")
            inputs.check_sizes(model)
        latencies: list[Latency] = []
        # Networks that are built for a batch of their own run with it.
        own = [inputs.batch_of(model) if batch_size == 1 else None for model in models]
        for size, group in itertools.groupby(
            zip(models, own, strict=True), lambda pair: pair[1] or batch_size
        ):
            together = [model for model, _ in group]
            timings = self.measure_together(together, size, warmup, runs, details)
            device = self.device
            latencies += [
                self._latency(timing, size, device, model)
                for timing, model in zip(timings, together, strict=True)
            ]
        return latencies

    @final
    def sustain(self, model: Any, batch_size: int = 1, seconds: float = 600.0) -> Iterator[Latency]:
        """The latency from cold to warm: `model` runs without pause for `seconds`.

        Yields a `Latency` about every second; its condition "at_s" has the seconds since the start.
        """
        from latency.networks import inputs

        inputs.check_sizes(model)
        device = self.device  # asked once: it may be a phone, which is to have no pause
        for timing in self.spells(model, batch_size, seconds):
            yield self._latency(timing, batch_size, device, model)

    def _latency(self, timing: Timing, batch_size: int, device: str, model: Any) -> Latency:
        if timing.kind not in self.kinds:
            raise TypeError(f"{self!r} gave a {timing.kind} figure, it declares {self.kinds}")
        from latency.networks import inputs

        conditions = inputs.as_run(model, batch_size) | timing.conditions
        fields = vars(timing) | {"conditions": conditions}
        return Latency(target=repr(self), device=device, batch_size=batch_size, **fields)
