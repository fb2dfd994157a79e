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

from families.blocks.convolution import convolution, depthwise, norm, squeeze_excite
from families.layers import BatchToDepth, DepthToBatch, DepthToSpace, SpaceToDepth, round_filters

OPS = ("mbconv", "fused", "conv")
ACTIVATIONS = {"relu": "relu", "swish": "silu", "hard_swish": "hard_silu"}  # and Keras' names
LAYOUTS = ("none", "depth_learned", "depth_reshape", "batch_learned", "batch_reshape")
SE_RATIOS = (0.0, 0.25, 0.5, 1.0)


@dataclasses.dataclass(frozen=True)
class Block:
    """`repeats` layers of one kind; the first may have stride 2.

    op: "mbconv" expands by a 1x1, convolves depthwise and projects by a 1x1; "fused" expands by the
        full convolution itself and projects; "conv" is the full convolution alone.
    expand: the channels between are this many times those of the input ("conv": 1).
    se_ratio: squeeze-and-excitation with int(ratio * input channels) units, 0 for none. (The
        released EfficientNet-X multiplies .25 by a coefficient of 4, 2 or 1: 1, .5 or .25 here.)
    activation: after every convolution but the projection, and in the squeeze.
    skip: the input is added where stride is 1 and channels agree.
    layout: where the block keeps its pixels. "depth": four times the channels at half the size; the
        kernel is (kernel + 1) // 2 wide there. "batch": four images of half the size, each of every
        second pixel, as they are to all layers between: gates and dropped layers are theirs, too.
        The way in is a "reshape" of the pixels or "learned", a 2x2 convolution of stride 2. Blocks
        in a row with one layout stay in it (and are spelled as the first); who has another, and
        the head, get the image back by a reshape. A block of stride 2 that
        follows one in "depth" reads the four-fold channels as they are and needs no stride; with
        "depth" of its own it halves the size by the way in, and is in no layout after it.
    """

    op: str
    kernel: int
    stride: int
    filters: int
    repeats: int
    expand: int = 1
    se_ratio: float = 0.25
    activation: str = "swish"
    skip: bool = True
    layout: str = "none"


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole network in canonical form: two Configs are equal exactly when their networks are.

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
        for name, value in _canonical(self).items():
            object.__setattr__(self, name, value)


def scaled(
    config: Config, *, depth: float = 1.0, width: float = 1.0, resolution: int | None = None
) -> Config:
    """The network deeper, wider and for larger images: compound scaling with given factors.

    Repeats are rounded up, channels of stem, blocks and head by `round_filters`; a factor of 1 and
    no `resolution` leave things as they are.

    >>> scaled(VARIANTS["b0"], depth=1.1, width=1.0, resolution=240) == VARIANTS["b1"]
    True
    """
    for name, factor in (("depth", depth), ("width", width)):
        _check(factor > 0, name, factor, "a positive factor")
    shape = config.input_shape
    if resolution is not None:
        shape = (resolution, resolution, shape[2])

    def filters(count: int) -> int:
        return count if width == 1 else round_filters(count * width)

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
    _check(
        len(shape) == 3 and min(shape) > 0, "input_shape", config.input_shape, "3 positive sizes"
    )
    for name in ("classes", "stem_filters", "head_filters"):
        _check(int(getattr(config, name)) > 0, name, getattr(config, name), "a positive integer")
    for name, low, high in (("dropout", 0, 0.99), ("norm_momentum", 0, 0.9999), ("survival", 0, 1)):
        value = getattr(config, name)
        _check(low <= value <= high, name, value, f"{low} <= {name} <= {high}")
    _check(config.stem_stride in (1, 2), "stem_stride", config.stem_stride, "1 or 2")
    _check(
        config.activation in ACTIVATIONS,
        "activation",
        config.activation,
        f"one of {[*ACTIVATIONS]}",
    )
    blocks, place = [], _Place(int(config.stem_filters), int(config.stem_filters), "none")
    for number, block in enumerate(config.blocks, 1):
        before = blocks[-1].layout if blocks else "none"
        block = _canonical_block(block, place, before, f"block{number}")
        place = _entry(block, place).after(block)
        blocks.append(block)
    # The first layer of all is never left out.
    drops = any(block.skip and (block.repeats > 1 or block is not blocks[0]) for block in blocks)
    return {
        "input_shape": shape,
        "classes": int(config.classes),
        "stem_filters": int(config.stem_filters),
        "blocks": tuple(blocks),
        "head_filters": int(config.head_filters),
        "dropout": float(config.dropout),
        "survival": float(config.survival) if drops else 1.0,
        "activation": str(config.activation),
        "stem_stride": int(config.stem_stride),
        "norm_momentum": float(config.norm_momentum),
    }


