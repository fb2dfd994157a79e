"""NVIDIA GPUs: what their makers publish, for rooflines.

Dense peaks (no structured sparsity) at boost clock, from NVIDIA's data sheets and architecture
white papers, which `source` names; memory sizes and core counts as in OpenXLA's target
specifications where it has them.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One GPU. Peaks in 10^12 operations a second, a multiply-add counted as two."""

    name: str  # as in --target gpu:NAME
    title: str
    known_as: tuple[str, ...]  # words of the name that its driver gives it, all of them there
    capability: tuple[int, int]  # CUDA compute capability
    cores: int  # streaming multiprocessors
    clock_ghz: float
    memory_gb: float  # 10^9 bytes
    bandwidth_gb_s: float
    l2_mb: float
    float32: float  # of the vector units
    tensor: dict[str, float]  # of the matrix units, by the type of their operands
    source: str

    def matches(self, device: str) -> bool:
        """Whether a device name of the driver or of JAX means this chip."""
        words = device.lower().replace("-", " ").split()
        other = _VARIANTS.intersection(words).difference(self.known_as)
        return not other and all(part in words for part in self.known_as)

    def matrix_peak(self, dtype: str) -> float:
        """Operations a second (10^12) of convolutions and matrix products in `dtype`.

        float32 means TensorFloat-32 where the chip has it, as XLA's default precision does.
        Raises `ValueError` where the chip has no units for `dtype`.
        """
        if dtype == "float32":
            return self.tensor.get("tf32", self.float32)
        if dtype not in self.tensor:
            raise ValueError(
                f"{self.title} has no {dtype} units (it has: float32, "
                f"{', '.join(name for name in self.tensor if name != 'tf32') or 'nothing else'})"
            )
        return self.tensor[dtype]


# Words that make another chip of a name: "RTX 3090 Ti", "RTX 4090 D", "RTX 4090 Laptop GPU".
_VARIANTS = {"ti", "super", "d", "laptop", "max", "mobile"}


def _tensor(
    float16: float, bfloat16: float | None = None, tf32: float | None = None
) -> dict[str, float]:
    peaks = {"float16": float16, "bfloat16": bfloat16, "tf32": tf32}
    return {name: peak for name, peak in peaks.items() if peak is not None}


_VOLTA = "NVIDIA V100 data sheet (2020)"
_TURING = "NVIDIA Turing architecture white paper (2018), reference clocks, float32 accumulation"
_A100 = "NVIDIA A100 data sheet (2021)"
_GA102 = "NVIDIA GA102 architecture white paper (2021), float32 accumulation"
_ADA = "NVIDIA Ada architecture white paper (2022), float32 accumulation"
_H100 = "NVIDIA H100 architecture white paper (2023), half of the figures with sparsity"

