"""Why a network takes its time on a device: each operation beside what bounds it there.

Of an operation: what it computes and moves, on paper or as a compiler made it; the least time that
the device's peak, its bandwidth and a launch allow (`latency.roofline.device_limits`); and the time
that it takes, of which `kind` says whether the device took it or it is an estimate.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from latency.roofline.device_limits import BOUNDS, DeviceLimits
from latency.roofline.kernel_times import Kernel
from latency.target import Kind, Latency

_STAGE = re.compile(r"(?:stem|head|block\d+|layer\d+|stage\d+)(?=_|$)")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a run. `ms` is None where its time is not its own: beside or within others.

    `limits_ms` has the least milliseconds that each of `device_limits.LIMITS` allows.
    """

    name: str
    type: str
    op_class: str
    flops: float  # two a multiply-add, by the convention of `latency.networks.count`
    bytes: float
    ms: float | None
    limits_ms: dict[str, float]

    @property
    def stage(self) -> str:
        """The part of the network that it belongs to, by its name: stem, block3, head."""
        return stage(self.name)

    @property
    def intensity(self) -> float | None:
        """Operations a byte; None where nothing is moved."""
        return self.flops / self.bytes if self.bytes else None

    @property
    def attainable_ms(self) -> float:
        """The least time that the device allows."""
        return max(self.limits_ms.values())

    @property
    def bound(self) -> str:
        """Which limit it meets first, one of `device_limits.BOUNDS`."""
        if not self.attainable_ms:
            return "none"
        return max(self.limits_ms, key=self.limits_ms.__getitem__)

    @property
    def efficiency(self) -> float | None:
        """Attainable over taken time: above 1 where caches hold what counts as moved.

        None where there is no time, or nothing that it could be held against.
        """
        return self.attainable_ms / self.ms if self.ms and self.attainable_ms else None

    def to_json(self) -> dict[str, Any]:
        """A plain dict, with all that follows spelled out."""
        names = ("stage", "intensity", "attainable_ms", "bound", "efficiency")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Part:
    """Several operations taken together: those of a class, of a stage, of a bound, or all."""

    name: str
    count: int
    flops: float
    bytes: float
    ms: float
    attainable_ms: float  # of the operations that have a time
    bound: str  # of most of the attainable time

    @property
    def intensity(self) -> float | None:
        return self.flops / self.bytes if self.bytes else None

    @property
    def efficiency(self) -> float | None:
        return self.attainable_ms / self.ms if self.ms else None

    @property
    def tflops(self) -> float | None:
        """10^12 operations a second."""
        return self.flops / self.ms / 1e9 if self.ms else None

    def to_json(self) -> dict[str, Any]:
        """A plain dict, with all that follows spelled out."""
        names = ("intensity", "efficiency", "tflops")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Explanation:
    """All operations of a network on a device. `kind` is that of their times, not of the total's.

    `latency_ms` is the whole network's, which has its own kind: what is not in its operations is
    between them.
    """

    operations: tuple[Operation, ...]
    limits: DeviceLimits
    kind: Kind
    latency_ms: float
    latency_kind: Kind
    batch_size: int
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> Part:
        return part("total", self.operations)

    @property
    def classes(self) -> tuple[Part, ...]:
        """By the class of operations, the one that takes longest first."""
        found = self._parts("op_class")
        return tuple(sorted(found, key=lambda one: -one.ms))

    @property
    def stages(self) -> tuple[Part, ...]:
        """By the stage of the network, in its order."""
        return self._parts("stage")

    @property
    def bounds(self) -> tuple[Part, ...]:
        """By what bounds them."""
        found = {one.name: one for one in self._parts("bound")}
        return tuple(found[name] for name in BOUNDS if name in found)

    def _parts(self, field: str) -> tuple[Part, ...]:
        groups: dict[str, list[Operation]] = {}
        for one in self.operations:
            groups.setdefault(getattr(one, field), []).append(one)
        return tuple(part(name, ones) for name, ones in groups.items())

    def to_json(self) -> dict[str, Any]:
        """A plain dict: the device's limits ("roof"), every operation, and the sums."""
        return {
            "latency_ms": self.latency_ms,
            "latency_kind": str(self.latency_kind),
            "per_op_kind": str(self.kind),
            "batch_size": self.batch_size,
            "roof": self.limits.to_json(),
            "notes": list(self.notes),
            "total": self.total.to_json(),
            "classes": [one.to_json() for one in self.classes],
            "stages": [one.to_json() for one in self.stages],
            "bounds": [one.to_json() for one in self.bounds],
            "operations": [one.to_json() for one in self.operations],
        }


def stage(name: str) -> str:
    """The part of a network that a layer's name tells: its first word, with a block's number.

    >>> stage("block3_1_expand"), stage("net_1/block3_1_expand_1/conv"), stage("head_logits")
    ('block3', 'block3', 'head')
    """
    for word in name.split("/"):
        if found := _STAGE.match(word):
            return found[0]
    return re.split(r"[_/]", name, maxsplit=1)[0]


def part(name: str, operations: Sequence[Operation]) -> Part:
    """The sums of some operations."""
    limits: dict[str, float] = dict.fromkeys(BOUNDS, 0.0)
    for one in operations:
        limits[one.bound] += one.attainable_ms
    return Part(
        name=name,
        count=len(operations),
        flops=sum(one.flops for one in operations),
        bytes=sum(one.bytes for one in operations),
        ms=sum(one.ms or 0.0 for one in operations),
        attainable_ms=sum(one.attainable_ms for one in operations if one.ms is not None),
        bound=max(limits, key=limits.__getitem__),
    )


def explain(
    kernels: Sequence[Kernel],
    ms: Sequence[float | None],
    *,
    limits: DeviceLimits,
    latency: Latency,
    kind: Kind,
    notes: Sequence[str] = (),
) -> Explanation:
    """What each kernel meets under `limits`; `ms` are the times they take, and `kind` theirs."""
    operations = tuple(
        Operation(
            name=one.name,
            type=one.type,
            op_class=one.op_class,
            flops=2.0 * one.macs,
            bytes=float(one.bytes),
            ms=time,
            limits_ms=limits.times_ms(one.op_class, 2.0 * one.macs, one.bytes),
        )
        for one, time in zip(kernels, ms, strict=True)
    )
    return Explanation(
        operations=operations,
        limits=limits,
        kind=kind,
        latency_ms=latency.median_ms,
        latency_kind=latency.kind,
        batch_size=latency.batch_size,
        notes=tuple(notes),
    )
