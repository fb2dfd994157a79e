"""MobileNetV2: inverted residuals with linear bottlenecks; what MnasNet searches around.

Sandler et al., CVPR 2018 (arXiv 1801.04381), Table 2; widths and counts equal those of
`keras.applications.MobileNetV2`.
"""

import dataclasses
from typing import Any

import keras

from families.blocks.checks import check
from families.layers import round_filters


@dataclasses.dataclass(frozen=True)
class Block:
    """`repeats` inverted residuals, the first with the stride. Expand 1 has no expansion layer."""

    expand: int
    filters: int
    repeats: int
    stride: int


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole network; every field changes it: Configs are equal exactly when networks are."""

    input_shape: tuple[int, int, int]
    classes: int
    stem_filters: int
    blocks: tuple[Block, ...]
    head_filters: int
    dropout: float = 0.2
    norm_momentum: float = 0.999

    def __post_init__(self):
        blocks = [dataclasses.astuple(block) for block in self.blocks]
        sizes = (self.classes, self.stem_filters, self.head_filters, *sum(blocks, ()))
        sound = len(self.input_shape) == 3 and min(*self.input_shape, *sizes) >= 1
        check("MobileNetV2", sound, "sizes", self, "3 of an image, and all at least 1")


def _scaled(multiplier: float) -> Config:
    """The published network, widths times `multiplier`; the last 1x1 never shrinks (section 4)."""
    table = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    blocks = tuple(
        Block(expand, round_filters(int(filters * multiplier)), repeats, stride)
        for expand, filters, repeats, stride in table
    )
    return Config(
        input_shape=(224, 224, 3),
        classes=1000,
        stem_filters=round_filters(32 * multiplier),
        blocks=blocks,
        head_filters=round_filters(1280 * max(1.0, multiplier)),
    )


VARIANTS: dict[str, Config] = {
    f"x{width}": _scaled(width) for width in (1.0, 1.4, 1.3, 0.75, 0.5, 0.35)
}
VARIANTS["tiny"] = Config(
    input_shape=(32, 32, 1),
    classes=10,
    stem_filters=16,
    blocks=(Block(1, 16, 1, 1), Block(6, 24, 2, 2), Block(6, 32, 2, 2), Block(6, 48, 1, 1)),
    head_filters=128,
    norm_momentum=0.9,  # a proxy task has hundreds of steps: the averages must settle
)


def build(config: Config) -> keras.Model:
    """Images (batch, *input_shape) -> logits (batch, classes): flat, Functional, stock layers.

    >>> build(VARIANTS["tiny"]).count_params()
    68842
    """
    inputs = keras.Input(config.input_shape, name="image")
    x = _conv(inputs, config.stem_filters, 3, stride=2, name="stem_conv")
    x = _norm(x, config, "stem_norm")
    x = keras.layers.ReLU(6.0, name="stem_relu")(x)
    for number, block in enumerate(config.blocks, 1):
        for repeat in range(1, block.repeats + 1):
            stride = block.stride if repeat == 1 else 1
            x = _inverted_residual(x, config, block, stride=stride, path=f"block{number}_{repeat}")
    x = _conv(x, config.head_filters, 1, name="head_conv")
    x = _norm(x, config, "head_norm")
    x = keras.layers.ReLU(6.0, name="head_relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    if config.dropout:
        x = keras.layers.Dropout(config.dropout, name="head_dropout")(x)
    logits = keras.layers.Dense(config.classes, name="head_logits")(x)
    return keras.Model(inputs, logits, name="mobilenet_v2")


def _inverted_residual(inputs: Any, config: Config, block: Block, *, stride: int, path: str) -> Any:
    """Expand, depthwise, linear projection; the input is added where shapes agree (Figure 3)."""
    x = inputs
    if block.expand > 1:
        x = _conv(x, inputs.shape[-1] * block.expand, 1, name=f"{path}_expand")
        x = _norm(x, config, f"{path}_expand_norm")
        x = keras.layers.ReLU(6.0, name=f"{path}_expand_relu")(x)
    x = keras.layers.DepthwiseConv2D(
        3, strides=stride, padding="same", use_bias=False, name=f"{path}_depthwise"
    )(x)
    x = _norm(x, config, f"{path}_depthwise_norm")
    x = keras.layers.ReLU(6.0, name=f"{path}_depthwise_relu")(x)
    x = _conv(x, block.filters, 1, name=f"{path}_project")
    x = _norm(x, config, f"{path}_project_norm")
    if stride == 1 and inputs.shape[-1] == block.filters:
        x = keras.layers.Add(name=f"{path}_add")([x, inputs])
    return x


def _conv(inputs: Any, filters: int, kernel: int, *, name: str, stride: int = 1) -> Any:
    return keras.layers.Conv2D(
        filters, kernel, strides=stride, padding="same", use_bias=False, name=name
    )(inputs)


def _norm(inputs: Any, config: Config, name: str) -> Any:
    return keras.layers.BatchNormalization(momentum=config.norm_momentum, epsilon=1e-3, name=name)(
        inputs
    )
