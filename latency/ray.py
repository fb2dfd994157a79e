"""Devices of a Ray cluster: networks are timed on the node where the phone or board hangs."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from latency.android import Android  # noqa: F401 - with these the repr of a Ray is a program here
from latency.cpu import CPU  # noqa: F401
from latency.ray_cluster import cluster, farm
from latency.ssh import SSH  # noqa: F401
from latency.target import FoundDevice, Kind, Target, TargetUnavailable, Timing
from latency.tflite import convert

_UNIT = ("serial", "board", "udid")  # in an identity: what tells one phone of a model from another


@dataclasses.dataclass(frozen=True)
class Ray(Target):
    """Another target, on the node of a Ray cluster that declares its device.

    `targets` is what is timed there: `ray:android:SERIAL`, `ray:cpu:threads=1`. Several phones of
    one model are a farm, of which the first free one is used: `ray:android:SERIAL1+SERIAL2`. The
    resources that a node declares are printed by `nas devices --ray-resources` on it. The cluster
    is the one of RAY_ADDRESS, or that this machine is a node of.

    >>> from latency.android import Android
    >>> Ray((Android("0A1B2C"),)).targets[0].serial
    '0A1B2C'
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.MEASURED})
    runs_tflite: ClassVar[bool] = True
    targets: tuple[Target, ...] = ()

    @classmethod
    def discover(cls) -> list[FoundDevice]:
        """What the cluster of RAY_ADDRESS offers."""
        if "RAY_ADDRESS" not in os.environ:
            hint = "RAY_ADDRESS names no cluster: RAY_ADDRESS=HOST:PORT nas devices"
            return [FoundDevice("ray:android:SERIAL", "devices of Ray", Kind.MEASURED, hint)]
        try:
            offered = cluster.connect().cluster_resources()
        except (TargetUnavailable, ValueError) as error:
            return [FoundDevice("ray:android:SERIAL", "devices of Ray", Kind.MEASURED, str(error))]
        known = {"phone": "android", "board": "ssh"}
        listed = []
        for name in sorted(offered):
            kind, _, device = name.partition(":")
            if kind in known and device:
                spec = f"ray:{known[kind]}:{device}"
                listed.append(FoundDevice(spec, f"{kind} {device}", Kind.MEASURED))
            elif name == cluster.CPU_TIMING:
                listed.append(FoundDevice("ray:cpu:threads=1", "the node's CPU", Kind.MEASURED))
        return listed

    def __post_init__(self):
        if not self.targets:
            raise ValueError("ray: expected what is timed there, as ray:android:SERIAL")
        for target in self.targets:
            if not target.runs_tflite or Kind.MEASURED not in target.kinds:
                raise ValueError(
                    f"ray: {target!r} times no .tflite files; expected cpu, android or ssh"
                )
        names = [cluster.resource(target) for target in self.targets]
        if len(set(names)) < len(names):
            raise ValueError(f"ray: {', '.join(names)}: expected each device once")

    @property
    def device(self) -> str:
        return self.identity()["device"]

    def identity(self) -> dict[str, Any]:
        """That of the device; of a farm what its devices have in common, which is all but serials.

        Asked once in a process: asking disturbs what is being timed.
        """
        return dict(_identity(self))

    def measure(self, model: Any, batch_size: int, warmup: int, runs: int, details: bool) -> Timing:
        return self.measure_together([model], batch_size, warmup, runs, details)[0]

    def measure_together(
        self, models: Sequence[Any], batch_size: int, warmup: int, runs: int, details: bool
    ) -> list[Timing]:
        """Times several models on the same device, which takes them in turns where it can."""
        if not models:
            return []
        ray = cluster.connect()
        files = [_bytes(convert.file_of(model, batch_size)) for model in models]
        options = {"batch_size": batch_size, "warmup": warmup, "runs": runs, "details": details}
        group = _group_of(ray)
        held = set() if group is None else _held(ray, group)
        ours = [one for one in self.targets if cluster.resource(one) in held]
        if ours:  # the devices of a gang are this worker's already
            outcome = self._wait(ray, cluster.measuring_task(ray, ours[0], files, options, group))
        else:
            try:
                outcome = self._wait(ray, farm.of(self.targets).measure.remote(files, options))
            except TargetUnavailable:  # its maker ended: make another
                farm.of.cache_clear()
                raise
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _wait(self, ray: Any, task: Any) -> Any:
        """What a task gives; its node may go, which Ray does not tell of one that is pending."""
        try:
            while not ray.wait([task], timeout=1.0)[0]:
                if len(self.targets) == 1:
                    cluster.node_of(ray, cluster.resource(self.targets[0]))
            return ray.get(task)
        except ray.exceptions.RayError as error:
            line = (str(error).strip().splitlines() or ["no reason"])[0]
            raise TargetUnavailable(f"the measurement in the Ray cluster ended: {line}") from error
        except BaseException:  # Ctrl-C
            ray.cancel(task)
            raise


@functools.cache
def _identity(self: Ray) -> dict[str, Any]:
    ray = cluster.connect()
    found: dict[str, dict[str, Any]] = {}
    missing: list[TargetUnavailable] = []
    for target in self.targets:
        try:
            answer = ray.get(cluster.identity_task(ray, target))
        except TargetUnavailable as error:
            answer = error
        except ray.exceptions.RayError as error:
            answer = TargetUnavailable(str(error).strip().splitlines()[0])
        if isinstance(answer, TargetUnavailable):
            missing.append(answer)
        elif isinstance(answer, Exception):
            raise answer
        else:
            found[cluster.resource(target)] = answer
    if not found:
        raise missing[0]
    (name, first), *others = found.items()
    if len(self.targets) > 1:
        first = {key: value for key, value in first.items() if key not in _UNIT}
    for other, identity in others:
        differs = [key for key, value in first.items() if identity.get(key) != value]
        if differs:
            key = differs[0]
            raise ValueError(
                f"ray: {name} and {other} are not alike ({key}: {first[key]}, {identity.get(key)}),"
                " so their figures cannot be mixed; name each as a --target of its own"
            )
    return first


def _bytes(file: bytes | Path) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def _group_of(ray: Any) -> Any:
    """The placement group of the gang that this process is of; None where it is of none."""
    name = os.environ.get(cluster.GROUP)
    return ray.util.get_placement_group(name) if name else None


def _held(ray: Any, group: Any) -> set[str]:
    bundles = ray.util.placement_group_table(group).get("bundles", {})
    return {name for bundle in bundles.values() for name in bundle}