def _canonical_block(block: Block, place: "_Place", before: str, path: str) -> Block:
    """`before` is the layout of the block before."""
    activations = tuple(ACTIVATIONS)
    _check(block.op in OPS, f"{path} op", block.op, f"one of {OPS}")
    _check(
        block.activation in activations,
        f"{path} activation",
        block.activation,
        f"one of {activations}",
    )
    _check(block.layout in LAYOUTS, f"{path} layout", block.layout, f"one of {LAYOUTS}")
    # Other ratios would give one network several spellings (int(16 * .25) == int(16 * .26)).
    _check(block.se_ratio in SE_RATIOS, f"{path} se_ratio", block.se_ratio, f"one of {SE_RATIOS}")
    _check(block.stride in (1, 2), f"{path} stride", block.stride, "1 or 2")
    # In depth a kernel of 4 would be one of 3.
    _check(block.kernel > 0 and block.kernel % 2 == 1, f"{path} kernel", block.kernel, "odd")
    for name in ("filters", "repeats", "expand"):
        _check(int(getattr(block, name)) > 0, f"{path} {name}", getattr(block, name), "at least 1")
    entry = _entry(block, place)
    layout = str(block.layout)
    if layout != "none" and entry.way_in == "none":
        layout = before if entry.inside != "none" else "none"
    filters, repeats = int(block.filters), int(block.repeats)
    adds = repeats > 1 or (entry.stride == 1 and entry.read == filters * _depth(entry.inside))
    return Block(
        op=str(block.op),
        kernel=int(block.kernel),
        stride=int(block.stride),
        filters=filters,
        repeats=repeats,
        expand=1 if block.op == "conv" else int(block.expand),
        se_ratio=float(block.se_ratio),
        activation=str(block.activation),
        skip=bool(block.skip) and adds,
        layout=layout,
    )


def _check(holds: bool, name: str, value, expected: str):
    if not holds:
        raise ValueError(f"EfficientNet {name}: got {value!r}, expected {expected}")


@dataclasses.dataclass(frozen=True)
class _Place:
    """A feature map between two blocks.

    channels: of the image it holds. read: of its tensor. layout: "none", "depth" or "batch".
    """

    channels: int
    read: int
    layout: str


@dataclasses.dataclass(frozen=True)
class _Entry:
    """How a block takes a feature map.

    leaves: it gets the image back first. way_in: as `Block.layout`, "none" where it goes in no
    layout or is in it. inside: the layout of its layers. stride: of its first layer. read: channels
    of the tensor that this layer reads. channels: those that its expansion multiplies.
    """

    leaves: bool
    way_in: str
    inside: str
    stride: int
    read: int
    channels: int

    def after(self, block: Block) -> _Place:
        return _Place(block.filters, block.filters * _depth(self.inside), self.inside)


def _entry(block: Block, place: _Place) -> _Entry:
    """The rules of layouts (see `Block`); those of "depth" are of the released EfficientNet-X."""
    wanted, _, how = block.layout.partition("_")
    way_in, inside, stride = block.layout, wanted, block.stride
    leaves = False
    if place.layout == "depth" and stride == 2:  # four pixels are at hand at half the size
        stride = 1
        if wanted == "depth":
            way_in = inside = "none"
    elif place.layout == wanted:
        way_in = "none"
    else:
        leaves = place.layout != "none"
        if wanted == "depth" and stride == 2:  # the way in halves the size
            inside, stride = "none", 1
    channels = place.channels * _depth(inside)
    read = place.channels if leaves else place.read
    if way_in != "none":
        read = channels if how == "learned" else read * (4 if wanted == "depth" else 1)
    return _Entry(leaves, way_in, inside, stride, read, channels)


