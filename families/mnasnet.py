"""MnasNet: mobile networks of blocks of identical layers, in the words they were found in.

Tan et al., "MnasNet: Platform-Aware Neural Architecture Search for Mobile", CVPR 2019
(arXiv 1807.11626); layer details, depth multipliers and the networks A1, B1 and small:
tensorflow/tpu models/official/mnasnet.
"""

import dataclasses
import functools
import math
from typing import Any

import keras

from families.blocks.checks import check, spell
from families.blocks.convolution import convolution, depthwise, norm, squeeze_excite
from families.layers import round_filters

_check = functools.partial(check, "MnasNet")

OPS = ("conv", "depthwise", "mbconv")
SKIPS = ("pool", "identity", "none")


@dataclasses.dataclass(frozen=True)
class Block:
    """`repeats` identical layers; only the first has the stride (section 4.1 of the paper).

    op: "conv" is a full convolution; "depthwise" a depthwise convolution and a linear 1x1 (the
        paper's SepConv, the same network as MBConv with expand 1); "mbconv" the inverted bottleneck
        of MobileNetV2.
    expand: the depthwise convolution sees this many times the input channels ("mbconv", else 1).
    se_ratio: squeeze-and-excitation with int(ratio * input channels) units, 0 for none; it scales
        the activated output of the depthwise (for "conv": of the full) convolution.
    skip: "identity" adds the input where stride is 1 and channels agree. "pool" adds to every layer
        its input after a 3x3 average pooling with the layer's stride, and a batch-normalized 1x1
        convolution where channels differ: the paper does not say how sizes are made to agree, this
        is the shortcut of ResNet-D (arXiv 1812.01187).
    """

    op: str
    kernel: int
    stride: int
    filters: int
    repeats: int
    expand: int = 1
    se_ratio: float = 0.0
    skip: str = "identity"


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole network in canonical form: two Configs are equal exactly when their networks are."""

    input_shape: tuple[int, int, int]
    classes: int
    stem_filters: int
    stem_stride: int
    blocks: tuple[Block, ...]
    head_filters: int = 1280
    dropout: float = 0.2
    norm_momentum: float = 0.99

    def __post_init__(self):
        spell(self, _canonical(self))


def _canonical(config: Config) -> dict:
    """Check every field and give choices that build the same network the same spelling."""
    shape = tuple(int(size) for size in config.input_shape)
    _check(
        len(shape) == 3 and min(shape) > 0, "input_shape", config.input_shape, "3 positive sizes"
    )
    for name in ("classes", "stem_filters", "stem_stride", "head_filters"):
        _check(int(getattr(config, name)) > 0, name, getattr(config, name), "a positive integer")
    _check(0 <= config.dropout < 1, "dropout", config.dropout, "0 <= rate < 1")
    _check(
        0 <= config.norm_momentum < 1, "norm_momentum", config.norm_momentum, "0 <= momentum < 1"
    )
    blocks, inputs = [], int(config.stem_filters)
    for number, block in enumerate(config.blocks, 1):
        blocks.append(_canonical_block(block, inputs, f"block{number}"))
        inputs = blocks[-1].filters
    return {
        "input_shape": shape,
        "classes": int(config.classes),
        "stem_filters": int(config.stem_filters),
        "stem_stride": int(config.stem_stride),
        "blocks": tuple(blocks),
        "head_filters": int(config.head_filters),
        "dropout": float(config.dropout),
        "norm_momentum": float(config.norm_momentum),
    }


def _canonical_block(block: Block, inputs: int, path: str) -> Block:
    _check(block.op in OPS, f"{path} op", block.op, f"one of {OPS}")
    _check(block.skip in SKIPS, f"{path} skip", block.skip, f"one of {SKIPS}")
    # Other ratios would give one network several spellings (int(16 * .25) == int(16 * .26)).
    _check(
        block.se_ratio in (0, 0.25), f"{path} se_ratio", block.se_ratio, "0 or 0.25 (section 4.1)"
    )
    for name in ("kernel", "stride", "filters", "repeats", "expand"):
        _check(int(getattr(block, name)) > 0, f"{path} {name}", getattr(block, name), "at least 1")
    op, expand = block.op, int(block.expand)
    if op != "mbconv" or expand == 1:
        op, expand = "conv" if op == "conv" else "depthwise", 1
    repeats, stride, filters = int(block.repeats), int(block.stride), int(block.filters)
    has_identity = repeats > 1 or (stride == 1 and filters == inputs)
    skip = "none" if block.skip == "identity" and not has_identity else block.skip
    return Block(
        op=str(op),
        kernel=int(block.kernel),
        stride=stride,
        filters=filters,
        repeats=repeats,
        expand=expand,
        se_ratio=float(block.se_ratio),
        skip=str(skip),
    )


def scaled(
    config: Config,
    *,
    depth: float = 1.0,
    width: float = 1.0,
    resolution: int | None = None,
    divisor: int = 8,
) -> Config:
    """The network deeper, wider and for images of `resolution` pixels: compound scaling.

    Repeats are rounded up, channels of stem and blocks to multiples of `divisor`, or of what all of
    the network's own are multiples of; the head keeps its width, as in the released networks
    (arXiv 1905.11946, section 4, for the rule).

    >>> scaled(VARIANTS["a1"], width=1.4) == VARIANTS["a1_x1.4"]
    True
    """
    for name, factor in (("depth", depth), ("width", width)):
        _check(0 < factor < math.inf, f"{name} factor", factor, "above 0")
    divisor = math.gcd(divisor, config.stem_filters, *(block.filters for block in config.blocks))
    blocks, inputs = [], config.stem_filters
    for block in config.blocks:
        # Alone it could not have a shortcut, and so says "none"; layers after it can.
        alone = block.repeats == 1 and (block.stride > 1 or block.filters != inputs)
        inputs = block.filters
        changed = dataclasses.replace(
            block,
            filters=round_filters(block.filters * width, divisor),
            repeats=math.ceil(block.repeats * depth),
            skip="identity" if alone and block.skip == "none" else block.skip,
        )
        blocks.append(changed)
    shape = config.input_shape
    return dataclasses.replace(
        config,
        input_shape=shape if resolution is None else (resolution, resolution, shape[2]),
        stem_filters=round_filters(config.stem_filters * width, divisor),
        blocks=tuple(blocks),
    )


_A1 = Config(
    input_shape=(224, 224, 3),
    classes=1000,
    stem_filters=32,
    stem_stride=2,
    blocks=(
        Block("depthwise", kernel=3, stride=1, filters=16, repeats=1, skip="none"),
        Block("mbconv", kernel=3, stride=2, filters=24, repeats=2, expand=6),
        Block("mbconv", kernel=5, stride=2, filters=40, repeats=3, expand=3, se_ratio=0.25),
        Block("mbconv", kernel=3, stride=2, filters=80, repeats=4, expand=6),
        Block("mbconv", kernel=3, stride=1, filters=112, repeats=2, expand=6, se_ratio=0.25),
        Block("mbconv", kernel=5, stride=2, filters=160, repeats=3, expand=6, se_ratio=0.25),
        Block("mbconv", kernel=3, stride=1, filters=320, repeats=1, expand=6),
    ),
)

_B1 = Config(
    input_shape=(224, 224, 3),
    classes=1000,
    stem_filters=32,
    stem_stride=2,
    blocks=(
        Block("depthwise", kernel=3, stride=1, filters=16, repeats=1, skip="none"),
        Block("mbconv", kernel=3, stride=2, filters=24, repeats=3, expand=3),
        Block("mbconv", kernel=5, stride=2, filters=40, repeats=3, expand=3),
        Block("mbconv", kernel=5, stride=2, filters=80, repeats=3, expand=6),
        Block("mbconv", kernel=3, stride=1, filters=96, repeats=2, expand=6),
        Block("mbconv", kernel=5, stride=2, filters=192, repeats=4, expand=6),
        Block("mbconv", kernel=3, stride=1, filters=320, repeats=1, expand=6, skip="none"),
    ),
)

_SMALL = Config(
    input_shape=(224, 224, 3),
    classes=1000,
    stem_filters=8,
    stem_stride=2,
    blocks=(
        # The released code declares 16 input channels here, gets 8, and so adds no shortcut.
        Block("depthwise", kernel=3, stride=1, filters=8, repeats=1, skip="none"),
        Block("mbconv", kernel=3, stride=2, filters=16, repeats=1, expand=3),
        Block("mbconv", kernel=3, stride=2, filters=16, repeats=2, expand=6),
        Block("mbconv", kernel=5, stride=2, filters=32, repeats=4, expand=6, se_ratio=0.25),
        Block("mbconv", kernel=3, stride=1, filters=32, repeats=3, expand=6, se_ratio=0.25),
        Block("mbconv", kernel=5, stride=2, filters=88, repeats=3, expand=6, se_ratio=0.25),
        Block("mbconv", kernel=3, stride=1, filters=144, repeats=1, expand=6),
    ),
    dropout=0.0,
)

# A1's pattern for small grey images and short training: few strides, so that every choice matters.
_TINY = Config(
    input_shape=(32, 32, 1),
    classes=10,
    stem_filters=16,
    stem_stride=2,
    blocks=(
        Block("depthwise", kernel=3, stride=1, filters=16, repeats=1, skip="none"),
        Block("mbconv", kernel=3, stride=2, filters=24, repeats=2, expand=3),
        Block("mbconv", kernel=5, stride=1, filters=32, repeats=2, expand=3, se_ratio=0.25),
        Block("mbconv", kernel=3, stride=2, filters=48, repeats=2, expand=6),
        Block("mbconv", kernel=3, stride=1, filters=64, repeats=1, expand=6, se_ratio=0.25),
    ),
    head_filters=128,
    norm_momentum=0.9,  # a proxy task has hundreds of steps, not 100,000: the averages must settle
)

VARIANTS: dict[str, Config] = {
    "a1": _A1,
    "b1": _B1,
    "small": _SMALL,
    "a1_x1.4": scaled(_A1, width=1.4),
    "a1_x0.75": scaled(_A1, width=0.75),
    "a1_x0.5": scaled(_A1, width=0.5),
    "a1_x0.35": scaled(_A1, width=0.35),
    "tiny": _TINY,
}


def build(config: Config) -> keras.Model:
    """Images (batch, *input_shape) -> logits (batch, classes): flat, Functional, stock layers.

    >>> build(VARIANTS["tiny"]).count_params()
    133068
    """
    inputs = keras.Input(config.input_shape, name="image")
    x = convolution(inputs, config.stem_filters, 3, stride=config.stem_stride, name="stem_conv")
    x = norm(x, momentum=config.norm_momentum, name="stem_norm")
    x = keras.layers.ReLU(name="stem_relu")(x)
    for number, block in enumerate(config.blocks, 1):
        for repeat in range(1, block.repeats + 1):
            stride = block.stride if repeat == 1 else 1
            x = _layer(x, config, block, stride=stride, path=f"block{number}_{repeat}")
    x = convolution(x, config.head_filters, 1, name="head_conv")
    x = norm(x, momentum=config.norm_momentum, name="head_norm")
    x = keras.layers.ReLU(name="head_relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    if config.dropout:
        x = keras.layers.Dropout(config.dropout, name="head_dropout")(x)
    logits = keras.layers.Dense(config.classes, name="head_logits")(x)
    return keras.Model(inputs, logits, name="mnasnet")


def _layer(inputs: Any, config: Config, block: Block, *, stride: int, path: str) -> Any:
    """One layer of a block: convolution, squeeze-and-excitation, shortcut."""
    channels = inputs.shape[-1]
    squeezed = max(1, int(channels * block.se_ratio)) if block.se_ratio else 0
    if block.op == "conv":
        x = convolution(inputs, block.filters, block.kernel, stride=stride, name=f"{path}_conv")
        x = norm(x, momentum=config.norm_momentum, name=f"{path}_conv_norm")
        x = keras.layers.ReLU(name=f"{path}_conv_relu")(x)
        x = squeeze_excite(x, squeezed, path) if squeezed else x
    else:
        x = inputs
        if block.expand > 1:
            x = convolution(x, channels * block.expand, 1, name=f"{path}_expand")
            x = norm(x, momentum=config.norm_momentum, name=f"{path}_expand_norm")
            x = keras.layers.ReLU(name=f"{path}_expand_relu")(x)
        x = depthwise(x, block.kernel, stride=stride, name=f"{path}_depthwise")
        x = norm(x, momentum=config.norm_momentum, name=f"{path}_depthwise_norm")
        x = keras.layers.ReLU(name=f"{path}_depthwise_relu")(x)
        x = squeeze_excite(x, squeezed, path) if squeezed else x
        x = convolution(x, block.filters, 1, name=f"{path}_project")
        x = norm(x, momentum=config.norm_momentum, name=f"{path}_project_norm")
    if block.skip == "pool":
        shortcut = keras.layers.AveragePooling2D(
            3, strides=stride, padding="same", name=f"{path}_pool"
        )(inputs)
        if channels != block.filters:
            shortcut = convolution(shortcut, block.filters, 1, name=f"{path}_shortcut")
            shortcut = norm(shortcut, momentum=config.norm_momentum, name=f"{path}_shortcut_norm")
        x = keras.layers.Add(name=f"{path}_add")([x, shortcut])
    elif block.skip == "identity" and stride == 1 and channels == block.filters:
        x = keras.layers.Add(name=f"{path}_add")([x, inputs])
    return x
