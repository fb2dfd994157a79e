"""Connecting to a Ray cluster, the resources by which it knows devices, and work on their nodes.

docs.ray.io, Ray Core. Resources are bookkeeping within one cluster: what excludes others is the
lock on the device (`latency.system.device_lock`). Whoever reaches a cluster's port can run code on
all of its nodes, unless RAY_AUTH_MODE=token is set for each `ray start` and for the driver.
"""

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latency.target import FoundDevice, Target, TargetUnavailable, Timing

NAMESPACE = "nas"  # so that the workers of a search, each a job of its own, share a farm
CPU_TIMING = "cpu_timing"
GROUP = "NAS_RAY_GANG"  # the placement group that a worker and its devices are in
HANGS_HERE = ("cpu", "android", "ssh")  # targets that a node can declare
_KINDS = {"Android": "phone", "SSH": "board"}
_CONNECT_S = 5.0


def connect(address: str | None = None) -> Any:
    """The module ray, connected to a cluster: HOST:PORT, else RAY_ADDRESS, else this machine's.

    `TargetUnavailable` where Ray or the cluster is missing.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        import ray
    except ImportError:
        raise TargetUnavailable("Ray is missing: pip install 'nas[ray]'") from None
    if ray.is_initialized():
        return ray
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    host, _, port = address.rpartition(":")
    start = "start one with `ray start --head --port=6379`, and name it: --ray or RAY_ADDRESS"
    if address != "auto" and not (host and port.isdigit()):
        raise ValueError(f"Ray cluster {address}: expected HOST:PORT, as `ray start` prints it")
    try:
        if address != "auto":  # Ray itself tries for half a minute
            socket.create_connection((host, int(port)), _CONNECT_S).close()
        ray.init(
            address=address, namespace=NAMESPACE, logging_level=logging.ERROR, log_to_driver=False
        )
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TargetUnavailable(f"no Ray cluster answers at {address}: {line}; {start}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray takes it
    return ray


def resource(target: Target) -> str:
    """The name by which a cluster knows the device of a target: phone:SERIAL, board:HOST, ...

    >>> from latency.android import Android
    >>> from latency.cpu import CPU
    >>> resource(Android("0A1B2C")), resource(CPU())
    ('phone:0A1B2C', 'cpu_timing')
    """
    name = type(target).__name__
    if name == "CPU":
        return CPU_TIMING
    device = next(iter(vars(target).values()), None)
    if device is None:
        raise ValueError(f"ray: {target!r} names no device: expected one, as android:SERIAL")
    return f"{_KINDS.get(name, name.lower())}:{device}"


def resources_here(found: Sequence[FoundDevice]) -> dict[str, int]:
    """What `ray start --resources=` is to say on this machine, of the devices found on it.

    >>> from latency.target import Kind
    >>> resources_here([FoundDevice("android:0A1B2C", "a phone", Kind.MEASURED)])
    {'phone:0A1B2C': 1}
    """
    names = {}
    for one in found:
        kind, _, device = one.spec.partition(":")
        if one.missing is None and kind == "cpu":
            names[CPU_TIMING] = 1
        elif one.missing is None and kind in ("android", "ssh"):
            names[f"{'phone' if kind == 'android' else 'board'}:{device.split(',')[0]}"] = 1
    return names


def node_of(ray: Any, name: str) -> str:
    """The node that declares a resource; `TargetUnavailable` where there is none now."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [node for node in alive if node["Resources"].get(name)]
    if not nodes:
        raise TargetUnavailable(
            f"no node of the Ray cluster has {name} now ({len(alive)} nodes are there): start one"
            f" where it hangs, `ray start --address=HOST:PORT --resources='{{\"{name}\": 1}}'`"
        )
    if len(nodes) > 1:
        hosts = ", ".join(node["NodeManagerHostname"] for node in nodes)
        raise TargetUnavailable(
            f"{len(nodes)} nodes of the Ray cluster have {name} ({hosts}), and their figures would"
            " be mixed: declare it on one of them only (one that was just started again is counted"
            " twice for half a minute)"
        )
    return nodes[0]["NodeID"]


def identity_task(ray: Any, target: Target) -> Any:
    """A task that asks the device of a target what it is, on its node."""
    affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    there = affinity(node_of(ray, resource(target)), soft=False)
    return ray.remote(_identity).options(num_cpus=0, scheduling_strategy=there).remote(target)


def measuring_task(
    ray: Any, target: Target, models: Sequence[bytes], options: dict[str, Any], group: Any = None
) -> Any:
    """A task that times `.tflite` files on the device of a target, which it has alone.

    group: the placement group that holds the device.
    """
    name = resource(target)
    node_of(ray, name)
    where: Any = "DEFAULT"
    if group is not None:
        where = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group)
    remote = ray.remote(_measure)
    remote = remote.options(
        num_cpus=0, resources={name: 1}, max_retries=0, scheduling_strategy=where
    )
    return remote.remote(target, list(models), options)


def _identity(target: Target) -> dict[str, Any] | Exception:
    try:
        return target.identity()
    except (TargetUnavailable, ValueError) as error:
        return error


def _measure(
    target: Target, models: list[bytes], options: dict[str, Any]
) -> list[Timing] | Exception:
    """On the node of the device. What it refuses is returned: raised, Ray would wrap it."""
    with tempfile.TemporaryDirectory(prefix="nas_ray_") as folder:
        files = [Path(folder) / f"{number}.tflite" for number in range(len(models))]
        for file, content in zip(files, models, strict=True):
            file.write_bytes(content)
        try:
            return target.measure_together(files, **options)
        except (TargetUnavailable, ValueError) as error:
            return error
