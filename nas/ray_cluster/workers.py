"""The workers of a search on the nodes of a Ray cluster: placed, watched, and ended with it.

Ray only places them. Each is the same command as on one machine, works on the same study, and what
is told by a trial is told by the study's storage; a worker that dies is placed again by Ray.
"""

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from latency.ray import Ray
from latency.ray_cluster import cluster, farm
from latency.target import Target
from nas import interruption
from nas.events import Listener, Message
from nas.ray_cluster.gangs import Bundle, check, fitting, gang
from nas.searching import workers as processes

_ASK_S = 0.5
_SAY_S = 5.0
_END_S = 10.0
_BUILT_IN = {"cpu": "num_cpus", "gpu": "num_gpus"}
_INTERRUPTED, _KILLED = (130, 143), -9
_FORWARDED = ("PGPASSWORD", "NAS_DATA")  # of the driver's environment, to the workers'


def bundle(text: str) -> Bundle:
    """The resources in text such as cpu=4,gpu=1,phone:SERIAL=1, under Ray's names.

    >>> bundle("cpu=4,gpu=1,phone:0A1B=1")
    {'CPU': 4.0, 'GPU': 1.0, 'phone:0A1B': 1.0}
    """
    found = {}
    for part in text.split(","):
        name, equals, amount = part.rpartition("=")
        try:
            number = float(amount)
        except ValueError:
            number = -1.0
        if not equals or not name.strip() or not 0 <= number < float("inf"):
            raise ValueError(
                f"--worker-resources {text}: expected NAME=AMOUNT,..., such as cpu=4,gpu=1"
            )
        name = name.strip()
        found[name.upper() if name in _BUILT_IN else name] = number
    return found


def run(
    command: Sequence[str],
    *,
    address: str,
    count: int,
    bundles: Sequence[Bundle],
    targets: Sequence[Target] = (),
    progress: Callable[[], str],
    on_event: Listener,
) -> None:
    """Place `count` workers, and return when all have ended.

    command: the arguments of `nas` that each is started with. address: HOST:PORT of the cluster.
    bundles: what one worker takes; several are a gang, held together on one node or more, and its
    process is where the first one is. targets: of which those that hang in the cluster are watched.
    progress: a few words on the study. `ValueError` where not even one worker fits, and where one
    refuses its arguments. Interrupted, all workers give back what they have not finished.
    """
    ray = cluster.connect(address)
    check(ray, bundles)
    room = fitting(ray, list(bundles), count)
    if room < count:
        on_event(Message(f"the Ray cluster has room for {room} of {count} workers at a time"))
    farms = [farm.of(one.targets) for one in targets if isinstance(one, Ray)]
    place = ray.remote(_work)
    words, folder = list(command), os.getcwd()
    settings = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
    with contextlib.ExitStack() as stack:
        tasks = []
        for _ in range(count):
            if len(bundles) > 1:
                group = stack.enter_context(gang(ray, bundles))
                # Of the first bundle; devices are left to those who measure on them.
                own = {name: n for name, n in bundles[0].items() if name.lower() in _BUILT_IN}
                there = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, 0)
                options = _options(own) | {"scheduling_strategy": there}
                settings[cluster.GROUP] = ray.util.placement_group_table(group)["name"]
            else:
                options = _options(bundles[0])
            tasks.append(place.options(**options).remote(words, folder, dict(settings)))
        try:
            _watch(ray, tasks, farms, progress, on_event)
        except BaseException:
            for task in tasks:
                ray.cancel(task)
            ray.wait(tasks, num_returns=len(tasks), timeout=_END_S)
            for task in tasks:
                ray.cancel(task, force=True)
            raise


def _options(taken: Bundle) -> dict[str, Any]:
    known = {_BUILT_IN[name.lower()]: n for name, n in taken.items() if name.lower() in _BUILT_IN}
    others = {name: n for name, n in taken.items() if name.lower() not in _BUILT_IN}
    # A worker whose process or node died is placed again; what it had is given back by the others.
    return {"num_cpus": 0, **known, "resources": others, "max_retries": -1}


def _watch(
    ray: Any,
    tasks: Sequence[Any],
    farms: Sequence[Any],
    progress: Callable[[], str],
    on_event: Listener,
) -> None:
    at_work, said, next_look = list(tasks), "", time.monotonic() + _SAY_S
    refusals: list[str] = []
    while at_work:
        interruption.check()
        done, at_work = ray.wait(at_work, timeout=_ASK_S)
        for task in done:
            code, words = ray.get(task)
            if code not in (0, *_INTERRUPTED):
                refusals.append(words or f"exit code {code}")
                on_event(Message(f"a worker ended: {refusals[-1]}"))
        if time.monotonic() >= next_look:
            line = "; ".join([progress(), f"{len(at_work)} workers", *map(_farm_words, farms)])
            if line != said:
                on_event(Message(line))
            said, next_look = line, time.monotonic() + _SAY_S
    if len(refusals) == len(tasks):
        raise ValueError(f"every worker in the Ray cluster ended with an error: {refusals[0]}")


def _farm_words(one: Any) -> str:
    """Of each device whether it is busy, its heat and battery; how many wait."""
    import ray

    try:
        status = ray.get(one.status.remote(), timeout=2.0)
    except ray.exceptions.RayError:
        return "the farm does not answer"
    words = []
    for name, device in status["devices"].items():
        health = device["health"]
        heat = health.get("skin_c", health.get("battery_c", health.get("temperature_c")))
        parts = [name, device["state"]]
        parts += [f"{heat:.0f} C"] if heat is not None else []
        parts += [f"{health['battery_percent']} %"] if "battery_percent" in health else []
        words.append(" ".join(parts))
    return ", ".join(words) + f" ({status['waiting']} wait)"


def _work(words: list[str], folder: str, settings: dict[str, str]) -> tuple[int, str]:
    """On a node: one worker, in a process of its own; its exit code and its last line."""
    import ray

    if not pathlib.Path(folder).is_dir():
        return 2, f"{ray.util.get_node_ip_address()} has no folder {folder}: share it, or make it"
    settings = {**settings, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-m", "nas", *words, "--child", str(os.getpid())]
    code, line = _KILLED, ""
    while code < 0:  # killed, as by the system for memory: what it had is given back by the others
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | settings,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            try:
                while process.poll() is None:
                    time.sleep(_ASK_S)
            finally:  # KeyboardInterrupt, where the driver cancels
                processes.end([process])
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines() or [""]
        code, line = process.returncode, lines[-1].removeprefix("nas: ")
    return code, line
