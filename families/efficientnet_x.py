"""EfficientNet-X and -H: found for accelerators, with fused convolutions and space-to-depth.

Li et al., "Searching for Fast Model Families on Datacenter Accelerators", CVPR 2021
(arXiv 2102.05610); -H: Li et al., "Hyperscale Hardware Optimized Neural Architecture Search",
ASPLOS 2023. Blocks and tables: tensorflow/tpu models/official/efficientnet/tpu.
"""

import dataclasses
from typing import Any

import keras

from families import efficientnet
from families.efficientnet import Block, Config, features, scaled

__all__ = ["VARIANTS", "Block", "Config", "build", "features", "scaled"]

# Width, depth and resolution of the released networks; b0 to b7 have EfficientNet's own factors.
SCALES = {
    "b0": (1.0, 1.0, 224),
    "b1": (1.0, 1.1, 240),
    "b2": (1.1, 1.2, 260),
    "b3": (1.2, 1.4, 300),
    "b4": (1.4, 1.8, 380),
    "b5": (1.6, 2.2, 456),
    "b6": (1.8, 2.6, 528),
    "b7": (2.0, 3.1, 600),
    "h-b5": (1.92, 2.2, 456),
    "h-b6": (2.16, 2.6, 528),
    "h-b7": (2.4, 3.1, 600),
    "h-tpu-b5": (2.3, 2.76, 332),
    "h-tpu-b6": (3.0, 3.01, 328),
    "h-tpu-b7": (3.6, 3.44, 350),
}
# Latency-aware compound scaling of b0, for TPU v3 and for the V100.
LACS = {
    "tpu-b0": (1.0, 1.0, 224),
    "tpu-b1": (1.05, 1.09, 229),
    "tpu-b2": (1.13, 1.29, 244),
    "tpu-b3": (1.27, 1.62, 263),
    "tpu-b4": (1.54, 2.38, 299),
    "tpu-b5": (1.96, 2.76, 332),
    "tpu-b6": (2.75, 3.01, 328),
    "tpu-b7": (3.26, 3.44, 350),
    "gpu-b0": (1.0, 1.0, 224),
    "gpu-b1": (1.05, 1.09, 229),
    "gpu-b2": (1.13, 1.24, 237),
    "gpu-b3": (1.31, 1.63, 255),
    "gpu-b4": (1.63, 2.4, 282),
    "gpu-b5": (1.94, 3.29, 306),
    "gpu-b6": (2.25, 4.28, 328),
    "gpu-b7": (2.58, 5.46, 350),
}
# Dropout and the ratio of squeeze-and-excitation: .25 times the coefficient of the level.
_DROPOUTS = (0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5)
_SE_RATIOS = (1.0, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25)


def _network(expand: int) -> Config:
    """The base network; X expands 6 times in the early blocks, H 4 times."""
    relu: dict[str, Any] = {"activation": "relu", "se_ratio": 1.0}
    swish = relu | {"activation": "swish"}
    return Config(
        input_shape=(224, 224, 3),
        classes=1000,
        stem_filters=32,
        blocks=(
            Block("mbconv", 3, 1, 16, 1, layout="depth_learned", **relu),
            Block("fused", 3, 2, 24, 2, expand=expand, **swish),  # reads the layout as it is
            Block("fused", 5, 2, 40, 2, expand=expand, **swish),
            Block("mbconv", 3, 2, 80, 3, expand=expand, **relu),
            Block("mbconv", 5, 1, 112, 3, expand=6, **relu),
            Block("mbconv", 5, 2, 192, 4, expand=6, **relu),
            Block("mbconv", 3, 1, 320, 1, expand=6, **relu),
        ),
        activation="relu",
    )


def _released(name: str, scales: tuple[float, float, int]) -> Config:
    """A released network; `scales` are its width, depth and resolution."""
    width, depth, resolution = scales
    level = int(name[-1])
    config = scaled(
        _network(4 if name.startswith("h-") else 6), depth=depth, width=width, resolution=resolution
    )
    blocks = tuple(
        dataclasses.replace(block, se_ratio=_SE_RATIOS[level]) for block in config.blocks
    )
    return dataclasses.replace(config, blocks=blocks, dropout=_DROPOUTS[level])


# The smaller H networks have the factors of X.
_H = {f"h-b{level}": SCALES[f"b{level}"] for level in range(5)}
VARIANTS: dict[str, Config] = {
    name: _released(name, scales) for name, scales in (SCALES | _H | LACS).items()
}
# Rows of the tables that are the same network.
ALIASES = {"tpu-b0": "b0", "gpu-b0": "b0", "gpu-b1": "tpu-b1"}

# X-B0's pattern for small grey images and short training.
VARIANTS["tiny"] = Config(
    input_shape=(32, 32, 1),
    classes=10,
    stem_filters=16,
    blocks=(
        Block("mbconv", 3, 1, 16, 1, se_ratio=1.0, activation="relu", layout="depth_learned"),
        Block("fused", 3, 2, 24, 2, expand=3, se_ratio=1.0, activation="swish"),
        Block("fused", 3, 1, 32, 1, expand=3, se_ratio=1.0, activation="swish"),
        Block("mbconv", 5, 2, 48, 2, expand=6, se_ratio=1.0, activation="relu"),
        Block("mbconv", 3, 1, 64, 1, expand=6, se_ratio=1.0, activation="relu"),
    ),
    head_filters=128,
    activation="relu",
    norm_momentum=0.9,  # a proxy task has hundreds of steps, not 100,000: the averages must settle
)


def build(config: Config) -> keras.Model:
    """Images (batch, *input_shape) -> logits (batch, classes), as `efficientnet.build`.

    >>> build(VARIANTS["tiny"]).count_params()
    260394
    """
    return efficientnet.build(config)
