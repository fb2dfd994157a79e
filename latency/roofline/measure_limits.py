"""Measures what a device can do at most, through a target that runs `.tflite` files."""

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np

from latency.roofline.device_limits import DeviceLimits
from latency.system.json_records import utc_now
from latency.system.spared import keep_json
from latency.target import Kind, Target, cache_directory
from latency.tflite.graph import SAME, Graph

FORMAT = 2  # of what is kept; raised when the probes change

# The probes: one large dense product; chains of additions of a number to a tensor, each of which
# reads and writes one of `_MOVED` bytes; a chain of additions of next to nothing.
_DENSE = (28, 512)  # pixels along a side, channels in and out: 0.4 GFLOP
_MOVED = (2**16, 2**18, 2**20, 2**22, 2**24, 2**27)
_CHAIN_BYTES = 2**26  # of a chain of small ones: long against what a run takes beside them
_LAUNCHES = 256
_RUNS, _WARMUP = 20, 3


def measured(target: Target) -> tuple[DeviceLimits, bool]:
    """The limits of a target that runs `.tflite` files, by running some; and whether it was known.

    Timed as any network is, once a device, runtime and number of threads; kept in the user's cache
    with the conditions. Takes seconds on a CPU.
    """
    about = json.dumps([FORMAT, repr(target), target.device, _release()], sort_keys=True)
    path = cache_directory() / "roofs" / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(path.read_text())["roof"]
        pairs = tuple((size, speed) for size, speed in stored.pop("bandwidths"))
        return DeviceLimits(bandwidths=pairs, **stored), True
    limits = _measure(target)
    keep_json(path, {"about": about, "roof": dataclasses.asdict(limits)})
    return limits, False


def _measure(target: Target) -> DeviceLimits:
    flops = 2.0 * _DENSE[0] ** 2 * _DENSE[1] ** 2
    chains = [max(2, _CHAIN_BYTES // moved) for moved in _MOVED]
    chains = [min(count, _LAUNCHES) for count in chains]
    networks = [dense(*_DENSE), additions(4, _LAUNCHES)]
    networks += [additions(moved // 8, count) for moved, count in zip(_MOVED, chains, strict=True)]
    with tempfile.TemporaryDirectory(prefix="nas_roof_") as folder:
        files = []
        for number, content in enumerate(networks):
            files.append(Path(folder) / f"probe{number}.tflite")
            files[-1].write_bytes(content)
        latencies = target.compare(files[1:], warmup=_WARMUP, runs=_RUNS)
        # Operations of networks are judged by their fastest times, and so is this one.
        product = target.profile(files[0], warmup=_WARMUP, runs=_RUNS, details=True)
    latencies.insert(0, product)
    if any(one.kind is not Kind.MEASURED for one in latencies):
        raise ValueError(f"{target!r} does not measure: what it can do at most is not known")
    launch_ms, *moves_ms = (one.p10_ms for one in latencies[1:])
    launch_ms /= _LAUNCHES
    product_ms = product.op_min_ms or product.p10_ms
    speeds = []
    for moved, count, ms in zip(_MOVED, chains, moves_ms, strict=True):
        # An addition's own beginning is in no bandwidth, unless it is nearly all there is.
        speeds.append((float(moved), moved / max(ms / count - launch_ms, 0.1 * ms / count) / 1e6))
    reasons = [one.conditions["reason"] for one in latencies if one.conditions.get("reason")]
    reason = ""
    if reasons:
        reason = f"{len(reasons)} of {len(networks)} probes were not stable, as: {reasons[0]}"
    names = ("device", "runtime", "threads", "pinned_cores", "governor", "drift")
    seen = latencies[0].conditions
    kept = {name: seen[name] for name in names if seen.get(name)}
    return DeviceLimits(
        peaks={"": flops / product_ms / 1e9},
        bandwidths=tuple(speeds),
        launch_us=launch_ms * 1e3,
        source=f"measured: a convolution 1x1 of {_DENSE[1]} channels, additions in a chain",
        conditions=kept | {"stable": not reasons, "reason": reason, "date": utc_now()},
    )


def dense(pixels: int, channels: int) -> bytes:
    """The `.tflite` file of one 1x1 convolution, `channels` in and out."""
    from ai_edge_litert import schema_py_generated as schema

    graph, random = Graph(), np.random.default_rng(0)
    image = graph.tensor((1, pixels, pixels, channels), "image")
    kernel = graph.constant(random.normal(0, 0.04, (channels, 1, 1, channels)), "kernel")
    bias = graph.constant(np.zeros(channels), "bias")
    options = schema.Conv2DOptionsT(padding=SAME, strideH=1, strideW=1)
    shape = (1, pixels, pixels, channels)
    out = graph.add("CONV_2D", [image, kernel, bias], shape, "dense", options)
    return graph.serialize([image], [out])


def additions(elements: int, count: int) -> bytes:
    """The `.tflite` file of a chain of `count` additions of a number to `elements`."""
    from ai_edge_litert import schema_py_generated as schema

    graph = Graph()
    shape = (1, elements)
    first = x = graph.tensor(shape, "x")
    number = graph.constant(np.full((1,), 1e-3), "number")
    for index in range(count):
        x = graph.add("ADD", [x, number], shape, f"add{index}", schema.AddOptionsT())
    return graph.serialize([first], [x])


def _release() -> str:
    return metadata.version("ai-edge-litert")
