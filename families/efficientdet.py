"""EfficientDet: an EfficientNet, pyramids of weighted features, two heads for all sizes of objects.

Tan, Pang and Le, CVPR 2020 (arXiv 1911.09070); details, tables and the lite networks: google/automl
efficientdet, whose parameters these have to the last one.
"""

import dataclasses
import functools
import math
from typing import Any

import keras

from families import efficientnet
from families.blocks.checks import check, spell
from families.blocks.convolution import norm
from families.blocks.efficientnet import ACTIVATIONS, Block, norm_and_activate
from families.layers import Anchors, Detections, Fusion
from families.objectives import boxes

_check = functools.partial(check, "EfficientDet")

FUSIONS = ("fast", "softmax", "sum")
FORMS = ("training", "objects")
PRIOR = 0.01  # of any class at any anchor, as training begins: RetinaNet, section 4.1


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole network in canonical form: two Configs are equal exactly when their networks are.

    stem_filters, blocks, survival: of the backbone, as in EfficientNet. activation: of all but the
        blocks, which have their own.
    filters, cells: of the pyramid (BiFPN); every cell goes down and up the levels once.
    fusion: of features that meet: "fast" or "softmax" (learned weights), or their "sum".
    head_repeats: layers of each head before its predictions.
    levels: the first and the last; level n has stride 2 ** n. The backbone has those up to its last
        stride.
    anchor_scale: side of the smallest square anchor, in strides.
    form: "training" gives {"logits", "codes", "anchors"} of every anchor, what the loss is taken
        of; "objects" gives {"boxes", "scores", "classes"} (`boxes.select_objects`).
    """

    input_shape: tuple[int, int, int]
    classes: int
    stem_filters: int
    blocks: tuple[Block, ...]
    filters: int
    cells: int
    head_repeats: int
    fusion: str = "fast"
    levels: tuple[int, int] = (3, 7)
    anchor_scale: float = 4.0
    activation: str = "swish"
    survival: float = 0.8
    norm_momentum: float = 0.99
    form: str = "training"

    def __post_init__(self):
        spell(self, _canonical(self))


def _canonical(config: Config) -> dict:
    """Check every field, of the backbone by its own Config; one spelling for equal networks."""
    whole = {}
    for name in ("filters", "cells", "head_repeats"):
        whole[name] = int(getattr(config, name))
        _check(whole[name] > 0, name, getattr(config, name), "a positive integer")
    _check(config.fusion in FUSIONS, "fusion", config.fusion, f"one of {FUSIONS}")
    _check(config.form in FORMS, "form", config.form, f"one of {FORMS}")
    _check(config.anchor_scale > 0, "anchor_scale", config.anchor_scale, "a positive number")
    backbone = _backbone(config)
    first, last = levels = tuple(int(level) for level in config.levels)
    top = backbone.stem_stride - 1 + sum(block.stride == 2 for block in backbone.blocks)
    _check(
        1 <= first <= top and first < last,
        "levels",
        config.levels,
        f"the first of them from 1 to {top}, where the backbone ends, and below the last",
    )
    shared = ("input_shape", "classes", "stem_filters", "blocks", "activation", "survival")
    return whole | {
        **{name: getattr(backbone, name) for name in (*shared, "norm_momentum")},
        "fusion": str(config.fusion),
        "levels": levels,
        "anchor_scale": float(config.anchor_scale),
        "form": str(config.form),
    }


def _backbone(config: Config) -> efficientnet.Config:
    """The EfficientNet whose features are read; it has no head of its own."""
    return efficientnet.Config(
        input_shape=config.input_shape,
        classes=config.classes,
        stem_filters=config.stem_filters,
        blocks=config.blocks,
        survival=config.survival,
        activation=config.activation,
        norm_momentum=config.norm_momentum,
    )


def _of(
    backbone: efficientnet.Config, size: int, filters: int, cells: int, **others: Any
) -> Config:
    """A published network; they are for COCO's images, and 90 numbers of classes."""
    return Config(
        input_shape=(size, size, 3),
        classes=90,
        stem_filters=backbone.stem_filters,
        blocks=backbone.blocks,
        activation=backbone.activation,
        survival=backbone.survival,
        filters=filters,
        cells=cells,
        **others,
    )


