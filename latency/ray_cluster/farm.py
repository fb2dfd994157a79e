"""Devices of one kind that any number of processes share: who is next, on which, and their health.

An actor of the Ray cluster that each study and profile of the same devices finds by its name. It
only decides who is next; a measurement is a task that holds the device's resource, on its node.
"""

import asyncio
import dataclasses
import functools
import hashlib
import time
from collections.abc import Sequence
from typing import Any

from latency.ray_cluster import cluster
from latency.target import Target, TargetUnavailable, Timing

REST_S = 10.0  # of a device that is away or too hot, before it is asked again
_LOOK_S = 2.0  # between two looks at whether the node of a measurement is still there
_TRIES = 3  # of a measurement whose process was killed


@dataclasses.dataclass
class Device:
    """What is known of one of the devices."""

    target: Target
    busy: bool = False
    rests_until: float = 0.0
    missing: str = ""  # why it rests
    measured: int = 0
    busy_s: float = 0.0
    health: dict[str, Any] = dataclasses.field(default_factory=dict)


class Farm:
    """The actor: see `of`."""

    def __init__(self, targets: Sequence[Target]):
        self._devices = [Device(target) for target in targets]
        self._waiting = 0
        self._freed = asyncio.Condition()
        self._since = time.monotonic()

    async def measure(
        self, models: Sequence[bytes], options: dict[str, Any]
    ) -> list[Timing] | Exception:
        """Time `.tflite` files on the first device that is free; the error where none can do it."""
        started, tries = time.monotonic(), 0
        while True:
            device = await self._next()
            if isinstance(device, Exception):
                return device
            waited_s, begun = time.monotonic() - started, time.monotonic()
            try:
                outcome = await self._run(device, models, options)
            finally:
                device.busy_s += time.monotonic() - begun
                async with self._freed:
                    device.busy = False
                    self._freed.notify_all()
            if isinstance(outcome, TargetUnavailable):
                device.rests_until, device.missing = time.monotonic() + REST_S, str(outcome)
                continue
            if outcome is None:  # its process was killed
                tries += 1
                if tries < _TRIES:
                    continue
                return TargetUnavailable(
                    f"the process that timed on {cluster.resource(device.target)} was killed"
                    f" {tries} times"
                )
            if isinstance(outcome, Exception):
                return outcome
            device.missing, device.measured = "", device.measured + len(outcome)
            conditions = outcome[-1].conditions
            device.health = {**conditions, **conditions.get("after", {})}
            more = {"ray_resource": cluster.resource(device.target), "queue_s": round(waited_s, 2)}
            return [dataclasses.replace(one, conditions=one.conditions | more) for one in outcome]

    async def status(self) -> dict[str, Any]:
        """How many wait, and of each device whether it is busy, its health and its work."""
        now = time.monotonic()
        names = ("battery_percent", "battery_c", "skin_c", "temperature_c")
        return {
            "waiting": self._waiting,
            "seconds": now - self._since,
            "devices": {
                cluster.resource(one.target): {
                    "state": "busy" if one.busy else "away" if one.rests_until > now else "free",
                    "missing": one.missing,
                    "measured": one.measured,
                    "busy_s": one.busy_s,
                    "health": {n: one.health[n] for n in names if one.health.get(n) is not None},
                }
                for one in self._devices
            },
        }

    async def _next(self) -> Device | TargetUnavailable:
        """The device that had the longest rest, once one is free; the reason where all are away."""
        self._waiting += 1
        try:
            async with self._freed:
                while True:
                    now = time.monotonic()
                    there = [one for one in self._devices if one.rests_until <= now]
                    free = [one for one in there if not one.busy]
                    if free:
                        device = min(free, key=lambda one: one.busy_s)
                        device.busy = True
                        return device
                    if not there and not any(one.busy for one in self._devices):
                        reasons = dict.fromkeys(one.missing for one in self._devices)
                        return TargetUnavailable("; ".join(reasons))
                    try:
                        await asyncio.wait_for(self._freed.wait(), timeout=1.0)
                    except TimeoutError:
                        continue
        finally:
            self._waiting -= 1

    async def _run(
        self, device: Device, models: Sequence[bytes], options: dict[str, Any]
    ) -> list[Timing] | Exception | None:
        """What a task on the device's node gives; None where the process of it was killed."""
        import ray

        name = cluster.resource(device.target)
        try:
            task = cluster.measuring_task(ray, device.target, models, options)
            result = asyncio.wrap_future(task.future())
        except (TargetUnavailable, ValueError) as error:
            return error
        try:
            while True:
                done, _ = await asyncio.wait([result], timeout=_LOOK_S)
                if done:
                    return result.result()
                # A task whose node is gone is pending for ever, without a word.
                cluster.node_of(ray, name)
        except TargetUnavailable as error:
            ray.cancel(task, force=True)
            return error
        except ray.exceptions.RayTaskError as error:  # what nobody expected of the target
            return error.cause
        except ray.exceptions.RayError:
            return None
        except asyncio.CancelledError:
            ray.cancel(task, force=True)
            raise


@functools.cache
def of(targets: tuple[Target, ...]) -> Any:
    """The farm of these devices, made by whoever asks first, and there for as long as that one.

    Where it is gone (an error of Ray), `of.cache_clear()` and ask again.
    """
    import ray

    named = hashlib.sha256(repr(sorted(map(repr, targets))).encode()).hexdigest()[:16]
    made = ray.remote(Farm).options(
        name=f"farm-{named}",
        namespace=cluster.NAMESPACE,
        get_if_exists=True,
        num_cpus=0,
        max_concurrency=1000,
    )
    return made.remote(targets)
