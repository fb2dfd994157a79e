"""A network's time on a chip, kernel by kernel: what it computes, and what it reads and writes.

Williams et al., "Roofline", CACM 2009. A kernel takes the longer of its operations over the chip's
peak and its bytes over the chip's bandwidth, each times an efficiency that goes with its class, and
a launch. The efficiencies are fitted where there are measurements (`fit`).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from latency.roofline.gpu_chips import Chip

CLASSES = ("conv", "depthwise", "matmul", "elementwise", "normalization", "reduction")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

_VIEWS = {"Dropout", "Flatten", "Identity", "InputLayer", "Reshape", "ExpandDims", "Squeeze"} | {
    "SpatialDropout1D",
    "SpatialDropout2D",
    "GaussianDropout",
    "GaussianNoise",
}
_NORMALIZATIONS = {
    *("GroupNormalization", "LayerNormalization", "RMSNormalization", "UnitNormalization"),
    *("Softmax", "LogSoftmax", "LayerNorm", "RMSNorm"),
}
_REDUCTIONS = {
    *("Mean", "Sum", "Max", "Min", "Prod", "Var", "Std", "Norm", "Logsumexp", "Argmax", "Argmin"),
    *("All", "Any", "CountNonzero", "TopK", "Sort", "Argsort", "Cumsum", "Cumprod"),
}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One launch: its class, multiply-adds, and bytes that it reads and writes."""

    name: str
    type: str
    op_class: str
    macs: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Rates:
    """Shares of the peak and of the bandwidth that kernels of a class reach, and fixed times.

    The defaults are rounded from what vendors' libraries commonly reach; they are no measurement.
    """

    compute: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"conv": 0.5, "depthwise": 0.25, "matmul": 0.5}
    )
    memory: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(CLASSES, 0.7)
    )
    launch_us: float = 3.0  # from one kernel's end to the next one's start
    run_us: float = 20.0  # of a whole run: its dispatch and the wait for its end

    def vector(self) -> np.ndarray:
        """The logarithms of all of them, for `fit`."""
        shares = [self.compute[name] for name in sorted(self.compute)]
        shares += [self.memory[name] for name in CLASSES]
        return np.log([*shares, self.launch_us, self.run_us])

    @classmethod
    def of_vector(cls, logarithms: np.ndarray) -> "Rates":
        """The inverse of `vector`."""
        values = [float(value) for value in np.exp(logarithms)]
        names = sorted(cls().compute)
        return cls(
            compute=dict(zip(names, values, strict=False)),
            memory=dict(zip(CLASSES, values[len(names) :], strict=False)),
            launch_us=values[-2],
            run_us=values[-1],
        )


def layer_graph(
    model: Any, batch_size: int, dtype: str, fusion: str = "elementwise"
) -> tuple[list[Kernel], float]:
    """The kernels of a flat Keras model, and the megabytes of its weights and live activations.

    Elementwise layers are taken to be computed where their largest input is, if nothing else needs
    that, or with fusion="none" by themselves, as frameworks do that compile nothing. Views cost
    nothing. Raises `ValueError` on nested models and open sizes.
    """
    if fusion not in ("elementwise", "none"):
        raise ValueError(f"fusion={fusion!r}: expected elementwise or none")

    from latency.networks import count

    nodes, rows = count.calls(model), count.count(model).layers
    users: dict[int, int] = {}
    for tensor in [t for node in nodes for t in node.input_tensors] + list(model.outputs):
        users[id(tensor)] = users.get(id(tensor), 0) + 1
    drafts: list[_Draft] = []
    made_by: dict[int, int] = {}  # of a tensor, the kernel that writes it
    sizes = _Sizes(batch_size, dtype, count.samples(nodes))
    for node, row in zip(nodes, rows, strict=True):
        inputs = list({id(tensor): tensor for tensor in node.input_tensors}.values())
        kind = class_of(node.operation, row)
        if kind is None:
            home = next((made_by[id(one)] for one in inputs if id(one) in made_by), None)
            if home is not None:
                made_by |= {id(tensor): home for tensor in node.outputs}
            continue
        fused = fusion == "elementwise" and kind == "elementwise"
        home = _home(inputs, made_by, users, sizes) if fused else None
        if home is None:
            drafts.append(_Draft(row.name, row.type, kind))
            home = len(drafts) - 1
        draft = drafts[home]
        draft.macs += row.macs * sizes.scale(node.outputs[0])
        draft.weights += sizes.weights(row)
        draft.read |= {id(t): sizes.of(t) for t in inputs if made_by.get(id(t)) != home}
        draft.from_kernels |= {made_by[id(t)] for t in inputs if id(t) in made_by} - {home}
        draft.written = sum(sizes.of(tensor) for tensor in node.outputs)
        made_by |= {id(tensor): home for tensor in node.outputs}
    kernels = [
        Kernel(one.name, one.type, one.op_class, one.macs, one.bytes_moved) for one in drafts
    ]
    kept = {made_by[id(tensor)] for tensor in model.outputs if id(tensor) in made_by}
    live = _peak(drafts, kept) + sum(sizes.of(tensor) for tensor in model.inputs)
    return kernels, (live + sum(one.weights for one in drafts)) / 1e6