def _lite(depth: float, width: float) -> efficientnet.Config:
    """EfficientNet-Lite: ReLU6, no gates; stem, and depth of the first and last block, as in B0."""
    base = efficientnet.VARIANTS["b0"]
    scaled = efficientnet.scaled(base, depth=depth, width=width)
    blocks = [
        dataclasses.replace(block, se_ratio=0.0, activation="relu6") for block in scaled.blocks
    ]
    for end in (0, -1):
        blocks[end] = dataclasses.replace(blocks[end], repeats=base.blocks[end].repeats)
    return dataclasses.replace(base, blocks=tuple(blocks), activation="relu6")


_B = efficientnet.VARIANTS
VARIANTS: dict[str, Config] = {
    "d0": _of(_B["b0"], 512, 64, 3, head_repeats=3),
    "d1": _of(_B["b1"], 640, 88, 4, head_repeats=3),
    "d2": _of(_B["b2"], 768, 112, 5, head_repeats=3),
    "d3": _of(_B["b3"], 896, 160, 6, head_repeats=4),
    "d4": _of(_B["b4"], 1024, 224, 7, head_repeats=4),
    "d5": _of(_B["b5"], 1280, 288, 7, head_repeats=4),
    "d6": _of(_B["b6"], 1280, 384, 8, head_repeats=5, fusion="sum"),
    "d7": _of(_B["b6"], 1536, 384, 8, head_repeats=5, fusion="sum", anchor_scale=5.0),
    "d7x": _of(_B["b7"], 1536, 384, 8, head_repeats=5, fusion="sum", levels=(3, 8)),
    "lite0": _of(_lite(1.0, 1.0), 320, 64, 3, head_repeats=3, fusion="sum", anchor_scale=3.0),
    "lite1": _of(_lite(1.1, 1.0), 384, 88, 4, head_repeats=3, fusion="sum", anchor_scale=3.0),
    "lite2": _of(_lite(1.2, 1.1), 448, 112, 5, head_repeats=3, fusion="sum", anchor_scale=3.0),
    "lite3": _of(_lite(1.4, 1.2), 512, 160, 6, head_repeats=4, fusion="sum"),
    "lite3x": _of(_lite(1.4, 1.2), 640, 200, 6, head_repeats=4, fusion="sum", anchor_scale=3.0),
    "lite4": _of(_lite(1.8, 1.4), 640, 224, 7, head_repeats=4, fusion="sum"),
}
# D0's pattern for small images and short training.
VARIANTS["tiny"] = Config(
    input_shape=(64, 64, 3),
    classes=3,
    stem_filters=8,
    blocks=(
        Block("mbconv", kernel=3, stride=1, filters=8, repeats=1),
        Block("mbconv", kernel=3, stride=2, filters=16, repeats=1, expand=3),
        Block("mbconv", kernel=5, stride=2, filters=24, repeats=2, expand=3),
        Block("mbconv", kernel=3, stride=2, filters=32, repeats=1, expand=3),
    ),
    filters=16,
    cells=1,
    head_repeats=1,
    levels=(3, 5),
    survival=1.0,
    norm_momentum=0.9,  # a proxy task has hundreds of steps, not 100,000: the averages must settle
)


def build(config: Config) -> keras.Model:
    """Images (batch, *input_shape) -> what `config.form` says, as a dict: flat and Functional.

    >>> build(VARIANTS["tiny"]).output["logits"].shape
    (None, 756, 3)
    """
    inputs = keras.Input(config.input_shape, name="image")
    features = _levels(efficientnet.features(inputs, _backbone(config)), config)
    for number in range(1, config.cells + 1):
        features = _cell(features, config, f"cell{number}")
    logits = _head(features, config, "class", config.classes, -math.log(1 / PRIOR - 1))
    codes = _head(features, config, "box", 4, 0.0)
    layout = (config.input_shape, config.levels, config.anchor_scale)
    if config.form == "training":
        anchors = Anchors(*layout, name="anchors")(codes)
        outputs = {"logits": logits, "codes": codes, "anchors": anchors}
    else:
        objects = Detections(*layout, name="objects")([logits, codes])
        outputs = dict(zip(("boxes", "scores", "classes"), objects, strict=True))
    return keras.Model(inputs, outputs, name="efficientdet")


def deploy(config: Config) -> Config:
    """The form that runs on a device: the objects, each of them once."""
    return dataclasses.replace(config, form="objects")


def _levels(features: dict, config: Config) -> dict:
    """{level: map} of all levels: those of the backbone, then each the one before at half size."""
    first, last = config.levels
    found = {level: features[level] for level in range(first, last + 1) if level in features}
    top = max(found)
    for level in range(top + 1, last + 1):
        x = found[level - 1]
        if level == top + 1:
            x = _resized_channels(x, config, f"level{level}")
        found[level] = _halved(x, f"level{level}_pool")
    return found


