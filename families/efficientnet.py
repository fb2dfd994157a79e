"""EfficientNet: one small network found by search, scaled in depth, width and resolution together.

Tan and Le, ICML 2019 (arXiv 1905.11946); layer details and tables: tensorflow/tpu
models/official/efficientnet. The vocabulary of blocks is that of EfficientNet-X too (Li et al.,
CVPR 2021, arXiv 2102.05610): `families/efficientnet_x.py`.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import keras

from families.blocks.checks import spell
from families.blocks.convolution import convolution
from families.blocks.efficientnet import (
    ACTIVATIONS,
    Block,
    Map,
    Place,
    block_map,
    canonical,
    check,
    entry_of,
    image,
    norm_and_activate,
)
from families.layers import round_filters


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole network in canonical form: two Configs are equal exactly when their networks are.

    (But for `survival` where no layer has a shortcut.)

    survival: the last layer that has a shortcut is left out with probability 1 - survival in
    training, the ones before it in proportion to their place (stochastic depth, arXiv 1603.09382).
    activation: of stem and head.
    """

    input_shape: tuple[int, int, int]
    classes: int
    stem_filters: int
    blocks: tuple[Block, ...]
    head_filters: int = 1280
    dropout: float = 0.2
    survival: float = 0.8
    activation: str = "swish"
    stem_stride: int = 2
    norm_momentum: float = 0.99

    def __post_init__(self):
        spell(self, _canonical(self))


def scaled(
    config: Config,
    *,
    depth: float = 1.0,
    width: float = 1.0,
    resolution: int | None = None,
    divisor: int = 8,
) -> Config:
    """The network deeper, wider and for images of `resolution` pixels: compound scaling.

    Repeats are rounded up; channels of stem, blocks and head to multiples of `divisor`, or of what
    all of the network's own are multiples of.

    >>> scaled(VARIANTS["b0"], depth=1.1, resolution=240) == VARIANTS["b1"]
    True
    """
    for name, factor in (("depth", depth), ("width", width)):
        check(0 < factor < math.inf, f"{name} factor", factor, "above 0")
    shape = config.input_shape
    if resolution is not None:
        shape = (resolution, resolution, shape[2])
    own = [config.stem_filters, config.head_filters, *(block.filters for block in config.blocks)]
    divisor = math.gcd(divisor, *own)

    def filters(count: int) -> int:
        return round_filters(count * width, divisor)

    blocks = tuple(
        dataclasses.replace(
            block,
            filters=filters(block.filters),
            repeats=math.ceil(depth * block.repeats),
        )
        for block in config.blocks
    )
    return dataclasses.replace(
        config,
        input_shape=shape,
        stem_filters=filters(config.stem_filters),
        blocks=blocks,
        head_filters=filters(config.head_filters),
    )


def _canonical(config: Config) -> dict:
    """Check every field and give choices that build the same network the same spelling."""
    shape = tuple(int(size) for size in config.input_shape)
    check(len(shape) == 3 and min(shape) > 0, "input_shape", config.input_shape, "3 positive sizes")
    for name in ("classes", "stem_filters", "head_filters"):
        check(int(getattr(config, name)) > 0, name, getattr(config, name), "a positive integer")
    for name, low, high in (("dropout", 0, 0.99), ("norm_momentum", 0, 0.9999), ("survival", 0, 1)):
        value = getattr(config, name)
        check(low <= value <= high, name, value, f"{low} <= {name} <= {high}")
    check(config.stem_stride in (1, 2), "stem_stride", config.stem_stride, "1 or 2")
    check(
        config.activation in ACTIVATIONS,
        "activation",
        config.activation,
        f"one of {[*ACTIVATIONS]}",
    )
    blocks: list[Block] = []
    place = Place(int(config.stem_filters), int(config.stem_filters), "none")
    for number, block in enumerate(config.blocks, 1):
        before = blocks[-1].layout if blocks else "none"
        block = canonical(block, place, before, f"block{number}")
        place = entry_of(block, place).after(block)
        blocks.append(block)
    return {
        "input_shape": shape,
        "classes": int(config.classes),
        "stem_filters": int(config.stem_filters),
        "blocks": tuple(blocks),
        "head_filters": int(config.head_filters),
        "dropout": float(config.dropout),
        "survival": float(config.survival),
        "activation": str(config.activation),
        "stem_stride": int(config.stem_stride),
        "norm_momentum": float(config.norm_momentum),
    }


