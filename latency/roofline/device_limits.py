"""What a device can do at most: its peak, its bandwidth, and what it takes to begin an operation.

Williams et al., "Roofline", CACM 2009; with a bandwidth for each size of what is moved, because
small tensors stay in caches (Ilic et al., "Cache-aware Roofline model", CAL 2014).
"""

import contextlib
import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from latency.system.json_records import utc_now, write_json
from latency.target import Kind, Target, cache_directory

FORMAT = 2  # of what is kept; raised when the probes change
LIMITS = ("compute", "memory", "launch")
BOUNDS = (*LIMITS, "none")  # none: of what computes no product and moves nothing that counts


@dataclasses.dataclass(frozen=True)
class Roof:
    """The most that a device does. `source` tells where from, `conditions` under which.

    peaks: 10^12 operations a second, a multiply-add counted as two, by the class of an operation
        ("": of all others). bandwidths: (bytes, GB/s) in rising order: what is moved by an
        operation that moves so many bytes, or more; between them on a line of logarithms.
    launch_us: what an operation takes that does next to nothing.
    """

    peaks: dict[str, float]
    bandwidths: tuple[tuple[float, float], ...]
    launch_us: float
    source: str
    conditions: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def peak_tflops(self) -> float:
        """Of dense products."""
        return self.peaks[""]

    @property
    def bandwidth_gbs(self) -> float:
        """Of what is too large for any cache."""
        return self.bandwidths[-1][1]

    @property
    def ridge(self) -> float:
        """Operations a byte from which on a dense product is bound by the peak, not by memory."""
        return self.peak_tflops * 1e3 / self.bandwidth_gbs

    def gbs(self, moved: float) -> float:
        """The bandwidth for an operation that moves so many bytes."""
        sizes, speeds = np.log(np.array(self.bandwidths)).T
        return float(np.exp(np.interp(math.log(max(moved, 1.0)), sizes, speeds)))

    def times_ms(self, op_class: str, flops: float, moved: float) -> dict[str, float]:
        """The least milliseconds that each bound allows an operation; the largest one counts.

        >>> roof = Roof({"": 1.0}, ((1.0, 100.0),), launch_us=2.0, source="made up")
        >>> roof.times_ms("conv", flops=5e9, moved=1e8)
        {'compute': 5.0, 'memory': 1.0, 'launch': 0.002}
        """
        peak = self.peaks.get(op_class, self.peaks[""])
        memory = moved / self.gbs(moved) / 1e6 if moved else 0.0
        return dict(zip(LIMITS, (flops / peak / 1e9, memory, self.launch_us / 1e3), strict=True))

    def to_json(self) -> dict[str, Any]:
        """A plain dict; the ridge and the largest bandwidth spelled out."""
        return dataclasses.asdict(self) | {
            "peak_tflops": self.peak_tflops,
            "bandwidth_gbs": self.bandwidth_gbs,
            "ridge": self.ridge,
        }


def of_tpu(chip: Any) -> Roof:
    """What the TPU compiler itself reckons with for one of `latency.tpu_compiler.chips`.

    A launch counts nothing: the compiler's schedule has what an operation takes to begin.
    """
    return Roof(
        peaks={"": chip.peak_tflops},
        bandwidths=((1.0, float(chip.bandwidth_gbs)),),
        launch_us=0.0,
        source="the compiler's own figures (bfloat16, HBM)",
    )


def of_gpu(chip: Any, dtype: str, launch_us: float) -> Roof:
    """The published peaks of one of `latency.roofline.gpu_chips`: depthwise products use no matrix
    units."""
    return Roof(
        peaks={"": chip.matrix_peak(dtype), "depthwise": chip.float32},
        bandwidths=((1.0, float(chip.bandwidth_gb_s)),),
        launch_us=launch_us,
        source=chip.source,
    )


# The probes: one large dense product; chains of additions of a number to a tensor, each of which
# reads and writes so many bytes; a chain of additions that have nothing to add.
_DENSE = (28, 512)  # pixels along a side, channels in and out: 0.4 GFLOP
_MOVED = (2**16, 2**18, 2**20, 2**22, 2**24, 2**27)
_CHAIN_BYTES = 2**26  # of a chain of small ones: long against what a run takes beside them
_LAUNCHES = 256
_RUNS, _WARMUP = 20, 3


def measured(target: Target) -> tuple[Roof, bool]:
    """The roof of a target that runs `.tflite` files, by running some; and whether it was known.

    Timed as any network is, once a device, runtime and number of threads; kept in the user's cache
    with the conditions. Takes seconds on a CPU.
    """
    about = json.dumps([FORMAT, repr(target), target.device, _release()], sort_keys=True)
    path = cache_directory() / "roofs" / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(path.read_text())["roof"]
        pairs = tuple((size, speed) for size, speed in stored.pop("bandwidths"))
        return Roof(bandwidths=pairs, **stored), True
    roof = _measure(target)
    write_json(path, {"about": about, "roof": dataclasses.asdict(roof)})
    return roof, False


def _measure(target: Target) -> Roof:
    import tempfile

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
        # Operations of networks are told by their fastest times, and so is this one.
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
    return Roof(
        peaks={"": flops / product_ms / 1e9},
        bandwidths=tuple(speeds),
        launch_us=launch_ms * 1e3,
        source=f"measured: a convolution 1x1 of {_DENSE[1]} channels, additions in a chain",
        conditions=kept | {"stable": not reasons, "reason": reason, "date": utc_now()},
    )


def dense(pixels: int, channels: int) -> bytes:
    """The `.tflite` file of one 1x1 convolution, `channels` in and out."""
    from ai_edge_litert import schema_py_generated as schema

    from latency.tflite.graph import SAME, Graph

    graph, random = Graph(), np.random.default_rng(0)
    image = graph.tensor((1, pixels, pixels, channels), "image")
    kernel = graph.constant(random.normal(0, 0.04, (channels, 1, 1, channels)), "kernel")
    bias = graph.constant(np.zeros(channels), "bias")
    options = schema.Conv2DOptionsT(padding=SAME, strideH=1, strideW=1)
    shape = (1, pixels, pixels, channels)
    out = graph.add("CONV_2D", [image, kernel, bias], shape, "dense", options)
    return graph.serialize([image], [out])


def additions(elements: int, count: int) -> bytes:
    """The `.tflite` file of a chain of `count` additions of a number to so many elements."""
    from ai_edge_litert import schema_py_generated as schema

    from latency.tflite.graph import Graph

    graph = Graph()
    shape = (1, elements)
    first = x = graph.tensor(shape, "x")
    number = graph.constant(np.full((1,), 1e-3), "number")
    for index in range(count):
        x = graph.add("ADD", [x, number], shape, f"add{index}", schema.AddOptionsT())
    return graph.serialize([first], [x])


def _release() -> str:
    from importlib import metadata

    return metadata.version("ai-edge-litert")