def _cell(features: dict, config: Config, path: str) -> dict:
    """One BiFPN: down from the coarsest level, then up, where each level meets itself twice."""
    first, last = config.levels
    down = {last: features[last]}
    for level in range(last - 1, first - 1, -1):
        pair = {"own": features[level], "above": down[level + 1]}
        down[level] = _node(pair, config, features[level].shape, f"{path}_down_{level}")
    up = {first: down[first]}
    for level in range(first + 1, last + 1):
        meet = {"own": features[level], "down": down[level], "below": up[level - 1]}
        if level == last:
            del meet["down"]  # which is its own
        up[level] = _node(meet, config, features[level].shape, f"{path}_up_{level}")
    return up


def _node(parts: dict, config: Config, shape: tuple, path: str) -> Any:
    """Maps of any level, made alike, fused, norm_and_activate and convolved."""
    alike = [
        _resized(_resized_channels(x, config, f"{path}_{name}"), shape, f"{path}_{name}")
        for name, x in parts.items()
    ]
    if config.fusion == "sum":
        x = keras.layers.Add(name=f"{path}_fuse")(alike)
    else:
        x = Fusion(config.fusion, name=f"{path}_fuse")(alike)
    x = _activation(config, f"{path}_{config.activation}")(x)
    depthwise, pointwise = _separable(config.filters, path)
    return norm(pointwise(depthwise(x)), momentum=config.norm_momentum, name=f"{path}_norm")


def _resized_channels(x: Any, config: Config, path: str) -> Any:
    """With as many channels as the pyramid has; each place that needs it has its own weights."""
    if x.shape[-1] == config.filters:
        return x
    x = keras.layers.Conv2D(config.filters, 1, padding="same", name=f"{path}_project")(x)
    return norm(x, momentum=config.norm_momentum, name=f"{path}_project_norm")


def _resized(x: Any, shape: tuple, path: str) -> Any:
    """With the height and width of `shape`, one level up or down."""
    height, width = shape[1:3]
    if x.shape[1:3] == (height, width):
        return x
    if x.shape[1] > height or x.shape[2] > width:
        return _halved(x, f"{path}_pool")
    x = keras.layers.UpSampling2D(2, name=f"{path}_grow")(x)
    # 3 places for 5: the nearest of each are those of 6 without the last.
    over = ((0, x.shape[1] - height), (0, x.shape[2] - width))
    return keras.layers.Cropping2D(over, name=f"{path}_crop")(x) if any(sum(over, ())) else x


def _halved(x: Any, name: str) -> Any:
    return keras.layers.MaxPooling2D(3, strides=2, padding="same", name=name)(x)


def _head(features: dict, config: Config, path: str, numbers: int, bias: float) -> Any:
    """`numbers` for every anchor (batch, A, numbers): weights shared by levels, norms by none."""
    layers = [
        _separable(config.filters, f"{path}_{repeat}", keras.initializers.VarianceScaling)
        for repeat in range(1, config.head_repeats + 1)
    ]
    ends = _separable(
        boxes.PER_PLACE * numbers, f"{path}_last", keras.initializers.VarianceScaling, bias
    )
    found = []
    for level, x in features.items():
        for repeat, (depthwise, pointwise) in enumerate(layers, 1):
            x = pointwise(depthwise(x))
            x = norm_and_activate(
                x, config.norm_momentum, config.activation, f"{path}_{repeat}_{level}"
            )
        x = ends[1](ends[0](x))
        shape = (x.shape[1] * x.shape[2] * boxes.PER_PLACE, numbers)
        found.append(keras.layers.Reshape(shape, name=f"{path}_reshape_{level}")(x))
    return keras.layers.Concatenate(axis=1, name=f"{path}_all")(found)


def _separable(
    filters: int, path: str, initializer: Any = keras.initializers.GlorotUniform, bias: float = 0.0
) -> Any:
    """A depthwise 3x3 and a 1x1 with bias, layers to be called as often as wanted."""
    depthwise = keras.layers.DepthwiseConv2D(
        3,
        padding="same",
        use_bias=False,
        depthwise_initializer=initializer(),
        name=f"{path}_depthwise",
    )
    pointwise = keras.layers.Conv2D(
        filters,
        1,
        padding="same",
        kernel_initializer=initializer(),
        bias_initializer=keras.initializers.Constant(bias),
        name=f"{path}_pointwise",
    )
    return depthwise, pointwise


def _activation(config: Config, name: str) -> Any:
    return keras.layers.Activation(ACTIVATIONS[config.activation], name=name)
