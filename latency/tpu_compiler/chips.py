"""The TPU generations that Google's compiler (libtpu) knows, with the figures that estimates use.

Sizes and bandwidths: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and the pages of
each generation. Peak and bandwidth here are those the compiler itself uses (a large matrix
product and a large copy, compiled with libtpu 0.0.42): a little below the published ones.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation. A device is what JAX calls one: a chip, or one of its two TensorCores."""

    name: str
    topology: str  # the compiler's word for it
    device_kind: str  # JAX's word for it
    axes: int  # of its interconnect: a topology is "2x4" or "2x2x1"
    devices: int  # a chip has
    clock_ghz: float  # v2 to v4: published; later ones: peak / (2 * MXU cells)
    peak_tflops: float  # bfloat16, a device
    bandwidth_gbs: float  # of HBM, a device
    hbm_gb: float  # a device
    config: str | None = None  # of the chip: "megacore" makes one device of two TensorCores

    @property
    def device(self) -> str:
        if self.devices > 1:
            return f"TPU {self.name}, one of {self.devices} TensorCores of a chip"
        return f"TPU {self.name}, one chip"


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v2", "v2", "TPU v2", 2, 2, 0.70, 22.8, 317, 8),
        Chip("v3", "v3", "TPU v3", 2, 2, 0.94, 61.4, 429, 16),
        Chip("v4", "v4", "TPU v4", 3, 1, 1.05, 274, 982, 32, "megacore"),
        Chip("v5e", "v5e", "TPU v5 lite", 2, 1, 1.50, 197, 738, 16),
        Chip("v5p", "v5p", "TPU v5", 3, 1, 1.75, 394, 2350, 95),
        Chip("v6e", "v6e", "TPU v6 lite", 2, 1, 1.75, 918, 1638, 32),
        Chip("7x", "TPU7x", "TPU7x", 3, 2, 1.90, 996, 3686, 96),
    )
}


def named(name: str) -> Chip:
    """The chip of this name; `ValueError` with the names there are."""
    if name not in CHIPS:
        raise ValueError(f"no TPU {name!r}: expected one of {', '.join(CHIPS)}")
    return CHIPS[name]


def of_kind(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`, if it is one of these."""
    return next((chip for chip in CHIPS.values() if chip.device_kind == device_kind), None)


def sizes(chip: Chip, topology: str | None) -> tuple[int, ...]:
    """The chips along each axis of a topology, one chip without; `ValueError` if malformed.

    >>> sizes(CHIPS["v5e"], "2x4")
    (2, 4)
    """
    if topology is None:
        return (1,) * chip.axes
    parts = str(topology).split("x")
    if len(parts) != chip.axes or not all(part.isdigit() and int(part) for part in parts):
        expected = "x".join(["2"] * 2 + ["1"] * (chip.axes - 2))
        raise ValueError(
            f"topology={topology!r}: expected {chip.axes} sizes for {chip.name}, e.g. {expected}"
        )
    return tuple(map(int, parts))


def device_count(chip: Chip, topology: str | None) -> int:
    """The devices that compute: all of a topology; without one, a single device."""
    return 1 if topology is None else chip.devices * math.prod(sizes(chip, topology))