def _depth(layout: str) -> int:
    return 4 if layout == "depth" else 1


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

    >>> build(VARIANTS["b0"]).count_params()
    5330564
    """
    inputs = keras.Input(config.input_shape, name="image")
    *_, last = _maps(inputs, config)
    x = _image(last, "head")
    x = convolution(x, config.head_filters, 1, name="head_conv")
    x = _normal(x, config, config.activation, "head")
    x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    if config.dropout:
        x = keras.layers.Dropout(config.dropout, name="head_dropout")(x)
    logits = keras.layers.Dense(config.classes, name="head_logits")(x)
    return keras.Model(inputs, logits, name="efficientnet")


def features(inputs: Any, config: Config) -> dict[int, Any]:
    """What a detector reads of images (a Keras tensor): {level: the last map of stride 2**level}.

    The layers are those of `build` without its head, so that weights of equal paths fit
    (`families.layers.copy_weights`). `classes`, `head_filters` and `dropout` have no part in it.

    >>> maps = features(keras.Input((512, 512, 3)), VARIANTS["b0"])
    >>> {level: tensor.shape[1:] for level, tensor in maps.items()}[5]
    (16, 16, 320)
    """
    levels, level = {}, config.stem_stride - 1
    for number, here in enumerate(_maps(inputs, config)):
        if number and config.blocks[number - 1].stride == 2:
            level += 1
        levels[level] = here
    return {level: _image(here, f"level{level}") for level, here in levels.items()}


@dataclasses.dataclass(frozen=True)
class _Map:
    """A feature map: its tensor, where that is, and the height and width of its image."""

    tensor: Any
    place: _Place
    size: tuple[int, int]


def _maps(inputs, config: Config) -> Iterator[_Map]:
    """The feature maps after the stem and after every block."""
    x = convolution(inputs, config.stem_filters, 3, stride=config.stem_stride, name="stem_conv")
    x = _normal(x, config, config.activation, "stem")
    here = _Map(x, _Place(config.stem_filters, config.stem_filters, "none"), x.shape[1:3])
    yield here
    layers, done = sum(block.repeats for block in config.blocks), 0
    for number, block in enumerate(config.blocks, 1):
        drops = [
            (1 - config.survival) * index / layers for index in range(done, done + block.repeats)
        ]
        done += block.repeats
        here = _block(here, config, block, drops=drops, path=f"block{number}")
        yield here


def _block(here: _Map, config: Config, block: Block, *, drops: list[float], path: str) -> _Map:
    entry = _entry(block, here.place)
    x = _enter(here, config, block, entry, path)
    multiple = _depth(entry.inside)
    kernel = (block.kernel + 1) // 2 if entry.inside == "depth" else block.kernel
    inside = dataclasses.replace(block, kernel=kernel, filters=block.filters * multiple)
    for repeat, drop in enumerate(drops, 1):
        first = repeat == 1
        x = _layer(
            x,
            config,
            inside,
            stride=entry.stride if first else 1,
            channels=entry.channels if first else inside.filters,
            squeezed=here.place.channels if first else inside.filters,
            drop=drop,
            path=f"{path}_{repeat}",
        )
    height, width = (-(-side // block.stride) for side in here.size)
    return _Map(x, entry.after(block), (height, width))


def _enter(here: _Map, config: Config, block: Block, entry: _Entry, path: str):
    """The tensor that the first layer of a block reads."""
    x = _image(here, path) if entry.leaves else here.tensor
    if entry.way_in == "none":
        return x
    into_batch = entry.inside == "batch"
    if entry.way_in.endswith("learned"):
        filters = entry.read * (4 if into_batch else 1)
        x = convolution(x, filters, 2, stride=2, name=f"{path}_enter_conv")
        x = _normal(x, config, block.activation, f"{path}_enter")
    else:
        x = SpaceToDepth(name=f"{path}_enter_depth")(x)
    return DepthToBatch(name=f"{path}_enter_batch")(x) if into_batch else x


def _image(here: _Map, path: str):
    """The image of a map in any layout."""
    x = here.tensor
    if here.place.layout == "batch":
        x = BatchToDepth(name=f"{path}_leave_batch")(x)
    if here.place.layout != "none":
        x = DepthToSpace(here.size, name=f"{path}_leave_depth")(x)
    return x


def _layer(
    inputs,
    config: Config,
    block: Block,
    *,
    stride: int,
    channels: int,
    squeezed: int,
    drop: float,
    path: str,
):
    """Convolutions, squeeze-and-excitation, shortcut.

    channels: what the expansion multiplies. squeezed: what the ratio of the squeeze multiplies.
    drop: the share of samples whose layer is left out in training.
    """
    x = inputs
    if block.op == "mbconv":
        if block.expand > 1:
            x = convolution(x, channels * block.expand, 1, name=f"{path}_expand")
            x = _normal(x, config, block.activation, f"{path}_expand")
        x = depthwise(x, block.kernel, stride=stride, name=f"{path}_depthwise")
        x = _normal(x, config, block.activation, f"{path}_depthwise")
    else:
        filters = block.filters if block.op == "conv" else channels * block.expand
        x = convolution(x, filters, block.kernel, stride=stride, name=f"{path}_conv")
        x = _normal(x, config, block.activation, f"{path}_conv")
    if block.se_ratio:
        units = max(1, int(squeezed * block.se_ratio))
        x = squeeze_excite(x, units, path, ACTIVATIONS[block.activation])
    if block.op != "conv":
        x = convolution(x, block.filters, 1, name=f"{path}_project")
        x = norm(x, momentum=config.norm_momentum, name=f"{path}_project_norm")
    if block.skip and stride == 1 and inputs.shape[-1] == block.filters:
        if drop:
            x = keras.layers.Dropout(drop, noise_shape=(None, 1, 1, 1), name=f"{path}_drop")(x)
        x = keras.layers.Add(name=f"{path}_add")([x, inputs])
    return x


def _normal(inputs, config: Config, activation: str, path: str):
    """Normalized and activated."""
    x = norm(inputs, momentum=config.norm_momentum, name=f"{path}_norm")
    return keras.layers.Activation(ACTIVATIONS[activation], name=f"{path}_{activation}")(x)
