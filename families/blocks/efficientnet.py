"""Blocks of EfficientNet, EfficientNet-X and -H: one vocabulary, and the layouts they work in.

Tan and Le, ICML 2019 (arXiv 1905.11946) and Li et al., CVPR 2021 (arXiv 2102.05610); rules of the
released code: tensorflow/tpu models/official/efficientnet.
"""

import dataclasses
import functools
from typing import Any

import keras

from families.blocks.checks import check as check_field
from families.blocks.convolution import convolution, depthwise, norm, squeeze_excite
from families.layers import BatchToDepth, DepthToBatch, DepthToSpace, SpaceToDepth

check = functools.partial(check_field, "EfficientNet")

OPS = ("mbconv", "fused", "conv")
# And Keras' names.
ACTIVATIONS = {"relu": "relu", "relu6": "relu6", "swish": "silu", "hard_swish": "hard_silu"}
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
        second pixel, on their own: each has its gates and its dropped layers. The way in is a
        "reshape" of the pixels or "learned", a 2x2 convolution of stride 2. Blocks in a row with
        one layout stay in it (and are spelled as the first); a block in another, and the head, get
        the image back by a reshape. A block of stride 2 after one in "depth" reads the four-fold
        channels as they are and needs no stride; with "depth" of its own, a block of stride 2
        halves the size by the way in, and is in no layout after it.
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


def canonical(block: Block, place: "Place", before: str, path: str) -> Block:
    """A block that is checked and spelled as every other that builds the same layers is.

    place: of the feature map that it takes. before: `layout` of the block before it.
    """
    activations = tuple(ACTIVATIONS)
    check(block.op in OPS, f"{path} op", block.op, f"one of {OPS}")
    check(
        block.activation in activations,
        f"{path} activation",
        block.activation,
        f"one of {activations}",
    )
    check(block.layout in LAYOUTS, f"{path} layout", block.layout, f"one of {LAYOUTS}")
    # Other ratios would give one network several spellings (int(16 * .25) == int(16 * .26)).
    check(block.se_ratio in SE_RATIOS, f"{path} se_ratio", block.se_ratio, f"one of {SE_RATIOS}")
    check(block.stride in (1, 2), f"{path} stride", block.stride, "1 or 2")
    # In depth a kernel of 4 would be one of 3.
    check(block.kernel > 0 and block.kernel % 2 == 1, f"{path} kernel", block.kernel, "odd")
    for name in ("filters", "repeats", "expand"):
        check(int(getattr(block, name)) > 0, f"{path} {name}", getattr(block, name), "at least 1")
    entry = entry_of(block, place)
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
        skip=bool(block.skip) or not adds,  # one more layer, and it adds
        layout=layout,
    )


@dataclasses.dataclass(frozen=True)
class Place:
    """A feature map between two blocks.

    channels: of the image it holds. read: of its tensor. layout: "none", "depth" or "batch".
    """

    channels: int
    read: int
    layout: str


@dataclasses.dataclass(frozen=True)
class Entry:
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

    def after(self, block: Block) -> Place:
        """Where the pixels are after the block."""
        return Place(block.filters, block.filters * _depth(self.inside), self.inside)


def entry_of(block: Block, place: Place) -> Entry:
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
    return Entry(leaves, way_in, inside, stride, read, channels)


def _depth(layout: str) -> int:
    return 4 if layout == "depth" else 1


@dataclasses.dataclass(frozen=True)
class Map:
    """A feature map: its tensor, where that is, and the height and width of its image."""

    tensor: Any
    place: Place
    size: tuple[int, int]


def block_map(here: Map, block: Block, *, momentum: float, drops: list[float], path: str) -> Map:
    """The map after a block; `drops` are the shares of samples that its layers are left out for."""
    entry = entry_of(block, here.place)
    x = _enter(here, momentum, block, entry, path)
    multiple = _depth(entry.inside)
    kernel = (block.kernel + 1) // 2 if entry.inside == "depth" else block.kernel
    inside = dataclasses.replace(block, kernel=kernel, filters=block.filters * multiple)
    for repeat, drop in enumerate(drops, 1):
        first = repeat == 1
        x = _layer(
            x,
            momentum,
            inside,
            stride=entry.stride if first else 1,
            channels=entry.channels if first else inside.filters,
            squeezed=here.place.channels if first else inside.filters,
            drop=drop,
            path=f"{path}_{repeat}",
        )
    height, width = (-(-side // block.stride) for side in here.size)
    return Map(x, entry.after(block), (height, width))


def _enter(here: Map, momentum: float, block: Block, entry: Entry, path: str) -> Any:
    """The tensor that the first layer of a block reads."""
    x = image(here, path) if entry.leaves else here.tensor
    if entry.way_in == "none":
        return x
    into_batch = entry.inside == "batch"
    if entry.way_in.endswith("learned"):
        filters = entry.read * (4 if into_batch else 1)
        x = convolution(x, filters, 2, stride=2, name=f"{path}_enter_conv")
        x = norm_and_activate(x, momentum, block.activation, f"{path}_enter")
    else:
        x = SpaceToDepth(name=f"{path}_enter_depth")(x)
    return DepthToBatch(name=f"{path}_enter_batch")(x) if into_batch else x


def image(here: Map, path: str) -> Any:
    """The image of a map in any layout."""
    x = here.tensor
    if here.place.layout == "batch":
        x = BatchToDepth(name=f"{path}_leave_batch")(x)
    if here.place.layout != "none":
        x = DepthToSpace(here.size, name=f"{path}_leave_depth")(x)
    return x


def _layer(
    inputs: Any,
    momentum: float,
    block: Block,
    *,
    stride: int,
    channels: int,
    squeezed: int,
    drop: float,
    path: str,
) -> Any:
    """Convolutions, squeeze-and-excitation, shortcut.

    channels: what the expansion multiplies. squeezed: what the ratio of the squeeze multiplies.
    drop: the share of samples whose layer is left out in training.
    """
    x = inputs
    if block.op == "mbconv":
        if block.expand > 1:
            x = convolution(x, channels * block.expand, 1, name=f"{path}_expand")
            x = norm_and_activate(x, momentum, block.activation, f"{path}_expand")
        x = depthwise(x, block.kernel, stride=stride, name=f"{path}_depthwise")
        x = norm_and_activate(x, momentum, block.activation, f"{path}_depthwise")
    else:
        filters = block.filters if block.op == "conv" else channels * block.expand
        x = convolution(x, filters, block.kernel, stride=stride, name=f"{path}_conv")
        x = norm_and_activate(x, momentum, block.activation, f"{path}_conv")
    if block.se_ratio:
        units = max(1, int(squeezed * block.se_ratio))
        x = squeeze_excite(x, units, path, ACTIVATIONS[block.activation])
    if block.op != "conv":
        x = convolution(x, block.filters, 1, name=f"{path}_project")
        x = norm(x, momentum=momentum, name=f"{path}_project_norm")
    if block.skip and stride == 1 and inputs.shape[-1] == block.filters:
        if drop:
            x = keras.layers.Dropout(drop, noise_shape=(None, 1, 1, 1), name=f"{path}_drop")(x)
        x = keras.layers.Add(name=f"{path}_add")([x, inputs])
    return x


def norm_and_activate(inputs: Any, momentum: float, activation: str, path: str) -> Any:
    """Normalized and norm_and_activate."""
    x = norm(inputs, momentum=momentum, name=f"{path}_norm")
    return keras.layers.Activation(ACTIVATIONS[activation], name=f"{path}_{activation}")(x)
