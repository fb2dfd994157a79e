"""MnasNet's factorized hierarchical space: 432 choices for every block around a base network.

Tan et al., CVPR 2019 (arXiv 1807.11626), section 4.1: per block an operation, kernel, squeeze-and-
excitation, skip, width and depth, 4 x 2 x 2 x 3 x 3 x 3 = 432 with the expansion as part of the
operation. Strides, stem and head are those of the base.
"""

import dataclasses

import optuna

from families import mobilenet_v2
from families.layers import round_filters
from families.mnasnet import VARIANTS, Block, Config

OPS = {
    "conv": ("conv", 1),
    "depthwise": ("depthwise", 1),
    "mbconv3": ("mbconv", 3),
    "mbconv6": ("mbconv", 6),
}
KERNELS = (3, 5)
SE_RATIOS = (0.0, 0.25)
SKIPS = ("pool", "identity", "none")
FILTERS = (0.75, 1.0, 1.25)
LAYERS = (-1, 0, 1)
BASES = (*VARIANTS, "mobilenet_v2")


def sample(trial: optuna.trial.BaseTrial, base: str = "tiny") -> Config:
    """Choose every block of `base` anew; the result is canonical, so equal networks compare equal.

    >>> sample(optuna.create_study().ask(), base="a1").blocks[0].stride
    1
    """
    config = baseline(base)
    blocks = []
    for number, block in enumerate(config.blocks, 1):
        path = f"block{number}"
        op, expand = OPS[trial.suggest_categorical(f"{path}_op", tuple(OPS))]
        kernel = trial.suggest_categorical(f"{path}_kernel", KERNELS)
        se_ratio = trial.suggest_categorical(f"{path}_se", SE_RATIOS)
        skip = trial.suggest_categorical(f"{path}_skip", SKIPS)
        width = trial.suggest_categorical(f"{path}_filters", FILTERS)
        layers = trial.suggest_categorical(f"{path}_layers", LAYERS)
        blocks.append(
            Block(
                op=op,
                kernel=kernel,
                stride=block.stride,
                filters=scale_filters(block.filters, width),
                repeats=max(1, block.repeats + layers),
                expand=expand,
                se_ratio=se_ratio,
                skip=skip,
            )
        )
    return dataclasses.replace(config, blocks=tuple(blocks))


def scale_filters(filters: int, width: float) -> int:
    """So many times the channels, in steps of 4: with 8 the widths of 16 and 24 would be two."""
    return filters if width == 1 else round_filters(filters * width, divisor=4)


def baseline(base: str = "tiny") -> Config:
    """The network the space surrounds: a variant, or "mobilenet_v2", the paper's own base."""
    if base == "mobilenet_v2":
        return _mobilenet_v2()
    if base not in VARIANTS:
        raise ValueError(f"mnasnet: unknown base {base!r}, expected one of {', '.join(BASES)}")
    return VARIANTS[base]


def _mobilenet_v2() -> Config:
    """MobileNetV2's blocks in MnasNet's vocabulary (ReLU instead of ReLU6)."""
    network = mobilenet_v2.VARIANTS["x1.0"]
    blocks = tuple(
        Block(
            "mbconv",
            kernel=3,
            stride=block.stride,
            filters=block.filters,
            repeats=block.repeats,
            expand=block.expand,
        )
        for block in network.blocks
    )
    return dataclasses.replace(VARIANTS["a1"], blocks=blocks)