_CHIPS = (
    Chip(
        *("gtx1080ti", "GeForce GTX 1080 Ti", ("1080", "ti"), (6, 1), 28, 1.582, 11.3, 484, 2.75),
        *(11.3, {}, "NVIDIA GeForce GTX 1080 Ti specifications (2017)"),
    ),
    Chip(
        *("p100", "Tesla P100 SXM2", ("p100",), (6, 0), 56, 1.480, 17.1, 732, 4.0),
        *(10.6, {"float16": 21.2}, "NVIDIA Pascal architecture white paper (2016)"),
    ),
    Chip(
        *("v100", "Tesla V100 SXM2", ("v100",), (7, 0), 80, 1.530, 34.4, 900, 6.0),
        *(15.7, _tensor(125.0), _VOLTA),
    ),
    Chip(
        *("t4", "T4", ("t4",), (7, 5), 40, 1.590, 16.9, 320, 4.0),
        *(8.1, _tensor(65.0), "NVIDIA T4 data sheet (2019)"),
    ),
    Chip(
        *("rtx2080ti", "GeForce RTX 2080 Ti", ("2080", "ti"), (7, 5), 68, 1.545, 11.5, 616, 5.5),
        *(13.4, _tensor(53.8), _TURING),
    ),
    Chip(
        *("a100", "A100 SXM4 80 GB", ("a100", "80gb"), (8, 0), 108, 1.410, 85.1, 2039, 40.0),
        *(19.5, _tensor(312.0, 312.0, 156.0), _A100),
    ),
    Chip(
        *("a100-40gb", "A100 SXM4 40 GB", ("a100", "40gb"), (8, 0), 108, 1.410, 42.4, 1555, 40.0),
        *(19.5, _tensor(312.0, 312.0, 156.0), _A100),
    ),
    Chip(
        *("a30", "A30", ("a30",), (8, 0), 56, 1.440, 25.4, 933, 24.0),
        *(10.3, _tensor(165.0, 165.0, 82.0), "NVIDIA A30 data sheet (2022)"),
    ),
    Chip(
        *("a10", "A10", ("a10",), (8, 6), 72, 1.695, 24.1, 600, 6.0),
        *(31.2, _tensor(125.0, 125.0, 62.5), "NVIDIA A10 data sheet (2021)"),
    ),
    Chip(
        *("a6000", "RTX A6000", ("a6000",), (8, 6), 84, 1.800, 51.0, 768, 6.0),
        *(38.7, _tensor(154.8, 154.8, 77.4), _GA102),
    ),
    Chip(
        *("rtx3090", "GeForce RTX 3090", ("3090",), (8, 6), 82, 1.695, 25.4, 936, 6.0),
        *(35.6, _tensor(71.0, 71.0, 35.6), _GA102),
    ),
    Chip(
        *("rtx4090", "GeForce RTX 4090", ("4090",), (8, 9), 128, 2.520, 25.4, 1008, 72.0),
        *(82.6, _tensor(165.2, 165.2, 82.6), _ADA),
    ),
    Chip(
        *("l4", "L4", ("l4",), (8, 9), 58, 2.040, 24.1, 300, 48.0),
        *(30.3, _tensor(121.0, 121.0, 60.0), "NVIDIA L4 data sheet (2023), without sparsity"),
    ),
    Chip(
        *("l40s", "L40S", ("l40s",), (8, 9), 142, 2.520, 48.3, 864, 96.0),
        *(91.6, _tensor(362.0, 362.0, 183.0), "NVIDIA L40S data sheet (2023), without sparsity"),
    ),
    Chip(
        *("h100", "H100 SXM5 80 GB", ("h100", "hbm3"), (9, 0), 132, 1.980, 84.9, 3352, 50.0),
        *(66.9, _tensor(989.4, 989.4, 494.7), _H100),
    ),
    Chip(
        *("h100-pcie", "H100 PCIe", ("h100", "pcie"), (9, 0), 114, 1.755, 84.9, 2039, 50.0),
        *(51.2, _tensor(756.0, 756.0, 378.0), _H100),
    ),
    Chip(
        *("h200", "H200 SXM", ("h200",), (9, 0), 132, 1.980, 151.4, 4800, 50.0),
        *(66.9, _tensor(989.4, 989.4, 494.7), "NVIDIA H200 data sheet (2024), without sparsity"),
    ),
    Chip(
        *("b200", "B200", ("b200",), (10, 0), 148, 1.965, 191.5, 8000, 126.0),
        *(75.0, _tensor(2250.0, 2250.0, 1125.0), "NVIDIA HGX B200 data sheet (2024), dense"),
    ),
    Chip(
        *("rtx5090", "GeForce RTX 5090", ("5090",), (12, 0), 170, 2.407, 33.7, 1792, 96.0),
        *(104.8, _tensor(209.5, 209.5, 104.8), "NVIDIA RTX Blackwell white paper (2025)"),
    ),
)
CHIPS: dict[str, Chip] = {chip.name: chip for chip in _CHIPS}


def chip(name: str) -> Chip:
    """The chip of a name, in any case and with or without its hyphens; `ValueError` if unknown.

    >>> chip("RTX-4090").memory_gb
    25.4
    """
    plain = {known.replace("-", ""): found for known, found in CHIPS.items()}
    found = plain.get(str(name).lower().replace("-", "").replace("_", "").replace(" ", ""))
    if found is None:
        raise ValueError(f"no GPU {name!r} is known (known: {', '.join(CHIPS)})")
    return found


def named(device: str) -> Chip | None:
    """The chip that a driver or JAX calls `device`, None where it isn't known.

    >>> named("NVIDIA H100 80GB HBM3").name
    'h100'
    """
    return next((one for one in CHIPS.values() if one.matches(device)), None)
