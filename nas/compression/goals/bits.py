"""Which kernel gets how many bits: what each costs alone, and the best sum within so many bytes.

As Yao et al., "HAWQ-V3", arXiv 2011.10680, section 4, with a measured divergence of the outputs in
place of second derivatives. The sum ranks plans and predicts no quality: that is measured.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from compress.examples.data import Data, taken
from compress.ptq import PTQ
from compress.qat import QAT
from compress.quantization.on_data import round_on_data
from compress.rewriting import graph
from compress.rewriting.weights import Kernel, kernels

WIDTHS = (8, 4, 2)
LOOKED_AT = 128  # examples that divergences are taken on
SCALE = 4  # bytes of each output's scale


@dataclasses.dataclass(frozen=True)
class Option:
    """One kernel at one width: its bytes, and how far it alone moves the outputs."""

    bits: int
    bytes: float
    divergence: float


Table = dict[str, list[Option]]  # by path of a kernel, widest first


def options(
    model: Any, data: Data, narrow: bool, on_kernel: Callable[[int, int], None] = lambda *_: None
) -> Table:
    """What every kernel would cost at each width, one pass for a width and one run for each.

    narrow: whether 2 bits save bytes where a file takes them: in products, not in convolutions.
    """
    every = [kernel for kernel in kernels(model)]
    widths = {k.path: _widths(k, narrow) for k in every}
    found: Table = {k.path: [Option(8, _bytes(k, 8), 0.0)] for k in every}
    probe = graph.rewrite(model, lambda layer, copy: copy)
    weights = {weight.path: weight for weight in probe.weights}
    inputs = taken(data.inputs, slice(0, LOOKED_AT))
    before = _outputs(probe, inputs)
    done, total = 0, sum(len(one) - 1 for one in widths.values())
    for bits in WIDTHS[1:]:
        meant = {path: bits for path, one in widths.items() if bits in one}
        if not meant:
            continue
        alone = round_on_data(model, meant, data, alone=True)
        for kernel in every:
            if kernel.path not in meant:
                continue
            own = np.asarray(weights[kernel.path])
            weights[kernel.path].assign(alone.values[kernel.path])
            moved = divergence(before, _outputs(probe, inputs))
            weights[kernel.path].assign(own)
            found[kernel.path].append(Option(bits, _bytes(kernel, bits), moved))
            done += 1
            on_kernel(done, total)
    return found


def choose(table: Table, most: float) -> dict[str, int] | None:
    """Path -> bits with the least summed divergence in so many bytes; None: they do not fit.

    >>> table = {"a": [Option(8, 8, 0), Option(4, 4, 1)], "b": [Option(8, 8, 0), Option(4, 4, 3)]}
    >>> choose(table, 12)
    {'a': 4, 'b': 8}
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    flat = [(path, option) for path, some in table.items() for option in some]
    one_each = np.array([[path == other for other, _ in flat] for path in table], float)
    sizes = np.array([option.bytes for _, option in flat])
    cost = np.array([option.divergence for _, option in flat])
    scale = max(float(cost.max()), 1e-30)
    solved = milp(
        cost / scale,
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(sizes[None] / sizes.max(), -np.inf, most / sizes.max()),
        ],
        options={"time_limit": 20, "mip_rel_gap": 1e-3},
    )
    if solved.x is None:
        return None
    return {path: option.bits for (path, option), x in zip(flat, solved.x, strict=True) if x > 0.5}


def average(model: Any, chosen: dict[str, int]) -> float:
    """Bits a weight, of the kernels."""
    sizes = {kernel.path: kernel.size for kernel in kernels(model)}
    return sum(sizes[path] * bits for path, bits in chosen.items()) / sum(sizes.values())


def rounding(chosen: dict[str, int], activations: int | None) -> list[PTQ]:
    """The methods that round kernels to these widths, one for each width."""
    return [
        PTQ(bits, activations=activations, depthwise=None, which=which)
        for bits, which in _by_width(chosen)
    ]


def training(chosen: dict[str, int]) -> list[QAT]:
    """The methods that train them at these widths, one for each width."""
    return [QAT(bits, embeddings=None, which=which) for bits, which in _by_width(chosen)]


def divergence(before: list[np.ndarray], after: list[np.ndarray]) -> float:
    """How far outputs moved: Kullback-Leibler where they are shares, else of what they vary by."""
    total = 0.0
    for was, now in zip(before, after, strict=True):
        if (
            was.ndim > 1
            and was.shape[-1] > 1
            and np.allclose(was.sum(-1), 1, atol=1e-3)
            and (was.min() >= 0)
        ):
            ratio = np.log(np.maximum(was, 1e-9)) - np.log(np.maximum(now, 1e-9))
            total += float((was * ratio).sum(-1).mean())
        else:
            spread = max(float(was.var()), 1e-12)
            total += float(np.square(was - now).mean()) / spread
    return max(total, 0.0)


def _by_width(chosen: dict[str, int]) -> list[tuple[int, str | None]]:
    """(bits, which kernels), the last of them all that are left: the largest group."""
    groups: dict[int, list[str]] = {}
    for path, width in chosen.items():
        groups.setdefault(width, []).append(path)
    order = sorted(groups, key=lambda width: (len(groups[width]), width))
    named = {width: f"^({'|'.join(map(re.escape, groups[width]))})$" for width in order[:-1]}
    return [*named.items(), (order[-1], None)]


def _widths(kernel: Kernel, narrow: bool) -> tuple[int, ...]:
    """Those that a `.tflite` file stores in fewer bytes."""
    if kernel.kind == "depthwise" or kernel.size < 256:
        return WIDTHS[:1]
    products = kernel.kind in ("dense", "experts", "embedding")
    return WIDTHS if narrow and products and kernel.shape[-1] % 4 == 0 else WIDTHS[:2]


def _bytes(kernel: Kernel, bits: int) -> float:
    outputs = np.prod([n for axis, n in enumerate(kernel.shape) if axis not in kernel.input_axes])
    return kernel.size * bits / 8 + SCALE * float(outputs)


def _outputs(model: Any, inputs: Any) -> list[np.ndarray]:
    import keras

    flat = keras.tree.flatten(model(inputs, training=False))
    return [keras.ops.convert_to_numpy(one).astype(np.float64) for one in flat]