_B0 = Config(
    input_shape=(224, 224, 3),
    classes=1000,
    stem_filters=32,
    blocks=(
        Block("mbconv", kernel=3, stride=1, filters=16, repeats=1),
        Block("mbconv", kernel=3, stride=2, filters=24, repeats=2, expand=6),
        Block("mbconv", kernel=5, stride=2, filters=40, repeats=2, expand=6),
        Block("mbconv", kernel=3, stride=2, filters=80, repeats=3, expand=6),
        Block("mbconv", kernel=5, stride=1, filters=112, repeats=3, expand=6),
        Block("mbconv", kernel=5, stride=2, filters=192, repeats=4, expand=6),
        Block("mbconv", kernel=3, stride=1, filters=320, repeats=1, expand=6),
    ),
)

# Width, depth, resolution and dropout of the released networks. They are rounded by hand: 3.1 is
# not 1.2 to a power that 2.0 is of 1.1.
SCALES = {
    "b0": (1.0, 1.0, 224, 0.2),
    "b1": (1.0, 1.1, 240, 0.2),
    "b2": (1.1, 1.2, 260, 0.3),
    "b3": (1.2, 1.4, 300, 0.3),
    "b4": (1.4, 1.8, 380, 0.4),
    "b5": (1.6, 2.2, 456, 0.4),
    "b6": (1.8, 2.6, 528, 0.5),
    "b7": (2.0, 3.1, 600, 0.5),
}

VARIANTS: dict[str, Config] = {
    name: dataclasses.replace(
        scaled(_B0, depth=depth, width=width, resolution=resolution), dropout=dropout
    )
    for name, (width, depth, resolution, dropout) in SCALES.items()
}
# B0's pattern for small grey images and short training.
VARIANTS["tiny"] = Config(
    input_shape=(32, 32, 1),
    classes=10,
    stem_filters=16,
    blocks=(
        Block("mbconv", kernel=3, stride=1, filters=16, repeats=1),
        Block("mbconv", kernel=3, stride=2, filters=24, repeats=2, expand=3),
        Block("mbconv", kernel=5, stride=1, filters=32, repeats=2, expand=3),
        Block("mbconv", kernel=3, stride=2, filters=48, repeats=2, expand=6),
        Block("mbconv", kernel=3, stride=1, filters=64, repeats=1, expand=6),
    ),
    head_filters=128,
    norm_momentum=0.9,  # a proxy task has hundreds of steps, not 100,000: the averages must settle
)


def build(config: Config) -> keras.Model:
    """Images (batch, *input_shape) -> logits (batch, classes): flat and Functional.

    >>> build(VARIANTS["tiny"]).count_params()
    145078
    """
    inputs = keras.Input(config.input_shape, name="image")
    *_, last = _maps(inputs, config)
    x = image(last, "head")
    x = convolution(x, config.head_filters, 1, name="head_conv")
    x = norm_and_activate(x, config.norm_momentum, config.activation, "head")
    x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    if config.dropout:
        x = keras.layers.Dropout(config.dropout, name="head_dropout")(x)
    logits = keras.layers.Dense(config.classes, name="head_logits")(x)
    return keras.Model(inputs, logits, name="efficientnet")


def features(inputs: Any, config: Config) -> dict[int, Any]:
    """What a detector reads of images (a Keras tensor): {level: the last map of stride 2**level}.

    The layers are those of `build` without its head, so that weights of equal paths fit
    (`families.layers.copy_weights`). `classes`, `head_filters` and `dropout` have no part in it.

    >>> maps = features(keras.Input((64, 64, 3)), VARIANTS["tiny"])
    >>> {level: tensor.shape[1:] for level, tensor in maps.items()}[3]
    (8, 8, 64)
    """
    levels, level = {}, config.stem_stride - 1
    for number, here in enumerate(_maps(inputs, config)):
        if number and config.blocks[number - 1].stride == 2:
            level += 1
        levels[level] = here
    return {level: image(here, f"level{level}") for level, here in levels.items()}


def _maps(inputs: Any, config: Config) -> Iterator[Map]:
    """The feature maps after the stem and after every block."""
    momentum = config.norm_momentum
    x = convolution(inputs, config.stem_filters, 3, stride=config.stem_stride, name="stem_conv")
    x = norm_and_activate(x, momentum, config.activation, "stem")
    here = Map(x, Place(config.stem_filters, config.stem_filters, "none"), x.shape[1:3])
    yield here
    layers, done = sum(block.repeats for block in config.blocks), 0
    for number, block in enumerate(config.blocks, 1):
        drops = [
            (1 - config.survival) * index / layers for index in range(done, done + block.repeats)
        ]
        done += block.repeats
        here = block_map(here, block, momentum=momentum, drops=drops, path=f"block{number}")
        yield here
