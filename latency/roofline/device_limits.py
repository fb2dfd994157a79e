"""What a device can do at most: its peak, its bandwidth, and what it takes to begin an operation.

Williams et al., "Roofline", CACM 2009; with a bandwidth for each size of what is moved, because
small tensors stay in caches (Ilic et al., "Cache-aware Roofline model", CAL 2014).
"""

import dataclasses
import math
from typing import Any

import numpy as np

LIMITS = ("compute", "memory", "launch")
BOUNDS = (*LIMITS, "none")  # none: of what computes no product and moves nothing that counts


@dataclasses.dataclass(frozen=True)
class DeviceLimits:
    """The most that a device does. `source` says where from, `conditions` under which.

    peaks: 10^12 operations a second, a multiply-add counted as two, by the class of an operation
        ("": of all others). bandwidths: (bytes, GB/s) in rising order: what is moved by an
        operation that moves this many bytes or more; interpolated in logarithms.
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
        """The bandwidth in GB/s for an operation that moves `moved` bytes."""
        sizes, speeds = np.log(np.array(self.bandwidths)).T
        return float(np.exp(np.interp(math.log(max(moved, 1.0)), sizes, speeds)))

    def times_ms(self, op_class: str, flops: float, moved: float) -> dict[str, float]:
        """The least milliseconds that each bound allows an operation; the largest one counts.

        >>> limits = DeviceLimits({"": 1.0}, ((1.0, 100.0),), launch_us=2.0, source="made up")
        >>> found = limits.times_ms("conv", flops=5e9, moved=1e8)
        >>> {name: round(ms, 3) for name, ms in found.items()}
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


def of_tpu(chip: Any) -> DeviceLimits:
    """The figures that the TPU compiler itself uses for one of `latency.tpu_compiler.chips`.

    A launch counts nothing: the compiler's schedule has what an operation takes to begin.
    """
    return DeviceLimits(
        peaks={"": chip.peak_tflops},
        bandwidths=((1.0, float(chip.bandwidth_gbs)),),
        launch_us=0.0,
        source="the compiler's own figures (bfloat16, HBM)",
    )


def of_gpu(chip: Any, dtype: str, launch_us: float) -> DeviceLimits:
    """The published peaks of one of `latency.roofline.gpu_chips`: depthwise products use no matrix
    units."""
    return DeviceLimits(
        peaks={"": chip.matrix_peak(dtype), "depthwise": chip.float32},
        bandwidths=((1.0, float(chip.bandwidth_gb_s)),),
        launch_us=launch_us,
        source=chip.source,
    )
