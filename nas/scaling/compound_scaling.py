"""Compound scaling: factors of depth, width and resolution, and laws that families follow.

Tan and Le, "EfficientNet", ICML 2019 (arXiv 1905.11946); Li et al., "Searching for Fast Model
Families on Datacenter Accelerators", CVPR 2021 (arXiv 2102.05610): latency-aware compound scaling
(LACS). The published rows are in the families: `efficientnet.SCALES`, `efficientnet_x.LACS`.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

# Below so many channels in all blocks, steps of 8 are too coarse to land on a latency.
NARROW = 128


@dataclasses.dataclass(frozen=True)
class Factors:
    """How much deeper, wider and finer than its base a network is; the base has 1, 1, 1."""

    depth: float = 1.0
    width: float = 1.0
    resolution: float = 1.0

    @property
    def phi(self) -> float:
        """The base-2 logarithm of the multiply-adds, relative to the base: depth width^2 res^2."""
        return math.log2(self.depth * self.width**2 * self.resolution**2)

    def of(self, config: Any) -> Any:
        """The base network `config` with these factors, by `scaled` of its family."""
        pixels = max(1, round(config.input_shape[0] * self.resolution))
        narrow = max(block.filters for block in config.blocks) < NARROW
        return scaling_of(config)(
            config,
            depth=self.depth,
            width=self.width,
            resolution=pixels,
            divisor=4 if narrow else 8,
        )


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """One number for a whole family: depth = alpha^phi, width = beta^phi, resolution = gamma^phi.

    >>> PowerLaw(1.2, 1.1, 1.15)(1).depth
    1.2
    """

    alpha: float
    beta: float
    gamma: float

    def __call__(self, phi: float) -> Factors:
        return Factors(self.alpha**phi, self.beta**phi, self.gamma**phi)


# Found for EfficientNet-B1 with accuracy as the only objective (arXiv 1905.11946, section 4).
SINGLE_OBJECTIVE = PowerLaw(1.2, 1.1, 1.15)
# The laws of LACS: with EfficientNet's phi of each level, all its GPU rows and b1 to b4 of the
# TPU's follow them within .05 and 2 pixels. The larger TPU networks leave the law: wider and
# shallower, b6 and b7 of smaller images too.
LACS_GPU = PowerLaw(1.298, 1.159, 1.071)
LACS_TPU = PowerLaw(1.292, 1.142, 1.089)


def fitted(rows: Iterable[tuple[float, Factors]]) -> PowerLaw:
    """The power law nearest to (phi, factors) rows: least squares of the factors' logarithms."""
    pairs = list(rows)
    phis = np.asarray([phi for phi, _ in pairs])
    if not (phis**2).sum() > 0:
        raise ValueError("a power law needs a network larger or smaller than its base")
    logs = np.log([(one.depth, one.width, one.resolution) for _, one in pairs])
    slopes = (phis[:, None] * logs).sum(axis=0) / (phis**2).sum()
    return PowerLaw(*np.exp(slopes).tolist())


def scaling_of(config: Any) -> Callable:
    """`scaled` of the family of a Config; `ValueError` where it has none."""
    family = importlib.import_module(type(config).__module__)
    if not hasattr(family, "scaled"):
        raise ValueError(
            f"{family.__name__.rpartition('.')[2]} networks cannot be scaled: their family has no"
            " scaled(config, depth, width, resolution)"
        )
    return family.scaled