@dataclasses.dataclass
class _Draft:
    """A kernel while layers are still fused into it."""

    name: str
    type: str
    op_class: str
    macs: float = 0.0
    weights: float = 0.0
    written: float = 0.0
    read: dict[int, float] = dataclasses.field(default_factory=dict)
    from_kernels: set[int] = dataclasses.field(default_factory=set)

    @property
    def bytes_moved(self) -> float:
        return self.weights + self.written + sum(self.read.values())


class _Sizes:
    """Bytes of tensors for a batch size, when float32 tensors are kept in `dtype`.

    held: `cost.samples`.
    """

    def __init__(self, batch_size: int, dtype: str, held: dict[int, int]):
        self._batch_size = batch_size
        self._held = held
        self._width = BYTES[dtype]

    def scale(self, tensor: Any) -> int:
        """How many times larger than counted a tensor is: the batch size where that is open."""
        shape = tuple(tensor.shape)
        return self._batch_size if shape and shape[0] is None else 1

    def of(self, tensor: Any) -> float:
        size = math.prod(1 if axis is None else axis for axis in tensor.shape)
        kind = str(tensor.dtype)
        digits = "".join(filter(str.isdigit, kind.split("_")[0])) or "8"
        width = self._width if kind == "float32" else int(digits) / 8
        return size * self.scale(tensor) * self._held.get(id(tensor), 1) * width

    def weights(self, row: Any) -> float:
        """Weights of a layer; those of an embedding are looked up and not read whole."""
        if row.type == "Embedding":
            return 0.0
        wide = row.weight_bytes == 4 * row.params
        return row.params * self._width if wide else row.weight_bytes


def _home(
    inputs: list[Any], made_by: dict[int, int], users: dict[int, int], sizes: _Sizes
) -> int | None:
    """The kernel that an elementwise layer is fused into: the one of its largest input."""
    largest = max((sizes.of(tensor) for tensor in inputs), default=0)
    homes = [
        made_by[id(tensor)]
        for tensor in inputs
        if sizes.of(tensor) == largest and users[id(tensor)] == 1 and id(tensor) in made_by
    ]
    return max(homes, default=None)


def class_of(operation: Any, row: Any) -> str | None:
    """The class of one layer's call, None where it computes nothing."""
    name = row.type
    if name in _VIEWS:
        return None
    if name.startswith(("DepthwiseConv", "SeparableConv")):
        return "depthwise"
    if name.startswith("Conv"):
        groups = getattr(operation, "groups", 1)
        if groups > 1 and groups == getattr(operation, "filters", 0):
            return "depthwise"
        pointwise = math.prod(getattr(operation, "kernel_size", (3,))) == 1 and groups == 1
        return "matmul" if pointwise else "conv"
    activation = getattr(getattr(operation, "activation", None), "__name__", "")
    if row.macs:
        return "matmul"
    if name in _NORMALIZATIONS or (name == "Activation" and "softmax" in activation):
        return "normalization"
    if "Pool" in name or name in _REDUCTIONS:
        return "reduction"
    return "elementwise"


def _peak(drafts: list[_Draft], kept: set[int]) -> float:
    """The most bytes of activations that live at once, in the order of the kernels."""
    last = {index: index for index in range(len(drafts))}
    for index, draft in enumerate(drafts):
        for source in draft.from_kernels:
            last[source] = max(last[source], index)
    last |= dict.fromkeys(kept, len(drafts))
    change = np.zeros(len(drafts) + 2)
    for index, draft in enumerate(drafts):
        change[index] += draft.written
        change[last[index] + 1] -= draft.written
    return float(np.cumsum(change).max())


def times_ms(kernels: Sequence[Kernel], chip: Chip, dtype: str, rates: Rates) -> np.ndarray:
    """The estimated milliseconds of each kernel, its launch included.

    `rates.run_us` is of the whole run and in none of them. Raises `ValueError` where the chip
    has no units for `dtype`.
    """
    return _times_ms(_Table(kernels), chip, dtype, rates)


def total_ms(kernels: Sequence[Kernel], chip: Chip, dtype: str, rates: Rates) -> float:
    """The estimated milliseconds of a run."""
    return float(times_ms(kernels, chip, dtype, rates).sum()) + rates.run_us / 1e3


class _Table:
    """Kernels as arrays."""

    def __init__(self, kernels: Sequence[Kernel]):
        self.index = np.array([CLASSES.index(one.op_class) for one in kernels], int)
        self.macs = np.array([one.macs for one in kernels], float)
        self.bytes = np.array([one.bytes for one in kernels], float)


def _times_ms(table: _Table, chip: Chip, dtype: str, rates: Rates) -> np.ndarray:
    matrix, vector = chip.matrix_peak(dtype), chip.float32
    peaks = np.array(
        [
            rates.compute[name] * (vector if name == "depthwise" else matrix)
            if name in rates.compute
            else vector
            for name in CLASSES
        ]
    )
    shares = np.array([rates.memory[name] for name in CLASSES])
    compute_s = 2 * table.macs / (peaks[table.index] * 1e12)
    memory_s = table.bytes / (shares[table.index] * chip.bandwidth_gb_s * 1e9)
    return np.maximum(compute_s, memory_s) * 1e3 + rates.launch_us / 1e3


def fit(
    points: Sequence[tuple[Sequence[Kernel], float]], chip: Chip, dtype: str, start: Rates
) -> Rates:
    """The rates that bring the estimates nearest to measured times.

    `points`: kernels of a network, and its milliseconds. Few points move few rates: each is held to
    `start` as if it had been seen within a factor of 3, and a measurement within 5 %.
    """
    from scipy.optimize import least_squares

    if not points:
        raise ValueError("no measurement to calibrate with: expected at least 1")
    if any(ms <= 0 or not kernels for kernels, ms in points):
        raise ValueError("a calibration point without kernels, or with no time")
    table = _Table([kernel for kernels, _ in points for kernel in kernels])
    starts = np.cumsum([0, *(len(kernels) for kernels, _ in points)])[:-1]
    measured = np.log([ms for _, ms in points])
    origin = start.vector()
    low = np.log([0.002] * (len(origin) - 2) + [0.05, 0.05])
    high = np.log([1.0] * (len(origin) - 2) + [1e3, 1e5])

    def residuals(vector):
        rates = Rates.of_vector(vector)
        times = _times_ms(table, chip, dtype, rates)
        estimated = np.add.reduceat(times, starts) + rates.run_us / 1e3
        return np.concatenate(
            [(np.log(estimated) - measured) / 0.05, (vector - origin) / math.log(3)]
        )

    inside = np.clip(origin, low + 1e-6, high - 1e-6)
    options = {"bounds": (low, high), "diff_step": 1e-4, "ftol": 1e-4, "xtol": 1e-4}
    return Rates.of_vector(least_squares(residuals, inside, **options).x)
